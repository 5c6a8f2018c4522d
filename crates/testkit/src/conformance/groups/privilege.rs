//! What each ring may do, and the ways between rings (SDM volume 3, chapters 5 and 6; volume 1, 19 for I/O).

use crate::conformance::program::{Fault, Io, UD, fault_with, gp, interrupt, pf, programs, trap};
use umbra_x86::cpuid::feature;

/// An exception whose saved RIP may be anything.
const fn somewhere(vector: u8, error: u32) -> Fault {
    Fault { vector, error, at: None, cr2: None }
}

programs! { "privilege";
    control_registers_in_ring_3 in Long "
        GO3
        TRY mov rax, cr0
        TRY mov rax, cr2
        TRY mov rax, cr3
        TRY mov rax, cr4
        TRY mov rax, cr8
        TRY mov cr0, rax
        TRY mov cr2, rax
        TRY mov cr3, rax
        TRY mov cr4, rax
        TRY mov cr8, rax
        TRY mov rax, dr0
        TRY mov dr7, rax
        TRY clts
        TRY lmsw ax
    " { faults: &[gp(0); 14] }
    tables_in_ring_3 in Long "
        mov ebx, 0x120000
        GO3
        TRY lgdt [rbx]
        TRY lidt [rbx]
        TRY lldt ax
        TRY ltr ax
        TRY invlpg [rbx]
        TRY hlt
        TRY rdmsr
        TRY wrmsr
        TRY swapgs
        TRY sysretq
        TRY sysexit
        TRY .byte 0x0f, 0x01, 0xd1
    " { faults: &[gp(0); 12] }
    cache_flushes_in_ring_3 in Long "
        GO3
        TRY wbinvd
        TRY invd
    " { faults: &[gp(0); 2] }
    cli_sti_need_iopl in Long "
        GO3 0x1002
        TRY cli
        TRY sti
        BACK0
        GO3 0x3002
        sti
        cli
    " { faults: &[gp(0), gp(0)] }
    popf_in_ring_3 in Long "
        GO3 0x1202
        push 0x3d7
        or qword ptr [rsp], 0x3000
        and qword ptr [rsp], 0xfffffffffffffcff
        popfq
        pushfq
        pop rax
        LOG rax
        push 0x3dd7
        and qword ptr [rsp], 0xfffffffffffffeff
        popfq
        pushfq
        pop rax
        LOG rax
        push 0x1202
        popfq
        BACK0
        cli
    " { results: &[0x12d7, 0x1ed7] }
    popf_in_ring_3_with_iopl in Long "
        GO3 0x3002
        push 0x202
        popfq
        pushfq
        pop rax
        LOG rax
        cli
        pushfq
        pop rax
        LOG rax
    " { results: &[0x3202, 0x3002] }
    ports_without_rights in Long "
        mov edx, 0x300
        GO3 0x1002
        TRY in al, dx
        TRY out dx, al
        TRY out dx, eax
        TRY in ax, 0x80
        mov edi, 0x120000
        mov ecx, 2
        TRY rep insb
        mov esi, edi
        TRY outsb
        BACK0
    " { faults: &[gp(0); 6] }
    ports_by_iopl in Long "
        mov edx, 0x300
        mov eax, 0x11223344
        GO3 0x3002
        out dx, al
        out dx, ax
        out dx, eax
    " { io: &[Io::Out(0x300, 1, 0x44), Io::Out(0x300, 2, 0x3344), Io::Out(0x300, 4, 0x1122_3344)] }
    ports_by_bitmap in Long "
        mov byte ptr [0x100c8], 0x0f
        mov edx, 0x304
        mov eax, 0x11223344
        GO3 0x1002
        out dx, al
        out dx, eax
        add dx, 2
        out dx, ax
        TRY out dx, eax
        mov dx, 0x303
        TRY out dx, al
        TRY out dx, ax
        BACK0
    " { faults: &[gp(0), gp(0), gp(0)], io: &[Io::Out(0x304, 1, 0x44), Io::Out(0x304, 4, 0x1122_3344), Io::Out(0x306, 2, 0x3344)] }
    bitmap_beyond_the_tss_limit in Long "
        mov byte ptr [0x100c8], 0
        mov word ptr [0x6048], 0xc8
        and byte ptr [0x604d], 0xfd
        mov eax, 0x48
        ltr ax
        mov edx, 0x300
        GO3 0x1002
        TRY out dx, al
        BACK0
        mov word ptr [0x6048], 0xc9
        and byte ptr [0x604d], 0xfd
        mov eax, 0x48
        ltr ax
        GO3 0x1002
        out dx, al
        mov dx, 0x308
        TRY out dx, al
        BACK0
    " { faults: &[gp(0), gp(0)], io: &[Io::Out(0x300, 1, 0x48)] }
    umip in Long "
        mov rax, cr4
        or eax, 0x800
        mov cr4, rax
        mov ebx, 0x120000
        GO3
        TRY sgdt [rbx]
        TRY sidt [rbx]
        TRY sldt ax
        TRY str ax
        TRY smsw ax
        BACK0
        sgdt [rbx]
        mov rax, cr4
        and eax, 0xfffff7ff
        mov cr4, rax
        GO3
        str ax
        movzx eax, ax
        LOG rax
    " { results: &[0x48], faults: &[gp(0); 5], needs: &[feature::UMIP] }
    time_stamp_disable in Long "
        mov rax, cr4
        or eax, 4
        mov cr4, rax
        rdtsc
        GO3
        TRY rdtsc
    " { faults: &[gp(0)] }
    rdpmc_in_ring_3 in Long "
        xor ecx, ecx
        GO3
        TRY rdpmc
    " { faults: &[gp(0)] }
    interrupt_gate_from_ring_3 in Long "
        GATE 0x42, 7f
        GO3 0x3202
        int 0x42
        BACK0
        cli
        jmp 8f
        ASKERNEL
    7:  pushfq
        pop rax
        LOG rax
        mov rax, cs
        LOG rax
        mov rax, ss
        LOG rax
        LOG rsp
        mov rax, [rsp+8]
        LOG rax
        mov rax, [rsp+16]
        LOG rax
        mov rax, [rsp+24]
        LOG rax
        mov rax, [rsp+32]
        LOG rax
        iretq
    8:  nop
    " { results: &[0x3002, 8, 0, 0xf7d8, 0x43, 0x3202, 0x11_0000, 0x3b] }
    trap_gate_keeps_interrupts in Long "
        GATE 0x42, 7f
        mov byte ptr [0xa425], 0xef
        GO3 0x3202
        int 0x42
        BACK0
        cli
        jmp 8f
        ASKERNEL
    7:  pushfq
        pop rax
        mov [0x20000], rax
        iretq
    8:  mov rax, [0x20000]
        LOG rax
    " { results: &[0x3202] }
    int_to_a_gate_of_ring_0 in Long "
        mov al, [0xa300]
        GO3
        TRY int 0x30
        TRY int 0x0e
        TRY .byte 0xf1
        TRY int3
    " { faults: &[gp(0x182), gp(0x72), somewhere(1, 0), trap(3, 1)] }
    stack_is_aligned_at_interrupts in Long "
        GATE 0x42, 7f
        mov rbp, rsp
        sub rsp, 3
        int 0x42
        mov rax, rsp
        LOG rax
        mov rsp, rbp
        jmp 8f
    7:  LOG rsp
        mov rax, [rsp+24]
        LOG rax
        iretq
    8:  nop
    " { results: &[0xeffd, 0xefc8, 0xeffd] }
    syscall_and_sysret in Long "
        mov ecx, 0xc0000082
        ADDR rax, 7f
        xor edx, edx
        wrmsr
        mov ecx, 0xc0000084
        mov eax, 0x40600
        wrmsr
        GO3 0x3602
        syscall
    6:  pushfq
        pop rax
        LOG rax
        mov eax, cs
        LOG rax
        mov eax, ss
        LOG rax
        ADDR rdx, 6b
        sub rcx, rdx
        LOG rcx
        LOG r11
        BACK0
        cli
        cld
        jmp 8f
        ASKERNEL
    7:  nop
        mov [0x20000], rsp
        mov rsp, 0xe800
        pushfq
        pop rax
        mov [0x20008], rax
        mov eax, cs
        mov [0x20010], rax
        mov eax, ss
        mov [0x20018], rax
        mov rsp, [0x20000]
        sysretq
    8:  mov rax, [0x20000]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        mov rax, [0x20010]
        LOG rax
        mov rax, [0x20018]
        LOG rax
    " { results: &[0x3602, 0x43, 0x3b, 0, 0x3602, 0x11_0000, 0x3002, 8, 0x10] }
    syscall_keeps_status_flags in Long "
        mov ecx, 0xc0000082
        ADDR rax, 7f
        xor edx, edx
        wrmsr
        GO3 0x3002
        mov al, 0x7f
        add al, 1
        stc
        syscall
        BACK0
        jmp 8f
        ASKERNEL
    7:  LOGF
        sysretq
    8:  nop
    " { results: &[0x891] }
    syscall_is_off_without_sce in Long "
        mov ecx, 0xc0000080
        rdmsr
        and eax, 0xfffffffe
        wrmsr
        TRY syscall
        TRY sysretq
    " { faults: &[UD, UD] }
    sysret_to_compatibility_mode in Long "
        ADDR rcx, 7f
        add ecx, 0x100000
        mov r11d, 0x3002
        mov esp, 0x110000
        .byte 0x0f, 0x07
    7:  ASUSER
        SIZE 32
        mov eax, cs
        LOG eax
        mov eax, ss
        LOG eax
        xor eax, eax
        dec eax
        .byte 0x48
        LOG eax
        int 0x41
        SIZE 64
    " { results: &[0x33, 0x3b, 0xffff_fffe] }
    sysenter_and_sysexit in Long "
        mov ecx, 0x174
        mov eax, 0x68
        xor edx, edx
        wrmsr
        inc ecx
        mov eax, 0xe800
        wrmsr
        inc ecx
        ADDR rax, 7f
        wrmsr
        GO3 0x23202
        sysenter
    6:  mov eax, cs
        LOG rax
        mov eax, ss
        LOG rax
        LOG rsp
        BACK0
        jmp 8f
    7:  mov [0x20000], rsp
        pushfq
        pop rax
        mov [0x20008], rax
        mov eax, cs
        mov [0x20010], rax
        mov eax, ss
        mov [0x20018], rax
        ASUSER
        ADDR rdx, 6b
        ASKERNEL
        mov ecx, 0x10fff0
        sysexitq
    8:  mov rax, [0x20000]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        mov rax, [0x20010]
        LOG rax
        mov rax, [0x20018]
        LOG rax
    " { results: &[0x8b, 0x93, 0x10_fff0, 0xe800, 0x3002, 0x68, 0x70] }
    sysenter_without_a_selector in Protected "
        mov ecx, 0x174
        xor eax, eax
        xor edx, edx
        wrmsr
        TRY sysenter
        TRY sysexit
    " { faults: &[gp(0), gp(0)] }
    sysenter_in_protected_mode in Protected "
        mov ecx, 0x174
        mov eax, 0x68
        xor edx, edx
        wrmsr
        inc ecx
        mov eax, 0xe800
        wrmsr
        inc ecx
        ADDR eax, 7f
        wrmsr
        GO3 0x3202
        sysenter
    6:  mov eax, cs
        LOG eax
        mov eax, ss
        LOG eax
        BACK0
        jmp 8f
    7:  mov [0x20000], esp
        mov eax, 0x10
        mov ds, eax
        pushfd
        pop dword ptr [0x20004]
        ADDR edx, 6b
        mov ecx, 0x110000
        sysexit
    8:  mov eax, [0x20000]
        LOG eax
        mov eax, [0x20004]
        LOG eax
    " { results: &[0x7b, 0x83, 0xe800, 0x3002] }
    call_gate_in_protected_mode in Protected "
        ADDR eax, 7f
        mov [0x60f0], ax
        mov word ptr [0x60f2], 8
        mov word ptr [0x60f4], 0xec02
        mov word ptr [0x60f6], 0
        GO3
        push 0x11
        push 0x22
        .byte 0x9a
        .long 0
        .word 0xf3
        LOG esp
        mov eax, cs
        LOG eax
        BACK0
        jmp 8f
    7:  mov eax, cs
        mov [0x20000], eax
        mov [0x20004], esp
        mov eax, [esp+8]
        mov [0x20008], eax
        mov eax, [esp+12]
        mov [0x2000c], eax
        mov eax, [esp+16]
        mov [0x20010], eax
        retf 8
    8:  mov eax, [0x20000]
        LOG eax
        mov eax, [0x20004]
        LOG eax
        mov eax, [0x20008]
        LOG eax
        mov eax, [0x2000c]
        LOG eax
        mov eax, [0x20010]
        LOG eax
    " { results: &[0x11_0000, 0x33, 8, 0xf7e8, 0x22, 0x11, 0x10_fff8] }
    call_gate_in_long_mode in Long "
        ADDR rax, 7f
        mov [0x60f0], ax
        mov word ptr [0x60f2], 8
        mov word ptr [0x60f4], 0xec00
        mov word ptr [0x60f6], 0
        mov qword ptr [0x60f8], 0
        mov dword ptr [0x120000], 0
        mov word ptr [0x120004], 0xf3
        mov rcx, rsp
        lcall [0x120000]
        sub rcx, rsp
        LOG rcx
        GO3
        lcall [0x120000]
        LOG rsp
        BACK0
        jmp 8f
    7:  mov rax, cs
        mov [0x20000], rax
        mov [0x20008], rsp
        mov rax, [rsp+8]
        mov [0x20010], rax
        rex64 retf
    8:  mov rax, [0x20000]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        mov rax, [0x20010]
        LOG rax
    " { results: &[0, 0x11_0000, 8, 0xf7e0, 0x43] }
    gate_errors in Long "
        mov qword ptr [0x120000], 0
        mov word ptr [0x120004], 0x1ff
        TRY jmp fword ptr [0x120000]
        mov word ptr [0x120004], 0x208
        TRY jmp fword ptr [0x120000]
        mov word ptr [0x120004], 0
        TRY jmp fword ptr [0x120000]
        mov word ptr [0x120004], 0x10
        TRY lcall [0x120000]
        mov word ptr [0x120004], 0xe0
        TRY lcall [0x120000]
        mov word ptr [0x120004], 0x40
        TRY lcall [0x120000]
    " { faults: &[gp(0x1fc), gp(0x208), gp(0), gp(0x10), fault_with(11, 0xe0), gp(0x40)] }
    conforming_code_keeps_the_ring in Protected "
        GO3
        JMPF 0xa8, 7f
    7:  mov eax, cs
        LOG eax
        TRY hlt
        JMPF 0x33, 7f
    7:  mov eax, cs
        LOG eax
        mov dword ptr [0x20000], 0
        mov word ptr [0x20004], 8
        TRY ljmp [0x20000]
    " { results: &[0xab, 0x33], faults: &[gp(0), gp(8)] }
    ring_3_in_protected_mode in Protected "
        GO3 0x3002
        mov eax, cs
        LOG eax
        mov eax, ss
        LOG eax
        TRY mov eax, cr0
        TRY hlt
        mov eax, 0x10
        TRY mov ds, eax
        TRY mov ss, eax
        BACK0
        mov eax, ss
        LOG eax
    " { results: &[0x33, 0x3b, 0x10], faults: &[gp(0), gp(0), gp(0x10), gp(0x10)] }
    return_to_an_outer_ring_clears_data_segments in Protected "
        mov eax, 0x10
        mov fs, eax
        mov gs, eax
        mov eax, 0x3b
        mov es, eax
        GO3
        mov eax, fs
        LOG eax
        mov eax, gs
        LOG eax
        mov eax, es
        LOG eax
        mov eax, ds
        LOG eax
    " { results: &[0, 0, 0x3b, 0x3b] }
    iret_to_an_inner_ring in Long "
        GO3
        mov rbp, rsp
        push 0x10
        push 0xe000
        push 0x3002
        push 8
        push 0x8000
        TRY iretq
        mov rsp, rbp
    " { faults: &[gp(8)] }
    compatibility_mode_in_ring_3 in Long "
        mov r8, -1
        GO3C
        mov eax, cs
        LOG eax
        .byte 0x40
        LOG eax
        mov ebx, 0x120000
        mov dword ptr [ebx], 0x55
        mov ecx, 0xffffffff
        mov eax, [ecx+0x120001]
        LOG eax
        TRY .byte 0xf4
        int 0x41
        SIZE 64
        ASKERNEL
        LOG r8
    " { results: &[0x33, 0x34, 0x55, u64::MAX], faults: &[gp(0)] }
    compatibility_mode_in_ring_0 in Long "
        JMPF 0x18, 7f
    7:  SIZE 32
        mov eax, 5
        dec eax
        .byte 0x48
        LOG eax
        JMPF 8, 7f
        SIZE 64
    7:  mov eax, 5
        LOG rax
    " { results: &[3, 5] }
    fault_in_user_mode_on_a_missing_stack in Long "
        GO3
        mov esp, 0x600000
        TRY int 0x40
        TRY mov al, [0x600008]
        mov esp, 0x110000
    " { faults: &[interrupt(0x40), pf(4, 0x60_0008)] }
    cpuid_and_rdtsc_in_ring_3 in Long "
        GO3
        xor eax, eax
        cpuid
        LOG rbx
        rdtsc
        mov ecx, eax
        xor ecx, ecx
        xgetbv
        LOG rax
    " { results: &[0x756e_6547, 7], needs: &[feature::AVX] }
}
