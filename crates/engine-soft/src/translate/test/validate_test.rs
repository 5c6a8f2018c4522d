//! The validator lets every translation through and none that was tampered with.

use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

use super::program::PROGRAMS;
use super::{guest, hex, translation};
use crate::cpu::Cpu;
use crate::mmu::ENTRIES;
use crate::translate::validate::{Given, Violation, Why, validate};

/// One instruction each, put before a valid translation.
#[rustfmt::skip]
const PLANTED: &[(&str, Why)] = &[
    ("4889c4", Why::Register), // mov rsp,rax
    ("4883c408", Why::Register), // add rsp,8
    ("488d442408", Why::Register), // lea rax,[rsp+8]
    ("4889e0", Why::Register), // mov rax,rsp
    ("50", Why::Register), // push rax
    ("58", Why::Register), // pop rax
    ("9c", Why::Register), // pushfq
    ("c9", Why::Register), // leave
    ("e800000000", Why::Register), // call .+5
    ("c3", Why::Register), // ret
    ("f3480faed8", Why::Forbidden), // wrgsbase rax
    ("f3480faec8", Why::Forbidden), // rdgsbase rax
    ("f3480faed0", Why::Forbidden), // wrfsbase rax
    ("0f01f8", Why::Forbidden), // swapgs
    ("8ee8", Why::Forbidden), // mov gs,eax
    ("8ee0", Why::Forbidden), // mov fs,eax
    ("8ed8", Why::Forbidden), // mov ds,eax
    ("8cd0", Why::Forbidden), // mov eax,ss
    ("0f20d8", Why::Forbidden), // mov rax,cr3
    ("0f23f8", Why::Forbidden), // mov dr7,rax
    ("0f05", Why::Forbidden), // syscall
    ("0f34", Why::Register), // sysenter
    ("cc", Why::Forbidden), // int3
    ("cd80", Why::Forbidden), // int 0x80
    ("f4", Why::Forbidden), // hlt
    ("fa", Why::Forbidden), // cli
    ("ec", Why::Forbidden), // in al,dx
    ("ee", Why::Forbidden), // out dx,al
    ("0fa2", Why::Forbidden), // cpuid
    ("0f31", Why::Forbidden), // rdtsc
    ("0f32", Why::Forbidden), // rdmsr
    ("0f30", Why::Forbidden), // wrmsr
    ("0f01d0", Why::Forbidden), // xgetbv
    ("0f01ef", Why::Forbidden), // wrpkru
    ("0f0b", Why::Forbidden), // ud2
    ("c7f800000000", Why::Forbidden), // xbegin .+6
    ("e200", Why::Forbidden), // loop .+2
    ("410fae2a", Why::Forbidden), // xrstor [r10]
    ("410fae0a", Why::Forbidden), // fxrstor [r10]
    ("410fae12", Why::Forbidden), // ldmxcsr [r10]
    ("d9e8", Why::Forbidden), // fld1
    ("0f77", Why::Forbidden), // emms
    ("a4", Why::Forbidden), // movsb
    ("f348ab", Why::Forbidden), // rep stosq
    ("d7", Why::Forbidden), // xlatb
    ("660ff7c1", Why::Forbidden), // maskmovdqu xmm0,xmm1
    ("c4e269900408", Why::Forbidden), // vpgatherdd xmm0,[rax+xmm1],xmm2
    ("490fab02", Why::Forbidden), // bts [r10],rax
    ("488d0508000000", Why::Forbidden), // lea rax,[rip+8]
    ("ff20", Why::Target), // jmp [rax]
    ("ffe0", Why::Target), // jmp rax
    ("41ffe2", Why::Target), // jmp r10
    ("65ff242500000000", Why::Target), // jmp gs:[0]
    ("ebfd", Why::Target), // jmp .-1
    ("e9fbff0f00", Why::Target), // jmp .+0x100000
    ("488b03", Why::Unchecked), // mov rax,[rbx]
    ("498902", Why::Unchecked), // mov [r10],rax
    ("4989041a", Why::Unchecked), // mov [r10+rbx],rax
    ("8a0508000000", Why::Unchecked), // mov al,[rip+8]
    ("a0bc9a785634120000", Why::Unchecked), // movabs al,[0x123456789abc]
    ("41fe03", Why::Unchecked), // inc byte ptr [r11]
    ("0f2807", Why::Unchecked), // movaps xmm0,[rdi]
    ("64488b042500000000", Why::StateBlock), // mov rax,fs:[0]
    ("65488b03", Why::StateBlock), // mov rax,gs:[rbx]
    ("4c89d0", Why::Leak), // mov rax,r10
    ("654c891c2500000000", Why::Leak), // mov gs:[0],r11
    ("498d041a", Why::Leak), // lea rax,[r10+rbx]
    ("4993", Why::Leak), // xchg rax,r11
    ("4c01d0", Why::Leak), // add rax,r10
    ("490f44cb", Why::Leak), // cmovz rcx,r11
    ("66490f6ec2", Why::Leak), // movq xmm0,r10
    ("4188c3", Why::Leak), // mov r11b,al
    ("4489d0", Why::Leak), // mov eax,r10d
];

const NOP: u8 = 0x90;

/// The translation of one of [`PROGRAMS`].
fn translated(name: &str) -> (Vec<u8>, Given) {
    let (_, bits, code) = PROGRAMS.iter().find(|p| p.0 == name).unwrap();
    translation(&mut guest(*bits), &hex(code))
}

fn decoded(code: &[u8]) -> Vec<Instruction> {
    Decoder::new(64, code, DecoderOptions::NONE).iter().collect()
}

/// Puts `i` in the place of the instruction that it was made from.
fn put(code: &mut [u8], i: &Instruction) {
    let mut i = *i;
    if i.memory_displacement64() != 0 && i.memory_base() != Register::None {
        i.set_memory_displ_size(1);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&i, i.ip()).unwrap();
    let bytes = encoder.take_buffer();
    let place = &mut code[i.ip() as usize..i.next_ip() as usize];
    assert!(bytes.len() <= place.len(), "{i}");
    place.fill(NOP);
    place[..bytes.len()].copy_from_slice(&bytes);
}

/// What is found after a change of the first instruction that is `found`.
fn changed(
    name: &str,
    found: impl Fn(&Instruction) -> bool,
    change: impl Fn(&mut Instruction),
) -> Option<Why> {
    let (mut code, given) = translated(name);
    let mut i =
        *decoded(&code).iter().find(|i| found(i)).unwrap_or_else(|| panic!("{name} has no such instruction"));
    change(&mut i);
    put(&mut code, &i);
    validate(&code, &given).err().map(|v| v.why)
}

/// What is found after the first conditional branch behind an instruction that is `found` went away.
fn unbranched(name: &str, found: impl Fn(&Instruction) -> bool) -> Option<Why> {
    let (mut code, given) = translated(name);
    let all = decoded(&code);
    let at = all.iter().position(&found).unwrap_or_else(|| panic!("{name} has no such instruction"));
    let branch = all[at..].iter().find(|i| i.is_jcc_short_or_near()).unwrap();
    code[branch.ip() as usize..branch.next_ip() as usize].fill(NOP);
    validate(&code, &given).err().map(|v| v.why)
}

/// Compares a TLB entry's tag or an entry of the table by linear address.
fn compares(i: &Instruction) -> bool {
    i.code() == Code::Cmp_rm64_r64 && i.memory_base() == Register::R11
}

fn reads_addend(i: &Instruction) -> bool {
    i.code() == Code::Mov_r64_rm64 && i.memory_base() == Register::R11
}

/// Takes a TLB entry's tag.
fn takes_tag(i: &Instruction) -> bool {
    i.code() == Code::Xor_r64_rm64 && i.memory_base() == Register::R11
}

fn takes_host(i: &Instruction) -> bool {
    i.code() == Code::Add_r64_rm64 && i.memory_base() == Register::R11
}

/// The guest's own access.
fn accesses(i: &Instruction) -> bool {
    i.memory_base() == Register::R10
        && (i.memory_index() == Register::RBX
            || i.code() == Code::Mov_r64_rm64 && i.memory_segment() != Register::GS)
}

#[test]
fn programs_pass() {
    for (name, bits, code) in PROGRAMS {
        let (code, given) = translation(&mut guest(*bits), &hex(code));
        assert_eq!(validate(&code, &given), Ok(()), "{name}");
    }
}

/// What is given of a translation with so many bytes before it.
fn moved(given: &Given, by: usize) -> Given {
    let all = |offsets: &[u32]| offsets.iter().map(|at| at + by as u32).collect();
    Given { entries: all(&given.entries), retries: all(&given.retries), ..*given }
}

#[test]
fn planted_instructions_are_found() {
    let (code, given) = translated("load");
    let plant = |bytes: &[u8]| {
        let all = [bytes, &code].concat();
        validate(&all, &moved(&given, bytes.len()))
    };
    assert_eq!(plant(&[NOP]), Ok(()));
    assert_eq!(plant(&hex("4889d8")), Ok(()), "mov rax, rbx");
    for (bytes, why) in PLANTED {
        assert_eq!(plant(&hex(bytes)), Err(Violation { at: 0, why: *why }), "{bytes}");
    }
}

#[test]
fn state_block() {
    let (code, given) = translated("load");
    // 4-byte loads and stores of every place in and behind the state block.
    let plant = |opcode: u8, at: usize| {
        let mut all = vec![0x65, opcode, 0x04, 0x25];
        all.extend((at as u32).to_le_bytes());
        let given = moved(&given, all.len());
        all.extend(&code);
        validate(&all, &given)
    };
    let wrong = Err(Violation { at: 0, why: Why::StateBlock });
    let (mut read, mut written) = (0, 0);
    for at in 0..size_of::<Cpu>() + 64 {
        let (reads, writes) = (plant(0x8b, at), plant(0x89, at));
        assert!([Ok(()), wrong].contains(&reads) && [Ok(()), wrong].contains(&writes));
        assert!(reads.is_ok() || writes.is_err(), "{at:#x} can be written but not read");
        assert!(at < size_of::<Cpu>() - 3 || reads.is_err());
        read += usize::from(reads.is_ok());
        written += usize::from(writes.is_ok());
    }
    assert!((16 * 5..32 * 5).contains(&read) && (16 * 5..read).contains(&written), "{read} {written}");
    assert_eq!(plant(0x8b, usize::MAX - 7), wrong);
    for address in ["tlb", "context", "jumps", "slow", "leave", "this"] {
        let offset = match address {
            "tlb" => std::mem::offset_of!(crate::exec::Fast, tlb),
            "context" => std::mem::offset_of!(crate::exec::Fast, context),
            "jumps" => std::mem::offset_of!(crate::exec::Fast, jumps),
            "slow" => std::mem::offset_of!(crate::exec::Fast, slow),
            "leave" => std::mem::offset_of!(crate::exec::Fast, leave),
            _ => std::mem::offset_of!(crate::exec::Fast, this),
        };
        assert_eq!(plant(0x8b, std::mem::offset_of!(Cpu, fast) + offset), wrong, "{address}");
    }
}

#[test]
fn checks_that_are_missing_or_wrong_are_found() {
    let unchecked = Some(Why::Unchecked);
    let same = |_: &mut Instruction| {};
    assert_eq!(changed("load", accesses, same), None);
    assert!(unbranched("load", takes_tag).is_some());
    // A store after a check for reading.
    assert_eq!(changed("store", takes_tag, |i| i.set_memory_displacement64(0)), unchecked);
    assert_eq!(changed("read-modify-write", takes_tag, |i| i.set_memory_displacement64(0)), unchecked);
    assert_eq!(changed("store", takes_tag, |i| i.set_memory_displacement64(16)), unchecked);
    assert!(changed("store", takes_tag, |i| i.set_code(Code::Or_r64_rm64)).is_some());
    let is_context = |i: &Instruction| i.code() == Code::Xor_r64_rm64 && i.memory_segment() == Register::GS;
    assert_eq!(changed("load", is_context, |i| i.set_code(Code::Or_r64_rm64)), Some(Why::StateBlock));
    assert!(changed("load", is_context, |i| i.set_op0_register(Register::RBX)).is_some());
    // Fewer bytes than are accessed; more than a page.
    let is_room = |i: &Instruction| i.code() == Code::Cmp_rm64_imm32 && i.op0_register() == Register::R10;
    for room in [4096 - 8 + 1, 4096, 1 << 20, -4096] {
        assert_eq!(changed("load", is_room, |i| i.set_immediate32to64(room)), unchecked);
    }
    assert_eq!(changed("load", is_room, |i| i.set_immediate32to64(4096 - 9)), None);
    assert_eq!(changed("load", is_room, |i| i.set_op0_register(Register::RBX)), unchecked);
    let (mut code, given) = translated("load");
    let room = *decoded(&code).iter().find(|i| is_room(i)).unwrap();
    let branch = room.next_ip() as usize + 1;
    assert_eq!(code[branch], 0x87, "ja");
    for other in [0x84, 0x82, 0x8f] {
        code[branch] = other;
        assert_eq!(validate(&code, &given).unwrap_err().why, Why::Unchecked);
    }
    // The entry of another address.
    let is_address = |i: &Instruction| i.code() == Code::Lea_r64_m && i.op0_register() == Register::R10;
    assert_eq!(changed("load", is_address, |i| i.set_memory_base(Register::RCX)), None, "checked as a whole");
    let is_index = |i: &Instruction| i.code() == Code::And_rm32_imm32 && i.op0_register() == Register::R11D;
    assert_eq!(
        changed("load", is_index, |i| i.set_immediate32(64 * ENTRIES as u32 - 32)),
        Some(Why::StateBlock)
    );
    let is_shift = |i: &Instruction| i.code() == Code::VEX_Rorx_r64_rm64_imm8;
    assert_eq!(changed("load", is_shift, |i| i.set_immediate8(6)), Some(Why::StateBlock));
    assert_eq!(changed("load", is_shift, |i| i.set_op1_register(Register::RCX)), unchecked);
}

#[test]
fn operands_that_were_not_checked_are_found() {
    let unchecked = Some(Why::Unchecked);
    assert_eq!(changed("load", accesses, |i| i.set_memory_base(Register::R9)), unchecked);
    assert_eq!(changed("load", accesses, |i| i.set_memory_base(Register::R11)), unchecked);
    assert_eq!(changed("window", accesses, |i| i.set_memory_index(Register::RCX)), unchecked);
    assert_eq!(changed("window", accesses, |i| i.set_memory_index(Register::None)), unchecked);
    assert_eq!(changed("window", accesses, |i| i.set_memory_index_scale(2)), unchecked);
    let to_store = |i: &mut Instruction| {
        i.set_code(Code::Mov_rm64_r64);
        i.set_op0_kind(OpKind::Memory);
        i.set_op1_kind(OpKind::Register);
        i.set_op1_register(Register::RAX);
    };
    assert_eq!(changed("load", accesses, to_store), unchecked);
    assert_eq!(changed("load", takes_host, |i| i.set_memory_displacement64(16)), unchecked);
    assert_eq!(changed("load", takes_host, |i| i.set_op0_register(Register::RAX)), unchecked);
    assert_eq!(changed("load", takes_host, |i| i.set_code(Code::Mov_r64_rm64)), unchecked);
    assert_eq!(changed("window", reads_addend, |i| i.set_memory_displacement64(24)), unchecked);
    assert_eq!(changed("window", reads_addend, |i| i.set_op0_register(Register::RAX)), Some(Why::Leak));
    let is_version = |i: &Instruction| i.code() == Code::Mov_r64_imm64;
    assert_eq!(changed("load", is_version, |i| i.set_immediate64(i.immediate64() + 8)), unchecked);
}

#[test]
fn windows_that_are_none_are_found() {
    let [wrong, unchecked] = [Why::StateBlock, Why::Unchecked].map(Some);
    let place = (std::mem::offset_of!(Cpu, fast) + std::mem::offset_of!(crate::exec::Fast, windows)) as u64;
    let is_at = |i: &Instruction| i.memory_segment() == Register::GS && i.memory_displacement64() == place;
    let keeps = |i: &Instruction| is_at(i) && i.code() == Code::Mov_rm64_r64;
    let takes = |i: &Instruction| is_at(i) && i.code() == Code::Mov_r64_rm64;
    let second = |i: &Instruction| accesses(i) && i.memory_displacement64() == 8;
    assert_eq!(changed("window", takes, |_| {}), None);
    // Another window, one that was never looked up, what is no addend.
    assert_eq!(changed("window", takes, |i| i.set_memory_displacement64(place + 8)), wrong);
    assert_eq!(changed("window", keeps, |i| i.set_memory_displacement64(place + 8)), wrong);
    assert_eq!(changed("window", keeps, |i| i.set_op1_register(Register::RBX)), wrong);
    assert_eq!(changed("window", keeps, |i| i.set_op1_register(Register::R11)), wrong);
    assert_eq!(changed("window", takes, |i| i.set_op0_register(Register::RAX)), Some(Why::Leak));
    // Another place than was looked up.
    assert_eq!(changed("window", second, |i| i.set_memory_displacement64(9)), unchecked);
    assert_eq!(changed("window", second, |i| i.set_memory_displacement64(-1i64 as u64)), unchecked);
    assert_eq!(changed("window", second, |i| i.set_memory_index(Register::RCX)), unchecked);
    assert_eq!(unbranched("window", takes_tag), unchecked);
    // After the interpreter nothing is left of it; after a TLB fill it is, but not in a register.
    let (code, given) = translated("window");
    let at =
        |found: &dyn Fn(&Instruction) -> bool| decoded(&code).iter().find(|i| found(i)).unwrap().ip() as u32;
    for (place, entry, retry) in [(at(&takes), wrong, None), (at(&second), unchecked, unchecked)] {
        let why = |given: &Given| validate(&code, given).err().map(|v| v.why);
        let (mut come, mut back) = (given.clone(), given.clone());
        come.entries.push(place);
        back.retries.push(place);
        assert_eq!([why(&come), why(&back)], [entry, retry]);
    }
}

#[test]
fn jumps_that_lead_astray_are_found() {
    let target = Some(Why::Target);
    let is_jcc = |i: &Instruction| i.is_jcc_short_or_near();
    assert_eq!(changed("load", is_jcc, |i| i.set_near_branch64(i.near_branch64() + 1)), target);
    assert_eq!(changed("load", is_jcc, |i| i.set_near_branch64(0x1000)), target);
    let is_leaving = |i: &Instruction| i.code() == Code::Jmp_rm64 && i.memory_segment() == Register::GS;
    assert_eq!(changed("load", is_leaving, |i| i.set_memory_displacement64(0)), target);
    let goes = |i: &Instruction| i.code() == Code::Jmp_rm64 && i.memory_base() == Register::R11;
    assert_eq!(changed("jumps by register", goes, |i| i.set_memory_base(Register::RAX)), target);
    assert_eq!(changed("jumps by register", goes, |i| i.set_memory_displacement64(0)), Some(Why::Unchecked));
    assert!(unbranched("jumps by register", compares).is_some());
    let is_key = |i: &Instruction| compares(i) && i.memory_displacement64() == 8;
    assert_eq!(
        changed("jumps by register", is_key, |i| i.set_memory_displacement64(24)),
        Some(Why::Unchecked)
    );
    let (code, mut given) = translated("load");
    given.entries.push(3);
    assert_eq!(validate(&code, &given), Err(Violation { at: 3, why: Why::Target }));
    let (mut code, given) = translated("load");
    let last = *decoded(&code).last().unwrap();
    code.truncate(last.ip() as usize);
    assert_eq!(validate(&code, &given).unwrap_err().why, Why::End);
    assert_eq!(validate(&[], &Given::default()).unwrap_err().why, Why::Target);
    code.push(0x0f);
    assert_eq!(validate(&code, &given).unwrap_err().why, Why::NoInstruction);
}

#[test]
fn nothing_is_known_where_the_engine_comes_back() {
    let (code, mut given) = translated("load");
    let access = decoded(&code).into_iter().find(accesses).unwrap();
    given.entries.push(access.ip() as u32);
    assert_eq!(validate(&code, &given), Err(Violation { at: access.ip() as usize, why: Why::Unchecked }));
}

#[test]
fn whatever_the_bytes_are_it_judges() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut passed = 0;
    for name in ["load", "store", "push and pop", "call through memory", "packed single"] {
        let (code, given) = translated(name);
        for _ in 0..2_000 {
            let mut broken = code.clone();
            let at = next() as usize % broken.len();
            broken[at] = next() as u8;
            passed += usize::from(validate(&broken, &given).is_ok());
        }
    }
    // Some changes do no harm: constants, the guest's own registers.
    assert!((100..5_000).contains(&passed), "{passed}");
    for _ in 0..5_000 {
        let noise: Vec<u8> = (0..next() % 64).map(|_| next() as u8).collect();
        let _ = validate(&noise, &Given::default());
    }
}
