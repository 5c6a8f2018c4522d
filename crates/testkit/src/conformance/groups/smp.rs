//! Several processors: atomics, visibility, messages, start-up (SDM volume 3, chapter 8 and 10.6).

use crate::conformance::program::{interrupt, programs};
use umbra_x86::cpuid::feature;

programs! { "smp";
    lock_xadd in Long "
        mov ebx, 0x20000
        mov ecx, 20000
    2:  mov eax, 1
        lock xadd [rbx], eax
        loop 2b
        lock inc dword ptr [rbx+8]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [rbx+8], 2
        jne 2b
        mov eax, [rbx]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[40000], vcpus: 2 }
    lock_inc_across_a_cache_line in Long "
        mov ebx, 0x2003e
        mov ecx, 200
    2:  lock inc dword ptr [rbx]
        loop 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov eax, [rbx]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[400], vcpus: 2 }
    lock_add_across_a_page in Long "
        mov ebx, 0x20ffe
        mov ecx, 200
    2:  lock add dword ptr [rbx], 1
        loop 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov eax, [rbx]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[400], vcpus: 2 }
    cmpxchg_loop in Long "
        mov ebx, 0x20000
        mov ecx, 10000
    2:  mov rax, [rbx]
    3:  lea rdx, [rax+3]
        lock cmpxchg [rbx], rdx
        jnz 3b
        loop 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov rax, [rbx]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[60000], vcpus: 2 }
    cmpxchg16b_loop in Long "
        mov esi, 0x20000
        mov r8d, 5000
    2:  mov rax, [rsi]
        mov rdx, [rsi+8]
    3:  lea rbx, [rax+1]
        lea rcx, [rdx+2]
        lock cmpxchg16b [rsi]
        jnz 3b
        dec r8d
        jnz 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov rax, [rsi]
        LOG rax
        mov rax, [rsi+8]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[10000, 20000], vcpus: 2, needs: &[feature::CX16] }
    spinlock_by_xchg in Long "
        mov ebx, 0x20000
        mov ecx, 3000
    2:  mov eax, 1
        xchg [rbx], eax
        test eax, eax
        jz 3f
        pause
        jmp 2b
    3:  mov rax, [rbx+64]
        inc rax
        mov [rbx+64], rax
        mov dword ptr [rbx], 0
        loop 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov rax, [rbx+64]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[6000], vcpus: 2 }
    bts_of_different_bits in Long "
        mov ebx, 0x20000
        mov ecx, edi
    2:  lock bts dword ptr [rbx], ecx
        add ecx, 2
        cmp ecx, 512
        jb 2b
        lock inc dword ptr [0x20100]
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20100], 2
        jne 2b
        mov rax, [rbx]
        and rax, [rbx+8]
        and rax, [rbx+56]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[u64::MAX], vcpus: 2 }
    messages_in_order in Long "
        mov ebx, 0x20000
        test edi, edi
        jnz 9f
        xor ecx, ecx
    2:  inc ecx
        mov [rbx], rcx
        mov [rbx+64], rcx
    3:  pause
        cmp [rbx+128], rcx
        jne 3b
        cmp ecx, 300
        jb 2b
        mov rax, [rbx+192]
        LOG rax
        jmp 8f
    9:  xor ecx, ecx
    2:  inc ecx
    3:  pause
        cmp [rbx+64], rcx
        jne 3b
        cmp [rbx], rcx
        je 4f
        inc qword ptr [rbx+192]
    4:  mov [rbx+128], rcx
        jmp 2b
    8:  nop
    " { results: &[0], vcpus: 2 }
    store_buffering_with_fences in Long "
        mov ebx, 0x20000
        xor ecx, ecx
        mov esi, edi
        shl esi, 6
        mov ebp, esi
        xor ebp, 64
    2:  inc ecx
        lea rdx, [rbx+rcx*8]
        lock inc dword ptr [0x2f000]
    3:  pause
        mov eax, [0x2f000]
        lea edx, [rcx+rcx]
        cmp eax, edx
        jb 3b
        mov [rbx+rsi], rcx
        mfence
        mov rax, [rbx+rbp]
        mov [rbx+rsi+0x400], rax
        lock inc dword ptr [0x2f040]
    3:  pause
        mov eax, [0x2f040]
        cmp eax, edx
        jb 3b
        test edi, edi
        jnz 4f
        cmp [rbx+0x400], rcx
        je 4f
        cmp [rbx+0x440], rcx
        je 4f
        inc dword ptr [0x2f080]
    4:  lock inc dword ptr [0x2f0c0]
    3:  pause
        mov eax, [0x2f0c0]
        cmp eax, edx
        jb 3b
        cmp ecx, 200
        jb 2b
        test edi, edi
        jnz 9f
        mov eax, [0x2f080]
        LOG rax
        jmp 8f
    9:  pause
        jmp 9b
    8:  nop
    " { results: &[0], vcpus: 2 }
    started_by_init_and_sipi in Long "
        test edi, edi
        jnz 9f
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4500
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x461f
    2:  pause
        cmp dword ptr [0x20000], 0x77
        jne 2b
        mov eax, [0x20008]
        LOG rax
        jmp 8f
    9:  mov ebx, 0xfee00000
        mov eax, [rbx+0x20]
        mov [0x20008], eax
        mov dword ptr [0x20000], 0x77
    3:  pause
        jmp 3b
    8:  nop
    " { results: &[0x100_0000], vcpus: 2, waits_for_sipi: true }
    started_again_after_init in Long "
        test edi, edi
        jnz 9f
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov ecx, 3
    4:  mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4500
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x461f
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x461f
    2:  pause
        cmp dword ptr [0x20000], 0x77
        jne 2b
        mov dword ptr [0x20000], 0
        loop 4b
        mov eax, [0x20008]
        LOG rax
        jmp 8f
    9:  lock inc dword ptr [0x20008]
        mov dword ptr [0x20000], 0x77
        cli
        hlt
    3:  jmp 3b
    8:  nop
    " { results: &[3], vcpus: 2, waits_for_sipi: true }
    message_to_another_processor in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        test edi, edi
        jnz 9f
        GATE 0x61, 7f
    2:  pause
        cmp dword ptr [0x20000], 1
        jne 2b
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4061
    2:  pause
        cmp dword ptr [0x20004], 1
        jne 2b
        mov eax, [0x20008]
        LOG rax
        jmp 8f
    9:  mov dword ptr [0x20000], 1
        sti
    3:  hlt
        jmp 3b
    7:  mov eax, [rbx+0x20]
        mov [0x20008], eax
        mov dword ptr [0x20004], 1
        mov dword ptr [rbx+0xb0], 0
        iretq
    8:  nop
    " { results: &[0x100_0000], vcpus: 2 }
    ping_pong_by_interrupts in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        test edi, edi
        jnz 9f
        GATE 0x61, 7f
    2:  pause
        cmp dword ptr [0x20000], 1
        jne 2b
        sti
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4061
    2:  cmp dword ptr [0x20010], 200
        jb 2b
        cli
        mov eax, 1
        LOG rax
        jmp 8f
    9:  mov dword ptr [0x20000], 1
        sti
    3:  hlt
        jmp 3b
    7:  push rax
        mov dword ptr [rbx+0xb0], 0
        lock inc dword ptr [0x20010]
        mov eax, [rbx+0x20]
        xor eax, 0x1000000
        mov [rbx+0x310], eax
        mov dword ptr [rbx+0x300], 0x4061
        pop rax
        iretq
    8:  nop
    " { results: &[1], vcpus: 2 }
    broadcast_to_all_but_self in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        test edi, edi
        jnz 9f
        GATE 0x61, 7f
    2:  pause
        cmp dword ptr [0x20000], 2
        jne 2b
        mov dword ptr [rbx+0x300], 0xc4061
    2:  pause
        cmp dword ptr [0x20004], 2
        jne 2b
        mov eax, [rbx+0x230]
        LOG rax
        jmp 8f
    9:  lock inc dword ptr [0x20000]
        sti
    3:  hlt
        jmp 3b
    7:  lock inc dword ptr [0x20004]
        mov dword ptr [rbx+0xb0], 0
        iretq
    8:  nop
    " { results: &[0], vcpus: 3 }
    nmi_to_another_processor in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        test edi, edi
        jnz 9f
    2:  pause
        cmp dword ptr [0x20000], 1
        jne 2b
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4400
    2:  pause
        cmp dword ptr [0xb030], 0x10
        jne 2b
        jmp 8f
    9:  mov dword ptr [0x20000], 1
        cli
    3:  pause
        jmp 3b
    8:  nop
    " { faults: &[interrupt(2)], vcpus: 2 }
    a_page_table_changed_by_another_processor in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        test edi, edi
        jnz 9f
        GATE 0x61, 7f
        mov dword ptr [0x21000], 1
        mov dword ptr [0x22000], 2
        mov dword ptr [0x20000], 1
    2:  pause
        cmp dword ptr [0x20008], 1
        jne 2b
        mov qword ptr [0x4108], 0x22003
        mov dword ptr [rbx+0x310], 0x1000000
        mov dword ptr [rbx+0x300], 0x4061
    2:  pause
        cmp dword ptr [0x20010], 0
        je 2b
        mov eax, [0x20010]
        LOG rax
        jmp 8f
    9:  pause
        cmp dword ptr [0x20000], 1
        jne 9b
        mov eax, [0x21000]
        mov [0x20008], eax
        sti
    3:  pause
        jmp 3b
    7:  mov eax, 0x21000
        invlpg [rax]
        mov eax, [0x21000]
        mov dword ptr [rbx+0xb0], 0
        mov [0x20010], eax
        iretq
    8:  nop
    " { results: &[2], vcpus: 2 }
    accessed_bits_are_set_without_losing_writes in Long "
        mov ebx, 0x4100
        mov ecx, 2000
        test edi, edi
        jnz 9f
    2:  lock add qword ptr [rbx], 0x200
        lock sub qword ptr [rbx], 0x200
        lock and qword ptr [rbx], -97
        loop 2b
        mov dword ptr [0x21000], 1
        mov rax, [rbx]
        and rax, 0xffffffffffffff9f
        LOG rax
        jmp 8f
    9:  mov edx, 0x20000
    2:  invlpg [rdx]
        mov [rdx], eax
        cmp dword ptr [0x21000], 1
        jne 2b
    3:  pause
        jmp 3b
    8:  nop
    " { results: &[0x2_0003], vcpus: 2 }
}
