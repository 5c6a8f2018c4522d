//! CPUID, time, model-specific registers (SDM volume 2, CPUID; volume 3, 17.17; volume 4).

use crate::conformance::program::{UD, gp, programs};
use umbra_x86::cpuid::feature;

programs! { "system";
    cpuid_leaves in Long "
        xor eax, eax
        cpuid
        LOG rbx
        LOG rcx
        LOG rdx
        mov rax, 0xffffffff00000000
        mov rbx, -1
        cpuid
        shr rax, 32
        LOG rax
        shr rbx, 32
        LOG rbx
        mov eax, 0x40000000
        cpuid
        LOG rbx
        mov eax, 1
        cpuid
        LOG rax
        shr ebx, 24
        LOG rbx
        mov eax, 0x80000000
        cpuid
        LOG rax
    " { results: &[0x756e_6547, 0x6c65_746e, 0x4965_6e69, 0, 0, 0x4b4d_564b, 0x306c3, 0, 0x8000_0008] }
    cpuid_of_an_unknown_subleaf in Long "
        mov eax, 7
        mov ecx, 5
        cpuid
        or eax, ebx
        or eax, ecx
        or eax, edx
        LOG rax
    " { results: &[0] }
    cpuid_follows_the_apic_and_xcr0 in Long "
        mov eax, 0xd
        xor ecx, ecx
        cpuid
        LOG rbx
        xor ecx, ecx
        xor edx, edx
        mov eax, 3
        xsetbv
        mov eax, 0xd
        cpuid
        LOG rbx
        LOG rcx
        mov ecx, 0x1b
        rdmsr
        and eax, 0xfffff7ff
        wrmsr
        mov eax, 1
        cpuid
        shr edx, 9
        and edx, 1
        LOG rdx
    " { results: &[832, 576, 832, 0], needs: &[feature::AVX] }
    what_cpuid_shows_works in Long "
        popcnt eax, eax
        pxor xmm0, xmm0
        phaddd xmm0, xmm0
        pmulld xmm0, xmm0
        pcmpgtq xmm0, xmm0
        pshufb xmm0, xmm0
        aesenc xmm0, xmm0
        pclmulqdq xmm0, xmm0, 1
        vfmadd213ps xmm0, xmm0, xmm0
        vcvtph2ps xmm0, xmm0
        vpaddd ymm0, ymm0, ymm0
        andn eax, eax, eax
        pdep eax, eax, eax
        adcx eax, eax
        lzcnt eax, eax
        movbe eax, [0x20000]
        rdrand eax
        rdseed eax
        cmpxchg16b [0x20000]
        rdtscp
        clflush [0x20000]
        lahf
        prefetcht0 [0x20000]
        sfence
        mfence
        lfence
        pause
        nop dword ptr [rax]
    " { needs: &[feature::POPCNT, feature::AES, feature::PCLMULQDQ, feature::FMA, feature::F16C, feature::AVX2, feature::BMI1, feature::BMI2,
        feature::ADX, feature::ABM, feature::MOVBE, feature::RDRAND, feature::RDSEED, feature::CX16, feature::RDTSCP] }
    senduipi_and_rdpkru_are_undefined in Long "
        TRY .byte 0xf3, 0x0f, 0xc7, 0xf0
        TRY .byte 0x0f, 0x01, 0xee
    " { faults: &[UD, UD] }
    rdpid_is_undefined in Long "
        TRY .byte 0xf3, 0x0f, 0xc7, 0xf8
    " { faults: &[UD] }
    monitor_and_mwait_are_undefined in Long "
        mov eax, 0x20000
        TRY .byte 0x0f, 0x01, 0xc8
        TRY .byte 0x0f, 0x01, 0xc9
    " { faults: &[UD, UD] }
    rdtsc_goes_forward in Long "
        xor r9d, r9d
        mov ecx, 1000
        rdtsc
        shl rdx, 32
        lea r8, [rdx+rax]
    2:  rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rax, r8
        jae 3f
        inc r9d
    3:  mov r8, rax
        loop 2b
        LOG r9
        mov ecx, 0x10
        rdmsr
        shl rdx, 32
        or rax, rdx
        cmp rax, r8
        setae al
        movzx eax, al
        LOG rax
    " { results: &[0, 1] }
    rdtsc_goes_forward_across_moves in Long "
        rdtsc
        shl rdx, 32
        lea r8, [rdx+rax]
        LOG rcx
        rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rax, r8
        seta al
        movzx eax, al
        LOG rax
    " { results: &[0, 1] }
    rdtscp_tells_the_processor in Long "
        mov ecx, 0xc0000103
        mov eax, 0x1234
        xor edx, edx
        wrmsr
        rdtscp
        LOG rcx
    " { results: &[0x1234], needs: &[feature::RDTSCP] }
    tsc_written in Long "
        mov ecx, 0x10
        mov edx, 0x1000
        xor eax, eax
        wrmsr
        rdtsc
        shr edx, 4
        LOG rdx
        rdmsr
        shr edx, 4
        LOG rdx
    " { results: &[0x100, 0x100], can_move: false }
    tsc_adjust in Long "
        mov ecx, 0x3b
        rdmsr
        LOG rax
        rdtsc
        shl rdx, 32
        lea r8, [rdx+rax]
        mov eax, 0
        mov edx, 0x1000
        wrmsr
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r8
        shr rax, 36
        LOG rax
        rdmsr
        LOG rdx
        mov ecx, 0x10
        rdmsr
        mov ecx, 0x3b
        xor eax, eax
        xor edx, edx
        wrmsr
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r8
        shr rax, 36
        LOG rax
    " { results: &[0, 0x100, 0x1000, 0], needs: &[feature::TSC_ADJUST] }
    msrs_keep_their_values in Long "
        mov r8, 0x0000123456789abc
        mov ecx, 0xc0000082
        mov eax, r8d
        mov rdx, r8
        shr rdx, 32
        wrmsr
        rdmsr
        shl rdx, 32
        or rax, rdx
        LOG rax
        mov ecx, 0xc0000083
        mov eax, r8d
        mov edx, 0x1234
        wrmsr
        rdmsr
        LOG rdx
        mov ecx, 0xc0000102
        wrmsr
        rdmsr
        LOG rax
        mov ecx, 0x175
        mov eax, 0x5555
        xor edx, edx
        wrmsr
        rdmsr
        LOG rax
        mov ecx, 0x277
        mov eax, 0x00070406
        mov edx, 0x00070106
        wrmsr
        rdmsr
        LOG rdx
        mov ecx, 0xc0000081
        mov eax, 0x1234
        mov edx, 0x00230010
        wrmsr
        rdmsr
        LOG rdx
    " { results: &[0x1234_5678_9abc, 0x1234, 0x5678_9abc, 0x5555, 0x7_0106, 0x23_0010] }
    msr_errors in Long "
        mov ecx, 0x12345678
        TRY rdmsr
        TRY wrmsr
        mov ecx, 0xc0000082
        xor eax, eax
        mov edx, 0x8000
        TRY wrmsr
        mov ecx, 0x277
        mov eax, 2
        xor edx, edx
        TRY wrmsr
        mov ecx, 0x1b
        mov eax, 0xfee00900
        mov edx, 0xffff0000
        TRY wrmsr
        mov eax, 0xfee00901
        xor edx, edx
        TRY wrmsr
        mov ecx, 0xc0000102
        mov edx, 0x8000
        xor eax, eax
        TRY wrmsr
    " { faults: &[gp(0); 7] }
    apic_base_transitions in Long "
        mov ecx, 0x1b
        rdmsr
        LOG rax
        mov eax, 0xfee00500
        TRY wrmsr
        mov eax, 0xfee00d00
        wrmsr
        rdmsr
        LOG rax
        mov eax, 0xfee00900
        TRY wrmsr
        mov eax, 0xfee00100
        wrmsr
        mov eax, 0xfee00d00
        TRY wrmsr
        mov eax, 0xfee00900
        wrmsr
        rdmsr
        LOG rax
    " { results: &[0xfee0_0900, 0xfee0_0d00, 0xfee0_0900], faults: &[gp(0), gp(0), gp(0)], needs: &[feature::X2APIC] }
    mtrr_registers in Long "
        mov ecx, 0xfe
        rdmsr
        and eax, 0xff
        cmp eax, 8
        setae al
        movzx eax, al
        LOG rax
        mov ecx, 0x2ff
        mov eax, 0xc06
        xor edx, edx
        wrmsr
        rdmsr
        LOG rax
        mov ecx, 0x250
        mov eax, 0x06060606
        mov edx, eax
        wrmsr
        rdmsr
        LOG rdx
        mov ecx, 0x200
        mov eax, 0x80000006
        xor edx, edx
        wrmsr
        rdmsr
        LOG rax
        mov ecx, 0x2ff
        mov eax, 0x2
        xor edx, edx
        TRY wrmsr
    " { results: &[1, 0xc06, 0x0606_0606, 0x8000_0006], faults: &[gp(0)] }
    swapgs_twice in Long "
        mov ecx, 0xc0000101
        mov eax, 1
        xor edx, edx
        wrmsr
        inc ecx
        mov eax, 2
        wrmsr
        swapgs
        mov ecx, 0xc0000101
        rdmsr
        LOG rax
        inc ecx
        rdmsr
        LOG rax
        swapgs
        rdmsr
        LOG rax
    " { results: &[2, 1, 2] }
    loading_gs_changes_its_base in Long "
        mov ecx, 0xc0000101
        mov eax, 0x12345
        xor edx, edx
        wrmsr
        mov eax, 0xe8
        mov gs, eax
        rdmsr
        LOG rax
        mov eax, 0x10
        mov gs, eax
        rdmsr
        LOG rax
    " { results: &[0x2_0000, 0] }
    random_numbers in Long "
        mov ecx, 100
    2:  rdrand rax
        jc 3f
        loop 2b
    3:  LOGF 0xcd5
        rdrand ebx
        shr rbx, 32
        LOG rbx
    " { results: &[1, 0], needs: &[feature::RDRAND] }
    cache_instructions_do_no_harm in Long "
        mov dword ptr [0x20000], 0x1234
        clflush [0x20000]
        prefetchnta [0x600000]
        wbinvd
        mov eax, [0x20000]
        LOG rax
    " { results: &[0x1234] }
    clflush_of_a_missing_page in Long "
        mov ebx, 0x600000
        TRY clflush [rbx]
    " { faults: &[crate::conformance::program::pf(0, 0x60_0000)] }
}
