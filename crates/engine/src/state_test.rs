use umbra_state::{Record, Saved};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, feature};

use crate::{CpuState, Event, Events, RunState, xcomp};

fn cpuid() -> CpuidTable {
    let mut t = CpuidTable::new([CpuidEntry { leaf: 1, eax: 0x806f8, ..CpuidEntry::default() }]);
    t.set_feature(feature::APIC, true);
    t
}

fn busy() -> CpuState {
    let mut s = CpuState::power_on(3, &cpuid());
    s.gpr[5] = u64::MAX;
    s.events = Events {
        exception: Some(Event { vector: 14, error: Some(2) }),
        sti_shadow: true,
        sipi: Some(9),
        ..Events::default()
    };
    s.set_msr(0x10, 77);
    s.set_msr(0x277, 1);
    s.xsave.push((xcomp::AVX, vec![3; 256]));
    s
}

#[test]
fn power_on_is_what_the_manual_says() {
    let bsp = CpuState::power_on(0, &cpuid());
    assert_eq!((bsp.rip, bsp.segments[1].0.base, bsp.cr0, bsp.rflags), (0xfff0, 0xffff_0000, 0x6000_0010, 2));
    assert_eq!(
        (bsp.gpr[2], bsp.run_state, bsp.apic.unwrap().base),
        (0x806f8, RunState::Running, 0xfee0_0900)
    );
    let ap = CpuState::power_on(5, &cpuid());
    assert_eq!((ap.run_state, ap.apic.unwrap().page[0x23]), (RunState::WaitForSipi, 5));
}

#[test]
fn round_trip_and_differences() {
    let s = busy();
    let back = CpuState::from_record(&s.to_record("vcpu3")).unwrap();
    assert_eq!(back.differences(&s), Vec::<String>::new());
    let mut other = s.clone();
    other.cr2 = 4;
    assert_eq!(other.differences(&s).len(), 1);
    assert_eq!(s.msr(0x10), Some(77));
    assert_eq!(s.msrs.len(), 2);
}

#[test]
fn damaged_state_is_refused_without_a_panic() {
    let record = busy().to_record("vcpu3");
    for cut in 0..record.bytes.len() {
        let damaged = Record { bytes: record.bytes[..cut].to_vec(), ..record.clone() };
        assert!(CpuState::from_record(&damaged).is_err());
    }
    for at in 0..record.bytes.len() {
        let mut damaged = record.clone();
        damaged.bytes[at] ^= 0xff;
        let _ = CpuState::from_record(&damaged);
    }
}

#[test]
fn cpuid_answers_as_a_processor() {
    let e = |leaf, subleaf, indexed, eax| CpuidEntry { leaf, subleaf, indexed, eax, ..CpuidEntry::default() };
    let t = CpuidTable::new([
        e(0, 0, false, 7),
        e(1, 0, false, 1),
        e(7, 0, true, 0x77),
        e(0x4000_0000, 0, false, 0x4000_0001),
    ]);
    assert_eq!(t.answer(1, 9).eax, 1, "a leaf that ignores ECX");
    assert_eq!(t.answer(7, 0).eax, 0x77);
    assert_eq!(t.answer(7, 3).eax, 0);
    assert_eq!(t.answer(0x99, 0).eax, 0x77, "above the range: the greatest basic leaf");
    assert_eq!(t.answer(0x4000_0005, 0).eax, 0);
}
