# Macros of the guest programs. A program starts at CODE in the mode its declaration names, in ring 0, with a flat
# identity mapping; what the addresses below are, `layout.rs` says.
#
#   LOG reg            store a register in the next result slot (16 bits or wider); in ring 0 a MARK, too
#   LOGF [mask]        store the status flags under a mask in the next result slot; changes nothing
#   TRY insn           run an instruction that may fault; a fault is logged and the program goes on behind it
#   REL                count the logged instruction pointers from here
#   GO3 [flags]        go on in ring 3, by default with IOPL 3; BACK0 returns to ring 0
#   GATE vec, label    let interrupt vec enter the program itself
#   ADDR reg, label    the guest address of a label
#   JMPF sel, label    far jump to a label in another segment
#   MARK               a point at which the machine may be saved and restored
#   DONE               the end
.ifndef UMBRA_PRELUDE
.set UMBRA_PRELUDE, 1
.set CODE, 0x8000
.set KERNEL_VARS, 0x7000
.set USER, 0x100000
.set RESUME, 0xf00
.set ORIGIN, 0xf08
.set COUNT, 0xf10
.set IDT, 0xa000
.set PORT_DONE, 0xe0
.set PORT_MARK, 0xe1
.set PORT_EXTINT, 0xe2
.set PORT_MSI, 0xe4
.set KERNEL_STACK, 0xf000
.set USER_STACK, 0x110000

.macro BEGIN sym, bits, paged
 .set BITS, \bits
 .set PAGED, \paged
 .set START, \sym
 .set N, 0
 .set VARS, KERNEL_VARS
 .set UOFF, 0
 .set MARKS, 1
 .code\bits
 .if BITS != 16
  # The first processor's task register is loaded by the program itself: QEMU's TCG, which emulates the host in which KVM is
  # tested, takes no busy TSS from a hypervisor.
  test edi, edi
  jnz 995f
  mov eax, 0x48
  ltr ax
995:
  xor eax, eax
 .endif
.endm

# The slots are used as the text comes, whether or not it is executed.
.macro LOG what:req
 mov [VARS + 8*N], \what
 .set N, N+1
 .if MARKS
  out PORT_MARK, al
 .endif
.endm

.macro LOGF mask=0xcd5
 .if BITS == 64
  pushfq
  pushfq
  and qword ptr [rsp], \mask
  pop qword ptr [VARS + 8*N]
  popfq
 .elseif BITS == 32
  pushfd
  pushfd
  and dword ptr [esp], \mask
  pop dword ptr [VARS + 8*N]
  popfd
 .else
  pushf
  pushf
  push bp
  mov bp, sp
  and word ptr [bp+2], \mask
  pop bp
  pop word ptr [VARS + 8*N]
  popf
 .endif
 .set N, N+1
.endm

.macro SETVAR var, label
 .att_syntax prefix
 .if BITS == 64
  movq $(\label - START + CODE + UOFF), VARS+\var
 .elseif BITS == 32
  movl $(\label - START + CODE + UOFF), VARS+\var
 .else
  movw $(\label - START + CODE + UOFF), VARS+\var
 .endif
 .intel_syntax noprefix
.endm

.macro CLEARVAR var
 .if BITS == 64
  mov qword ptr [VARS+\var], 0
 .elseif BITS == 32
  mov dword ptr [VARS+\var], 0
 .else
  mov word ptr [VARS+\var], 0
 .endif
.endm

.macro TRY insn:vararg
 SETVAR ORIGIN, 998f
 SETVAR RESUME, 999f
998:
 \insn
999:
 CLEARVAR RESUME
.endm

.macro REL
 SETVAR ORIGIN, 998f
998:
.endm

.macro ADDR reg, label
 .att_syntax prefix
 .if BITS == 64
  movq $(\label - START + CODE + UOFF), %\reg
 .elseif BITS == 32
  movl $(\label - START + CODE + UOFF), %\reg
 .else
  movw $(\label - START + CODE + UOFF), %\reg
 .endif
 .intel_syntax noprefix
.endm

# The low half of an address at the label, for memory operands and far pointers in data.
.macro WORDAT label
 .word \label - START + CODE
.endm
.macro LONGAT label
 .long \label - START + CODE + UOFF
.endm

.macro GATE vec, label
 .att_syntax prefix
 .if BITS == 64
  movw $(\label - START + CODE), IDT + 16*\vec
 .elseif BITS == 32
  movw $(\label - START + CODE), IDT + 8*\vec
 .else
  movw $(\label - START + CODE), 4*\vec
 .endif
 .intel_syntax noprefix
.endm

.macro JMPF sel, label
 .if BITS == 64
  push \sel
  sub rsp, 8
  .att_syntax prefix
  movq $(\label - START + CODE), (%rsp)
  .intel_syntax noprefix
  rex64 retf
 .elseif BITS == 32
  .byte 0xea
  .long \label - START + CODE
  .word \sel
 .else
  .byte 0xea
  .word \label - START + CODE
  .word \sel
 .endif
.endm

# A far jump with a 32-bit offset from 16-bit code.
.macro JMPF32 sel, label
 .byte 0x66, 0xea
 .long \label - START + CODE
 .word \sel
.endm
# A far jump with a 16-bit offset from 32-bit code.
.macro JMPF16 sel, label
 .byte 0x66, 0xea
 .word \label - START + CODE
 .word \sel
.endm

# From here on the text is assembled as 16-, 32- or 64-bit code.
.macro SIZE bits
 .set BITS, \bits
 .code\bits
.endm

.macro ASUSER
 .set MARKS, 0
 .if PAGED
  .set VARS, KERNEL_VARS + USER
  .set UOFF, USER
 .endif
.endm
.macro ASKERNEL
 .set MARKS, 1
 .set VARS, KERNEL_VARS
 .set UOFF, 0
.endm

.macro GO3 flags=0x3002
 ASUSER
 .if BITS == 64
  push 0x3b
  push USER_STACK
  push \flags
  push 0x43
  sub rsp, 8
  SETTOP 997f
  iretq
 .else
  push 0x3b
  push USER_STACK
  push \flags
  push 0x33
  push 0
  SETTOP 997f
  mov word ptr [esp-4], 0x3b
  mov ds, word ptr [esp-4]
  mov es, word ptr [esp-4]
  iretd
 .endif
997:
.endm

# Ring 3 in compatibility mode.
.macro GO3C flags=0x3002
 ASUSER
 push 0x3b
 mov ds, word ptr [rsp]
 mov es, word ptr [rsp]
 pop rax
 push 0x3b
 push USER_STACK
 push \flags
 push 0x33
 sub rsp, 8
 SETTOP 997f
 iretq
 SIZE 32
997:
.endm

.macro SETTOP label
 .att_syntax prefix
 .if BITS == 64
  movq $(\label - START + CODE + UOFF), (%rsp)
 .else
  movl $(\label - START + CODE + UOFF), (%esp)
 .endif
 .intel_syntax noprefix
.endm

# Interrupt 0x41 of the runtime: on in ring 0 behind the instruction.
.macro BACK0
 int 0x41
 ASKERNEL
.endm

# Virtual-8086 mode at 0:label, stack at 0:0x6f00.
.macro GOV86 flags=0x23002
 push 0
 push 0
 push 0
 push 0
 push 0
 push 0x9ff0
 push \flags
 push 0
 push 0
 SETTOP 997f
 .set MARKS, 0
 iretd
 SIZE 16
997:
.endm

.macro MARK
 out PORT_MARK, al
.endm

.macro DONE
 mov al, 0
 out PORT_DONE, al
996:
 jmp 996b
.endm
.endif
