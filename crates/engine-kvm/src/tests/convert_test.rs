//! Conversions that need no KVM: CPUID, XSAVE images, events, segments, MSRs, messages.

use umbra_device::Msi;
use umbra_engine::{Event, Events, RunState, xcomp};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, feature};
use umbra_x86::msr;

use crate::cpuid::{XsaveLayout, check_shown, from_kvm, supported, to_kvm};
use crate::routes;

fn entry(leaf: u32, subleaf: u32, regs: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = regs;
    let indexed = matches!(leaf, 4 | 7 | 0xb | 0xd);
    CpuidEntry { leaf, subleaf, indexed, eax, ebx, ecx, edx }
}

/// A processor with AVX, AVX-512, PKRU, CET and AMX, laid out as the first of that kind was.
fn host() -> CpuidTable {
    CpuidTable::new([
        entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(1, 0, [0x806f8, 0x0740_0800, !(1 << 31), u32::MAX]),
        entry(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
        entry(0xa, 0, [7, 0, 0, 0]),
        entry(0xb, 0, [1, 2, 0x100, 7]),
        entry(0xb, 1, [6, 16, 0x201, 7]),
        entry(0xd, 0, [0x602e7, 11008, 11008, 0]),
        entry(0xd, 1, [0x1f, 11008, 0x1800, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0xd, 5, [64, 1088, 0, 0]),
        entry(0xd, 6, [512, 1152, 0, 0]),
        entry(0xd, 7, [1024, 1664, 0, 0]),
        entry(0xd, 9, [8, 2688, 0, 0]),
        entry(0xd, 11, [16, 0, 1, 0]),
        entry(0xd, 17, [64, 2752, 2, 0]),
        entry(0xd, 18, [8192, 2816, 6, 0]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
    ])
}

#[test]
fn cpuid_shows_what_can_be_saved() {
    let t = supported(host(), true);
    for f in [feature::HYPERVISOR, feature::X2APIC, feature::TSC_DEADLINE, feature::AVX512F, feature::PKU] {
        assert!(t.has(f), "{f:?}");
    }
    for f in [feature::VMX, feature::MONITOR] {
        assert!(!t.has(f), "{f:?}");
    }
    assert!(!supported(host(), false).has(feature::TSC_DEADLINE));
    let area = t.get(0xd, 0).unwrap();
    assert_eq!((area.eax, area.ecx), (0x2e7, 2696), "without AMX");
    assert_eq!((t.get(0xd, 11), t.get(0xd, 17), t.get(0xa, 0)), (None, None, None));
    assert_eq!(t.get(0xd, 1).unwrap().ecx, 0);
    assert_eq!(t.get(1, 0).unwrap().ebx, 0x800, "not the APIC id of the moment");
    assert_eq!((t.get(0xb, 0).unwrap().edx, t.get(0xb, 1)), (0, None));
    assert_eq!(t.get(0x4000_0001, 0).unwrap().eax >> 15 & 1, 1);
    assert_eq!(from_kvm(&to_kvm(&t).unwrap()), t);
}

#[test]
fn a_model_that_shows_too_much_is_refused() {
    let has = supported(host(), true);
    assert!(check_shown(&has, &has).is_ok());
    let mut shown = has.clone();
    shown.set_feature(feature::VMX, true);
    assert!(check_shown(&shown, &has).unwrap_err().to_string().contains("vmx"));
    let mut several = has.clone();
    several.set_feature(feature::HTT, false);
    assert!(check_shown(&has, &several).is_ok(), "how many processors there are is not KVM's business");
    let mut moved = has.clone();
    moved.get_mut(0xd, 9).unwrap().ebx = 2432;
    assert!(check_shown(&moved, &has).unwrap_err().to_string().contains("component 9"));
    let mut less = has.clone();
    less.get_mut(0xd, 0).unwrap().eax = 7;
    less.get_mut(0xd, 9).unwrap().ebx = 2432;
    assert!(check_shown(&less, &has).is_ok(), "where a component stands that is not shown does not matter");
}

mod xsave {
    use super::*;
    use crate::state::xsave::{from_components, to_components};

    fn layout() -> XsaveLayout {
        XsaveLayout::new(&host())
    }

    fn components() -> Vec<(u32, Vec<u8>)> {
        let mut x87 = vec![0; 160];
        x87[..2].copy_from_slice(&0x27fu16.to_le_bytes());
        x87[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
        x87[159] = 9;
        let fill = |n: u32| (n, vec![n as u8 + 1; xcomp::size(n).unwrap()]);
        let rest = [xcomp::SSE, xcomp::AVX, xcomp::OPMASK, xcomp::ZMM_HI256, xcomp::HI16_ZMM, xcomp::PKRU];
        [(xcomp::X87, x87)].into_iter().chain(rest.map(fill)).collect()
    }

    #[test]
    fn there_and_back() {
        let image = from_components(&components(), &layout(), 4096).unwrap();
        assert_eq!(image[512], 0xe7);
        assert_eq!((image[160], image[576], image[1088], image[2688]), (2, 3, 6, 10));
        assert_eq!(to_components(&image, &layout()), components());
    }

    #[test]
    fn initial_state_is_nothing_but_mxcsr_counts() {
        let image = from_components(&[], &layout(), 4096).unwrap();
        assert_eq!((image[0], image[1], image[512]), (0x7f, 3, 0));
        assert_eq!(to_components(&image, &layout()), []);
        let mut x87 = vec![0; 160];
        x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        x87[24..28].copy_from_slice(&0x1f00u32.to_le_bytes());
        let only_mxcsr = vec![(xcomp::X87, x87)];
        let image = from_components(&only_mxcsr, &layout(), 4096).unwrap();
        assert_eq!(image[512], 3, "MXCSR comes with SSE");
        assert_eq!(to_components(&image, &layout()), only_mxcsr);
    }

    #[test]
    fn foreign_components_are_refused() {
        let bad = |n: u32, len: usize| from_components(&[(n, vec![1; len])], &layout(), 4096).unwrap_err();
        assert!(bad(17, 64).contains("no XSAVE component 17"));
        assert!(bad(xcomp::AVX, 255).contains("has 255 bytes"));
        assert!(bad(xcomp::X87, 5000).contains("has 5000 bytes"));
        assert!(bad(u32::MAX, 1).contains("no XSAVE component"));
        let without = XsaveLayout::default();
        assert!(from_components(&components(), &without, 4096).unwrap_err().contains("component 2"));
    }
}

mod pending {
    use super::*;
    use crate::state::events::{from_kvm, run_state_from_kvm, run_state_to_kvm, to_kvm};

    #[test]
    fn there_and_back() {
        let all = Events {
            exception: Some(Event { vector: 14, error: Some(6) }),
            interrupt: Some(0x31),
            interrupt_soft: true,
            mov_ss_shadow: true,
            nmi_pending: true,
            nmi_masked: true,
            ..Events::default()
        };
        assert_eq!(from_kvm(&to_kvm(&all)), all);
        assert_eq!(from_kvm(&to_kvm(&Events::default())), Events::default());
        let sti = Events { sti_shadow: true, ..Events::default() };
        assert_eq!(from_kvm(&to_kvm(&sti)), sti);
        let both = Events { mov_ss_shadow: true, ..sti };
        assert_eq!(from_kvm(&to_kvm(&both)), Events { sti_shadow: false, ..both });
    }

    #[test]
    fn an_nmi_cut_short_begins_again() {
        let mut e = to_kvm(&Events { nmi_masked: true, ..Events::default() });
        e.nmi.injected = 1;
        let back = from_kvm(&e);
        assert!(back.nmi_pending && !back.nmi_masked);
    }

    #[test]
    fn a_due_event_ends_a_halt() {
        let none = Events::default();
        let due = Events { interrupt: Some(0x30), ..Events::default() };
        let there = |s, e: &Events| run_state_from_kvm(run_state_to_kvm(s, e));
        for s in [RunState::Running, RunState::Halted, RunState::WaitForSipi] {
            assert_eq!(there(s, &none), s);
        }
        assert_eq!(there(RunState::Halted, &due), RunState::Running);
    }
}

mod segment {
    use umbra_x86::segment::{Segment, access};

    use crate::state::segments::{code_to_kvm, from_kvm, stack_to_kvm, task_to_kvm, to_kvm};

    #[test]
    fn there_and_back() {
        for raw in [0x00af_9b00_0000_ffff, 0x00cf_f300_0000_ffff, 0x1240_8b34_5678_0067] {
            let s = Segment::from_descriptor(0x2b, raw);
            assert_eq!(from_kvm(&to_kvm(&s)), s);
        }
        let null = Segment { unusable: true, ..Segment::default() };
        assert_eq!(from_kvm(&to_kvm(&null)), null);
    }

    #[test]
    fn what_processors_insist_on() {
        let code = Segment::from_descriptor(8, 0x00af_9b00_0000_ffff);
        assert_eq!((code_to_kvm(&code, true).l, code_to_kvm(&code, false).l), (1, 0));
        let null = Segment { selector: 3, unusable: true, ..Segment::default() };
        assert_eq!(stack_to_kvm(&null).dpl, 3);
        let available = Segment { access: 9 | access::P, ..Segment::default() };
        assert_eq!(task_to_kvm(&available).type_, 11);
    }
}

mod registers {
    use super::*;
    use crate::state::msrs::{is_saved, to_load};

    const HERE: &[(u32, u64)] = &[
        (msr::IA32_PAT, msr::PAT_RESET),
        (msr::IA32_LSTAR, 0),
        (msr::IA32_MISC_ENABLE, 0x1800),
        (msr::KVM_SYSTEM_TIME_NEW, 0),
    ];

    fn loaded(saved: &[(u32, u64)], number: u32) -> u64 {
        to_load(saved, HERE).unwrap().iter().find(|m| m.0 == number).unwrap().1
    }

    #[test]
    fn what_is_missing_is_at_its_value_at_power_on() {
        assert_eq!(loaded(&[], msr::IA32_MISC_ENABLE), 0x1800);
        assert_eq!(loaded(&[(msr::IA32_MISC_ENABLE, 0)], msr::IA32_MISC_ENABLE), 0);
        assert!(
            is_saved(msr::IA32_MISC_ENABLE, 0, 0x1800) && !is_saved(msr::IA32_MISC_ENABLE, 0x1800, 0x1800)
        );
        assert!(is_saved(msr::IA32_PAT, msr::PAT_RESET, msr::PAT_RESET));
    }

    #[test]
    fn what_kvm_has_not_is_refused_unless_it_says_nothing() {
        assert!(
            to_load(&[(msr::IA32_STAR, 0), (msr::IA32_BIOS_SIGN_ID, 5), (msr::IA32_TSC_DEADLINE, 7)], HERE)
                .is_ok()
        );
        let refused = to_load(&[(msr::IA32_STAR, 1)], HERE).unwrap_err();
        assert!(refused.contains("IA32_STAR"), "{refused}");
        assert!(to_load(&[(0x1234, 1)], HERE).unwrap_err().contains("MSR 0x1234"));
    }

    #[test]
    fn the_first_numbers_of_the_clock_mean_the_later_ones() {
        let new = msr::KVM_SYSTEM_TIME_NEW;
        assert_eq!(loaded(&[(msr::KVM_SYSTEM_TIME, 0x5001)], new), 0x5001);
        assert_eq!(loaded(&[(msr::KVM_SYSTEM_TIME, 0x5001), (new, 0x6001)], new), 0x6001);
    }
}

#[test]
fn messages_carry_wide_destinations() {
    let plain = Msi { address: 0xfee0_3004, data: 0x41 };
    assert_eq!(routes::to_kvm(plain), (0xfee0_3004, 0, 0x41));
    let wide = Msi { address: 0xfee0_3000 | 0x2 << 5, data: 0x41 };
    assert_eq!(routes::to_kvm(wide), (0xfee0_3000, 0x200, 0x41), "processor 0x203");
}
