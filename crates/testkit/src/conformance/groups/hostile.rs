//! Guests that try everything: whatever they do, only they may suffer.

use crate::conformance::program::{End, programs};

programs! { "hostile";
    random_values_to_every_port in Long "
        mov r8, 0x123456789abcdef
        xor ebp, ebp
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rax, r8
        shr rax, 20
        mov edx, ebp
        cmp dl, 0xe0
        je 3f
        out dx, al
        out dx, ax
        out dx, eax
        in al, dx
        in eax, dx
    3:  add ebp, 7
        cmp ebp, 0x10000
        jb 2b
    " { end: End::Any, can_move: false }
    random_ports_by_string_instructions in Long "
        mov r8, 0x123456789abcdef
        mov ebp, 200
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rdx, r8
        shr rdx, 17
        and edx, 0xffff
        cmp dl, 0xe0
        je 3f
        mov esi, 0x20000
        mov edi, 0x30000
        mov ecx, 33
        rep outsb
        mov ecx, 5
        rep outsd
        mov ecx, 33
        rep insw
    3:  dec ebp
        jnz 2b
    " { end: End::Any, can_move: false }
    random_addresses_without_memory in Long "
        mov r8, 0x123456789abcdef
        mov ebp, 3000
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rbx, r8
        shr rbx, 9
        and ebx, 0x3fffffff
        add ebx, 0xc0000000
        mov eax, ebx
        and eax, 0xfff00000
        cmp eax, 0xfef00000
        je 3f
        mov rax, r8
        test bpl, 1
        jz 4f
        mov [rbx], al
        mov [rbx], eax
        mov [rbx], rax
        jmp 3f
    4:  mov al, [rbx]
        mov rax, [rbx]
        add [rbx], ecx
        lock bts dword ptr [rbx], 3
    3:  dec ebp
        jnz 2b
    " { end: End::Any, can_move: false }
    random_values_to_the_local_apic in Long "
        mov r8, 0x123456789abcdef
        mov ebp, 4000
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rbx, r8
        shr rbx, 11
        and ebx, 0xfff
        add ebx, 0xfee00000
        mov rax, r8
        shr rax, 15
        mov [rbx], eax
        mov eax, [rbx]
        mov al, [rbx+1]
        and ebx, 0xfffffff0
        mov [rbx], al
        dec ebp
        jnz 2b
    " { end: End::Any, can_move: false }
    random_values_to_every_msr in Long "
        mov r8, 0x123456789abcdef
        mov ebp, 6000
        GATE 13, 7f
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov ecx, ebp
        cmp ebp, 3000
        jb 3f
        add ecx, 0xc0000000 - 3000
        cmp ecx, 0xc0000080
        je 5f
    3:  mov rax, r8
        shr rax, 13
        mov rdx, r8
        shr rdx, 45
        rdmsr
        mov rdx, r8
        shr rdx, 50
        wrmsr
    5:  dec ebp
        jnz 2b
        jmp 8f
    7:  add rsp, 8
        add qword ptr [rsp], 2
        iretq
    8:  nop
    " { end: End::Any, can_move: false }
    random_control_registers in Long "
        mov r8, 0x123456789abcdef
        mov ebp, 3000
        mov r10, cr4
        GATE 13, 7f
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rax, r8
        shr rax, 13
        xor rax, r10
        mov cr4, rax
        nop
        mov cr4, r10
        nop
        mov rax, r8
        shr rax, 23
        mov dr7, rax
        nop
        mov dr6, rax
        nop
        mov cr8, rax
        nop
        xor edx, edx
        xor ecx, ecx
        xsetbv
        dec ebp
        jnz 2b
        jmp 8f
    7:  add rsp, 8
        add qword ptr [rsp], 3
        iretq
    8:  nop
    " { end: End::Any, can_move: false }
    a_storm_of_messages in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov r8, 0x123456789abcdef
        mov ebp, 3000
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rax, r8
        shr rax, 13
        and eax, 0xffffff
        out 0xe4, eax
        mov [rbx+0x300], eax
        dec ebp
        jnz 2b
    " { end: End::Any, can_move: false }
    page_tables_of_random_bytes in Long "
        mov edi, 0x2f8000
        mov ebp, 0x1000
        mov r8, 0x123456789abcdef
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rax, r8
        shl rax, 20
        xor rax, r8
        mov [rdi], rax
        add edi, 8
        dec ebp
        jnz 2b
        mov qword ptr [0x1008], 0x2f8007
        GATE 14, 7f
        GATE 13, 7f
        mov ebp, 2000
    2:  imul r8, r8, 0x5851f42d
        add r8, 0x14057b7e
        mov rbx, r8
        shr rbx, 11
        mov rax, 0x7fffffffff
        and rbx, rax
        mov rax, 0x8000000000
        add rbx, rax
        mov r9, rsp
        SETVAR 0xf18, 3f
        mov eax, [rbx]
    3:  dec ebp
        jnz 2b
        jmp 8f
    7:  mov rax, [0x7f18]
        mov [rsp+8], rax
        add rsp, 8
        iretq
    8:  nop
    " { end: End::Any, can_move: false }
}
