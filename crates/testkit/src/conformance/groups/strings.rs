//! String instructions: directions, widths, counts, faults in the middle (SDM volume 1, 7.3.9; volume 2, REP).

use crate::conformance::program::{gp, pf, programs};

programs! { "strings";
    movs_forward in Long "
        mov esi, 0x20000
        mov edi, 0x21000
        mov rax, 0x1122334455667788
        mov [rsi], rax
        not rax
        mov [rsi+8], rax
        movsb
        movsw
        movsd
        movsq
        LOG rsi
        LOG rdi
        mov rax, [0x21000]
        LOG rax
        mov rax, [0x21007]
        LOG rax
    " { results: &[0x2000f, 0x2100f, 0x1122_3344_5566_7788, 0xddcc_bbaa_9988_7711] }
    movs_backward in Long "
        std
        mov esi, 0x20018
        mov edi, 0x21018
        mov ecx, 4
        mov rax, 0x0102030405060708
        mov [0x20000], rax
        mov [0x20018], rax
        rep movsq
        cld
        LOG rsi
        LOG rdi
        LOG rcx
        mov rax, [0x21000]
        LOG rax
    " { results: &[0x1_fff8, 0x2_0ff8, 0, 0x0102_0304_0506_0708] }
    rep_with_count_zero in Long "
        mov rsi, 0x0000800000000000
        mov rdi, rsi
        xor ecx, ecx
        cmp ecx, ecx
        rep movsb
        rep stosq
        repne scasb
        LOGF 0x040
        mov rax, rdi
        sub rax, rsi
        LOG rax
        repe cmpsb
        LOGF 0x040
    " { results: &[0x40, 0, 0x40] }
    overlapping_forward_repeats_a_pattern in Long "
        mov esi, 0x20000
        mov edi, 0x20001
        mov byte ptr [rsi], 0xab
        mov ecx, 15
        rep movsb
        mov rax, [0x20008]
        LOG rax
        mov esi, 0x20100
        mov edi, 0x20102
        mov word ptr [rsi], 0x1234
        mov ecx, 7
        rep movsw
        mov rax, [0x20108]
        LOG rax
        mov esi, 0x20200
        mov edi, 0x20201
        mov rax, 0x8877665544332211
        mov [rsi], rax
        mov ecx, 2
        rep movsd
        mov rax, [0x20200]
        LOG rax
    " { results: &[0xabab_abab_abab_abab, 0x1234_1234_1234_1234, 0x7766_4444_3322_1111] }
    overlapping_backward in Long "
        mov rax, 0x8877665544332211
        mov [0x20000], rax
        mov esi, 0x20005
        mov edi, 0x20007
        mov ecx, 6
        std
        rep movsb
        cld
        mov rax, [0x20000]
        LOG rax
    " { results: &[0x6655_4433_2211_2211] }
    stos_and_lods in Long "
        mov edi, 0x20000
        mov rax, 0x1122334455667788
        mov ecx, 3
        rep stosw
        LOG rdi
        stosb
        mov rax, [0x20000]
        LOG rax
        mov esi, 0x20000
        mov ecx, 3
        xor eax, eax
        rep lodsw
        LOG rax
        LOG rsi
    " { results: &[0x20006, 0x0088_7788_7788_7788, 0x7788, 0x20006] }
    scas in Long "
        mov edi, 0x20000
        mov dword ptr [0x20000], 0x41414141
        mov byte ptr [0x20005], 0x42
        mov al, 0x42
        mov ecx, 100
        repne scasb
        LOGF 0x041
        LOG rcx
        LOG rdi
        mov edi, 0x20000
        mov al, 0x41
        mov ecx, 100
        repe scasb
        LOGF 0x041
        LOG rcx
        mov ecx, 2
        mov edi, 0x20000
        repe scasb
        LOGF 0x040
        LOG rcx
    " { results: &[0x40, 94, 0x2_0006, 0, 95, 0x40, 0] }
    cmps in Long "
        mov esi, 0x20000
        mov edi, 0x21000
        mov rax, 0x1122334455667788
        mov [rsi], rax
        mov [rdi], rax
        mov byte ptr [rdi+5], 0x44
        mov ecx, 8
        repe cmpsb
        LOGF 0x0c1
        LOG rcx
        LOG rsi
        mov esi, 0x20000
        mov edi, 0x21000
        cmpsd
        LOGF 0x040
        mov ecx, 2
        repne cmpsw
        LOG rcx
    " { results: &[0x81, 2, 0x2_0006, 0x40, 0] }
    rep_takes_the_address_size in Long "
        mov rcx, 0x700000002
        mov rdi, 0x900020000
        mov rsi, 0x900021000
        mov eax, 0x55
        .byte 0x67
        rep stosb
        LOG rcx
        LOG rdi
        movzx eax, word ptr [0x20000]
        LOG rax
        mov rcx, 0x700000000
        mov rdi, 0x900020000
        .byte 0x67
        rep stosb
        LOG rcx
        LOG rdi
    " { results: &[0, 0x2_0002, 0x5555, 0x7_0000_0000, 0x9_0002_0000] }
    segment_override_is_for_the_source in Long "
        mov ecx, 0xc0000101
        mov eax, 0x20000
        xor edx, edx
        wrmsr
        mov qword ptr [0x20010], 0x77
        mov esi, 0x10
        mov edi, 0x21000
        .byte 0x65
        movsq
        mov rax, [0x21000]
        LOG rax
        mov esi, 0x10
        lods rax, qword ptr gs:[rsi]
        LOG rax
    " { results: &[0x77, 0x77] }
    stos_across_many_pages in Long "
        mov edi, 0x20010
        mov ecx, 0x4000
        mov eax, 0x5a5a5a5a
        rep stosb
        LOG rdi
        LOG rcx
        mov eax, [0x24008]
        LOG rax
        mov eax, [0x2400e]
        LOG rax
        mov eax, [0x2000d]
        LOG rax
    " { results: &[0x2_4010, 0, 0x5a5a_5a5a, 0x5a5a, 0x5a00_0000] }
    stos_stops_at_a_missing_page_and_goes_on in Long "
        GATE 14, 7f
        mov ebx, 0x22000
        mov qword ptr [0x4110], 0
        invlpg [rbx]
        mov edi, 0x21ff0
        mov ecx, 0x20
        mov eax, 0x77
        rep stosb
        LOG rcx
        LOG rdi
        movzx eax, byte ptr [0x2200f]
        LOG rax
        jmp 8f
    7:  LOG rcx
        LOG rdi
        mov rdx, cr2
        LOG rdx
        mov rdx, [rsp]
        LOG rdx
        mov qword ptr [0x4110], 0x22003
        add rsp, 8
        iretq
    8:  nop
    " { results: &[0, 0x2_2010, 0x77, 0x10, 0x2_2000, 0x2_2000, 2] }
    movs_source_fault_backward in Long "
        mov ebx, 0x20000
        mov qword ptr [0x4100], 0
        invlpg [rbx]
        std
        mov esi, 0x21003
        mov edi, 0x30003
        mov ecx, 8
        TRY rep movsb
        cld
        LOG rcx
        LOG rsi
        LOG rdi
    " { results: &[4, 0x2_0fff, 0x2_ffff], faults: &[pf(0, 0x2_0fff)] }
    element_across_a_missing_page in Long "
        mov ebx, 0x22000
        mov qword ptr [0x4110], 0
        invlpg [rbx]
        mov esi, 0x30000
        mov edi, 0x21ffa
        mov ecx, 4
        mov rax, 0x1111111111111111
        mov [rsi], rax
        TRY rep movsd
        LOG rcx
        LOG rdi
        LOG rsi
        movzx eax, word ptr [0x21ffe]
        LOG rax
    " { results: &[3, 0x2_1ffe, 0x3_0004, 0], faults: &[pf(2, 0x2_2000)] }
    cmps_fault_keeps_flags in Long "
        mov ebx, 0x22000
        mov qword ptr [0x4110], 0
        invlpg [rbx]
        mov esi, 0x21ffe
        mov edi, 0x31ffe
        mov ecx, 4
        stc
        TRY repe cmpsb
        LOG rcx
        LOG rsi
    " { results: &[2, 0x2_2000], faults: &[pf(0, 0x2_2000)] }
    wrap_at_64k_in_real_mode in Real "
        mov ax, 0x2000
        mov es, ax
        mov di, 0xfffe
        mov al, 0x5a
        mov cx, 4
        cld
        rep stosb
        LOG di
        LOG cx
        mov al, es:[0xffff]
        mov ah, es:[0x0001]
        LOG ax
        std
        mov di, 0x0001
        mov cx, 3
        mov al, 0x33
        rep stosb
        cld
        LOG di
        mov al, es:[0xffff]
        mov ah, es:[0x0000]
        LOG ax
    " { results: &[2, 0, 0x5a5a, 0xfffe, 0x3333] }
    big_counts_with_32_bit_addresses_in_real_mode in Real "
        mov edi, 0x7800
        mov ecx, 0x10
        mov eax, 0x11223344
        .byte 0x67
        rep stosd
        LOG di
        LOG cx
        mov eax, [0x783c]
        LOG eax
    " { results: &[0x7840, 0, 0x1122_3344] }
    limit_fault_in_the_middle in Protected "
        mov eax, 0xe8
        mov es, eax
        mov edi, 0xff8
        mov ecx, 4
        mov eax, 0x12121212
        TRY rep stosd
        LOG ecx
        LOG edi
        mov eax, [0x20ffc]
        LOG eax
    " { results: &[2, 0x1000, 0x1212_1212], faults: &[gp(0)] }
    fault_in_the_first_element_changes_nothing in Long "
        mov rdi, 0x0000800000000000
        mov ecx, 5
        TRY rep stosb
        LOG rcx
        mov rax, 0x0000800000000000
        sub rax, rdi
        LOG rax
    " { results: &[5, 0], faults: &[gp(0)] }
    copy_into_read_only_memory in Long "
        mov esi, 0x20000
        mov edi, 0x31ff8
        and qword ptr [0x4190], -3
        mov ebx, 0x32000
        invlpg [rbx]
        mov ecx, 16
        TRY rep movsb
        LOG rcx
    " { results: &[8], faults: &[pf(3, 0x3_2000)] }
    copy_of_a_page in Long "
        mov edi, 0x20000
        mov ecx, 512
        xor eax, eax
    2:  mov [rdi], rax
        add rdi, 8
        add rax, 0x01010101
        loop 2b
        mov esi, 0x20000
        mov edi, 0x30008
        mov ecx, 0x1000
        rep movsb
        mov rax, [0x31000]
        LOG rax
        mov rax, [0x30008]
        LOG rax
        mov rax, [0x31008]
        LOG rax
    " { results: &[0x0101_0101 * 511, 0, 0] }
}
