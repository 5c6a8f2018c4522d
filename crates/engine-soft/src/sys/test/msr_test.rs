//! MSRs and CPUID.

use super::bench::*;
use super::{processor_with, shown};
use crate::fault::{Fault, Flow};
use crate::sys::msr::{read, write};
use umbra_x86::cpuid::feature;
use umbra_x86::msr::*;
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX};
use umbra_x86::reg::{Cr4, Efer};
use umbra_x86::segment::sreg;

const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];
const CPUID: &[u8] = &[0x0f, 0xa2];
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

#[test]
fn instructions_split_the_value_and_are_the_kernels() {
    let mut b = Bench::new(Start::Long, 0);
    (b.cpu.gpr[RAX], b.cpu.gpr[RDX]) = (0xffff_ffff_8765_4321, 0xffff_ffff_ffff_8000);
    b.cpu.gpr[RCX] = 0xffff_ffff_0000_0000 | u64::from(IA32_LSTAR);
    assert_eq!(b.step(WRMSR), Ok(Flow::End));
    assert_eq!(b.cpu.msr.lstar, 0xffff_8000_8765_4321);
    assert_eq!(b.step(RDMSR), Ok(Flow::Next));
    assert_eq!((b.cpu.gpr[RAX], b.cpu.gpr[RDX]), (0x8765_4321, 0xffff_8000));
    b.cpu.gpr[RCX] = 0x1234_5678;
    assert_eq!((b.refuse(RDMSR), b.refuse(WRMSR)), (Fault::GP0, Fault::GP0));
    let mut b = Bench::new(Start::Long, 3);
    b.cpu.gpr[RCX] = u64::from(IA32_LSTAR);
    assert_eq!((b.refuse(RDMSR), b.refuse(WRMSR)), (Fault::GP0, Fault::GP0));
}

#[test]
fn values_are_checked() {
    let cases = [
        (IA32_LSTAR, NOT_CANONICAL, false),
        (IA32_CSTAR, NOT_CANONICAL, false),
        (IA32_SYSENTER_EIP, NOT_CANONICAL, false),
        (IA32_SYSENTER_ESP, NOT_CANONICAL, false),
        (IA32_FS_BASE, NOT_CANONICAL, false),
        (IA32_GS_BASE, NOT_CANONICAL, false),
        (IA32_KERNEL_GS_BASE, NOT_CANONICAL, false),
        (IA32_GS_BASE, 0xffff_8880_0000_0000, true),
        (IA32_STAR, u64::MAX, true),
        (IA32_FMASK, 0x4_7700, true),
        (IA32_FMASK, 1 << 32, false),
        (IA32_TSC_AUX, 1 << 32, false),
        (IA32_PAT, 0x0407_0605_0401_0500, true),
        (IA32_PAT, 2, false),
        (IA32_PAT, 3 << 56, false),
        (IA32_PAT, 8, false),
        (IA32_MTRR_DEF_TYPE, 0xc06, true),
        (IA32_MTRR_DEF_TYPE, 0x1000, false),
        (IA32_MTRR_DEF_TYPE, 2, false),
        (IA32_MTRR_PHYSBASE0, 0x8000_0006, true),
        (IA32_MTRR_PHYSBASE0, 0x8000_0106, false),
        (IA32_MTRR_PHYSBASE0, 1 << 46, false),
        (IA32_MTRR_PHYSBASE0 + 1, 0x3fff_8000_0800, true),
        (IA32_MTRR_PHYSBASE0 + 1, 0x3fff_8000_0001, false),
        (IA32_MTRR_FIX4K_C0000, 0x0606_0606_0606_0606, true),
        (IA32_MTRR_FIX4K_C0000, 0x0606_0606_0602_0606, false),
        (IA32_MTRR_PHYSBASE0 + 16, 0, false),
        (IA32_MTRRCAP, 0, false),
        (MSR_PLATFORM_INFO, 0, false),
        (IA32_ARCH_CAPABILITIES, 0, false),
        (IA32_MCG_CAP, 0, false),
        (0x400, u64::MAX, true),
        (0x400, 1, false),
        (0x401, 1, false),
        (0x401, 0, true),
        (IA32_BIOS_SIGN_ID, 0, true),
        (IA32_DEBUGCTL, 3, true),
        (IA32_DEBUGCTL, 1 << 6, false),
        (IA32_SPEC_CTRL, 0x401, true), // IBRS and BHI_DIS_S
        (IA32_SPEC_CTRL, 2, false),
        (IA32_PRED_CMD, 1, false),
        (MSR_HWCR, 0, false),
    ];
    for (number, value, ok) in cases {
        let mut b = Bench::new(Start::Long, 0);
        assert_eq!(write(&mut b.cpu, number, value).is_some(), ok, "{number:#x} {value:#x}");
        let kept = !matches!(number, IA32_BIOS_SIGN_ID | IA32_DEBUGCTL);
        if ok && kept {
            assert_eq!(read(&mut b.cpu, number), Some(value), "{number:#x}");
        }
    }
}

#[test]
fn amd_has_its_own() {
    let mut cpu = processor_with(0x10_0000, shown(b"AuthenticAMD"));
    assert_eq!(read(&mut cpu, MSR_HWCR), Some(1 << 24));
    assert_eq!(read(&mut cpu, MSR_SYSCFG), Some(0));
    assert_eq!(write(&mut cpu, MSR_HWCR, 1 << 18), Some(()));
    assert_eq!(write(&mut cpu, MSR_HWCR, 1), None);
    assert_eq!(read(&mut cpu, IA32_FEATURE_CONTROL), None);
    assert_eq!(write(&mut cpu, IA32_FMASK, 1 << 32 | 0x200), Some(()));
    assert_eq!(cpu.msr.fmask, 0x200);
}

#[test]
fn what_a_guest_need_not_defend_against() {
    let mut b = Bench::new(Start::Long, 0);
    let (rdcl_no, ibrs_all) = (1, 2);
    let capabilities = read(&mut b.cpu, IA32_ARCH_CAPABILITIES).unwrap();
    assert_eq!(capabilities & (rdcl_no | ibrs_all), rdcl_no | ibrs_all);
    let mut cpuid = shown(b"GenuineIntel");
    cpuid.retain(|e| e.leaf != 0x8000_0008);
    let mut cpu = processor_with(0x10_0000, cpuid);
    assert_eq!(read(&mut cpu, IA32_ARCH_CAPABILITIES), Some(capabilities & !ibrs_all));
    assert_eq!((read(&mut cpu, IA32_SPEC_CTRL), write(&mut cpu, IA32_SPEC_CTRL, 0)), (None, None));
}

#[test]
fn efer() {
    let mut b = Bench::new(Start::Long, 0);
    let now = b.cpu.efer.bits();
    assert_eq!(write(&mut b.cpu, IA32_EFER, now & !(1 << 8)), None, "LME while paging");
    assert_eq!(write(&mut b.cpu, IA32_EFER, now | 1 << 12), None, "SVME");
    assert_eq!(write(&mut b.cpu, IA32_EFER, now | 2), None);
    assert_eq!(write(&mut b.cpu, IA32_EFER, now & !(1 << 10 | 1)), Some(()));
    assert_eq!(b.cpu.efer, Efer::LME | Efer::LMA | Efer::NXE, "LMA is not software's");
    let mut b = Bench::new(Start::P32, 0);
    assert_eq!(write(&mut b.cpu, IA32_EFER, 0x501), Some(()));
    assert_eq!(b.cpu.efer, Efer::SCE | Efer::LME);
    let mut cpuid = shown(b"GenuineIntel");
    cpuid.set_feature(feature::NX, false);
    let mut cpu = processor_with(0x10_0000, cpuid);
    assert_eq!(write(&mut cpu, IA32_EFER, 1 << 11), None);
}

#[test]
fn the_bases_are_the_segments() {
    let mut b = Bench::new(Start::Long, 0);
    write(&mut b.cpu, IA32_FS_BASE, 0xffff_8000_0000_0000).unwrap();
    write(&mut b.cpu, IA32_KERNEL_GS_BASE, 0x1000).unwrap();
    assert_eq!(b.cpu.seg[sreg::FS].base, 0xffff_8000_0000_0000);
    assert_eq!(
        (read(&mut b.cpu, IA32_GS_BASE), read(&mut b.cpu, IA32_KERNEL_GS_BASE)),
        (Some(0), Some(0x1000))
    );
}

#[test]
fn the_time_stamp_counter_moves_with_its_adjustment() {
    let mut b = Bench::new(Start::Long, 0);
    const FAR: u64 = 1 << 50;
    let start = read(&mut b.cpu, IA32_TSC).unwrap();
    write(&mut b.cpu, IA32_TSC_ADJUST, FAR).unwrap();
    assert!((FAR..2 * FAR).contains(&(read(&mut b.cpu, IA32_TSC).unwrap() - start)));
    write(&mut b.cpu, IA32_TSC, 0).unwrap();
    assert!(read(&mut b.cpu, IA32_TSC).unwrap() < FAR);
    assert!(read(&mut b.cpu, IA32_TSC_ADJUST).unwrap() > FAR << 8, "negative");
}

#[test]
fn cpuid_follows_the_state() {
    let mut b = Bench::new(Start::Long, 0);
    let ask = |b: &mut Bench, leaf: u64, subleaf: u64| {
        (b.cpu.gpr[RAX], b.cpu.gpr[RCX], b.cpu.rip) = (leaf, subleaf, CODE);
        assert_eq!(b.step(CPUID), Ok(Flow::Next));
        (b.cpu.gpr[RBX], b.cpu.gpr[RCX], b.cpu.gpr[RDX])
    };
    assert_eq!(ask(&mut b, 1, 0).1 >> 27 & 1, 0);
    b.cpu.cr4 |= Cr4::OSXSAVE;
    assert_eq!(ask(&mut b, 1, 0).1 >> 27 & 1, 1);
    assert_eq!(ask(&mut b, 1, 0).2 >> 9 & 1, 1);
    write(&mut b.cpu, IA32_APIC_BASE, 0xfee0_0100).unwrap();
    assert_eq!(ask(&mut b, 1, 0).2 >> 9 & 1, 0, "the APIC is switched off");
    assert_eq!(ask(&mut b, 0xd, 0).0, 576);
    assert_eq!(ask(&mut b, 0, 0), (0x756e_6547, 0x6c65_746e, 0x4965_6e69));
    if b.cpu.cpuid.has(feature::AVX) {
        b.cpu.xcr0 = 7;
        assert_eq!(ask(&mut b, 0xd, 0).0, 832);
    }
}

#[test]
fn cpuid_faulting() {
    let mut b = Bench::new(Start::Long, 3);
    assert_eq!(b.step(CPUID), Ok(Flow::Next));
    write(&mut b.cpu, 0x140, 1).unwrap();
    assert_eq!(b.refuse(CPUID), Fault::GP0);
    assert_eq!(write(&mut b.cpu, 0x140, 2), None);
}
