//! Arithmetic and its flags in all widths (SDM volume 1, 3.4.3; volume 2).

use crate::conformance::program::{fault, programs};
use umbra_x86::cpuid::feature;

programs! { "flags";
    add8_signed_overflow in Long "
        mov eax, 0x1234567f
        add al, 1
        LOGF
        LOG rax
    " { results: &[0x890, 0x12345680] }
    add16_carry_keeps_upper in Long "
        mov rax, 0x1111222233338000
        add ax, ax
        LOGF
        LOG rax
    " { results: &[0x845, 0x1111_2222_3333_0000] }
    add32_clears_upper in Long "
        mov rax, -1
        add eax, 1
        LOGF
        LOG rax
    " { results: &[0x55, 0] }
    add64_carry in Long "
        mov rax, 0x8000000000000000
        mov rbx, rax
        add rax, rbx
        LOGF
        LOG rax
    " { results: &[0x845, 0] }
    adc_chain in Long "
        mov rax, -1
        xor edx, edx
        add rax, 1
        adc rdx, 0
        LOG rax
        LOG rdx
        stc
        mov cl, 0xff
        adc cl, 0xff
        LOGF
        movzx ecx, cl
        LOG rcx
    " { results: &[0, 1, 0x95, 0xff] }
    sub_borrow in Long "
        mov al, 0
        sub al, 1
        LOGF
        mov ax, 0x8000
        sub ax, 1
        LOGF
        mov eax, 5
        sub eax, 5
        LOGF
        mov rax, 1
        sub rax, 2
        LOGF
        LOG rax
    " { results: &[0x95, 0x814, 0x44, 0x95, u64::MAX] }
    sbb_with_and_without_carry in Long "
        stc
        mov eax, 0
        sbb eax, 0
        LOGF
        LOG rax
        clc
        sbb eax, eax
        LOG rax
        stc
        sbb rax, rax
        LOG rax
    " { results: &[0x95, 0xffff_ffff, 0, u64::MAX] }
    cmp_changes_nothing_but_flags in Long "
        mov rax, 3
        mov rbx, 7
        cmp rax, rbx
        LOGF
        LOG rax
        cmp al, 0x83
        LOGF
    " { results: &[0x95, 3, 0x881] }
    inc_dec_keep_carry in Long "
        stc
        mov eax, 0x7fffffff
        inc eax
        LOGF
        clc
        mov al, 0x80
        dec al
        LOGF
        stc
        mov rax, -1
        inc rax
        LOGF
    " { results: &[0x895, 0x810, 0x55] }
    neg_and_not in Long "
        mov al, 0x80
        neg al
        LOGF
        xor eax, eax
        neg eax
        LOGF
        mov ax, 1
        neg ax
        LOGF
        mov rax, 0x5555555555555555
        not rax
        LOGF
        LOG rax
    " { results: &[0x881, 0x44, 0x95, 0x95, 0xaaaa_aaaa_aaaa_aaaa] }
    logic_clears_carry_and_overflow in Long "
        stc
        mov eax, 0xf0
        and eax, 0x80
        LOGF 0x8c5
        stc
        or al, al
        LOGF 0x8c5
        stc
        xor eax, eax
        LOGF 0x8c5
        mov rax, 0x8000000000000003
        test rax, rax
        LOGF 0x8c5
    " { results: &[0, 0x80, 0x44, 0x84] }
    shl_counts in Long "
        mov eax, 0x80000001
        shl eax, 1
        LOGF 0x8c5
        LOG rax
        stc
        mov cl, 32
        mov eax, 1
        shl eax, cl
        LOGF 0x8c5
        LOG rax
        mov cl, 64
        mov rbx, 3
        shl rbx, cl
        LOG rbx
        mov cl, 33
        shl rbx, cl
        LOG rbx
        mov cl, 9
        mov al, 0x81
        shl al, cl
        LOG rax
    " { results: &[0x801, 2, 0x801, 1, 3, 0x6_0000_0000, 0] }
    shr_sar in Long "
        mov al, 0x81
        shr al, 1
        LOGF 0x8c5
        mov al, 0x81
        sar al, 1
        LOGF 0x8c5
        movzx eax, al
        LOG rax
        mov rax, 0x8000000000000000
        sar rax, 63
        LOG rax
        mov cl, 20
        mov ax, 0x8000
        sar ax, cl
        movzx eax, ax
        LOG rax
        mov eax, 0xffffffff
        shr eax, 31
        LOGF 0x0c5
        LOG rax
    " { results: &[0x801, 0x85, 0xc0, u64::MAX, 0xffff, 1, 1] }
    rotates in Long "
        mov al, 0x81
        rol al, 1
        LOGF 0x801
        movzx eax, al
        LOG rax
        mov ax, 0x0001
        ror ax, 1
        LOGF 0x801
        movzx eax, ax
        LOG rax
        mov rax, 0x123456789abcdef0
        rol rax, 20
        LOG rax
        mov eax, 0x12345678
        mov cl, 40
        rol eax, cl
        LOG rax
        mov al, 0xf0
        mov cl, 8
        stc
        rol al, cl
        LOGF 0x001
    " { results: &[0x801, 3, 0x801, 0x8000, 0x6789_abcd_ef01_2345, 0x3456_7812, 0] }
    rotates_through_carry in Long "
        stc
        mov al, 0x80
        rcl al, 1
        LOGF 0x801
        movzx eax, al
        LOG rax
        clc
        mov ax, 1
        rcr ax, 1
        LOGF 0x001
        movzx eax, ax
        LOG rax
        stc
        mov al, 0x0f
        mov cl, 9
        rcl al, cl
        LOGF 0x001
        movzx eax, al
        LOG rax
        stc
        mov rax, 0
        mov cl, 63
        rcr rax, cl
        LOG rax
        stc
        mov ax, 0x1234
        mov cl, 17
        rcr ax, cl
        movzx eax, ax
        LOG rax
    " { results: &[0x801, 1, 1, 0, 1, 0x0f, 2, 0x1234] }
    double_shifts in Long "
        mov eax, 0x12345678
        mov edx, 0x9abcdef0
        shld eax, edx, 8
        LOG rax
        mov eax, 0x12345678
        shrd eax, edx, 8
        LOG rax
        mov rax, 1
        mov rdx, 0x8000000000000000
        mov cl, 1
        shld rax, rdx, cl
        LOG rax
        mov cl, 64
        stc
        shrd rax, rdx, cl
        LOGF 0x001
        LOG rax
    " { results: &[0x3456_789a, 0xf012_3456, 3, 1, 3] }
    mul_widths in Long "
        mov eax, 0xffff
        mov cl, 0xff
        mul cl
        LOGF 0x801
        LOG rax
        mov ax, 0xffff
        mov cx, 2
        mov edx, 0x77770000
        mul cx
        LOG rdx
        mov rax, -1
        mov rcx, -1
        mul ecx
        LOG rax
        LOG rdx
        mov rax, -1
        mov rcx, -1
        mul rcx
        LOG rax
        LOG rdx
        LOGF 0x801
        mov eax, 2
        mul eax
        LOGF 0x801
    " { results: &[0x801, 0xfe01, 0x7777_0001, 1, 0xffff_fffe, 1, u64::MAX - 1, 0x801, 0] }
    imul_forms in Long "
        mov al, -2
        mov cl, 3
        imul cl
        LOGF 0x801
        movzx eax, ax
        LOG rax
        mov ecx, 0x10000
        imul ecx, ecx
        LOGF 0x801
        LOG rcx
        mov rcx, -5
        imul rax, rcx, 7
        LOG rax
        imul eax, ecx, -1
        LOG rax
        mov rax, -1
        mov rcx, -1
        imul rcx
        LOG rdx
        LOGF 0x801
    " { results: &[0, 0xfffa, 0x801, 0, (-35i64) as u64, 5, 0, 0] }
    div_widths in Long "
        mov eax, 0x0107
        mov cl, 0x10
        div cl
        movzx eax, ax
        LOG rax
        mov edx, 1
        mov eax, 0
        mov ecx, 0x10
        div ecx
        LOG rax
        LOG rdx
        mov rdx, 5
        mov rax, 3
        mov rcx, 0x10
        div rcx
        LOG rax
        LOG rdx
        mov rax, -7
        cqo
        mov rcx, 2
        idiv rcx
        LOG rax
        LOG rdx
    " { results: &[0x710, 0x1000_0000, 0, 0x5000_0000_0000_0000, 3, (-3i64) as u64, u64::MAX] }
    divide_errors in Long "
        xor ecx, ecx
        mov eax, 1
        xor edx, edx
        TRY div ecx
        mov edx, 1
        mov ecx, 1
        TRY div ecx
        mov eax, 0x80000000
        mov edx, -1
        mov ecx, -1
        TRY idiv ecx
        LOG rax
        LOG rdx
        mov eax, 0x0200
        mov cl, 2
        TRY div cl
        mov rax, 0x8000000000000000
        cqo
        mov rcx, -1
        TRY idiv rcx
        mov ax, 0x8000
        cwd
        mov cx, -1
        TRY idiv cx
    " { results: &[0x8000_0000, 0xffff_ffff], faults: &[fault(0), fault(0), fault(0), fault(0), fault(0), fault(0)] }
    bit_tests_in_registers in Long "
        mov eax, 0x80000000
        bt eax, 31
        LOGF 0x001
        mov ecx, 63
        bts eax, ecx
        LOGF 0x001
        mov rax, 0
        bts rax, 40
        LOG rax
        btc rax, 41
        LOG rax
        btr rax, 40
        LOGF 0x001
        LOG rax
    " { results: &[1, 1, 1 << 40, 3 << 40, 1, 2 << 40] }
    bit_tests_reach_far_in_memory in Long "
        mov ebx, 0x20100
        mov ecx, 1000
        bts dword ptr [rbx], ecx
        movzx eax, byte ptr [rbx+125]
        LOG rax
        mov rcx, -8
        bts qword ptr [rbx], rcx
        movzx eax, byte ptr [rbx-1]
        LOG rax
        mov cx, -1
        btc word ptr [rbx], cx
        movzx eax, byte ptr [rbx-1]
        LOG rax
        mov ecx, 1000
        lock btr dword ptr [rbx], ecx
        LOGF 0x001
        movzx eax, byte ptr [rbx+125]
        LOG rax
        bts dword ptr [rbx], 35
        mov eax, [rbx]
        LOG rax
    " { results: &[1, 1, 0x81, 1, 0, 8] }
    bit_scans in Long "
        mov rax, 0x0010000000000100
        bsf rcx, rax
        LOG rcx
        bsr rcx, rax
        LOG rcx
        LOGF 0x040
        xor eax, eax
        bsf rdx, rax
        LOGF 0x040
    " { results: &[8, 52, 0, 0x40] }
    counts in Long "
        mov rax, 0x00f0000000000000
        lzcnt rcx, rax
        LOG rcx
        tzcnt rcx, rax
        LOG rcx
        popcnt rcx, rax
        LOG rcx
        xor eax, eax
        lzcnt ecx, eax
        LOGF 0x041
        LOG rcx
        tzcnt cx, ax
        LOGF 0x041
        movzx ecx, cx
        LOG rcx
        popcnt eax, eax
        LOGF
    " { results: &[8, 52, 4, 1, 32, 1, 16, 0x40], needs: &[feature::ABM, feature::BMI1, feature::POPCNT] }
    decimal in Protected "
        mov eax, 0x79
        add al, 0x35
        daa
        LOGF 0x0d5
        LOG eax
        mov al, 0x35
        sub al, 0x47
        das
        LOGF 0x0d5
        movzx eax, al
        LOG eax
        mov eax, 0x000f
        aaa
        LOG eax
        LOGF 0x011
        mov eax, 0x0105
        sub al, 8
        aas
        LOG eax
        LOGF 0x011
        mov eax, 63
        aam
        LOG eax
        aad
        LOG eax
        mov eax, 0x1234
        .byte 0xd5, 0x10
        LOG eax
    " { results: &[0x15, 0x14, 0x95, 0x88, 0x105, 0x11, 7, 0x11, 0x603, 63, 0x54] }
    aam_by_zero in Protected "
        mov eax, 5
        TRY .byte 0xd4, 0
        LOG eax
    " { results: &[5], faults: &[fault(0)] }
    sign_extensions in Long "
        mov rax, 0x1111111111111180
        cbw
        LOG rax
        mov ax, 0x8000
        cwde
        LOG rax
        mov eax, 0x80000000
        cdqe
        LOG rax
        mov rdx, -1
        mov eax, 0x7fffffff
        cdq
        LOG rdx
        mov rdx, 0x1111111111111111
        mov ax, 0x8000
        cwd
        LOG rdx
        mov rax, -1
        cqo
        LOG rdx
        mov ecx, 0x8182
        movsx rax, cl
        LOG rax
        movsx eax, cx
        LOG rax
        mov ecx, 0x80000000
        movsxd rax, ecx
        LOG rax
        mov rax, -1
        movzx ax, ch
        LOG rax
    " { results: &[0x1111_1111_1111_ff80, 0xffff_8000, 0xffff_ffff_8000_0000, 0, 0x1111_1111_1111_ffff, u64::MAX,
        0xffff_ffff_ffff_ff82, 0xffff_8182, 0xffff_ffff_8000_0000, 0xffff_ffff_ffff_0000] }
    high_byte_registers in Long "
        mov rax, 0x1122334455667788
        mov rbx, rax
        mov ah, bl
        LOG rax
        xchg bh, bl
        LOG rbx
        add ah, ah
        LOGF
        mov rsi, 0x0102030405060708
        mov sil, 0xff
        LOG rsi
    " { results: &[0x1122_3344_5566_8888, 0x1122_3344_5566_8877, 0x811, 0x0102_0304_0506_07ff] }
    setcc_and_cmovcc in Long "
        xor eax, eax
        cmp eax, 1
        setb al
        LOG rax
        setnb al
        LOG rax
        mov rcx, -1
        mov rdx, 5
        cmp eax, 0
        cmovne ecx, edx
        LOG rcx
        mov rcx, -1
        cmove cx, dx
        LOG rcx
        mov rcx, -1
        cmovne rcx, rdx
        LOG rcx
        mov al, 0x80
        add al, 0x80
        seto bl
        setp bh
        sets cl
        setle ch
        movzx eax, bx
        LOG rax
        movzx eax, cx
        LOG rax
    " { results: &[1, 0, 0xffff_ffff, 0xffff_ffff_ffff_0005, u64::MAX, 0x101, 0x100] }
    cmovcc_reads_memory_always in Long "
        mov ebx, 0x500000
        cmp eax, eax
        TRY cmovne eax, [rbx]
    " { faults: &[crate::conformance::program::pf(0, 0x50_0000)] }
    lahf_sahf in Long "
        mov eax, 0xff00
        sahf
        LOGF 0x0d5
        mov ah, 0
        sahf
        LOGF 0x0d5
        stc
        lahf
        movzx eax, ah
        LOG rax
        xor eax, eax
        lahf
        movzx eax, ah
        LOG rax
    " { results: &[0xd5, 0, 3, 0x46], needs: &[feature::LAHF_LM] }
    xadd_xchg_cmpxchg in Long "
        mov eax, 5
        mov ecx, 7
        xadd eax, ecx
        LOG rax
        LOG rcx
        LOGF
        xchg rax, rcx
        LOG rax
        mov edx, 9
        cmpxchg ecx, edx
        LOGF
        LOG rax
        cmpxchg ecx, edx
        LOGF 0x040
        LOG rcx
        mov rax, -1
        mov rcx, 1
        cmpxchg ecx, edx
        LOG rax
        LOG rcx
    " { results: &[12, 5, 0x4, 5, 0x95, 12, 0x40, 9, 1, 1] }
    cmpxchg8b_16b in Long "
        mov ebx, 0x20000
        mov rax, 0x1111111122222222
        mov [rbx], rax
        mov eax, 0x22222222
        mov edx, 0x11111111
        mov esi, ebx
        mov ebx, 0x33333333
        mov ecx, 0x44444444
        cmpxchg8b [rsi]
        LOGF 0x040
        mov rdi, [rsi]
        LOG rdi
        cmpxchg8b [rsi]
        LOGF 0x040
        LOG rax
        LOG rdx
        mov rdx, 0
        mov rax, rdi
        mov rbx, -2
        mov rcx, -3
        lock cmpxchg16b [rsi]
        LOGF 0x040
        mov rax, [rsi]
        mov rdx, [rsi+8]
        LOG rax
        LOG rdx
        add rsi, 8
        TRY cmpxchg16b [rsi]
    " { results: &[0x40, 0x4444_4444_3333_3333, 0, 0x3333_3333, 0x4444_4444, 0x40, u64::MAX - 1, u64::MAX - 2],
        faults: &[crate::conformance::program::gp(0)], needs: &[feature::CX16] }
    bswap_movbe_crc32 in Long "
        mov rax, 0x1122334455667788
        bswap rax
        LOG rax
        bswap eax
        LOG rax
        mov ebx, 0x20000
        mov rax, 0x1122334455667788
        movbe [rbx], rax
        mov rcx, [rbx]
        LOG rcx
        movbe ecx, [rbx]
        LOG rcx
        mov rcx, -1
        movbe cx, [rbx]
        LOG rcx
        xor eax, eax
        mov cl, 0x31
        dec eax
        crc32 eax, cl
        not eax
        LOG rax
    " { results: &[0x8877_6655_4433_2211, 0x1122_3344, 0x8877_6655_4433_2211, 0x1122_3344, 0xffff_ffff_ffff_1122, 0x90f5_99e3],
        needs: &[feature::MOVBE, feature::SSE4_2] }
    bmi in Long "
        mov rax, 0xff00
        mov rcx, 0x0ff0
        andn rdx, rax, rcx
        LOG rdx
        blsr rdx, rcx
        LOG rdx
        blsi rdx, rcx
        LOG rdx
        blsmsk rdx, rcx
        LOG rdx
        mov edx, 0x0804
        bextr rdx, rcx, rdx
        LOG rdx
        mov rdx, 0x5
        pdep rbx, rdx, rcx
        LOG rbx
        pext rbx, rcx, rax
        LOG rbx
        mov rdx, -1
        mulx rsi, rbx, rcx
        LOG rsi
        LOG rbx
        rorx rbx, rcx, 4
        LOG rbx
        mov rdx, 68
        sarx rbx, rcx, rdx
        LOG rbx
        shlx ebx, ecx, edx
        LOG rbx
        mov dl, 8
        bzhi rbx, rcx, rdx
        LOG rbx
    " { results: &[0xf0, 0xfe0, 0x10, 0x1f, 0xff, 0x50, 0xf, 0xfef, u64::MAX - 0xfef, 0xff, 0xff, 0xff00, 0xf0],
        needs: &[feature::BMI1, feature::BMI2] }
    adx_has_two_carries in Long "
        xor eax, eax
        mov rax, -1
        mov rcx, 1
        mov rdx, -1
        adcx rax, rcx
        adox rdx, rcx
        LOGF 0x801
        mov eax, 0
        mov ecx, 0
        adcx rax, rcx
        LOG rax
        LOGF 0x801
    " { results: &[0x801, 1, 0x800], needs: &[feature::ADX] }
    carry_flag_instructions in Long "
        clc
        cmc
        LOGF 0x001
        cmc
        LOGF 0x001
        stc
        LOGF 0x001
        std
        LOGF 0x400
        cld
        LOGF 0x400
    " { results: &[1, 0, 1, 0x400, 0] }
    loops_and_jcxz in Long "
        mov ecx, 5
        xor eax, eax
    2:  inc eax
        loop 2b
        LOG rax
        mov rcx, 0x100000002
        xor eax, eax
    2:  inc eax
        .byte 0x67
        loop 2b
        LOG rax
        LOG rcx
        mov rcx, 0x100000000
        xor eax, eax
        jrcxz 3f
        inc eax
    3:  LOG rax
        jecxz 3f
        inc eax
    3:  LOG rax
        mov ecx, 5
        cmp ecx, 5
    2:  inc eax
        cmp eax, 4
        loopne 2b
        LOG rcx
    " { results: &[5, 2, 0, 1, 1, 2] }
    loop_with_32_bit_counter_clears_upper in Long "
        mov rcx, 0x700000002
        .byte 0x67
        loop 2f
    2:  LOG rcx
    " { results: &[1] }
    stack_widths in Long "
        mov rbp, rsp
        push 0x1234
        push -1
        .byte 0x66, 0x68, 0x78, 0x56
        mov rax, rbp
        sub rax, rsp
        LOG rax
        mov rax, [rsp]
        LOG rax
        pop ax
        pop rbx
        LOG rbx
        pop qword ptr [rsp-8]
        mov rax, [rsp-8]
        LOG rax
        push rsp
        pop rax
        sub rax, rsp
        LOG rax
        push 0x77
        pop qword ptr [rsp]
        mov rax, [rsp]
        LOG rax
        mov rsp, rbp
        push 5
        pop rsp
        LOG rsp
        mov rsp, rbp
    " { results: &[18, 0xffff_ffff_ffff_5678, u64::MAX, 0x1234, 0, 0x77, 5] }
    enter_leave in Long "
        mov rbp, 0x1111
        mov rcx, rsp
        enter 0x20, 0
        mov rax, rcx
        sub rax, rsp
        LOG rax
        mov rax, [rbp]
        LOG rax
        leave
        LOG rbp
        sub rcx, rsp
        LOG rcx
        mov rbp, rsp
        enter 8, 3
        mov rax, [rbp-24]
        sub rax, rbp
        LOG rax
        leave
    " { results: &[0x28, 0x1111, 0x1111, 0, 0] }
    pusha_popa in Protected "
        mov eax, 1
        mov ecx, 2
        mov edx, 3
        mov ebx, 4
        mov ebp, 5
        mov esi, 6
        mov edi, 7
        mov [0x20000], esp
        pushad
        mov eax, [esp+12]
        sub eax, [0x20000]
        LOG eax
        mov dword ptr [esp+12], 0x999
        mov dword ptr [esp+28], 0x88
        popad
        LOG eax
        LOG edi
        sub esp, [0x20000]
        LOG esp
        mov esp, 0xf000
    " { results: &[0, 0x88, 7, 0] }
    calls_and_returns in Long "
        mov rbp, rsp
        call 2f
        jmp 3f
    2:  mov rax, rbp
        sub rax, rsp
        LOG rax
        push 1
        push 2
        add rsp, 16
        ret
    3:  push 7
        push 8
        ADDR rax, 2f
        call rax
        mov rax, rbp
        sub rax, rsp
        LOG rax
        jmp 3f
    2:  ret 16
    3:  nop
    " { results: &[8, 0] }
    xlat_and_lea in Long "
        mov ebx, 0x20000
        mov byte ptr [rbx+0xfe], 0x5a
        mov eax, 0xfffe
        xlatb
        LOG rax
        mov rcx, 0x123456789
        lea rax, [rcx+rcx*2+5]
        LOG rax
        lea eax, [rcx+rcx*2+5]
        LOG rax
        mov rax, -1
        lea ax, [rcx]
        LOG rax
        .byte 0x67
        lea rax, [rcx+0x10]
        mov rdx, 0
    " { results: &[0xff5a, 0x3_69d0_36a0, 0x69d0_36a0, 0xffff_ffff_ffff_6789] }
    popf_in_ring0 in Long "
        push 0x240cd5
        popfq
        pushfq
        pop rax
        LOG rax
        push 2
        popfq
        pushfq
        pop rax
        LOG rax
        push 0x3002
        popfq
        pushf
        pop ax
        movzx eax, ax
        LOG rax
        push 2
        popfq
    " { results: &[0x24_0cd7, 2, 0x3002] }
    same_in_32_bit_code in Protected "
        mov eax, 0x7fffffff
        add eax, 1
        LOGF
        mov ax, 0xffff
        inc ax
        LOGF
        LOG eax
        mov ecx, 0x21
        mov eax, 1
        shl eax, cl
        LOG eax
        inc eax
        dec ecx
        LOG ecx
    " { results: &[0x894, 0x54, 0x8000_0000, 2, 0x20] }
    same_in_16_bit_code in Real "
        mov eax, 0x7fffffff
        add eax, 1
        LOGF
        LOG eax
        mov ax, 0xffff
        add ax, 1
        LOGF
        mov ax, 0x1234
        push ax
        pop cx
        LOG cx
        mov dx, 1
        mov ax, 0
        mov bx, 0x10
        div bx
        LOG ax
        imul cx, cx, 16
        LOG cx
    " { results: &[0x894, 0x8000_0000, 0x55, 0x1234, 0x1000, 0x2340] }
    undefined_opcodes in Long "
        TRY ud2
        TRY .byte 0x0f, 0xff, 0xc0
        TRY .byte 0x06
        TRY .byte 0x27
        TRY .byte 0xd4, 0x0a
        TRY .byte 0x82, 0xc0, 0x00
        TRY .byte 0x8d, 0xc0
    " { faults: &[fault(6); 7] }
    vex_of_an_unknown_map in Long "
        TRY .byte 0xc4, 0xc0, 0xf8, 0x10, 0xc0
        TRY .byte 0xc4, 0xff, 0xf8, 0x10, 0xc0
    " { faults: &[fault(6); 2] }
    vex_after_a_prefix in Long "
        TRY .byte 0x66, 0xc5, 0xf8, 0x10, 0xc0
        TRY .byte 0x48, 0xc5, 0xf8, 0x10, 0xc0
        TRY .byte 0xf0, 0xc5, 0xf8, 0x10, 0x00
    " { faults: &[fault(6); 3] }
    lock_without_memory in Long "
        TRY .byte 0xf0, 0x01, 0xc0
        mov ebx, 0x20000
        TRY .byte 0xf0, 0x8b, 0x03
        TRY .byte 0xf0, 0x3b, 0x03
    " { faults: &[fault(6); 3] }
    lock_nop in Long "
        TRY .byte 0xf0, 0x90
    " { faults: &[fault(6)] }
    vmread_without_vmx in Long "
        TRY .byte 0x0f, 0x78, 0xff, 0xff
    " { faults: &[fault(6)] }
    too_long_an_instruction in Long "
        TRY .byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90
        TRY .byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90
    " { faults: &[crate::conformance::program::gp(0)] }
}
