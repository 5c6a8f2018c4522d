//! How operands are found: every form of address, segment bases, wrap-around (SDM volume 1, 3.7; volume 3, 3.4).

use crate::conformance::program::{fault_with, gp, pf, programs};
use umbra_x86::cpuid::feature;

programs! { "addressing";
    sib_forms in Long "
        mov ebx, 0x20000
        mov rax, 0x1122334455667788
        mov [rbx+0x48], rax
        mov ecx, 8
        mov rdx, [rbx+rcx*8+8]
        LOG rdx
        mov rdx, [rbx+rcx*8+0x8]
        mov r12d, 0x20048
        mov rdx, [r12]
        LOG rdx
        mov r13d, 0x20048
        mov rdx, [r13]
        LOG rdx
        mov rdx, [0x20048]
        LOG rdx
        mov rdx, [rcx*4+0x20028]
        LOG rdx
        mov r14, -1
        mov rdx, [r13+r14*8+8]
        LOG rdx
    " { results: &[0x1122_3344_5566_7788; 6] }
    rip_relative in Long "
        mov rax, [rip + 2f]
        LOG rax
        lea rbx, [rip + 2f]
        ADDR rcx, 2f
        sub rbx, rcx
        LOG rbx
        cmp dword ptr [rip + 2f], 0x55667788
        LOGF 0x040
        jmp 3f
    2:  .quad 0x1122334455667788
    3:  nop
    " { results: &[0x1122_3344_5566_7788, 0, 0x40] }
    absolute_64_bit_offset in Long "
        mov rax, 0x123456789abcdef0
        movabs [0x20010], rax
        xor eax, eax
        movabs rax, [0x20010]
        LOG rax
        mov rdx, -1
        movabs al, [0x20017]
        movzx eax, al
        LOG rax
        mov rbx, 0x8000000000000000
        TRY .byte 0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0x80
    " { results: &[0x1234_5678_9abc_def0, 0x12], faults: &[gp(0)] }
    address_size_prefix in Long "
        mov rax, 0xffffffff00020000
        mov qword ptr [0x20000], 0x77
        mov rdx, [eax]
        LOG rdx
        mov rcx, 0x100000000
        mov rdx, [eax+ecx]
        LOG rdx
        mov eax, 0xffffffff
        mov ecx, 0x20001
        mov rdx, [eax+ecx]
        LOG rdx
        lea rdx, [eax+ecx]
        LOG rdx
    " { results: &[0x77, 0x77, 0x77, 0x20000] }
    fs_gs_bases_by_msr in Long "
        mov ecx, 0xc0000100
        mov eax, 0x20000
        xor edx, edx
        wrmsr
        mov ecx, 0xc0000101
        mov eax, 0x21000
        wrmsr
        mov qword ptr [0x20010], 0x1111
        mov qword ptr [0x21010], 0x2222
        mov rax, fs:[0x10]
        LOG rax
        mov rax, gs:[0x10]
        LOG rax
        mov ecx, 0xc0000102
        mov eax, 0x20000
        wrmsr
        swapgs
        mov rax, gs:[0x10]
        LOG rax
        swapgs
        mov rax, gs:[0x10]
        LOG rax
        mov ecx, 0xc0000102
        rdmsr
        LOG rax
        lea rax, fs:[0x10]
        LOG rax
    " { results: &[0x1111, 0x2222, 0x1111, 0x2222, 0x20000, 0x10] }
    fs_base_of_a_high_half in Long "
        mov ecx, 0xc0000100
        mov eax, 0
        mov edx, 0xffff8000
        wrmsr
        mov rbx, 0x0000800000020000
        mov qword ptr [0x20000], 0x33
        mov rax, fs:[rbx]
        LOG rax
        mov ecx, 0xc0000100
        mov edx, 0x00008000
        TRY wrmsr
    " { results: &[0x33], faults: &[gp(0)] }
    fsgsbase_instructions in Long "
        mov rax, cr4
        mov rbx, rax
        TRY wrfsbase rcx
        or eax, 0x10000
        mov cr4, rax
        mov ecx, 0x20000
        wrfsbase rcx
        mov rdx, -1
        rdfsbase edx
        LOG rdx
        mov rcx, 0xffff800000000000
        wrgsbase rcx
        rdgsbase rdx
        LOG rdx
        rdgsbase edx
        LOG rdx
        mov rcx, 0x0000800000000000
        TRY wrgsbase rcx
        mov rcx, 0xffffffff12345678
        wrgsbase ecx
        rdgsbase rdx
        LOG rdx
        mov qword ptr [0x20008], 0x99
        mov rax, fs:[8]
        LOG rax
    " { results: &[0x20000, 0xffff_8000_0000_0000, 0, 0x1234_5678, 0x99], faults: &[crate::conformance::program::UD, gp(0)],
        needs: &[feature::FSGSBASE] }
    other_segments_have_no_base_in_64_bit_mode in Long "
        mov eax, 0xe8
        mov es, eax
        mov qword ptr [0x10], 0
        mov qword ptr [0x20010], 5
        mov qword ptr [0x10], 7
        mov rax, es:[0x10]
        LOG rax
        mov eax, 0xe8
        mov fs, eax
        mov rax, fs:[0x10]
        LOG rax
    " { results: &[7, 5] }
    non_canonical_addresses in Long "
        mov rbx, 0x0000800000000000
        TRY mov rax, [rbx]
        TRY mov rax, [rbx-8]
        mov rbx, 0xffff7fffffffffff
        TRY mov al, [rbx]
        TRY lea rax, [rbx+1]
    " { faults: &[gp(0), pf(0, 0x7fff_ffff_fff8), gp(0)] }
    non_canonical_through_the_stack_segment in Long "
        mov rbp, 0x0000800000000000
        TRY mov rax, [rbp]
        GO3
        lea rsp, [rbp+8]
        TRY push rax
        TRY pop rax
        TRY mov [rsp+8], rax
        BACK0
    " { faults: &[fault_with(12, 0), fault_with(12, 0), fault_with(12, 0), fault_with(12, 0)] }
    jump_to_a_non_canonical_address in Long "
        mov rbx, 0x0000800000000000
        TRY jmp rbx
        mov rcx, rsp
        push rbx
        TRY ret
        mov rsp, rcx
        TRY call rbx
        sub rcx, rsp
        LOG rcx
    " { results: &[0], faults: &[gp(0), gp(0), gp(0)] }
    linear_address_wraps_at_64_bits in Long "
        mov rbx, 0xffffffffffff0000
        mov qword ptr [0x20008], 0x44
        mov rax, [rbx+0x30008]
        LOG rax
        mov rcx, 0x30008
        mov rax, [rbx+rcx]
        LOG rax
    " { results: &[0x44, 0x44] }
    wrap_at_4g_in_32_bit_mode in Protected "
        mov dword ptr [0x20004], 0x1234
        mov ebx, 0xfffff000
        mov eax, [ebx+0x21004]
        LOG eax
        mov ecx, 0x21004
        mov eax, [ebx+ecx]
        LOG eax
        mov esi, 0x40000000
        mov eax, [esi*4+0x20004]
        LOG eax
    " { results: &[0x1234, 0x1234, 0x1234] }
    segment_base_and_limit in Protected "
        mov eax, 0xe8
        mov es, eax
        mov dword ptr [0x20ffc], 0x66
        mov eax, es:[0xffc]
        LOG eax
        TRY mov eax, es:[0xffd]
        TRY mov es:[0x1000], al
        mov eax, es:[0xffc]
        LOG eax
        mov eax, 0xc8
        mov es, eax
        TRY mov al, es:[0xffff]
        mov dword ptr [0x10000], 0x88
        mov eax, es:[0x10000]
        LOG eax
        TRY mov eax, es:[0xfffffffd]
    " { results: &[0x66, 0x66, 0x88], faults: &[gp(0), gp(0), gp(0), gp(0)] }
    stack_segment_limit in Protected "
        or byte ptr [0x60ed], 0x60
        GO3
        mov eax, 0xeb
        mov ss, eax
        mov esp, 0x1000
        push 0x12345678
        mov eax, [esp]
        LOG eax
        mov ebp, 0xffd
        TRY mov eax, [ebp]
        mov esp, 0x1004
        TRY push eax
        TRY pop eax
        TRY call 2f
    2:  LOG esp
        mov esp, 2
        TRY push eax
        LOG esp
    " { results: &[0x1234_5678, 0x1004, 2], faults: &[fault_with(12, 0); 5], memory: &[(0x2_0ffc, &[0x78, 0x56, 0x34, 0x12])] }
    base_plus_offset_wraps_at_4g in Protected "
        mov dword ptr [0x60f0], 0x0000ffff
        mov dword ptr [0x60f4], 0xffcf93ff
        mov eax, 0xf0
        mov es, eax
        mov dword ptr [0x20000], 0x55
        mov eax, es:[0x30000]
        LOG eax
    " { results: &[0x55] }
    null_and_code_segments_as_data in Protected "
        xor eax, eax
        mov es, eax
        TRY mov eax, es:[0x20000]
        mov eax, 8
        mov es, eax
        mov dword ptr [0x20000], 3
        mov eax, es:[0x20000]
        LOG eax
        TRY mov es:[0x20000], eax
        TRY mov cs:[0x20000], eax
        mov eax, 0xb8
        mov es, eax
        TRY mov es:[0x20000], eax
        mov eax, es:[0x20000]
        LOG eax
    " { results: &[3, 3], faults: &[gp(0), gp(0), gp(0), gp(0)] }
    sixteen_bit_forms in Real "
        mov bx, 0x1000
        mov si, 0x0234
        mov di, 0x0010
        mov bp, 0x2000
        mov word ptr [0x1234], 0x1111
        mov word ptr [0x1010], 0x2222
        mov word ptr [0x2234], 0x3333
        mov word ptr [0x2010], 0x4444
        mov word ptr [0x0234], 0x5555
        mov word ptr [0x2005], 0x6666
        mov word ptr [0x0fff], 0x7777
        mov ax, [bx+si]
        LOG ax
        mov ax, [bx+di]
        LOG ax
        mov ax, [bp+si]
        LOG ax
        mov ax, [bp+di]
        LOG ax
        mov ax, [si]
        LOG ax
        mov ax, [bp+5]
        LOG ax
        mov ax, [bx-1]
        LOG ax
        mov bx, 0xfff0
        mov ax, [bx+si+0x1010]
        LOG ax
        lea ax, [bx+si+0x1010]
        LOG ax
    " { results: &[0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x7777, 0x1111, 0x1234] }
    real_mode_segments in Real "
        mov ax, 0x2000
        mov es, ax
        mov word ptr es:[0x0010], 0x4321
        mov ax, 0x1fff
        mov fs, ax
        mov ax, fs:[0x20]
        LOG ax
        mov ax, 0x2000
        mov ss, ax
        mov bp, 0x10
        mov ax, [bp]
        LOG ax
        xor ax, ax
        mov ss, ax
        mov ax, ds:[bp]
        mov ax, es
        LOG ax
    " { results: &[0x4321, 0x4321, 0x2000] }
    real_mode_limit in Real "
        mov bx, 0xffff
        TRY mov ax, [bx]
        TRY mov [bx], ax
        mov al, [bx]
        mov ebx, 0x10000
        TRY mov al, [ebx]
        mov bp, 0xffff
        TRY mov ax, [bp]
    " { faults: &[gp(0), gp(0), gp(0), fault_with(12, 0)] }
    real_mode_above_1m in Real "
        mov ax, 0xffff
        mov es, ax
        mov word ptr es:[0x0020], 0x5678
        mov ax, es:[0x0020]
        LOG ax
    " { results: &[0x5678], memory: &[(0x10_0010, &[0x78, 0x56])] }
    thirty_two_bit_addresses_in_real_mode in Real "
        mov dword ptr [0x1234], 0x89abcdef
        mov ebx, 0x1000
        mov ecx, 0x8d
        mov eax, [ebx+ecx*4]
        LOG eax
        mov ebx, 0xffff1234
        mov ax, [bx]
        LOG ax
    " { results: &[0x89ab_cdef, 0xcdef] }
    sixteen_bit_addresses_in_32_bit_mode in Protected "
        mov dword ptr [0x7800], 0x12345678
        mov ebx, 0xffff7000
        mov esi, 0x800
        mov eax, [bx+si]
        LOG eax
        mov ebx, 0xffffff00
        mov esi, 0x7900
        mov eax, [bx+si]
        LOG eax
    " { results: &[0x1234_5678, 0x1234_5678] }
    instruction_pointer_wraps_in_16_bit_code in Real "
        mov ax, 0x2000
        mov es, ax
        mov byte ptr es:[0xfffe], 0xeb
        mov byte ptr es:[0xffff], 0x02
        mov byte ptr es:[0x0002], 0xea
        ADDR ax, 2f
        mov es:[0x0003], ax
        mov word ptr es:[0x0005], 0
        mov byte ptr es:[0x0000], 0xf4
        .byte 0xea
        .word 0xfffe, 0x2000
    2:  mov ax, cs
        LOG ax
    " { results: &[0] }
    stack_pointer_wraps_in_16_bit_stack in Real "
        mov ax, 0x2000
        mov ss, ax
        mov sp, 0
        mov ax, 0x1234
        push ax
        LOG sp
        pop bx
        LOG bx
        LOG sp
        mov sp, 0xfffe
        pop cx
        LOG sp
        xor ax, ax
        mov ss, ax
        mov sp, 0xf000
    " { results: &[0xfffe, 0x1234, 0, 0], memory: &[(0x2_fffe, &[0x34, 0x12])] }
    load_far_pointers in Protected "
        mov dword ptr [0x20000], 0x11223344
        mov word ptr [0x20004], 0xe8
        les ebx, [0x20000]
        LOG ebx
        mov ax, es
        LOG ax
        lfs cx, [0x20002]
        LOG ecx
        mov word ptr [0x20004], 0x0
        lgs eax, [0x20000]
        LOG eax
        mov ax, gs
        LOG ax
    " { results: &[0x1122_3344, 0xe8, 0x1122, 0x1122_3344, 0] }
    unaligned_and_page_crossing in Long "
        mov rax, 0x1122334455667788
        mov [0x20ffd], rax
        mov rbx, [0x20ffd]
        LOG rbx
        mov rcx, 1
        lock xadd [0x20ffd], rcx
        LOG rcx
        mov rbx, [0x20ffd]
        LOG rbx
        mov eax, [0x20fff]
        LOG rax
        movups xmm0, [0x20ff8]
        movups [0x21ff9], xmm0
        mov rax, [0x21ffe]
        LOG rax
    " { results: &[0x1122_3344_5566_7788, 0x1122_3344_5566_7788, 0x1122_3344_5566_7789, 0x3344_5566, 0x1122_3344_5566_7789] }
}
