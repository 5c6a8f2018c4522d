//! Real and virtual-8086 mode, tasks, and the ways between modes (SDM volume 3, 9.8, 9.9, chapters 7 and 20).

use crate::conformance::program::{Io, UD, fault, fault_with, gp, interrupt, programs, trap};
use umbra_x86::cpuid::feature;

programs! { "modes";
    real_to_protected_and_back in Real "
        mov word ptr [0x7800], 0x1ff
        mov word ptr [0x7802], 0x6000
        mov word ptr [0x7804], 0
        lgdt [0x7800]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        JMPF 8, 7f
    7:  SIZE 32
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov dword ptr [0x200000], 0x12345678
        mov eax, [0x200000]
        LOG eax
        JMPF16 0x20, 7f
    7:  SIZE 16
        mov ax, 0x28
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        JMPF 0, 7f
    7:  xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov ax, 0x2000
        mov es, ax
        mov word ptr es:[4], 0x77
        mov ax, es:[4]
        LOG ax
        TRY int 0x42
    " { results: &[0x1234_5678, 0x77], faults: &[trap(0x42, 2)] }
    real_straight_after_the_switch in Real "
        mov word ptr [0x7800], 0x1ff
        mov word ptr [0x7802], 0x6000
        mov word ptr [0x7804], 0
        lgdt [0x7800]
        mov ax, 0x2000
        mov es, ax
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov word ptr es:[0x10], 0x55
        mov ax, cs
        mov bx, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        mov ax, es:[0x10]
        LOG ax
        LOG bx
    " { results: &[0x55, 0], memory: &[(0x2_0010, &[0x55])] }
    unreal_mode in Real "
        mov word ptr [0x7800], 0x1ff
        mov word ptr [0x7802], 0x6000
        mov word ptr [0x7804], 0
        lgdt [0x7800]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 0x10
        mov fs, bx
        and al, 0xfe
        mov cr0, eax
        mov ebx, 0x200000
        mov dword ptr fs:[ebx], 0x99aabbcc
        mov eax, fs:[ebx]
        LOG eax
        mov bx, fs
        LOG bx
        mov bx, 0x2000
        mov fs, bx
        mov ebx, 0x1e0000
        mov eax, fs:[ebx]
        LOG eax
    " { results: &[0x99aa_bbcc, 0x10, 0x99aa_bbcc] }
    real_to_long in Real "
        mov word ptr [0x7800], 0x1ff
        mov word ptr [0x7802], 0x6000
        mov word ptr [0x7804], 0
        lgdt [0x7800]
        mov dword ptr [0x1000], 0x2003
        mov dword ptr [0x2000], 0x3003
        mov dword ptr [0x3000], 0x83
        mov dword ptr [0x3004], 0
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, 0x1000
        mov cr3, eax
        mov ecx, 0xc0000080
        mov eax, 0x100
        xor edx, edx
        wrmsr
        mov eax, cr0
        or eax, 0x80000001
        mov cr0, eax
        JMPF 0x18, 7f
    7:  SIZE 64
        mov rax, 0x1122334455667788
        LOG rax
        mov ecx, 0xc0000080
        rdmsr
        LOG rax
        jmp 8f
    7:  nop
    8:  nop
    " { results: &[0x1122_3344_5566_7788, 0x500] }
    long_to_real in Long "
        JMPF 0x18, 7f
    7:  SIZE 32
        mov eax, 0x10
        mov ds, eax
        mov ss, eax
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        LOG eax
        and eax, 0xfffffeff
        wrmsr
        rdmsr
        LOG eax
        mov eax, cr4
        and eax, 0xffffffdf
        mov cr4, eax
        JMPF16 0x20, 7f
    7:  SIZE 16
        mov ax, 0x28
        mov ds, ax
        mov ss, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        JMPF 0, 7f
    7:  xor ax, ax
        mov ds, ax
        mov ss, ax
        mov ax, 0x1234
        LOG ax
        mov bx, 0x1111
        LOG bx
    " { results: &[0x901, 0x801, 0x1234, 0x1111] }
    paging_cannot_be_left_in_64_bit_mode in Long "
        mov rax, cr0
        and eax, 0x7fffffff
        TRY mov cr0, rax
        mov rax, cr4
        and eax, 0xffffffdf
        TRY mov cr4, rax
        mov rax, cr0
        and eax, 0xfffffffe
        TRY mov cr0, rax
        mov ecx, 0xc0000080
        rdmsr
        xor eax, 0x100
        TRY wrmsr
        rdmsr
        LOG rax
    " { results: &[0xd01], faults: &[gp(0), gp(0), gp(0), gp(0)] }
    long_mode_needs_pae in Protected "
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, 0x1000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        TRY mov cr0, eax
        mov eax, cr0
        LOG eax
    " { results: &[0x1_0033], faults: &[gp(0)] }
    control_register_0_rules in Long "
        mov rax, cr0
        mov rcx, rax
        or eax, 0x20000000
        TRY mov cr0, rax
        mov rax, rcx
        mov rdx, 0x100000000
        or rax, rdx
        TRY mov cr0, rax
        mov rax, cr0
        xor rax, rcx
        LOG rax
    " { results: &[0], faults: &[gp(0), gp(0)] }
    control_register_3_rules in Long "
        mov rax, 0x8000000000000000
        mov rdx, cr3
        or rax, rdx
        TRY mov cr3, rax
        mov rax, cr3
        LOG rax
    " { results: &[0x1000], faults: &[gp(0)] }
    control_register_4_rules in Long "
        mov rax, cr4
        mov rcx, rax
        mov rdx, 0x100000000
        or rax, rdx
        TRY mov cr4, rax
        mov rax, rcx
        or eax, 0x80000000
        TRY mov cr4, rax
        mov rax, cr4
        xor rax, rcx
        LOG rax
    " { results: &[0], faults: &[gp(0), gp(0)] }
    control_registers_that_do_not_exist in Long "
        TRY .byte 0x0f, 0x20, 0xc8
        TRY .byte 0x0f, 0x22, 0xe8
        TRY .byte 0x0f, 0x20, 0xf0
        TRY .byte 0x44, 0x0f, 0x20, 0xc8
    " { faults: &[UD, UD, UD, UD] }
    smsw_lmsw_clts in Protected "
        smsw eax
        LOG eax
        mov eax, 0x3b
        lmsw ax
        smsw ax
        LOG ax
        clts
        smsw ax
        LOG ax
        mov eax, 0
        lmsw ax
        mov eax, cr0
        and eax, 1
        LOG eax
    " { results: &[0x1_0033, 0x3b, 0x33, 1] }
    v86_runs_and_returns in Protected "
        GOV86
        mov ax, 0x2000
        mov es, ax
        mov word ptr es:[2], 0x1234
        mov ax, es:[2]
        LOG ax
        mov ax, cs
        LOG ax
        mov bx, 0xffff
        int 0x41
        SIZE 32
        ASKERNEL
        mov eax, ss
        LOG eax
        pushfd
        pop eax
        and eax, 0x20000
        LOG eax
    " { results: &[0x1234, 0, 0x10, 0] }
    v86_is_ring_3 in Protected "
        GOV86
        TRY hlt
        TRY mov eax, cr0
        TRY lgdt [0x7800]
        TRY .byte 0x0f, 0x00, 0xc0
        TRY .byte 0x63, 0xc0
        TRY .byte 0x0f, 0x02, 0xc0
        TRY mov eax, dr7
        int 0x41
        SIZE 32
        ASKERNEL
    " { faults: &[gp(0), gp(0), gp(0), UD, UD, UD, gp(0)] }
    v86_without_iopl in Protected "
        GATE 6, 7f
        GOV86 0x20002
        TRY cli
        TRY sti
        TRY pushf
        TRY popf
        TRY int 0x40
        TRY iret
        TRY int3
        mov dx, 0x300
        TRY out dx, al
        .byte 0x0f, 0x0b
        SIZE 32
    7:  ASKERNEL
        mov eax, 0x10
        mov ds, eax
        mov eax, ss
        LOG eax
    " { results: &[0x10], faults: &[gp(0), gp(0), gp(0), gp(0), gp(0), gp(0), trap(3, 1), gp(0)] }
    v86_stack_of_an_interrupt in Protected "
        GATE 0x42, 7f
        GOV86
        mov ax, 0x1111
        mov ds, ax
        mov ax, 0x2222
        mov gs, ax
        int 0x42
        SIZE 32
    7:  ASKERNEL
        mov eax, ds
        mov ecx, 0x10
        mov ds, ecx
        LOG eax
        mov eax, [esp+8]
        LOG eax
        mov eax, [esp+12]
        LOG eax
        mov eax, [esp+16]
        LOG eax
        mov eax, [esp+24]
        LOG eax
        mov eax, [esp+32]
        LOG eax
        mov eax, gs
        LOG eax
    " { results: &[0, 0x2_3002, 0x9ff0, 0, 0x1111, 0x2222, 0] }
    v86_ports_go_by_the_bitmap in Protected "
        mov byte ptr [0x100c8], 0xfe
        mov edx, 0x300
        GOV86
        mov al, 0x12
        out dx, al
        inc dx
        TRY out dx, al
        int 0x41
        SIZE 32
        ASKERNEL
    " { faults: &[gp(0)], io: &[Io::Out(0x300, 1, 0x12)] }
    v86_limit in Protected "
        GOV86
        mov bx, 0xffff
        TRY mov ax, [bx]
        int 0x41
        SIZE 32
    " { faults: &[gp(0)] }
    v86_above_1m in Protected "
        GOV86
        mov ax, 0xffff
        mov es, ax
        mov word ptr es:[0x20], 0x4321
        int 0x41
        SIZE 32
        ASKERNEL
        mov eax, [0x100010]
        LOG eax
    " { results: &[0x4321] }
    v86_interrupted_from_outside in Protected "
        mov al, 0x52
        out 0xe2, al
        GOV86 0x23202
        nop
        nop
        int 0x41
        SIZE 32
        ASKERNEL
        cli
        mov eax, [0xb020]
        and eax, 0x20000
        LOG eax
    " { results: &[0x2_0000], faults: &[interrupt(0x52)] }
    task_switch_by_call_and_iret in Protected "
        mov edi, 0x13000
        mov eax, cr3
        mov [edi+0x1c], eax
        ADDR eax, 7f
        mov [edi+0x20], eax
        mov dword ptr [edi+0x24], 2
        mov dword ptr [edi+0x28], 0xaaaa
        mov dword ptr [edi+0x2c], 0xcccc
        mov dword ptr [edi+0x38], 0xe400
        mov dword ptr [edi+0x48], 0x10
        mov dword ptr [edi+0x4c], 8
        mov dword ptr [edi+0x50], 0x10
        mov dword ptr [edi+0x54], 0x10
        mov dword ptr [edi+0x58], 0xe8
        mov dword ptr [edi+0x5c], 0
        mov dword ptr [edi+0x60], 0
        mov ebx, 0xbbbb
        mov eax, 0x1111
        .byte 0x9a
        .long 0
        .word 0x98
        LOG eax
        LOG ebx
        str ax
        LOG ax
        mov al, [0x609d]
        and eax, 0xf
        LOG eax
        mov eax, [0x13028]
        LOG eax
        jmp 8f
    7:  LOG eax
        mov eax, fs
        LOG eax
        str ax
        LOG ax
        mov ax, [0x13000]
        LOG ax
        pushfd
        pop eax
        and eax, 0x4000
        LOG eax
        mov al, [0x604d]
        and eax, 0xf
        LOG eax
        mov eax, cr0
        and eax, 8
        LOG eax
        mov eax, 0x7777
        iretd
    8:  nop
    " { results: &[0x1111, 0xbbbb, 0x48, 9, 0x7777, 0xaaaa, 0xe8, 0x98, 0x48, 0x4000, 0xb, 8] }
    task_switch_by_jump in Protected "
        mov edi, 0x13000
        ADDR eax, 7f
        mov [edi+0x20], eax
        mov dword ptr [edi+0x24], 2
        mov dword ptr [edi+0x38], 0xe400
        mov dword ptr [edi+0x48], 0x10
        mov dword ptr [edi+0x4c], 8
        mov dword ptr [edi+0x50], 0x10
        mov dword ptr [edi+0x54], 0x10
        .byte 0xea
        .long 0
        .word 0x98
    7:  mov al, [0x604d]
        and eax, 0xf
        LOG eax
        pushfd
        pop eax
        and eax, 0x4000
        LOG eax
        clts
        mov eax, [0x10020]
        ADDR ecx, 7b
        sub ecx, eax
        LOG ecx
    " { results: &[9, 0, 0] }
    task_gate_for_an_exception in Protected "
        mov edi, 0x13000
        ADDR eax, 7f
        mov [edi+0x20], eax
        mov dword ptr [edi+0x24], 2
        mov dword ptr [edi+0x38], 0xe400
        mov dword ptr [edi+0x48], 0x10
        mov dword ptr [edi+0x4c], 8
        mov dword ptr [edi+0x50], 0x10
        mov dword ptr [edi+0x54], 0x10
        mov dword ptr [0xa058], 0x00980000
        mov dword ptr [0xa05c], 0x00008500
        mov eax, 0xb0
        mov ds, eax
    6:  LOG eax
        jmp 8f
    7:  pop eax
        LOG eax
        ADDR eax, 6b
        mov [0x10020], eax
        iretd
    8:  nop
    " { results: &[0xb0, 0xb0] }
    task_errors in Protected "
        mov dword ptr [0x20000], 0
        mov word ptr [0x20004], 0x48
        TRY jmp fword ptr [0x20000]
        and byte ptr [0x609d], 0x7f
        mov word ptr [0x20004], 0x98
        TRY jmp fword ptr [0x20000]
        or byte ptr [0x609d], 0x80
        mov word ptr [0x6098], 0x10
        TRY jmp fword ptr [0x20000]
        pushfd
        or dword ptr [esp], 0x4000
        popfd
        mov word ptr [0x10000], 0x10
        TRY iretd
    " { faults: &[gp(0x48), fault_with(11, 0x98), fault_with(10, 0x98), fault_with(10, 0x10)] }
    no_task_switch_in_long_mode in Long "
        mov dword ptr [0x120000], 0
        mov word ptr [0x120004], 0x98
        TRY jmp fword ptr [0x120000]
        mov word ptr [0x120004], 0x48
        TRY lcall [0x120000]
    " { faults: &[gp(0x98), gp(0x48)] }
    nx_and_long_mode_bits_of_efer in Long "
        mov ecx, 0xc0000080
        rdmsr
        LOG rax
        or eax, 0x2
        TRY wrmsr
        xor eax, eax
        mov edx, 1
        TRY wrmsr
    " { results: &[0xd01], faults: &[gp(0), gp(0)] }
    cs_with_both_l_and_d in Long "
        or byte ptr [0x60de], 0x40
        push 0xd8
        push 0x8000
        TRY rex64 retf
        mov rsp, 0xf000
    " { faults: &[gp(0xd8)] }
    opcodes_that_64_bit_mode_lost in Long "
        TRY .byte 0x60
        TRY .byte 0x61
        TRY .byte 0x9a, 0, 0, 0, 0, 8, 0
        TRY .byte 0xea, 0, 0, 0, 0, 8, 0
        TRY .byte 0xce
        TRY .byte 0x1e
        TRY .byte 0x0e
        TRY .byte 0x37
    " { faults: &[fault(6); 8], needs: &[feature::LM] }
    salc_in_64_bit_mode in Long "
        TRY .byte 0xd6
    " { faults: &[UD] }
    evex_without_avx512 in Long "
        TRY .byte 0x62, 0xf1, 0x7c, 0x48, 0x10, 0xc0
    " { faults: &[UD] }
}
