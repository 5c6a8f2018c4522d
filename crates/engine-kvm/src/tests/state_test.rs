//! Saving and loading: a processor goes on in another machine as if nothing had happened.

use umbra_engine::{CpuState, Engine, EngineError, Halt, SavedSegment, VcpuSpec, xcomp};
use umbra_state::Saved;
use umbra_x86::cpuid::feature;
use umbra_x86::msr;
use umbra_x86::segment::Segment;

use super::guest::{CODE, DONE, Did, Guest, Io, engine, kernel_engine, real_mode_state, skip};
use crate::KvmEngine;

#[test]
fn a_new_processor_is_at_power_on() {
    let Some(engine) = engine("a_new_processor_is_at_power_on") else { return };
    let mut guest = Guest::new(&engine, 2);
    for id in 0..2 {
        let mut state = guest.vcpus[id as usize].save().unwrap();
        let expected = CpuState::power_on(id, &guest.cpuid);
        state.tsc_khz = 0;
        // KVM tells in the APIC's version that it can hold back ends of interrupts.
        let page = &mut state.apic.as_mut().unwrap().page;
        page[0x33] &= !1;
        assert_eq!(state.differences(&expected), Vec::<String>::new());
    }
}

/// Page tables, all of the first 2 MiB to itself, for user mode.
fn write_page_tables(guest: &Guest) {
    for (at, entry) in [(0x10000u64, 0x11007u64), (0x11000, 0x12007), (0x12000, 0xe7)] {
        guest.memory.write(at, &entry.to_le_bytes()).unwrap();
    }
}

/// 64-bit user mode that may use ports.
fn user_state(guest: &Guest) -> CpuState {
    let mut state = real_mode_state(&guest.cpuid, 0, CODE);
    let data = SavedSegment(Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff));
    state.segments = [data; 6];
    state.segments[1] = SavedSegment(Segment::from_descriptor(0x33, 0x00af_fb00_0000_ffff));
    state.tr = SavedSegment(Segment::from_descriptor(0x40, 0x0000_8b02_0000_0067));
    state.rflags = 0x3002;
    state.cr0 = 0x8005_0033;
    state.cr3 = 0x10000;
    state.cr4 = 0x620 | if guest.cpuid.has(feature::XSAVE) { 1 << 18 } else { 0 };
    state.efer = 0xd01;
    state
}

/// With AVX, where XCR0 exists.
fn xcr0(guest: &Guest) -> u64 {
    if guest.cpuid.has(feature::XSAVE) { 7 } else { 1 }
}

fn busy_user_state(guest: &Guest) -> CpuState {
    let mut state = user_state(guest);
    for (i, r) in state.gpr.iter_mut().enumerate() {
        *r = 0x1111_2222_0000_0000 + i as u64;
    }
    state.xcr0 = xcr0(guest);
    let mut x87 = vec![0; 160];
    x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    x87[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
    state.xsave = vec![(xcomp::X87, x87), (xcomp::SSE, vec![0x5a; 256])];
    if guest.cpuid.has(feature::AVX) {
        state.xsave.push((xcomp::AVX, (0..=255).collect()));
    }
    state.dr = [1, 2, 3, 4];
    state.cr2 = 0xdead_0000;
    let msrs = [
        (msr::IA32_SYSENTER_EIP, 0x1234), // AMD's processors keep 32 bits
        (msr::IA32_LSTAR, 0xffff_8000_0000_4321),
        (msr::IA32_STAR, 0x23_0010_0000_0000),
        (msr::IA32_FMASK, 0x4_7700),
        (msr::IA32_KERNEL_GS_BASE, 0x7777_0000),
        (msr::IA32_TSC_AUX, 5),
        (0x404, 0), // the second bank's machine checks are off
        (msr::IA32_PAT, 0x0007_0401_0600_0106),
    ];
    msrs.into_iter().for_each(|(n, v)| state.set_msr(n, v));
    state.tsc = 123_456_789_000;
    state
}

#[test]
fn everything_that_is_loaded_is_saved() {
    let Some(engine) = engine("everything_that_is_loaded_is_saved") else { return };
    let mut guest = Guest::new(&engine, 1);
    write_page_tables(&guest);
    let mut state = busy_user_state(&guest);
    state.events.nmi_masked = true;
    state.events.mov_ss_shadow = true;
    let vcpu = &mut guest.vcpus[0];
    vcpu.load(&state).unwrap();
    let mut back = vcpu.save().unwrap();
    back.tsc_khz = 0;
    back.apic.as_mut().unwrap().page[0x33] &= !1;
    // The logical ID of x2APIC mode follows from the ID.
    state.apic.as_mut().unwrap().page[0xd0..0xd4].copy_from_slice(&1u32.to_le_bytes());
    assert_eq!(back.differences(&state), Vec::<String>::new());
    // And again, with everything as at power-on: nothing of the first is left.
    let power_on = CpuState::power_on(0, &guest.cpuid);
    vcpu.load(&power_on).unwrap();
    let mut back = vcpu.save().unwrap();
    back.tsc_khz = 0;
    back.apic.as_mut().unwrap().page[0x33] &= !1;
    assert_eq!(back.differences(&power_on), Vec::<String>::new());
}

/// Runs `code` in user mode until it is done for the first time, saves, and lets another machine go on until it is done
/// again. Both memories hold the operand at 3000h. The state between, and the second machine.
fn move_while_running(engine: &KvmEngine, code: &[u8]) -> (CpuState, Guest) {
    let prepare = |guest: &Guest| {
        write_page_tables(guest);
        guest.memory.write(CODE, code).unwrap();
        guest.memory.write(0x3000, &operand()).unwrap();
    };
    let io = Io::default();
    let mut first = Guest::new(engine, 1);
    prepare(&first);
    let mut state = user_state(&first);
    state.xcr0 = xcr0(&first);
    first.vcpus[0].load(&state).unwrap();
    first.start();
    first.run(&io, |_| ());
    first.stop();
    let state = first.vcpus[0].save().unwrap();
    drop(first);
    let mut second = Guest::new(engine, 1);
    prepare(&second);
    second.vcpus[0].load(&state).unwrap();
    second.start();
    second.run(&io, |_| ());
    assert_eq!(io.take().len(), 2);
    (state, second)
}

fn operand() -> Vec<u8> {
    (1..=32).collect()
}

fn result(guest: &Guest, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.memory.read(gpa, &mut bytes).unwrap();
    bytes
}

#[test]
fn general_sse_and_x87_registers_move() {
    let Some(engine) = engine("general_sse_and_x87_registers_move") else { return };
    #[rustfmt::skip]
    let code = [
        0xf3, 0x0f, 0x6f, 0x04, 0x25, 0x00, 0x30, 0, 0,       // movdqu xmm0, [3000h]
        0xf3, 0x44, 0x0f, 0x6f, 0x3c, 0x25, 0x10, 0x30, 0, 0, // movdqu xmm15, [3010h]
        0xd9, 0xeb,                                           // fldpi
        0x48, 0xbb, 8, 7, 6, 5, 4, 3, 2, 1,                   // mov rbx, 0102030405060708h
        0xe6, DONE as u8,
        0xf3, 0x0f, 0x7f, 0x04, 0x25, 0x40, 0x30, 0, 0,       // movdqu [3040h], xmm0
        0xf3, 0x44, 0x0f, 0x7f, 0x3c, 0x25, 0x50, 0x30, 0, 0, // movdqu [3050h], xmm15
        0xdd, 0x1c, 0x25, 0x80, 0x30, 0, 0,                   // fstp qword [3080h]
        0x48, 0x89, 0x1c, 0x25, 0x88, 0x30, 0, 0,             // mov [3088h], rbx
        0xe6, DONE as u8,
    ];
    let (state, second) = move_while_running(&engine, &code);
    assert_eq!(state.gpr[3], 0x0102_0304_0506_0708);
    assert_eq!(state.xsave_component(xcomp::SSE).unwrap()[..16], operand()[..16]);
    assert_eq!(result(&second, 0x3040, 32), operand());
    assert_eq!(second.word(0x3080), std::f64::consts::PI.to_bits());
    assert_eq!(second.word(0x3088), 0x0102_0304_0506_0708);
}

#[test]
fn avx_registers_move() {
    let Some(engine) = engine("avx_registers_move") else { return };
    if !engine.supported_cpuid().unwrap().has(feature::AVX) {
        return skip("avx_registers_move", "this KVM shows no AVX");
    }
    #[rustfmt::skip]
    let code = [
        0xc5, 0xfe, 0x6f, 0x04, 0x25, 0x00, 0x30, 0, 0, // vmovdqu ymm0, [3000h]
        0xc5, 0xfe, 0x6f, 0x3c, 0x25, 0x00, 0x30, 0, 0, // vmovdqu ymm7, [3000h]
        0xe6, DONE as u8,
        0xc5, 0xfe, 0x7f, 0x04, 0x25, 0x40, 0x30, 0, 0, // vmovdqu [3040h], ymm0
        0xc5, 0xfe, 0x7f, 0x3c, 0x25, 0x60, 0x30, 0, 0, // vmovdqu [3060h], ymm7
        0xe6, DONE as u8,
    ];
    let (state, second) = move_while_running(&engine, &code);
    assert_eq!(state.xsave_component(xcomp::AVX).unwrap()[..16], operand()[16..]);
    assert_eq!(result(&second, 0x3040, 64), [operand(), operand()].concat());
}

/// Kernel mode, with registers that only it may use.
#[test]
fn a_kernel_program_goes_on_in_another_machine() {
    let Some(engine) = kernel_engine("a_kernel_program_goes_on_in_another_machine") else { return };
    #[rustfmt::skip]
    let code = [
        0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8,             // mov rax, cr3; mov cr3, rax
        0xb9, 0x82, 0x00, 0x00, 0xc0,                   // mov ecx, IA32_LSTAR
        0xb8, 0x78, 0x56, 0x34, 0x12, 0x31, 0xd2,       // mov eax, 12345678h; xor edx, edx
        0x0f, 0x30,                                     // wrmsr
        0xe6, DONE as u8,
        0x31, 0xc0, 0x0f, 0x32,                         // xor eax, eax; rdmsr
        0x48, 0x89, 0x04, 0x25, 0x00, 0x30, 0, 0,       // mov [3000h], rax
        0xe6, DONE as u8,
    ];
    let prepare = |guest: &Guest| {
        write_page_tables(guest);
        guest.memory.write(CODE, &code).unwrap();
    };
    let mut first = Guest::new(&engine, 1);
    prepare(&first);
    let mut state = user_state(&first);
    let data = SavedSegment(Segment::from_descriptor(0x10, 0x00cf_9300_0000_ffff));
    state.segments = [data; 6];
    state.segments[1] = SavedSegment(Segment::from_descriptor(8, 0x00af_9b00_0000_ffff));
    first.vcpus[0].load(&state).unwrap();
    first.start();
    let io = Io::default();
    first.run(&io, |_| ());
    first.stop();
    let state = first.vcpus[0].save().unwrap();
    assert_eq!(state.msr(msr::IA32_LSTAR), Some(0x1234_5678));
    let mut second = Guest::new(&engine, 1);
    prepare(&second);
    second.vcpus[0].load(&state).unwrap();
    second.start();
    second.run(&io, |_| ());
    assert_eq!(second.word(0x3000), 0x1234_5678);
    assert_eq!(io.take().iter().filter(|d| matches!(d, Did::Out(DONE, _))).count(), 2);
}

#[test]
fn state_that_cannot_be_is_refused() {
    let Some(engine) = engine("state_that_cannot_be_is_refused") else { return };
    let mut guest = Guest::new(&engine, 1);
    let good = CpuState::power_on(0, &guest.cpuid);
    let mut refuse = |change: fn(&mut CpuState), what: &str| {
        let mut state = good.clone();
        change(&mut state);
        let error = guest.vcpus[0].load(&state).unwrap_err();
        assert!(matches!(error, EngineError::State(_)), "{error:?}");
        assert!(error.to_string().contains(what), "{error} says nothing of {what}");
        guest.vcpus[0].load(&good).unwrap();
    };
    refuse(|s| s.cpuid[0].0.ebx ^= 1, "another CPUID");
    refuse(|s| s.cpuid.truncate(3), "number of CPUID leaves");
    refuse(|s| s.cr4 = u64::MAX, "system registers");
    refuse(|s| s.efer = u64::MAX, "system registers");
    refuse(|s| s.xcr0 = 1 << 40, "XCR0");
    refuse(|s| s.xsave.push((18, vec![0; 8192])), "component 18");
    refuse(|s| s.set_msr(0xdead, 1), "MSR 0xdead");
    refuse(|s| s.set_msr(msr::IA32_LSTAR, 1 << 60), "IA32_LSTAR");
    refuse(|s| s.dr7 = u64::MAX, "debug registers");
}

#[test]
fn a_processor_with_too_much_is_refused() {
    let Some(engine) = engine("a_processor_with_too_much_is_refused") else { return };
    let guest = Guest::new(&engine, 1);
    let mut cpuid = guest.cpuid.clone();
    cpuid.set_feature(feature::VMX, true);
    let refused = |spec| guest.vm.create_vcpu(spec).err().unwrap().to_string();
    assert!(refused(VcpuSpec { id: 0, cpuid }).contains("vmx"));
    assert!(refused(VcpuSpec { id: 1, cpuid: guest.cpuid.clone() }).contains("at most 1"));
    assert!(refused(VcpuSpec { id: 0, cpuid: guest.cpuid.clone() }).contains("KVM_CREATE_VCPU"));
}

#[test]
fn a_triple_fault_ends_the_run() {
    let Some(engine) = engine("a_triple_fault_ends_the_run") else { return };
    let mut guest = Guest::new(&engine, 1);
    write_page_tables(&guest);
    guest.memory.write(CODE, &[0x0f, 0x0b]).unwrap(); // ud2
    let mut state = user_state(&guest);
    state.idtr.0.limit = 0;
    guest.vcpus[0].load(&state).unwrap();
    guest.start();
    let halts = guest.run_to_halts(&Io::default(), |_| ());
    assert!(matches!(halts[..], [Halt::TripleFault]), "{halts:?}");
}

/// A saved processor comes from a file that anybody may have changed: it is refused or it runs, and nothing else happens.
#[test]
fn damaged_state_is_refused_or_runs() {
    let Some(engine) = engine("damaged_state_is_refused_or_runs") else { return };
    let mut guest = Guest::new(&engine, 1);
    write_page_tables(&guest);
    guest.memory.write(CODE, &[0xeb, 0xfe]).unwrap();
    let good = busy_user_state(&guest).to_record("cpu0");
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let (mut loaded, io) = (0, Io::default());
    let kicker = guest.vcpus[0].kicker();
    for _ in 0..1500 {
        let mut record = good.clone();
        for _ in 0..3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = (random >> 8) as usize % record.bytes.len();
            record.bytes[at] ^= random as u8;
        }
        let Ok(state) = CpuState::from_record(&record) else { continue };
        if guest.vcpus[0].load(&state).is_ok() {
            loaded += 1;
            kicker.kick();
            let _ = guest.vcpus[0].run(&io);
            let _ = guest.vcpus[0].save().unwrap();
        }
    }
    assert!(loaded > 20, "{loaded}");
}
