//! Code that changes (SDM volume 3, 8.1.3 and 11.6: on one processor a store is seen by later instructions after a jump, and by all of them on
//! those since the P6).

use crate::conformance::program::{pf, programs};

programs! { "code";
    next_instruction_after_a_jump in Long "
        mov byte ptr [rip + 3f + 1], 7
        jmp 3f
    3:  mov eax, 5
        LOG rax
    " { results: &[7] }
    the_very_next_instruction in Long "
        mov byte ptr [rip + 3f + 1], 9
    3:  mov eax, 5
        LOG rax
    " { results: &[9] }
    later_in_the_same_block in Long "
        mov ebx, 1
        lea rsi, [rip + 3f + 1]
        add ebx, ebx
        mov byte ptr [rsi], 0x66
        add ebx, ebx
        add ebx, ebx
    3:  mov al, 0x11
        movzx eax, al
        LOG rax
        LOG rbx
    " { results: &[0x66, 8] }
    a_loop_that_changes_itself in Long "
        xor eax, eax
        mov ecx, 10
    3:  add eax, 1
        inc byte ptr [rip + 3b + 2]
        loop 3b
        LOG rax
    " { results: &[55] }
    a_function_rewritten_many_times in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0x000000b8
        mov dword ptr [rbx+4], 0x0000c300
        xor r8d, r8d
        mov ecx, 100
    2:  mov [rbx+1], ecx
        call rbx
        add r8, rax
        loop 2b
        LOG r8
    " { results: &[5050] }
    through_another_mapping in Long "
        mov qword ptr [0x4108], 0x20003
        mov ebx, 0x20000
        mov esi, 0x21000
        invlpg [rsi]
        mov dword ptr [rbx], 0x000005b8
        mov dword ptr [rbx+4], 0x0000c300
        call rbx
        LOG rax
        mov byte ptr [rsi+1], 6
        call rbx
        LOG rax
        call rsi
        LOG rax
    " { results: &[5, 6, 6] }
    written_by_a_string_instruction in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0xc3c0ff
        xor eax, eax
        call rbx
        lea rsi, [rip + 5f]
        mov edi, ebx
        mov ecx, 6
        rep movsb
        call rbx
        LOG rax
        jmp 8f
    5:  mov eax, 77
        ret
    8:  nop
    " { results: &[77] }
    written_by_push in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0x000001b8
        mov dword ptr [rbx+4], 0x0000c300
        call rbx
        mov rbp, rsp
        mov rax, 0x0000c300000022b8
        lea rsp, [rbx+8]
        push rax
        mov rsp, rbp
        call rbx
        LOG rax
    " { results: &[0x22] }
    written_by_a_locked_instruction in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0x000001b8
        mov dword ptr [rbx+4], 0x0000c300
        call rbx
        lock add byte ptr [rbx+1], 0x30
        call rbx
        LOG rax
        mov ecx, 0x55
        xchg [rbx+1], cl
        call rbx
        LOG rax
    " { results: &[0x31, 0x55] }
    written_by_a_vector_store in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0x000001b8
        mov dword ptr [rbx+4], 0x0000c300
        call rbx
        mov rax, 0x0000c300000044b8
        movq xmm0, rax
        movups [rbx], xmm0
        call rbx
        LOG rax
    " { results: &[0x44] }
    another_page_at_the_same_address in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0x000001b8
        mov dword ptr [rbx+4], 0x0000c300
        mov dword ptr [rbx+0x1000], 0x000002b8
        mov dword ptr [rbx+0x1004], 0x0000c300
        call rbx
        LOG rax
        mov qword ptr [0x4100], 0x21003
        invlpg [rbx]
        call rbx
        LOG rax
        mov qword ptr [0x4100], 0x20003
        mov rax, cr3
        mov cr3, rax
        call rbx
        LOG rax
    " { results: &[1, 2, 1] }
    code_across_two_pages in Long "
        mov ebx, 0x20ffe
        mov dword ptr [rbx], 0x000001b8
        mov dword ptr [rbx+4], 0x0000c300
        call rbx
        LOG rax
        mov byte ptr [0x21000], 7
        call rbx
        LOG rax
        mov byte ptr [0x20fff], 2
        call rbx
        LOG rax
        mov dword ptr [0x22000], 0x00cc0100
        mov dword ptr [0x22000], 0xc3000900
        mov qword ptr [0x4108], 0x22003
        mov ecx, 0x21000
        invlpg [rcx]
        call rbx
        LOG rax
    " { results: &[1, 0x701, 0x702, 0x0009_0002] }
    page_becomes_unexecutable in Long "
        mov ebx, 0x20000
        mov byte ptr [rbx], 0xc3
        call rbx
        bts qword ptr [0x4100], 63
        invlpg [rbx]
        SETVAR RESUME, 2f
        SETVAR ORIGIN, 2f
        call rbx
    2:  pop rax
    " { faults: &[crate::conformance::program::Fault { vector: 14, error: 0x11, at: None, cr2: Some(0x2_0000) }] }
    page_becomes_the_supervisors in Long "
        mov ebx, 0x120000
        mov byte ptr [rbx], 0xc3
        GO3
        call rbx
        BACK0
        and qword ptr [0x4900], -5
        invlpg [rbx]
        GO3
        TRY mov al, [rbx]
        SETVAR RESUME, 2f
        call rbx
    2:  pop rax
    " { faults: &[pf(5, 0x12_0000), crate::conformance::program::Fault { vector: 14, error: 0x15, at: None, cr2: Some(0x12_0000) }] }
    the_same_bytes_in_two_modes in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 0xc0ff48
        mov byte ptr [rbx+3], 0xc3
        mov rax, 0xffffffff
        call rbx
        LOG rax
        JMPF 0x18, 7f
    7:  SIZE 32
        mov ecx, 0x10
        mov ds, ecx
        mov ebx, 0x20000
        mov eax, 0xffffffff
        call ebx
        LOG eax
        JMPF 8, 7f
        SIZE 64
    7:  mov rax, 0xffffffff
        call rbx
        LOG rax
    " { results: &[0x1_0000_0000, 0xffff_ffff, 0x1_0000_0000] }
    the_same_bytes_in_two_operand_sizes in Protected "
        mov ebx, 0x20000
        mov dword ptr [ebx], 0x3412b8
        mov dword ptr [ebx+3], 0xc3c30000
        call ebx
        LOG eax
    " { results: &[0x3412] }
    written_by_another_processor in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov esi, 0x21000
        test edi, edi
        jnz 9f
        GATE 0x61, 7f
        mov dword ptr [rsi], 0x000001b8
        mov dword ptr [rsi+4], 0x0000c300
        mov dword ptr [0x20000], 1
    2:  pause
        cmp dword ptr [0x20004], 1
        jne 2b
        mov dword ptr [rsi+1], 0x1234
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4061
    2:  pause
        cmp dword ptr [0x20008], 0
        je 2b
        mov eax, [0x20008]
        LOG rax
        jmp 8f
    9:  pause
        cmp dword ptr [0x20000], 1
        jne 9b
        call rsi
        mov [0x20004], eax
        sti
    3:  call rsi
        jmp 3b
    7:  call rsi
        mov dword ptr [rbx+0xb0], 0
        mov [0x20008], eax
    4:  hlt
        jmp 4b
    8:  nop
    " { results: &[0x1234], vcpus: 2 }
    rewritten_while_another_runs_it in Long "
        mov esi, 0x21000
        test edi, edi
        jnz 9f
        mov dword ptr [rsi], 0x000001b8
        mov dword ptr [rsi+4], 0x0000c300
        mov dword ptr [0x20000], 1
        mov ecx, 300
    2:  mov [rsi+1], ecx
        mov edx, 50
    3:  pause
        dec edx
        jnz 3b
        loop 2b
        mov dword ptr [rsi+1], 0x7777
    2:  pause
        cmp dword ptr [0x20008], 0x7777
        jne 2b
        mov eax, [0x20008]
        LOG rax
        jmp 8f
    9:  pause
        cmp dword ptr [0x20000], 1
        jne 9b
    3:  call rsi
        mov [0x20008], eax
        jmp 3b
    8:  nop
    " { results: &[0x7777], vcpus: 2 }
    in_real_mode in Real "
        mov byte ptr [0x7800], 0xb8
        mov word ptr [0x7801], 0x1111
        mov byte ptr [0x7803], 0xc3
        mov bx, 0x7800
        .byte 0xff, 0xd3
        LOG ax
        mov word ptr [0x7801], 0x2222
        .byte 0xff, 0xd3
        LOG ax
        mov cx, 0x0780
        mov ds, cx
        mov word ptr [1], 0x3333
        xor cx, cx
        mov ds, cx
        .byte 0xff, 0xd3
        LOG ax
    " { results: &[0x1111, 0x2222, 0x3333] }
}
