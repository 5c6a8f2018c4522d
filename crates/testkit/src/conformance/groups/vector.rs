//! x87, SSE and AVX state, and the instructions that save it (SDM volume 1, chapters 8, 10, 13).

use crate::conformance::program::{UD, fault, gp, programs};
use umbra_x86::cpuid::feature;

programs! { "vector";
    state_survives_an_interrupt in Long "
        GATE 0x42, 7f
        fninit
        fldpi
        fld1
        mov rax, 0x1122334455667788
        movq xmm7, rax
        int 0x42
        fxch st(1)
        fistp qword ptr [0x20000]
        mov rax, [0x20000]
        LOG rax
        fistp qword ptr [0x20000]
        mov rax, [0x20000]
        LOG rax
        movq rax, xmm7
        LOG rax
        jmp 8f
    7:  nop
        iretq
    8:  nop
    " { results: &[3, 1, 0x1122_3344_5566_7788] }
    fxsave_layout in Long "
        fninit
        fld1
        fldz
        mov dword ptr [0x20200], 0x1fa0
        ldmxcsr [0x20200]
        mov rax, 0x0102030405060708
        movq xmm15, rax
        fxsave64 [0x20000]
        movzx eax, word ptr [0x20000]
        LOG rax
        movzx eax, word ptr [0x20002]
        LOG rax
        movzx eax, byte ptr [0x20004]
        LOG rax
        mov eax, [0x20018]
        LOG rax
        mov rax, [0x20030]
        LOG rax
        movzx eax, word ptr [0x20038]
        LOG rax
        mov rax, [0x20190]
        LOG rax
    " { results: &[0x37f, 0x3000, 0xc0, 0x1fa0, 0x8000_0000_0000_0000, 0x3fff, 0x0102_0304_0506_0708] }
    fxrstor_brings_all_back in Long "
        fninit
        fld1
        mov rax, 0x0102030405060708
        movq xmm3, rax
        fxsave64 [0x20000]
        fninit
        pxor xmm3, xmm3
        fxrstor64 [0x20000]
        movq rax, xmm3
        LOG rax
        fistp dword ptr [0x20200]
        mov eax, [0x20200]
        LOG rax
        mov dword ptr [0x20018], 0x10000
        TRY fxrstor64 [0x20000]
    " { results: &[0x0102_0304_0506_0708, 1], faults: &[gp(0)] }
    x87_control_and_status in Long "
        fninit
        fnstcw [0x20000]
        movzx eax, word ptr [0x20000]
        LOG rax
        fnstsw ax
        movzx eax, ax
        LOG rax
        mov word ptr [0x20000], 0x27f
        fldcw [0x20000]
        fld1
        fnstsw ax
        and eax, 0x3800
        LOG rax
        fldz
        fdivp st(1), st
        fnstsw ax
        and eax, 0x7f
        LOG rax
        fnclex
        fnstsw ax
        and eax, 0x80ff
        LOG rax
        fnstenv [0x20100]
        movzx eax, word ptr [0x20108]
        LOG rax
    " { results: &[0x37f, 0, 0x3800, 4, 0, 0xbfff] }
    x87_arithmetic in Long "
        fninit
        mov dword ptr [0x20000], 10
        mov dword ptr [0x20004], 3
        fild dword ptr [0x20000]
        fidiv dword ptr [0x20004]
        fst qword ptr [0x20008]
        mov rax, [0x20008]
        LOG rax
        fstp tbyte ptr [0x20010]
        mov rax, [0x20010]
        LOG rax
        fldpi
        fld st(0)
        fmulp st(1), st
        fsqrt
        fistp qword ptr [0x20008]
        mov rax, [0x20008]
        LOG rax
        fld1
        fldz
        fcomip st, st(1)
        LOGF 0x045
        fstp st(0)
    " { results: &[0x400a_aaaa_aaaa_aaab, 0xd555_5555_5555_5555, 3, 1] }
    mmx_shares_the_x87_registers in Long "
        fninit
        mov rax, 0x1122334455667788
        movq mm0, rax
        paddb mm0, mm0
        fxsave64 [0x20000]
        movzx eax, byte ptr [0x20004]
        LOG rax
        movzx eax, word ptr [0x20028]
        LOG rax
        movq rax, mm0
        LOG rax
        emms
        fxsave64 [0x20000]
        movzx eax, byte ptr [0x20004]
        LOG rax
    " { results: &[0xff, 0xffff, 0x2244_6688_aacc_ee10, 0] }
    sse_arithmetic in Long "
        mov eax, 0x40400000
        movd xmm0, eax
        addss xmm0, xmm0
        movd eax, xmm0
        LOG rax
        cvttss2si eax, xmm0
        LOG rax
        mov eax, 7
        cvtsi2sd xmm1, eax
        sqrtsd xmm1, xmm1
        movq rax, xmm1
        LOG rax
        comiss xmm0, xmm0
        LOGF 0x045
        pcmpeqd xmm2, xmm2
        psrldq xmm2, 12
        movq rax, xmm2
        LOG rax
    " { results: &[0x40c0_0000, 6, 0x4005_2a7f_a9d2_f8ea, 0x40, 0xffff_ffff] }
    mxcsr_rounding_and_flags in Long "
        mov dword ptr [0x20000], 0x5f80
        ldmxcsr [0x20000]
        mov eax, 3
        cvtsi2ss xmm0, eax
        mov eax, 0x3f800000
        movd xmm1, eax
        divss xmm1, xmm0
        movd eax, xmm1
        LOG rax
        stmxcsr [0x20004]
        mov eax, [0x20004]
        LOG rax
        mov dword ptr [0x20000], 0x1f80
        ldmxcsr [0x20000]
    " { results: &[0x3eaa_aaab, 0x5fa0] }
    avx_clears_upper_halves in Long "
        mov rax, -1
        movq xmm0, rax
        vbroadcastsd ymm0, xmm0
        vmovdqu [0x20000], ymm0
        mov rax, [0x20018]
        LOG rax
        vmovdqa xmm0, xmm0
        vmovdqu [0x20000], ymm0
        mov rax, [0x20018]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        vpcmpeqd ymm1, ymm1, ymm1
        paddd xmm1, xmm1
        vmovdqu [0x20000], ymm1
        mov rax, [0x20018]
        LOG rax
        vzeroupper
        vmovdqu [0x20000], ymm1
        mov rax, [0x20018]
        LOG rax
    " { results: &[u64::MAX, 0, u64::MAX, u64::MAX, 0], needs: &[feature::AVX2] }
    xsave_and_xrstor in Long "
        fninit
        fld1
        mov rax, 0x1111111111111111
        movq xmm4, rax
        vinserti128 ymm4, ymm4, xmm4, 1
        mov eax, 7
        xor edx, edx
        xsave64 [0x20000]
        mov rax, [0x20200]
        LOG rax
        mov rax, [0x20280]
        LOG rax
        fninit
        vzeroall
        mov eax, 7
        xrstor64 [0x20000]
        vmovdqu [0x21000], ymm4
        mov rax, [0x21010]
        LOG rax
        fistp dword ptr [0x21000]
        mov eax, [0x21000]
        LOG rax
    " { results: &[7, 0x1111_1111_1111_1111, 0x1111_1111_1111_1111, 1], needs: &[feature::AVX2, feature::XSAVE] }
    xrstor_to_the_initial_state in Long "
        mov rax, -1
        movq xmm4, rax
        vpcmpeqd ymm5, ymm5, ymm5
        mov eax, 7
        xor edx, edx
        mov dword ptr [0x20018], 0x1f80
        mov qword ptr [0x20200], 0
        mov qword ptr [0x20208], 0
        xrstor64 [0x20000]
        movq rax, xmm4
        LOG rax
        vmovdqu [0x21000], ymm5
        mov rax, [0x21018]
        LOG rax
        fnstcw [0x21000]
        movzx eax, word ptr [0x21000]
        LOG rax
    " { results: &[0, 0, 0x37f], needs: &[feature::AVX2, feature::XSAVE] }
    xrstor_of_a_part in Long "
        mov rax, 0x2222
        movq xmm4, rax
        fninit
        fld1
        mov eax, 7
        xor edx, edx
        xsave64 [0x20000]
        mov rax, 0x3333
        movq xmm4, rax
        fldz
        mov eax, 1
        xrstor64 [0x20000]
        movq rax, xmm4
        LOG rax
        fnstsw ax
        and eax, 0x3800
        LOG rax
        mov eax, 2
        xrstor64 [0x20000]
        movq rax, xmm4
        LOG rax
    " { results: &[0x3333, 0x3800, 0x2222], needs: &[feature::XSAVE] }
    xrstor_errors in Long "
        mov eax, 7
        xor edx, edx
        xsave64 [0x20000]
        mov qword ptr [0x20200], 0x100
        TRY xrstor64 [0x20000]
        mov qword ptr [0x20200], 0
        mov qword ptr [0x20208], 1
        TRY xrstor64 [0x20000]
        mov qword ptr [0x20208], 0
        mov dword ptr [0x20018], 0x10000
        TRY xrstor64 [0x20000]
        mov dword ptr [0x20018], 0x1f80
        TRY xrstor64 [0x20008]
        TRY xsave64 [0x20020]
        xrstor64 [0x20000]
    " { faults: &[gp(0); 5], needs: &[feature::XSAVE] }
    xsetbv_rules in Long "
        xor ecx, ecx
        xgetbv
        mov ebx, eax
        xor edx, edx
        mov eax, 0
        TRY xsetbv
        mov eax, 4
        TRY xsetbv
        mov eax, 5
        TRY xsetbv
        mov eax, 0x80000001
        TRY xsetbv
        mov ecx, 1
        mov eax, 1
        TRY xsetbv
        xor ecx, ecx
        mov eax, 3
        xsetbv
        TRY vpxor ymm0, ymm0, ymm0
        addps xmm0, xmm0
        mov eax, ebx
        xsetbv
        vpxor ymm0, ymm0, ymm0
        mov ecx, 5
        TRY xgetbv
    " { faults: &[gp(0), gp(0), gp(0), gp(0), gp(0), UD, gp(0)], needs: &[feature::AVX2, feature::XSAVE] }
    xsave_without_osxsave in Long "
        mov rax, cr4
        and eax, 0xfffbffff
        mov cr4, rax
        TRY xgetbv
        TRY xsave64 [0x20000]
        TRY vpxor xmm0, xmm0, xmm0
        mov eax, 1
        cpuid
        shr ecx, 27
        and ecx, 1
        LOG rcx
        mov rax, cr4
        or eax, 0x40000
        mov cr4, rax
        mov eax, 1
        cpuid
        shr ecx, 27
        and ecx, 1
        LOG rcx
    " { results: &[0, 1], faults: &[UD, UD, UD], needs: &[feature::AVX, feature::XSAVE] }
    avx_with_task_switched in Long "
        mov rax, cr0
        or eax, 8
        mov cr0, rax
        TRY vpxor ymm0, ymm0, ymm0
        TRY xsave64 [0x20000]
        TRY movq rax, xmm0
        clts
    " { faults: &[fault(7), fault(7), fault(7)], needs: &[feature::AVX2, feature::XSAVE] }
    gather in Long "
        mov edi, 0x20000
        mov ecx, 16
        xor eax, eax
    2:  mov [rdi+rax*4], eax
        inc eax
        loop 2b
        mov rax, 0x0000000500000003
        movq xmm1, rax
        pcmpeqd xmm2, xmm2
        pxor xmm0, xmm0
        vpgatherdd xmm0, [rdi+xmm1*4], xmm2
        movq rax, xmm0
        LOG rax
        movq rax, xmm2
        LOG rax
    " { results: &[0x0000_0005_0000_0003, 0], needs: &[feature::AVX2] }
    gather_with_a_fault_in_the_middle in Long "
        mov edi, 0x20000
        mov dword ptr [rdi], 7
        mov rax, 0x0018000000000000
        movq xmm1, rax
        pcmpeqd xmm2, xmm2
        pxor xmm0, xmm0
        TRY vpgatherdd xmm0, [rdi+xmm1*4], xmm2
        movd eax, xmm0
        LOG rax
        movq rax, xmm2
        LOG rax
    " { results: &[7, 0xffff_ffff_0000_0000],
        faults: &[crate::conformance::program::pf(0, 0x62_0000)], needs: &[feature::AVX2] }
    masked_stores_fault_only_where_they_store in Long "
        mov qword ptr [0x4108], 0
        mov edi, 0x20ff8
        mov ebx, 0x21000
        invlpg [rbx]
        mov rax, -1
        movq xmm1, rax
        pcmpeqd xmm0, xmm0
        vpmaskmovd [rdi], xmm1, xmm0
        mov rax, [rdi]
        LOG rax
        pcmpeqd xmm1, xmm1
        TRY vpmaskmovd [rdi], xmm1, xmm0
    " { results: &[u64::MAX], faults: &[crate::conformance::program::pf(2, 0x2_1000)], needs: &[feature::AVX2] }
    aes_and_carryless in Long "
        mov rax, 0x0123456789abcdef
        movq xmm0, rax
        movq xmm1, rax
        pclmulqdq xmm0, xmm1, 0
        movq rax, xmm0
        LOG rax
        pxor xmm2, xmm2
        pxor xmm3, xmm3
        aesenc xmm2, xmm3
        movq rax, xmm2
        LOG rax
    " { results: &[0x4041_4445_5051_5455, 0x6363_6363_6363_6363], needs: &[feature::AES, feature::PCLMULQDQ] }
}
