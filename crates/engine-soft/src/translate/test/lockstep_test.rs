//! Lock-step: it finds what is planted in a translation, and nothing where nothing is.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind, Register};
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDI, RDX, RSI};

use super::{guest, hex};
use crate::exec::test::guest::{CODE, DATA, DEVICE, Guest};
use crate::exec::{self, Stop};

/// A guest that compares every run of every block.
fn compared() -> Guest {
    let mut guest = guest(64);
    guest.cpu.start_lockstep(1);
    guest.cpu.gpr[RAX] = 0x1111;
    guest.cpu.gpr[RBX] = 0x2222;
    guest.cpu.gpr[RCX] = 3;
    guest.cpu.gpr[RDX] = 0x3333;
    guest.cpu.gpr[RSI] = DATA + 0x800;
    guest.cpu.gpr[RDI] = DATA;
    guest
}

fn runs(guest: &Guest) -> u64 {
    guest.cpu.lockstep.as_ref().unwrap().compared
}

/// Runs the block of `code` with its translation changed by `spoil`, which is asked instruction by instruction until it says that it did.
/// What lock-step says of it.
fn planted(code: &str, spoil: impl Fn(&Instruction, &mut [u8]) -> bool) -> String {
    let mut guest = compared();
    let code = hex(code);
    guest.bytes(CODE, &code);
    guest.bytes(CODE + code.len() as u64, &[0xf4]);
    let block = guest.cpu.find_block().unwrap();
    assert_eq!(guest.cpu.translate(block), Ok(true));
    // SAFETY: the block has just been found.
    let code_at = unsafe { (*block).code_at };
    let mut host = guest.cpu.lockstep.as_ref().unwrap().translation(code_at).to_vec();
    let all: Vec<_> = Decoder::new(64, &host, DecoderOptions::NONE).iter().collect();
    let at = |i: &Instruction| i.ip() as usize..i.next_ip() as usize;
    let done = all.iter().find(|i| spoil(i, &mut host[at(i)])).expect("nothing to spoil");
    let area = &guest.cpu.translator.area;
    area.overwrite(area.offset_of(code_at) + at(done).start, &host[at(done)]);
    assert_eq!(exec::run(&mut guest.cpu), Stop::Different);
    let report = guest.cpu.lockstep_report();
    assert!(
        report.contains("guest code:\n  0x1000") && report.contains("host code of the block:\n     0  "),
        "{report}"
    );
    report
}

/// Whether it accesses guest memory, and writes it.
fn stores(i: &Instruction) -> bool {
    i.mnemonic() == M::Mov && i.op0_kind() == OpKind::Memory && i.memory_segment() != Register::GS
}

#[test]
fn a_wrong_register_is_found() {
    // add rax,rbx; becomes sub rax,rbx
    let report = planted("4801d8", |i, bytes| {
        let found = i.mnemonic() == M::Add && i.op1_register() == Register::RBX;
        if found {
            bytes[1] = 0x29;
        }
        found
    });
    assert!(report.contains("rax: translated 0xffffffffffffeeef, interpreted 0x3333"), "{report}");
}

#[test]
fn a_wrong_store_is_found() {
    // mov [rdi+0x10],rax; another register is stored
    let report = planted("48894710", |i, bytes| {
        let found = stores(i) && i.op1_register() == Register::RAX;
        if found {
            // The register's field of ModRM, after REX and the opcode.
            bytes[2] ^= 8;
        }
        found
    });
    assert!(report.contains(&format!("{:#x}", DATA + 0x10)), "{report}");
    assert!(report.contains("translated 0x0000000000000003, interpreted 0x0000000000001111"), "{report}");
}

#[test]
fn a_store_to_the_wrong_place_is_found() {
    // mov [rdi+0x10],rax
    let report = planted("48894710", |i, bytes| {
        let found = stores(i) && i.op1_register() == Register::RAX;
        if found {
            // The displacement.
            *bytes.last_mut().unwrap() ^= 8;
        }
        found
    });
    assert!(report.contains("memory at guest physical"), "{report}");
}

#[test]
fn wrong_flags_are_found_by_what_they_decide() {
    // cmp rax,rbx; becomes cmp rbx,rax. jb .+4; inc rdx; nop
    let report = planted("4839d8720348ffc290", |i, bytes| {
        let found = i.mnemonic() == M::Cmp && i.op0_register() == Register::RAX;
        if found {
            bytes[2] = 0xc3;
        }
        found
    });
    assert!(report.contains("rdx: translated 0x3334, interpreted 0x3333"), "{report}");
}

#[test]
fn flags_that_a_later_block_needs_are_followed_to_it() {
    // cmp rax,rbx; jmp .+2 (to the next block); setb dl; nop
    let report = planted("4839d8eb000f92c290", |i, bytes| {
        let found = i.mnemonic() == M::Cmp && i.op0_register() == Register::RAX;
        if found {
            bytes[2] = 0xc3;
        }
        found
    });
    assert!(report.contains("rdx: ") && report.contains(&format!("since {CODE:#x}")), "{report}");
}

#[test]
fn flags_that_the_interpreter_reads_are_found() {
    // cmp rax,rbx; becomes cmp rbx,rax. mov ecx,0x800000; adc [rcx],eax, which the interpreter does, because a device is there
    assert_eq!(DEVICE, 0x80_0000);
    let report = planted("4839d8b9000080001101", |i, bytes| {
        let found = i.mnemonic() == M::Cmp && i.op0_register() == Register::RAX;
        if found {
            bytes[2] = 0xc3;
        }
        found
    });
    assert!(
        report.contains("adc [rcx],eax at")
            && report.contains("reads flags that the translation did not keep"),
        "{report}"
    );
}

#[test]
fn wrong_vector_state_is_found() {
    // addps xmm0,xmm1; becomes mulps
    let report = planted("660f6ec80f58c1", |i, bytes| {
        let found = i.mnemonic() == M::Addps;
        if found {
            bytes[1] = 0x59;
        }
        found
    });
    assert!(report.contains("zmm0"), "{report}");
}

#[test]
fn a_loop_that_does_nothing_is_found() {
    // L: dec rcx; becomes a long NOP. jne L
    let report = planted("48ffc975fb", |i, bytes| {
        let found = i.mnemonic() == M::Dec && i.op0_register() == Register::RCX;
        if found {
            bytes.copy_from_slice(&[0x0f, 0x1f, 0x00]);
        }
        found
    });
    assert!(report.contains("rcx: translated 0x3, interpreted 0x2"), "{report}");
}

#[test]
fn whatever_happens_once_happens_once() {
    let mut guest = compared();
    guest.cpu.gpr[RSI] = DEVICE;
    // mov dword [rdi],5; add dword [rdi],2; mov [rsi],eax; add dword [rdi],3; mov ebx,[rsi+4]; push rax; pop rdx; out 0x80,al; inc dword [rdi]
    guest.run(&hex("c707050000008307028906830703 8b5e04505ae680ff07"));
    assert_eq!(guest.peek(DATA, 4), 11);
    assert_eq!(guest.devices.written.lock().unwrap().as_slice(), &[(DEVICE, vec![0x11, 0x11, 0, 0])]);
    assert_eq!(guest.cpu.gpr[RBX], 0x0706_0504);
    assert!(runs(&guest) > 0);
}

#[test]
fn faults_in_the_middle_of_a_block_are_the_same() {
    for (code, vector) in [
        // mov [rdi],rax; mov rax,[0x1000000] (not mapped); inc rcx
        ("488907488b0425000000014 8ffc1", 14),
        // xor ecx,ecx; div rcx
        ("31c948f7f1", 0),
        // movaps xmm0,[rdi]; movaps [rdi+8],xmm0
        ("0f28070f294708", 13),
    ] {
        let mut guest = compared();
        assert_eq!(guest.fault(&hex(code)).0, vector, "{code}");
        assert!(runs(&guest) > 0);
    }
}

#[test]
fn page_tables_that_a_block_writes_and_uses_are_as_the_walk_left_them() {
    use crate::exec::test::guest::TABLES;
    let mut guest = compared();
    let entry = TABLES + 3 * 0x1000 + ((DATA + 0x1000) >> 12) * 8;
    guest.cpu.gpr[RSI] = entry;
    guest.cpu.gpr[RDX] = (DATA + 0x1000) | 3;
    // mov [rsi],rdx; mov [rdi+0x1000],rax: the walk for the second sets bits in what the first wrote
    guest.run(&hex("48891648898700100000"));
    assert_eq!(guest.peek(entry, 8), (DATA + 0x1000) | 0x63);
    assert_eq!(guest.peek(DATA + 0x1000, 8), 0x1111);
}

#[test]
fn so_many_runs_are_compared_as_are_asked_for() {
    let mut guest = compared();
    guest.cpu.start_lockstep(5);
    guest.cpu.gpr[RCX] = 1000;
    // L: add [rdi],rcx; dec rcx; jne L
    guest.run(&hex("48010f48ffc975f8"));
    assert_eq!(guest.peek(DATA, 8), 1000 * 1001 / 2);
    let compared = runs(&guest);
    assert!((5..=10).contains(&compared), "{compared}");
}

#[test]
fn machines_of_one_processor_only() {
    use umbra_device::Clock;
    use umbra_engine::{Engine, EngineError, VmSpec};
    let engine = crate::SoftEngine::new().unwrap().in_lockstep(1);
    let machine = |vcpus_max| {
        engine.create_vm(VmSpec { memory: crate::fixture::memory(1 << 20), clock: Clock::new(), vcpus_max })
    };
    assert!(machine(1).is_ok());
    assert!(matches!(machine(2), Err(EngineError::Unavailable(why)) if why.contains("--cpus 1")));
}
