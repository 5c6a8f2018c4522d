//! Which instructions may run natively, and what is special about some of them.
//!
//! It is an allow-list: by CPUID feature where a whole extension computes on registers and memory alone, by mnemonic among the
//! instructions that every processor has.

use iced_x86::{Code, CpuidFeature as F, EncodingKind, FlowControl, Instruction, Mnemonic as M, OpKind};

use super::features::host_is_amd;

/// Extensions whose instructions only compute.
fn is_pure_extension(f: F) -> bool {
    matches!(
        f,
        F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::SSE4A
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::GFNI
            | F::AVX
            | F::AVX2
            | F::F16C
            | F::FMA
            | F::VAES
            | F::VPCLMULQDQ
            | F::AVX_VNNI
            | F::AVX_IFMA
            | F::AVX_VNNI_INT8
            | F::AVX_NE_CONVERT
            | F::AVX512_BF16
            | F::AVX512_BITALG
            | F::AVX512_FP16
            | F::AVX512_IFMA
            | F::AVX512_VBMI
            | F::AVX512_VBMI2
            | F::AVX512_VNNI
            | F::AVX512_VPOPCNTDQ
            | F::AVX512BW
            | F::AVX512CD
            | F::AVX512DQ
            | F::AVX512F
            | F::AVX512VL
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::LZCNT
            | F::POPCNT
            | F::MOVBE
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::CLFSH
            | F::CLFLUSHOPT
            | F::CLWB
            | F::RDRAND
            | F::RDSEED
            | F::MOVDIRI
            | F::PREFETCHW
            | F::PREFETCHWT1
            | F::PREFETCHITI
            | F::CLDEMOTE
            | F::PAUSE
            | F::MULTIBYTENOP
            | F::SERIALIZE
    )
}

/// Integer arithmetic of every processor.
fn is_arithmetic(m: M) -> bool {
    #[rustfmt::skip]
    let is = matches!(
        m,
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test | M::Inc | M::Dec | M::Neg | M::Not
            | M::Mul | M::Imul | M::Div | M::Idiv | M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr
            | M::Shld | M::Shrd | M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Bswap | M::Xadd | M::Xchg | M::Cmpxchg
    );
    is
}

/// Moves, conversions and flags of every processor.
fn is_move(m: M) -> bool {
    #[rustfmt::skip]
    let is = matches!(
        m,
        M::Movzx | M::Movsx | M::Movsxd | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo | M::Lahf | M::Sahf
            | M::Cmc | M::Clc | M::Stc | M::Nop | M::Reservednop | M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg
            | M::Setge | M::Setl | M::Setle | M::Setne | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets | M::Wait
            | M::Endbr32 | M::Endbr64 | M::Rdsspd | M::Rdsspq
    );
    is
}

/// Whether `i` may run natively at all.
pub fn is_allowed(i: &Instruction) -> bool {
    let code = i.code();
    if matches!(code.encoding(), EncodingKind::D3NOW | EncodingKind::XOP | EncodingKind::MVEX)
        || code.flow_control() != FlowControl::Next
        || code.is_privileged()
        || code.is_stack_instruction()
        || code.op_code().is_input_output()
        || code.is_string_instruction() && !is_scalar_move(code)
        || i.is_vsib()
    {
        return false;
    }
    is_arithmetic(i.mnemonic())
        || is_move(i.mnemonic())
        || code.cpuid_features().iter().all(|f| is_pure_extension(*f)) && !is_handled_elsewhere(i.mnemonic())
}

/// MOVSD and CMPSD of SSE2 share their mnemonics with string instructions.
fn is_scalar_move(code: Code) -> bool {
    code.encoding() != EncodingKind::Legacy || code.cpuid_features().contains(&F::SSE2)
}

/// In an extension that only computes, but done in Rust.
fn is_handled_elsewhere(m: M) -> bool {
    matches!(
        m,
        M::Vzeroall
            | M::Vzeroupper
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Vp2intersectd
            | M::Vp2intersectq
    )
}

/// The same instruction with a code that exists in 64-bit mode.
pub fn in_64_bit_mode(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        _ => code,
    }
}

fn name(i: &Instruction) -> String {
    format!("{:?}", i.mnemonic())
}

/// Whether `i` belongs to the x87 unit.
pub fn is_x87(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Wait | M::Emms | M::Cvtpi2ps | M::Cvtpi2pd)
        || i.encoding() == EncodingKind::Legacy && name(i).starts_with('F') && i.mnemonic() != M::Femms
}

fn is_conversion(name: &str) -> bool {
    name.starts_with("Cvt") || name.starts_with("Vcvt") || name.starts_with("Vfpclass")
}

/// Whether `i` belongs to the vector unit even where it names no vector register: conversions and classification of memory.
pub fn is_vector_conversion(i: &Instruction) -> bool {
    is_conversion(&name(i)) && !matches!(i.mnemonic(), M::Cvtpi2ps | M::Cvtpi2pd)
}

/// Whether `i`, which uses vector registers, may look at MXCSR: all but moves, integer and bit operations.
pub fn uses_mxcsr(i: &Instruction) -> bool {
    const NEVER: [&str; 12] = [
        "Mov",
        "Vmov",
        "P",
        "Vp",
        "Aes",
        "Vaes",
        "Sha",
        "Vbroadcast",
        "Vextract",
        "Vinsert",
        "Unpck",
        "Vunpck",
    ];
    let name = name(i);
    is_conversion(&name) || !NEVER.iter().any(|n| name.starts_with(n))
}

/// Whether an EVEX memory operand under a mask is accessed as a whole (SDM volume 2, exception classes with "NF": no fault suppression).
pub fn ignores_mask_for_faults(i: &Instruction) -> bool {
    let name = name(i);
    const WHOLE: [&str; 23] = [
        "Vperm",
        "Vpunpck",
        "Vunpck",
        "Vpshuf",
        "Vpack",
        "Vpalignr",
        "Valign",
        "Vshuf",
        "Vpmaddubsw",
        "Vpmaddwd",
        "Vpconflict",
        "Vmovddup",
        "Vmovshdup",
        "Vmovsldup",
        "Vpmultishift",
        "Vdbpsadbw",
        "Vgf2p8affine",
        "Vpsll",
        "Vpsra",
        "Vpsrl",
        "Vinsert",
        "Vextract",
        "Vcvtne2ps2bf16",
    ];
    WHOLE.iter().any(|w| name.starts_with(w)) && !shifts_each(i) && i.mnemonic() != M::Vpshufbitqmb
}

/// Whether `i` works on one complex number: two halves of which one mask bit decides.
pub fn is_complex_scalar(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Vfmulcsh | M::Vfcmulcsh | M::Vfmaddcsh | M::Vfcmaddcsh)
}

/// Shifts by an immediate or by a count for each element, whose memory operand is masked; those by one count read all of it.
fn shifts_each(i: &Instruction) -> bool {
    let name = name(i);
    let is_shift = ["Vpsll", "Vpsra", "Vpsrl"].iter().any(|s| name.starts_with(s));
    is_shift
        && (name.starts_with("Vpsllv")
            || name.starts_with("Vpsrav")
            || name.starts_with("Vpsrlv")
            || i.op1_kind() == OpKind::Memory)
}

/// The alignment that the memory operand must have, or #GP follows: legacy SSE operands of 16 bytes but for the moves made to be
/// unaligned, and the aligned moves of VEX and EVEX (SDM volume 1, "Memory Alignment"; volume 2, exception types 1, 2 and 4).
pub fn alignment(i: &Instruction, size: usize) -> u8 {
    let unaligned_legacy = matches!(
        i.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Maskmovdqu
    );
    let aligned_move = matches!(
        i.mnemonic(),
        M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovdqa32
            | M::Vmovdqa64
            | M::Vmovntdq
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdqa
    );
    // AMD's processors take operands of SHA anywhere.
    let sha = i.cpuid_features().contains(&F::SHA) && host_is_amd();
    let x87 = is_x87(i);
    match i.encoding() {
        EncodingKind::Legacy if size == 16 && !unaligned_legacy && !x87 && !sha => 16,
        EncodingKind::VEX | EncodingKind::EVEX if aligned_move => size as u8,
        _ => 1,
    }
}
