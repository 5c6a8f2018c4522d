//! Running thunks: checks, exceptions, operands across pages, forgotten thunks.

use iced_x86::{Decoder, DecoderOptions};
use umbra_x86::reg::Cr0;
use umbra_x86::segment::{Segment, sreg};

use super::*;
use crate::fixture;

/// A processor in flat 32-bit protected mode without paging, with its units enabled.
fn processor() -> Box<Cpu> {
    let mut cpu = fixture::processor(1 << 20);
    cpu.cr0 = Cr0::PE | Cr0::NE | Cr0::ET;
    cpu.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
    cpu.xcr0 = cpu.cpuid.get(0xd, 0).map_or(3, |e| e.eax.into());
    for n in [sreg::ES, sreg::SS, sreg::DS] {
        cpu.seg[n] = Segment { base: 0, limit: u32::MAX, selector: 16, access: 0xc093, unusable: false };
    }
    cpu.seg[sreg::CS] = Segment { base: 0, limit: u32::MAX, selector: 8, access: 0xc09b, unusable: false };
    cpu.update_mode();
    cpu.paging_changed();
    cpu
}

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(32, bytes, 0, DecoderOptions::NONE).decode()
}

fn execute_one(cpu: &mut Cpu, bytes: &[u8]) -> Exec<Flow> {
    let i = decode(bytes);
    let thunk = compile(cpu, &i).expect("an instruction on the list");
    run(cpu, &i, thunk)
}

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const DIV_ECX: &[u8] = &[0xf7, 0xf1];
const DIVPS: &[u8] = &[0x0f, 0x5e, 0xc1];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FDIV_ST1: &[u8] = &[0xd8, 0xf1];
const FLDZ: &[u8] = &[0xd9, 0xee];
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0xc1];
const VADDPS: &[u8] = &[0xc5, 0xf8, 0x58, 0xc1];
const WAIT: &[u8] = &[0x9b];

#[test]
fn checks_of_control_registers() {
    let mut cpu = processor();
    assert_eq!(execute_one(&mut cpu, ADDPS), Ok(Flow::Next));
    cpu.cr0 |= Cr0::TS;
    for code in [ADDPS, FLD1, PADDB_MMX] {
        assert_eq!(execute_one(&mut cpu, code), Err(Fault::NM), "{code:x?}");
    }
    assert_eq!(execute_one(&mut cpu, WAIT), Ok(Flow::Next), "WAIT looks at TS only with MP");
    cpu.cr0 |= Cr0::MP;
    assert_eq!(execute_one(&mut cpu, WAIT), Err(Fault::NM));
    cpu.cr0 = cpu.cr0 & !Cr0::TS | Cr0::EM;
    assert_eq!(execute_one(&mut cpu, FLD1), Err(Fault::NM));
    assert_eq!(execute_one(&mut cpu, PADDB_MMX), Err(Fault::UD));
    assert_eq!(execute_one(&mut cpu, ADDPS), Err(Fault::UD));
    cpu.cr0 &= !Cr0::EM;
    cpu.cr4 &= !Cr4::OSFXSR;
    assert_eq!(execute_one(&mut cpu, ADDPS), Err(Fault::UD));
    if std::arch::is_x86_feature_detected!("avx") {
        assert_eq!(execute_one(&mut cpu, VADDPS), Ok(Flow::Next));
        cpu.xcr0 = 3;
        assert_eq!(execute_one(&mut cpu, VADDPS), Err(Fault::UD));
        cpu.xcr0 = 7;
        cpu.cr4 &= !Cr4::OSXSAVE;
        assert_eq!(execute_one(&mut cpu, VADDPS), Err(Fault::UD));
        cpu.cr4 |= Cr4::OSXSAVE;
        cpu.cr0 &= !Cr0::PE;
        cpu.update_mode();
        assert_eq!(execute_one(&mut cpu, VADDPS), Err(Fault::UD), "no VEX in real mode");
    }
}

#[test]
fn exceptions_of_the_host_are_the_guests() {
    let mut cpu = processor();
    cpu.gpr = [0; 16];
    cpu.gpr[3] = 0x1234;
    assert_eq!(execute_one(&mut cpu, DIV_ECX), Err(Fault::DE));
    assert_eq!(cpu.gpr[3], 0x1234);
    // 1 / 0 with the zero-divide exception unmasked.
    cpu.vector.fx[24..28].copy_from_slice(&0x1d80u32.to_le_bytes());
    cpu.vector.zmm[0][..4].copy_from_slice(&1f32.to_le_bytes());
    cpu.vector.zmm[1] = [0; 64];
    assert_eq!(execute_one(&mut cpu, DIVPS), Err(Fault::XM));
    assert_eq!(cpu.vector.fx[24] & 4, 4, "the flag says why");
    cpu.cr4 &= !Cr4::OSXMMEXCPT;
    assert_eq!(execute_one(&mut cpu, DIVPS), Err(Fault::UD));
    // The same in x87: the next instruction that waits has the exception.
    cpu.vector.fx[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    for code in [FLDZ, FLD1, FDIV_ST1] {
        assert_eq!(execute_one(&mut cpu, code), Ok(Flow::Next));
    }
    assert_eq!(execute_one(&mut cpu, WAIT), Err(Fault::MF));
    assert_eq!(execute_one(&mut cpu, FLD1), Err(Fault::MF));
}

/// Rust code that runs after a fault, or after guest code with other rounding, finds the units as it wants them.
#[test]
fn the_host_keeps_its_own_modes() {
    let mut cpu = processor();
    // Round up, flush to zero, nothing masked.
    cpu.vector.fx[24..28].copy_from_slice(&0xc000u32.to_le_bytes());
    cpu.vector.zmm[0][..4].copy_from_slice(&1f32.to_le_bytes());
    cpu.vector.zmm[1][..4].copy_from_slice(&3f32.to_le_bytes());
    assert_eq!(execute_one(&mut cpu, DIVPS), Err(Fault::XM));
    let third = std::hint::black_box(1f32) / std::hint::black_box(3f32);
    assert_eq!(third.to_bits(), 0x3eaa_aaab);
    assert!(std::hint::black_box(f32::MIN_POSITIVE) / 2.0 > 0.0, "denormals are kept");
}

#[test]
fn operands_across_pages() {
    let mut cpu = processor();
    cpu.gpr[3] = 0x1ffe;
    cpu.store_bytes(0x1ffe, &[0xff, 0xff, 0, 0]).unwrap();
    // LOCK ADD dword [ebx], 1.
    let lock_add = &[0xf0, 0x83, 0x03, 0x01];
    assert_eq!(execute_one(&mut cpu, lock_add), Ok(Flow::Next));
    assert_eq!(cpu.load::<u32>(0x1ffe), Ok(0x1_0000));
    assert_eq!(cpu.rflags & 0x8d5, 0x14, "parity of zero, carry out of the low digit");
    // BTS [ebx], ecx: a bit far below the address.
    cpu.gpr[1] = (-8 * 0x1000i64 - 3) as u64 & 0xffff_ffff;
    assert_eq!(execute_one(&mut cpu, &[0x0f, 0xab, 0x0b]), Ok(Flow::Next));
    assert_eq!(cpu.load::<u8>(0xffd), Ok(0x20));
}

#[test]
fn a_forgotten_thunk_is_made_anew() {
    let mut cpu = processor();
    let i = decode(DIV_ECX);
    let old = compile(&mut cpu, &i).unwrap();
    cpu.native.reset();
    let other = compile(&mut cpu, &decode(ADDPS)).unwrap();
    assert_eq!(old.index, other.index);
    cpu.gpr[0] = 100;
    cpu.gpr[1] = 7;
    cpu.gpr[2] = 0;
    assert_eq!(run(&mut cpu, &i, old), Ok(Flow::Next));
    assert_eq!((cpu.gpr[0], cpu.gpr[2]), (14, 2));
}

#[test]
fn thunks_are_shared_between_sites_and_bounded() {
    let mut cpu = processor();
    let at = |displacement: u8| decode(&[0x0f, 0x58, 0x43, displacement]);
    let first = compile(&mut cpu, &at(0x10)).unwrap();
    assert_eq!(compile(&mut cpu, &at(0x40)), Some(first), "only the address differs");
    // Every immediate makes another thunk: far more than fit.
    let mut generations = 0;
    for n in 0..20_000u32 {
        let [a, b, c, d] = n.to_le_bytes();
        let before = cpu.native.generation;
        compile(&mut cpu, &decode(&[0x69, 0xc1, a, b, c, d])).unwrap();
        generations += u32::from(cpu.native.generation != before);
        assert!(cpu.native.plans.len() < 10_000);
    }
    assert!(generations > 0);
}

#[test]
fn what_is_not_on_the_list_is_not_run() {
    let mut cpu = processor();
    // HLT, RDTSC, SYSENTER, IN, PUSH, RET, MOV CR0, INT 3, XBEGIN, WRPKRU, CLZERO, RDPKRU, ENCLU, VGATHERDPS.
    let codes: &[&[u8]] = &[
        &[0xf4],
        &[0x0f, 0x31],
        &[0x0f, 0x34],
        &[0xec],
        &[0x50],
        &[0xc3],
        &[0x0f, 0x22, 0xc0],
        &[0xcc],
        &[0xc7, 0xf8, 0, 0, 0, 0],
        &[0x0f, 0x01, 0xef],
        &[0x0f, 0x01, 0xfc],
        &[0x0f, 0x01, 0xee],
        &[0x0f, 0x01, 0xd7],
        &[0xc4, 0xe2, 0x71, 0x92, 0x04, 0x18],
    ];
    for code in codes {
        let i = decode(code);
        assert!(compile(&mut cpu, &i).is_none(), "{:?}", i.code());
    }
}

#[test]
fn x87_pointers_are_the_guests() {
    let mut cpu = processor();
    cpu.rip = 0x4321;
    cpu.gpr[3] = 0x3000;
    cpu.store(0x3000, 1.5f32.to_bits()).unwrap();
    assert_eq!(execute_one(&mut cpu, &[0xd9, 0x03]), Ok(Flow::Next));
    let word = |at: usize| u64::from_le_bytes(cpu.vector.fx[at..at + 8].try_into().unwrap());
    assert!([0, 0x4321].contains(&word(8)), "{:x}", word(8));
    assert!([0, 0x3000].contains(&word(16)), "{:x}", word(16));
}

/// CR0.AM and RFLAGS.AC at CPL 3: data of 2, 4, 8 and 10 bytes must be aligned, whole vectors need not.
#[test]
fn alignment_is_checked_where_that_is_asked_for() {
    use umbra_x86::reg::Rflags;
    let mut cpu = processor();
    cpu.seg[sreg::SS].access |= 0x60;
    cpu.gpr[3] = 0x3001;
    let fld_m32: &[u8] = &[0xd9, 0x03];
    let movups: &[u8] = &[0x0f, 0x10, 0x03];
    for (am, ac) in [(false, true), (true, false), (true, true)] {
        cpu.cr0.set(Cr0::AM, am);
        cpu.set_flag(Rflags::AC, ac);
        cpu.update_mode();
        assert_eq!(cpu.mode.cpl, 3);
        let expected = if am && ac { Err(Fault::AC) } else { Ok(Flow::Next) };
        assert_eq!(execute_one(&mut cpu, fld_m32), expected, "AM {am}, AC {ac}");
        assert_eq!(execute_one(&mut cpu, movups), Ok(Flow::Next));
    }
}
