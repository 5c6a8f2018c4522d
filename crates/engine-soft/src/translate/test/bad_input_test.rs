//! Guests that are out to harm: nothing crashes, hangs or grows beyond its bounds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use umbra_engine::RunState;
use umbra_memory::PAGE_SIZE;
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSI, RSP};

use super::hostile_test::{Mode, Prisoner};
use super::{NOTHING, Pair, guest, hex};
use crate::cpu::Cpu;
use crate::exec::test::guest::{CODE, DATA, DEVICE, Guest, RAM, SEEN, STACK, TABLES};
use crate::exec::{self, Stop};
use crate::fixture::Random;
use crate::translate::SITES_MAX;
use crate::vm::{attention, count};

/// Page tables of a test, beside the guest's own.
const OTHER_TABLES: u64 = 0x4_0000;

/// What the engine holds for a processor keeps to its bounds: bytes of translations, of blocks, and sites.
fn check_bounds(cpu: &Cpu) -> [usize; 3] {
    let (code, code_max) = cpu.translator.area.held();
    let (blocks, blocks_max) = cpu.cache.held();
    let sites = cpu.translator.sites.len();
    assert!(code <= code_max && code_max <= 64 << 20, "{code} of {code_max}");
    assert!(blocks <= blocks_max && blocks_max <= 96 << 20, "{blocks} of {blocks_max}");
    assert!(sites <= SITES_MAX && cpu.translator.sites.capacity() <= 2 * SITES_MAX, "{sites}");
    [code, blocks, sites]
}

fn counted(cpu: &Cpu, index: usize) -> u64 {
    cpu.counters.read().nth(index).map_or(0, |c| c.1)
}

/// Executes random bytes from random addresses, again and again, whatever comes of it; how many instructions were translated.
fn run_at_random(mode: Mode, lockstep: bool, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut translated = 0;
    for _ in 0..6 {
        let mut prisoner = Prisoner::new(0, mode);
        let guest = &mut prisoner.guest;
        if lockstep {
            guest.cpu.start_lockstep(1);
        }
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.next() as u8).take(0x8000).collect();
        guest.bytes(CODE, &bytes);
        guest.bytes(DATA, &bytes);
        let done = AtomicBool::new(false);
        let shared = guest.cpu.shared.clone();
        thread::scope(|scope| {
            // A loop without end is left after a while.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(2));
                    shared.ports[0].signal(attention::KICK);
                }
            });
            for _ in 0..400 {
                shoot(guest, mode, &mut random);
            }
            done.store(true, Ordering::Relaxed);
        });
        check_bounds(&guest.cpu);
        translated += guest.cpu.fast.translated - guest.cpu.fast.interpreted.min(guest.cpu.fast.translated);
        prisoner.check();
    }
    translated
}

/// One start among random bytes.
fn shoot(guest: &mut Guest, mode: Mode, random: &mut Random) {
    let cpu = &mut guest.cpu;
    cpu.gpr = std::array::from_fn(|_| DATA + random.below(0x10_0000));
    cpu.gpr[RSP] = STACK;
    cpu.rip = CODE + random.below(0x8000);
    cpu.run_state = RunState::Running;
    match exec::run(cpu) {
        Stop::Different => panic!("{mode:?}: {}", cpu.lockstep_report()),
        Stop::TripleFault => {
            // Whatever it did to its registers, it starts anew with those of a guest.
            guest.enter();
            if mode.bits == 32 {
                guest.narrow();
            }
            if mode.user {
                guest.user();
            }
        }
        Stop::Attention | Stop::Wait => {
            guest.cpu.attend();
        }
    }
}

#[test]
fn random_bytes_in_every_ring() {
    for (n, bits) in [64, 32].into_iter().enumerate() {
        for user in [false, true] {
            let seed = 0x9e37_79b9_7f4a_7c15 + 2 * n as u64 + u64::from(user);
            let done = run_at_random(Mode { bits, user }, false, seed);
            assert!(done > 1_000, "{bits} {user}: {done} instructions");
        }
    }
}

#[test]
fn tiers_agree_over_random_bytes() {
    for bits in [64, 32] {
        for user in [false, true] {
            run_at_random(Mode { bits, user }, true, 0xb5ad_4ece_da1c_e2a9 + u64::from(bits));
        }
    }
}

#[test]
fn tables_that_lead_to_themselves() {
    let mut pair = Pair::new(64);
    // One table is its own entry at all levels: address 511 of each leads to itself.
    pair.both(|guest| guest.put(TABLES + 511 * 8, TABLES | 3, 8));
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = 0xffff_ffff_ffff_f000;
        guest.cpu.gpr[RCX] = TABLES | 0x63;
    };
    // The top table as a page: its first entry, its last; and a new entry through it, which maps what it is asked for.
    // mov rax,[rbx]; mov rdx,[rbx+0xff8]; mov [rbx+0xff0],rcx; invlpg [rbx]; mov rsi,[rbx+0xff0]; mov rdi,0xffffff7fbfdfe000; mov r8,[rdi]
    let code = hex("488b03488b93f80f000048898bf00f00000f013b488bb3f00f000048bf00e0dfbf7fffffff4c8b07");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX] & !0xff, TABLES + PAGE_SIZE);
    assert_eq!(pair.translated.cpu.gpr[RDX] & !0x60, TABLES | 3);
    assert_eq!(pair.translated.cpu.gpr[RSI], TABLES | 0x63);
    assert_eq!(pair.translated.cpu.gpr[8], pair.translated.cpu.gpr[RAX]);
}

#[test]
fn tables_and_code_in_devices_and_in_nothing() {
    let nowhere = 0x7f_ffff_f000;
    for place in [DEVICE, nowhere, RAM] {
        for level in 0..2 {
            let mut pair = Pair::new(64);
            let setup = |guest: &mut Guest| {
                // The entry of linear 0x80_0000_0000 of this level leads there; those above it to tables.
                for above in 0..level {
                    guest.put(
                        OTHER_TABLES + above * PAGE_SIZE,
                        (OTHER_TABLES + (above + 1) * PAGE_SIZE) | 7,
                        8,
                    );
                }
                guest.put(OTHER_TABLES + level * PAGE_SIZE, place | 7, 8);
                guest.put(TABLES + 8, OTHER_TABLES | 7, 8);
                guest.cpu.flush_all();
                guest.cpu.gpr[RBX] = 0x80_0000_0000;
            };
            // Data, then code.
            // mov rax,[rbx]
            assert_eq!(pair.run(setup, &hex("488b03")), 14, "{place:#x} {level}");
            // mov [rbx],rax
            assert_eq!(pair.run(setup, &hex("488903")), 14, "{place:#x} {level}");
            // jmp rbx
            assert_eq!(pair.run(setup, &hex("ffe3")), 14, "{place:#x} {level}");
            pair.both(|guest| assert!(guest.devices.written.lock().unwrap().is_empty()));
        }
    }
    // Nor can a device hold the topmost table.
    let mut lost = guest(64);
    lost.cpu.cr3 = DEVICE;
    lost.cpu.paging_changed();
    lost.cpu.rip = CODE;
    assert_eq!(exec::run(&mut lost.cpu), Stop::TripleFault);
    // A page that is a device is one; code of it is executed, and is not translated.
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DEVICE + 0x90;
    // mov rax,[rbx]; mov [rbx],rax; jmp rbx: bytes 0x90 to 0xff, in order
    pair.run(setup, &hex("488b03488903ffe3"));
    assert_eq!(
        pair.translated.devices.written.lock().unwrap()[0],
        (DEVICE + 0x90, vec![0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97])
    );
}

#[test]
fn random_tables() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut faults = 0;
    for round in 0..200 {
        let mut pair = Pair::new(64);
        // Four tables of entries that lead to one another, to devices, to nothing, to pages of any size.
        let entries: Vec<u64> = (0..4 * 512)
            .map(|_| {
                let place = match random.below(8) {
                    0 => DEVICE,
                    1 => random.next() & 0x000f_ffff_ffff_f000,
                    2 => DATA,
                    _ => OTHER_TABLES + random.below(4) * PAGE_SIZE,
                };
                let present = if random.below(8) > 0 { 7 } else { 0 };
                let bits = random.next() & 0x67 | present;
                let large = if random.below(6) == 0 { 0x80 } else { 0 };
                place | bits | large | if random.below(16) == 0 { 1 << 63 } else { 0 }
            })
            .collect();
        let (at, other) = (random.next(), random.next());
        let setup = |guest: &mut Guest| {
            let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
            guest.bytes(OTHER_TABLES, &bytes);
            // Code, stack and tables stay where they are; the rest of the space is those tables'.
            guest.put(TABLES + 8, OTHER_TABLES | 7, 8);
            guest.put(TABLES + 16, (OTHER_TABLES + PAGE_SIZE) | 7, 8);
            guest.cpu.flush_all();
            guest.cpu.gpr[RBX] = 1 << 39 | at & ((1 << 40) - 1) & !7;
            guest.cpu.gpr[RSI] = 1 << 39 | other & ((1 << 40) - 1) & !7;
        };
        // mov rax,[rbx]; mov rdx,[rsi]; mov [rbx],rdx; mov rcx,[rsi]; add [rsi],rax
        faults += usize::from(pair.run(setup, &hex("488b03488b16488913488b0e480106")) != NOTHING);
        let tables =
            |guest: &Guest| (0..4 * 512).map(|n| guest.peek(OTHER_TABLES + 8 * n, 8)).collect::<Vec<_>>();
        assert!(tables(&pair.translated) == tables(&pair.interpreted), "round {round}");
    }
    assert!((20..200).contains(&faults), "{faults}");
}

#[test]
fn code_that_rewrites_itself_each_loop() {
    const TURNS: u64 = 30_000;
    let mut guest = guest(64);
    (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RBX]) = (0, TURNS, CODE);
    guest.cpu.gpr[RSP] = DATA + 0x800;
    // 1: mov [rbx+5],cl; add eax,1; dec ecx; jnz 1b: the immediate of the addition is the counter
    guest.run(&hex("884b0583c001ffc975f6"));
    let sum: i64 = (1..=TURNS as i64).map(|n| i64::from(n as i8)).sum();
    assert_eq!(guest.cpu.gpr[RAX], sum as u32 as u64);
    check_bounds(&guest.cpu);
}

#[test]
fn every_part_of_a_47_bit_space_is_touched_and_executed() {
    const TIMES: u64 = 1 << 18;
    const STRIDE: u64 = (1 << 47) / TIMES;
    let mut guest = guest(64);
    // Three tables map the first 2 MiB everywhere.
    for n in 0..512 {
        guest.put(OTHER_TABLES + 8 * n, if n < 256 { (OTHER_TABLES + PAGE_SIZE) | 7 } else { 0 }, 8);
        guest.put(OTHER_TABLES + PAGE_SIZE + 8 * n, (OTHER_TABLES + 2 * PAGE_SIZE) | 7, 8);
        guest.put(OTHER_TABLES + 2 * PAGE_SIZE + 8 * n, 0x87, 8);
    }
    guest.cpu.cr3 = OTHER_TABLES;
    guest.cpu.paging_changed();
    let (data, function) = (0x1f_0000, 0x18_0000);
    // inc rax; ret
    guest.bytes(function, &hex("48ffc0c3"));
    guest.cpu.gpr[RSP] = 0x1e_0000;
    let mut touch = |times: u64| {
        guest.cpu.gpr[RAX] = 0;
        (guest.cpu.gpr[RBX], guest.cpu.gpr[RDX]) = (data, function);
        (guest.cpu.gpr[RCX], guest.cpu.gpr[RSI]) = (times, STRIDE);
        // 1: add qword ptr [rbx],1; call rdx; add rbx,rsi; add rdx,rsi; dec rcx; jnz 1b
        guest.run(&hex("48830301ffd24801f34801f248ffc975ef"));
        assert_eq!(guest.cpu.gpr[RAX], times);
        check_bounds(&guest.cpu)
    };
    let before = touch(1000);
    let after = touch(TIMES);
    assert_eq!(guest.peek(data, 8), 1000 + TIMES);
    // A page of code is decoded and translated once, wherever it is mapped; the loop itself was written anew.
    assert!(before.iter().zip(after).all(|(before, after)| after <= 2 * before), "{before:?} {after:?}");
}

/// Fills `len` bytes from [`DATA`] with blocks of two bytes and runs through them twice: how often all was forgotten.
fn run_tiny_blocks(len: usize) -> u64 {
    let mut guest = guest(64);
    // jmp .+2
    let mut code = [0xeb, 0].repeat(len / 2);
    // ret
    code.push(0xc3);
    guest.bytes(DATA, &code);
    guest.cpu.gpr[RBX] = DATA;
    guest.cpu.gpr[RSP] = CODE + 0x8000;
    // call rbx; call rbx
    guest.run(&hex("ffd3ffd3"));
    assert_eq!(guest.cpu.gpr[RSP], CODE + 0x8000);
    assert_eq!(guest.peek(SEEN, 1), 0);
    check_bounds(&guest.cpu);
    assert!(counted(&guest.cpu, count::BLOCKS_TRANSLATED) > len as u64 / 2);
    counted(&guest.cpu, count::CODE_CACHE_CLEARED)
}

#[test]
fn more_tiny_blocks_than_there_is_room_for() {
    assert!(run_tiny_blocks(0x2_0000) >= 1);
}

#[test]
#[ignore = "two million blocks, each of them twice: more than a minute"]
fn millions_of_tiny_blocks() {
    assert!((0..4).map(|_| run_tiny_blocks(0x10_0000)).sum::<u64>() >= 4);
}
