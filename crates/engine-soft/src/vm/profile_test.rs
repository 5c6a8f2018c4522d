//! Samples of a guest that does what is known.

use super::*;
use crate::exec::test::guest::{DATA, Guest};
use umbra_x86::reg::gpr::{RCX, RDI};

/// What was told of a guest that runs `code` with a count in RCX, by name; translated unless `after`.
fn told(code: &[u8], rcx: u64, after: u32) -> Vec<(&'static str, u64)> {
    let mut guest = Guest::new();
    guest.cpu.translator.after = after;
    guest.cpu.profile = Some(Profile::new());
    guest.cpu.gpr[RCX] = rcx;
    guest.cpu.gpr[RDI] = DATA;
    let sampler = Sampler::new(&guest.cpu);
    guest.run(code);
    guest.cpu.name_samples();
    drop(sampler);
    let mut all: Vec<_> = guest.cpu.counters.named().into_iter().collect();
    all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    assert!(!all.is_empty(), "no sample");
    all
}

#[test]
fn a_loop_spends_its_time_in_translated_code() {
    // dec rcx; jne .-3
    let told = told(&[0x48, 0xff, 0xc9, 0x75, 0xfb], 400_000_000, 0);
    assert_eq!(told[0].0, "microseconds of translated code", "{told:?}");
}

#[test]
fn a_helper_is_known_by_its_name() {
    // cpuid of leaf 0 changes rcx: mov esi,ecx; xor eax,eax; cpuid; mov ecx,esi; dec ecx; jne
    let told = told(&[0x89, 0xce, 0x31, 0xc0, 0x0f, 0xa2, 0x89, 0xf1, 0xff, 0xc9, 0x75, 0xf4], 1_000_000, 0);
    assert_eq!(told[0].0, "microseconds of helper cpuid", "{told:?}");
}

#[test]
fn the_interpreter_s_blocks_are_told_apart() {
    // 32 times imul rax,rax; dec rcx; jne
    let mut code = [0x48, 0x0f, 0xaf, 0xc0].repeat(32);
    code.extend([0x48, 0xff, 0xc9, 0x0f, 0x85, 0x77, 0xff, 0xff, 0xff]);
    let told = told(&code, 3_000_000, u32::MAX);
    assert_eq!(told[0].0, "microseconds of interpreted blocks", "{told:?}");
    assert!(told.iter().all(|(name, _)| *name != "microseconds of translated code"), "{told:?}");
}

#[test]
fn nobody_is_sampled_who_did_not_ask() {
    let mut guest = Guest::new();
    let _sampler = Sampler::new(&guest.cpu);
    guest.cpu.gpr[RCX] = 50_000_000;
    guest.run(&[0x48, 0xff, 0xc9, 0x75, 0xfb]);
    assert!(guest.cpu.counters.named().is_empty());
}
