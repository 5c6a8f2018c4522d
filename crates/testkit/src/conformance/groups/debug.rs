//! Single step, breakpoints, and their registers (SDM volume 3, chapter 17).

use crate::conformance::program::{UD, fault, gp, programs, trap};

programs! { "debug";
    single_step in Long "
        GATE 1, 7f
        xor ecx, ecx
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        nop
        nop
        nop
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        LOG rcx
        jmp 8f
    7:  inc ecx
        push rax
        mov rax, dr6
        mov [0x20000], rax
        pop rax
        iretq
    8:  mov rax, [0x20000]
        LOG rax
    " { results: &[6, 0xffff_4ff0] }
    single_step_of_one_instruction in Long "
        REL
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        nop
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        mov rax, [0xb010]
        LOG rax
        mov rax, [0xb020]
        and eax, 0x100
        LOG rax
    " { results: &[10, 0x100], faults: &[trap(1, 10), trap(1, 11), trap(1, 18), trap(1, 19)] }
    single_step_skips_after_mov_ss in Protected "
        GATE 1, 7f
        mov edx, 0x10
        xor ecx, ecx
        pushfd
        or dword ptr [esp], 0x100
        popfd
        mov ss, edx
        nop
        nop
        pushfd
        and dword ptr [esp], 0xfffffeff
        popfd
        LOG ecx
        jmp 8f
    7:  inc ecx
        iretd
    8:  nop
    " { results: &[5] }
    single_step_through_an_interrupt in Long "
        GATE 1, 7f
        GATE 0x42, 6f
        xor ecx, ecx
        xor edx, edx
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        int 0x42
        nop
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        LOG rcx
        LOG rdx
        jmp 8f
    6:  pushfq
        pop rdx
        and edx, 0x100
        iretq
    7:  inc ecx
        iretq
    8:  nop
    " { results: &[4, 0] }
    single_step_of_rep_stops_after_each_element in Long "
        GATE 1, 7f
        mov edi, 0x20000
        mov ecx, 5
        xor edx, edx
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        rep stosb
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        LOG rdx
        jmp 8f
    7:  inc edx
        iretq
    8:  nop
    " { results: &[8] }
    single_step_in_ring_3 in Long "
        GO3 0x3102
    4:  nop
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        BACK0
        mov rax, [0xb018]
        LOG rax
    " { results: &[0x43], faults: &[crate::conformance::program::interrupt(1), crate::conformance::program::interrupt(1),
        crate::conformance::program::interrupt(1), crate::conformance::program::interrupt(1)] }
    instruction_breakpoint in Long "
        GATE 1, 7f
        ADDR rax, 3f
        mov dr0, rax
        mov eax, 0x401
        mov dr7, rax
        xor ecx, ecx
        nop
    3:  nop
        nop
        LOG rcx
        jmp 8f
    7:  inc ecx
        push rax
        mov rax, dr6
        mov [0x20000], rax
        ADDR rax, 3b
        sub rax, [rsp+8]
        mov [0x20008], rax
        or dword ptr [rsp+24], 0x10000
        pop rax
        iretq
    8:  mov rax, [0x20000]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        xor eax, eax
        mov dr7, rax
    " { results: &[1, 0xffff_0ff1, 0] }
    data_breakpoint_on_writes in Long "
        GATE 1, 7f
        mov eax, 0x20004
        mov dr1, rax
        mov eax, 0xd00404
        mov dr7, rax
        xor ecx, ecx
        mov eax, [0x20004]
        mov byte ptr [0x20003], 1
        mov byte ptr [0x20008], 1
        LOG rcx
        mov byte ptr [0x20007], 1
        mov dword ptr [0x20001], 1
        LOG rcx
        mov dword ptr [0x20004], 0x55
        LOG rcx
        jmp 8f
    7:  inc ecx
        push rax
        mov rax, dr6
        mov [0x20100], rax
        mov eax, [0x20004]
        mov [0x20108], rax
        pop rax
        iretq
    8:  mov rax, [0x20100]
        LOG rax
        mov rax, [0x20108]
        LOG rax
        xor eax, eax
        mov dr7, rax
    " { results: &[0, 2, 3, 0xffff_0ff2, 0x55] }
    data_breakpoint_on_all_accesses in Long "
        GATE 1, 7f
        mov eax, 0x20008
        mov dr2, rax
        mov eax, 0xb000410
        mov dr7, rax
        xor ecx, ecx
        mov rax, [0x20008]
        mov [0x2000f], al
        mov rax, [0x20000]
        mov al, [0x20010]
        push qword ptr [0x20008]
        pop rax
        xor eax, eax
        mov dr7, rax
        LOG rcx
        jmp 8f
    7:  inc ecx
        iretq
    8:  nop
    " { results: &[3] }
    breakpoint_in_a_string_instruction in Long "
        GATE 1, 7f
        mov eax, 0x20004
        mov dr0, rax
        mov eax, 0x10401
        mov dr7, rax
        mov edi, 0x20000
        mov ecx, 8
        rep stosb
        xor eax, eax
        mov dr7, rax
        LOG rdi
        jmp 8f
    7:  inc qword ptr [0x20100]
        iretq
    8:  mov rax, [0x20100]
        LOG rax
    " { results: &[0x2_0008, 1] }
    general_detect in Long "
        mov eax, 0x2400
        mov dr7, rax
        TRY mov rax, dr0
        mov rax, dr6
        LOG rax
        mov rax, dr7
        LOG rax
    " { results: &[0xffff_2ff0, 0x400], faults: &[fault(1)] }
    debug_registers_and_cr4_de in Long "
        mov eax, 0x1234
        mov dr0, rax
        mov rax, 0x5678
        .byte 0x0f, 0x23, 0xf0
        mov rax, dr6
        LOG rax
        .byte 0x0f, 0x21, 0xe3
        LOG rbx
        mov rax, cr4
        or eax, 8
        mov cr4, rax
        TRY .byte 0x0f, 0x21, 0xe3
        TRY .byte 0x0f, 0x23, 0xe8
        mov rax, dr0
        LOG rax
        mov rax, 0x100000000
        TRY mov dr7, rax
        TRY mov dr6, rax
        mov rax, dr7
        LOG rax
    " { results: &[0xffff_4ff8, 0xffff_4ff8, 0x1234, 0x400], faults: &[UD, UD, gp(0), gp(0)] }
    icebp_and_int1 in Long "
        TRY .byte 0xf1
        TRY int 1
    " { faults: &[trap(1, 1), trap(1, 2)] }
    trap_flag_set_by_iret in Long "
        GATE 1, 7f
        xor ecx, ecx
        push 0x10
        push 0xe000
        push 0x102
        push 8
        sub rsp, 8
        SETTOP 6f
        iretq
    6:  inc ecx
        inc ecx
        LOG rcx
        jmp 8f
    7:  and dword ptr [rsp+16], 0xfffffeff
        mov [0x20000], rcx
        iretq
    8:  mov rax, [0x20000]
        LOG rax
        mov rsp, 0xf000
    " { results: &[2, 1] }
    step_onto_a_fault in Long "
        GATE 1, 7f
        xor ecx, ecx
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        TRY ud2
        pushfq
        and dword ptr [rsp], 0xfffffeff
        popfq
        mov eax, [0xb020]
        and eax, 0x100
        LOG rax
        jmp 8f
    7:  inc ecx
        iretq
    8:  nop
    " { results: &[0x100], faults: &[UD] }
    resume_flag_is_set_for_faults in Long "
        TRY ud2
        mov rax, [0xb020]
        and eax, 0x10000
        LOG rax
        TRY int3
        mov rax, [0xb060]
        and eax, 0x10000
        LOG rax
        pushfq
        or dword ptr [rsp], 0x10000
        popfq
        pushfq
        pop rax
        and eax, 0x10000
        LOG rax
    " { results: &[0x1_0000, 0, 0], faults: &[UD, trap(3, 1)] }
    task_breakpoint_bit in Protected "
        mov edi, 0x13000
        ADDR eax, 7f
        mov [edi+0x20], eax
        mov dword ptr [edi+0x24], 2
        mov dword ptr [edi+0x38], 0xe400
        mov dword ptr [edi+0x48], 0x10
        mov dword ptr [edi+0x4c], 8
        mov dword ptr [edi+0x50], 0x10
        mov dword ptr [edi+0x54], 0x10
        mov word ptr [edi+0x64], 1
        REL
        .byte 0xea
        .long 0
        .word 0x98
    7:  nop
        mov eax, dr6
        LOG eax
    " { results: &[0xffff_8ff0], faults: &[trap(1, 7)] }
}
