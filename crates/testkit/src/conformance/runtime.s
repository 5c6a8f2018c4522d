# What stands in guest memory beside every program: the entries of all 256 vectors, in three widths, and the start of a
# second processor. An entry logs what it finds (see `layout.rs`), then goes on where TRY said, or where the stack says.
.pushsection .rodata.umbra_conformance,"a"
.intel_syntax noprefix

.macro ENTRY vector, common, bits
 .balign 16
 .if \bits == 16
  .byte 0x68
  .word \vector
 .else
  .if (\vector == 8) || (\vector >= 10 && \vector <= 14) || (\vector == 17) || (\vector == 21)
  .else
   push 0
  .endif
  .byte 0x68
  .long \vector
 .endif
 jmp \common
.endm

.globl umbra_conformance_runtime64
.globl umbra_conformance_runtime64_end
.balign 16
umbra_conformance_runtime64:
.code64
.set V, 0
.rept 256
 ENTRY V, .Lcommon64, 64
 .set V, V+1
.endr
.balign 16
.Lcommon64:
 push rax
 push rcx
 push rdx
 cmp dword ptr [rsp+24], 0x41
 je .Lback64
 mov eax, 1
 lock xadd dword ptr [0x7f10], eax
 cmp eax, 60
 jae .Lfail64
 shl eax, 6
 lea ecx, [rax+0xb000]
 mov rdx, [rsp+24]
 mov [rcx], rdx
 mov rdx, [rsp+32]
 mov [rcx+8], rdx
 mov rdx, [rsp+40]
 sub rdx, [0x7f08]
 mov [rcx+16], rdx
 mov rdx, [rsp+48]
 mov [rcx+24], rdx
 mov rdx, [rsp+56]
 mov [rcx+32], rdx
 mov rdx, [rsp+64]
 mov [rcx+40], rdx
 mov rdx, [rsp+72]
 mov [rcx+48], rdx
 mov rdx, cr2
 mov [rcx+56], rdx
 mov eax, [rsp+24]
 cmp eax, 0x20
 jb .Lexception64
 cmp eax, 0x50
 jb .Lout64
 mov edx, 0xfee000b0
 mov dword ptr [rdx], 0
 jmp .Lout64
.Lexception64:
 mov rax, [0x7f00]
 test rax, rax
 jz .Lout64
 mov [rsp+40], rax
 mov qword ptr [0x7f00], 0
.Lout64:
 pop rdx
 pop rcx
 pop rax
 add rsp, 16
 iretq
.Lback64:
 pop rdx
 pop rcx
 pop rax
 add rsp, 16
 and qword ptr [rsp], 0xffff
 mov qword ptr [rsp+8], 8
 mov qword ptr [rsp+24], 0xf000
 mov qword ptr [rsp+32], 0x10
 iretq
.Lfail64:
 mov al, 2
 out 0xe0, al
 jmp .Lfail64
umbra_conformance_runtime64_end:

.globl umbra_conformance_runtime32
.globl umbra_conformance_runtime32_end
.balign 16
umbra_conformance_runtime32:
.code32
.set V, 0
.rept 256
 ENTRY V, .Lcommon32, 32
 .set V, V+1
.endr
.balign 16
.Lcommon32:
 push eax
 push ecx
 push edx
 .byte 0x1e  # push ds, 32 bits wide
 mov eax, 0x10
 mov ds, eax
 cmp dword ptr [esp+16], 0x41
 je .Lback32
 mov eax, 1
 lock xadd dword ptr [0x7f10], eax
 cmp eax, 60
 jae .Lfail32
 shl eax, 6
 lea ecx, [eax+0xb000]
 mov edx, [esp+16]
 mov [ecx], edx
 mov edx, [esp+20]
 mov [ecx+8], edx
 mov edx, [esp+24]
 sub edx, [0x7f08]
 mov [ecx+16], edx
 mov edx, [esp+28]
 mov [ecx+24], edx
 mov edx, [esp+32]
 mov [ecx+32], edx
 lea edx, [esp+36]
 mov [ecx+40], edx
 mov edx, cr2
 mov [ecx+56], edx
 mov eax, [esp+16]
 cmp eax, 0x20
 jb .Lexception32
 cmp eax, 0x50
 jb .Lout32
 mov edx, 0xfee000b0
 mov dword ptr [edx], 0
 jmp .Lout32
.Lexception32:
 mov eax, [0x7f00]
 test eax, eax
 jz .Lout32
 mov [esp+24], eax
 mov dword ptr [0x7f00], 0
.Lout32:
 .byte 0x1f  # pop ds
 pop edx
 pop ecx
 pop eax
 add esp, 8
 iretd
.Lback32:
 mov es, eax
 mov dword ptr [esp+28], 8
 and dword ptr [esp+24], 0xffff
 and dword ptr [esp+32], 0xfffdffff
 mov eax, [esp+24]
 mov [0xefec], eax
 mov eax, [esp+28]
 mov [0xeff0], eax
 mov eax, [esp+32]
 mov [0xeff4], eax
 pop edx
 pop edx
 pop ecx
 pop eax
 mov esp, 0xefec
 mov dword ptr [esp-4], 0x10
 mov ss, word ptr [esp-4]
 mov ds, word ptr [esp-4]
 iretd
.Lfail32:
 mov al, 2
 out 0xe0, al
 jmp .Lfail32
umbra_conformance_runtime32_end:

.globl umbra_conformance_runtime16
.globl umbra_conformance_runtime16_end
.balign 16
umbra_conformance_runtime16:
.code16
.set V, 0
.rept 256
 ENTRY V, .Lcommon16, 16
 .set V, V+1
.endr
.balign 16
.Lcommon16:
 push ax
 push bx
 push dx
 push ds
 push bp
 mov bp, sp
 xor ax, ax
 mov ds, ax
 mov bx, [0x7f10]
 inc word ptr [0x7f10]
 cmp bx, 60
 jae .Lfail16
 shl bx, 6
 add bx, 0xb000
 mov ax, [bp+10]
 mov [bx], ax
 mov ax, [bp+12]
 sub ax, [0x7f08]
 cwd
 mov [bx+16], ax
 mov [bx+18], dx
 mov ax, [bp+14]
 mov [bx+24], ax
 mov ax, [bp+16]
 mov [bx+32], ax
 cmp word ptr [bp+10], 0x20
 jae .Lout16
 mov ax, [0x7f00]
 test ax, ax
 jz .Lout16
 mov [bp+12], ax
 mov word ptr [0x7f00], 0
.Lout16:
 pop bp
 pop ds
 pop dx
 pop bx
 pop ax
 .byte 0x83, 0xc4, 0x02
 iret
.Lfail16:
 mov al, 2
 out 0xe0, al
 jmp .Lfail16
umbra_conformance_runtime16_end:

.globl umbra_conformance_startup
.globl umbra_conformance_startup_end
.balign 16
umbra_conformance_startup:
.code16
 cli
 xor ax, ax
 mov ds, ax
 .byte 0x2e, 0x66, 0x0f, 0x01, 0x16  # lgdt cs:[the table's address below]
 .word .Lgdt - umbra_conformance_startup
 mov eax, cr4
 or eax, 0x620
 mov cr4, eax
 mov eax, 0x1000
 mov cr3, eax
 mov ecx, 0xc0000080
 mov eax, 0x901
 xor edx, edx
 wrmsr
 mov eax, 0x80010033
 mov cr0, eax
 .byte 0x66, 0xea
 .long .Llong - umbra_conformance_startup + 0x1f000
 .word 8
.code64
.Llong:
 mov eax, 0x10
 mov ds, eax
 mov es, eax
 mov ss, eax
 mov esp, 0xe800
 lidt [rip + .Lidt]
 mov edi, 1
 mov eax, 0x8000
 jmp rax
.Lgdt:
 .word 0x1ff
 .long 0x6000
.Lidt:
 .word 0xfff
 .quad 0xa000
umbra_conformance_startup_end:
.code64
.popsection
