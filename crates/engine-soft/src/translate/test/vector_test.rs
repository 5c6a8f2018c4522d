//! Vector registers, MXCSR, and exceptions of the host's processor.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSP};
use umbra_x86::reg::{Cr0, Cr4};

use super::{NOTHING, Pair, hex};
use crate::exec::test::guest::{CODE, DATA, Guest, STACK};

fn mxcsr(guest: &Guest) -> u32 {
    u32::from_le_bytes(guest.cpu.vector.fx[24..28].try_into().unwrap())
}

fn set_mxcsr(guest: &mut Guest, value: u32) {
    guest.cpu.vector.fx[24..28].copy_from_slice(&value.to_le_bytes());
}

/// Both tiers, with every vector register different.
fn pair() -> Pair {
    let mut pair = Pair::new(64);
    pair.both(|guest| {
        guest.cpu.cr4.insert(Cr4::OSXMMEXCPT);
        for (n, register) in guest.cpu.vector.zmm.iter_mut().enumerate() {
            register.iter_mut().enumerate().for_each(|(m, byte)| *byte = (n * 7 + m) as u8);
        }
        set_mxcsr(guest, 0x1f80);
        guest.put(DATA, 0x4008_0000_0000_0000, 8);
        guest.put(DATA + 0x10, 0x1f80 | 0x6000, 4);
    });
    pair
}

/// Where the exception was, as it is on the stack.
fn fault_rip(guest: &Guest, has_error: bool) -> u64 {
    guest.peek(guest.cpu.gpr[RSP] + if has_error { 8 } else { 0 }, 8)
}

#[test]
fn vectors_stay_across_the_interpreter() {
    let mut pair = pair();
    let setup = |guest: &mut Guest| (guest.cpu.gpr[RBX], guest.cpu.gpr[RCX]) = (DATA, 20);
    // 1: paddd xmm0,xmm1; movdqu xmm8,[rbx]; xor eax,eax; push rcx; push rbx; cpuid; pop rbx; pop rcx; paddq xmm8,xmm15; movdqu [rbx+0x20],xmm8; paddb xmm2,xmm0; dec rcx; jnz 1b
    let code = hex("660ffec1f3440f6f0331c051530fa25b5966450fd4c7f3440f7f4320660ffcd048ffc975db");
    assert_eq!(pair.run(setup, &code), NOTHING);
    // A system instruction between, and x87, which is always the interpreter's.
    // movdqa xmm3,xmm4; fld qword ptr [rbx]; fadd st(0),st(0); fstp qword ptr [rbx+8]; paddw xmm3,xmm5; movq rax,xmm3
    let code = hex("660f6fdcdd03d8c0dd5b08660ffddd66480f7ed8");
    assert_eq!(pair.run(setup, &code), NOTHING);
}

#[test]
fn rounding_and_its_flags() {
    let mut pair = pair();
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA;
    // 1/3 in each direction of rounding.
    // mov eax,1; cvtsi2sd xmm0,rax; movapd xmm2,xmm0; divsd xmm2,[rbx]; ldmxcsr [rbx+0x10]; movapd xmm1,xmm0; divsd xmm1,[rbx]; stmxcsr [rbx+0x14]; cvtsd2si rcx,xmm1
    let code = hex("b801000000f2480f2ac0660f28d0f20f5e130fae5310660f28c8f20f5e0b0fae5b14f2480f2dc9");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.peek(DATA + 0x14, 4), 0x1f80 | 0x6000 | 0x20, "inexact");
    let [nearest, to_zero] = [2, 1].map(|n: usize| &pair.translated.cpu.vector.zmm[n][..8]);
    assert_eq!(f64::from_le_bytes(nearest.try_into().unwrap()), 1.0 / 3.0);
    assert!(f64::from_le_bytes(to_zero.try_into().unwrap()) <= 1.0 / 3.0);
    assert_eq!(mxcsr(&pair.translated), 0x7fa0);
}

#[test]
fn wide_vectors() {
    let mut pair = pair();
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    pair.both(|guest| {
        guest.cpu.cr4.insert(Cr4::OSXSAVE);
        guest.cpu.xcr0 = 7;
        guest.cpu.update_context();
        // What no instruction can reach is nobody's.
        guest.cpu.vector.zmm.iter_mut().for_each(|zmm| zmm[32..].fill(0));
    });
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA;
    // Legacy code leaves the upper halves alone, VEX code clears them; they stay across the interpreter and across blocks.
    // paddd xmm0,xmm1; push rbx; cpuid; pop rbx; vpaddd ymm2,ymm3,ymm4; paddd xmm2,xmm1; push rbx; cpuid; pop rbx; jmp .+2; vpaddd xmm5,xmm6,xmm7; vmovdqu [rbx],ymm2; vpaddd ymm8,ymm2,[rbx]; jmp .+2; paddd xmm9,xmm9; vzeroupper
    let code =
        hex("660ffec1530fa25bc5e5fed4660ffed1530fa25beb00c5c9feefc5fe7f13c56dfe03eb0066450ffec9c5f877");
    assert_eq!(pair.run(setup, &code), NOTHING);
    let zmm = &pair.translated.cpu.vector.zmm;
    assert!(zmm[5][16..32].iter().all(|b| *b == 0) && zmm[0][16..32].iter().all(|b| *b == 0));
    // Where XCR0 has no AVX it is #UD, in a block that was translated when it had.
    // mov eax,eax; vpaddd ymm2,ymm3,ymm4
    let code = hex("89c0c5e5fed4");
    assert_eq!(pair.run(setup, &code), NOTHING);
    pair.both(|guest| {
        guest.cpu.xcr0 = 3;
        guest.cpu.update_context();
    });
    assert_eq!(pair.run(setup, &code), 6);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 2);
}

#[test]
fn wider_vectors() {
    if !std::arch::is_x86_feature_detected!("avx512bw") {
        return;
    }
    let mut pair = pair();
    pair.both(|guest| {
        guest.cpu.cr4.insert(Cr4::OSXSAVE);
        guest.cpu.xcr0 = 0xe7;
        guest.cpu.vector.k = std::array::from_fn(|n| 0x1111 * n as u64);
        guest.cpu.update_context();
    });
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA;
    // VEX code clears all that is above, though a block of it asks for no more than it uses.
    // vpaddd ymm1,ymm2,ymm3; vpaddd xmm4,xmm5,xmm6; movd eax,xmm7; push rbx; cpuid; pop rbx; paddd xmm8,xmm9; vaddps zmm10,zmm11,zmm12
    let code = hex("c5edfecbc5d1fee6660f7ef8530fa25b66450ffec16251244858d4");
    assert_eq!(pair.run(setup, &code), NOTHING);
    // vpaddd zmm1{k1},zmm2,zmm3; vmovdqu64 [rbx+0x100],zmm1; kmovq rax,k3; push rbx; cpuid; pop rbx; vpaddd zmm20{k2}{z},zmm30,[rbx+0x100]; kmovq k5,rax; vpcmpeqb k4,zmm1,zmm2
    let code = hex("62f16d49fecb62f1fe487f4b04c4e1fb93c3530fa25b62e10dc2fe6304c4e1fb92e862f1754874e2");
    assert_eq!(pair.run(setup, &code), NOTHING);
    // mov eax,eax; vzeroupper; push rbx; cpuid; pop rbx; vpaddd xmm3,xmm3,xmm3
    let code = hex("89c0c5f877530fa25bc5e1fedb");
    assert_eq!(pair.run(setup, &code), NOTHING);
    // mov eax,eax; vpbroadcastq zmm0,rbx; vzeroall
    let code = hex("89c062f2fd487cc3c5fc77");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert!(pair.translated.cpu.vector.zmm[..16].iter().flatten().all(|b| *b == 0));
}

#[test]
fn not_available_after_a_task_switch() {
    let mut pair = pair();
    let setup = |_: &mut Guest| ();
    // The unit is live when CR0.TS is set.
    // paddd xmm0,xmm1; mov rax,cr0; or al,8; mov cr0,rax; inc rcx; paddd xmm0,xmm1
    let code = hex("660ffec10f20c00c080f22c048ffc1660ffec1");
    assert_eq!(pair.run(setup, &code), 7);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 15);
    assert!(pair.translated.cpu.cr0.contains(Cr0::TS));
    // clts; paddd xmm0,xmm1; pxor xmm3,xmm4
    let code = hex("0f06660ffec1660fefdc");
    assert_eq!(pair.run(setup, &code), NOTHING);
    // It was set outside.
    pair.both(|guest| {
        guest.cpu.cr0.insert(Cr0::TS);
        guest.cpu.update_context();
    });
    // mov rax,rbx; movd eax,xmm1; nop
    let code = hex("4889d8660f7ec890");
    assert_eq!(pair.run(setup, &code), 7);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 3);
    pair.both(|guest| {
        guest.cpu.cr0 = (guest.cpu.cr0 | Cr0::EM) - Cr0::TS;
        guest.cpu.update_context();
    });
    assert_eq!(pair.run(setup, &code), 6);
}

#[test]
fn unmasked_exceptions() {
    let mut pair = pair();
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = DATA;
        set_mxcsr(guest, 0x1f80 & !0x200);
    };
    // A division by zero, after a store and an inexact one.
    // mov eax,1; cvtsi2sd xmm0,rax; movapd xmm1,xmm0; divsd xmm1,[rbx]; pxor xmm2,xmm2; mov [rbx+8],rax; stc; divsd xmm0,xmm2; adc rax,rax
    let code = hex("b801000000f2480f2ac0660f28c8f20f5e0b660fefd248894308f9f20f5ec24811c0");
    assert_eq!(pair.run(setup, &code), 19);
    let guest = &pair.translated;
    assert_eq!(fault_rip(guest, false), CODE + 27);
    assert_eq!(mxcsr(guest), 0x1f80 & !0x200 | 0x24, "ZE of this one, PE of the one before");
    assert_eq!(guest.peek(DATA + 8, 8), 1);
    assert_eq!(guest.peek(guest.cpu.gpr[RSP] + 16, 8) & 1, 1, "carry");
    // Without OSXMMEXCPT it is #UD.
    pair.both(|guest| {
        guest.cpu.cr4.remove(Cr4::OSXMMEXCPT);
        guest.cpu.update_context();
    });
    assert_eq!(pair.run(setup, &code), 6);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 27);
    // With a memory operand.
    pair.both(|guest| guest.cpu.cr4.insert(Cr4::OSXMMEXCPT));
    // mov eax,1; cvtsi2sd xmm0,rax; divsd xmm0,[rbx+0x40]; nop
    let code = hex("b801000000f2480f2ac0f20f5e434090");
    assert_eq!(pair.run(setup, &code), 19);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 10);
}

#[test]
fn misaligned_operands() {
    let mut pair = pair();
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA + 8;
    // stc; movaps xmm0,[rbx]; adc eax,eax
    let loads = hex("f90f280311c0");
    assert_eq!(pair.run(setup, &loads), 13);
    let guest = &pair.translated;
    assert_eq!((guest.peek(guest.cpu.gpr[RSP], 8), fault_rip(guest, true)), (0, CODE + 1));
    assert_eq!(guest.peek(guest.cpu.gpr[RSP] + 24, 8) & 1, 1, "carry");
    // mov eax,1; movdqa [rbx],xmm1
    let stores = hex("b801000000660f7f0b");
    assert_eq!(pair.run(setup, &stores), 13);
    // mov eax,1; paddd xmm2,[rbx+rax]
    let operates = hex("b801000000660ffe1403");
    assert_eq!(pair.run(setup, &operates), 13);
    // mov eax,1; lock cmpxchg16b [rbx]
    let exchanges = hex("b801000000f0480fc70b");
    assert_eq!(pair.run(setup, &exchanges), 13);
    // Across a page, where the page fault of the second page has to wait for nothing.
    pair.both(|guest| guest.map(DATA + 0x1000, 0));
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA + 0xff8;
    assert_eq!(pair.run(setup, &loads), 13);
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA + 0x1000;
    assert_eq!(pair.run(setup, &loads), 14);
    // stc; movups xmm0,[rbx]; adc eax,eax
    let unaligned = hex("f90f100311c0");
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA + 0xff8;
    assert_eq!(pair.run(setup, &unaligned), 14);
    assert_eq!(pair.translated.cpu.cr2, DATA + 0x1000);
}

#[test]
fn divisions() {
    let mut pair = pair();
    // stc; inc r8; div rcx; adc r9,r9
    let registers = hex("f949ffc048f7f14d11c9");
    // stc; inc r8; idiv dword ptr [rbx]; adc r9,r9
    let memory = hex("f949ffc0f73b4d11c9");
    // mov r10,rcx; xchg r11,rax; xchg rax,r11; div r10; nop
    let resident = hex("4989ca4993499349f7f290");
    // div cl; mov bl,ah
    let byte = hex("f6f188e3");
    for (a, c, d) in [(1, 0, 0), (1, 1, 1), (1 << 63, u64::MAX, u64::MAX), (0x8000_0000, u64::MAX, u64::MAX)]
    {
        let setup = |guest: &mut Guest| {
            (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RDX]) = (a, c, d);
            guest.cpu.gpr[RBX] = DATA;
            guest.put(DATA, c, 4);
        };
        let outcomes = [&registers, &memory, &resident, &byte].map(|code| {
            let seen = pair.run(setup, code);
            assert!(seen == NOTHING || pair.translated.cpu.gpr[RSP] < STACK);
            seen
        });
        assert!(outcomes.contains(&0), "{a:#x} {c:#x} {d:#x}");
    }
    // The exception is at the division, and flags are those before it.
    let setup = |guest: &mut Guest| guest.cpu.gpr[RCX] = 0;
    assert_eq!(pair.run(setup, &registers), 0);
    assert_eq!(fault_rip(&pair.translated, false), CODE + 4);
    assert_eq!(pair.translated.peek(pair.translated.cpu.gpr[RSP] + 16, 8) & 1, 1, "carry");
}

#[test]
fn masked_operands() {
    let mut pair = pair();
    if !std::arch::is_x86_feature_detected!("avx512bw") {
        eprintln!("not tested: this processor has no AVX-512BW");
        return;
    }
    // The page after this one is not there, the one after that cannot be written.
    const EDGE: u64 = DATA + 0x7000;
    pair.both(|guest| {
        guest.cpu.cr4.insert(Cr4::OSXSAVE);
        guest.cpu.xcr0 = 0xe7;
        guest.cpu.update_context();
        guest.map(EDGE, 0);
        guest.map(DATA + 0x9000, (DATA + 0x9000) | 1);
        (0..512)
            .for_each(|n| guest.put(EDGE - 0x1000 + 8 * n, u64::wrapping_mul(n, 0x0102_0408_1020_4081), 8));
    });
    // kmovq k1,rax; kmovq k2,rdx; vmovdqu8 zmm1{k1}{z},[rbx]; vpcmpub k3{k1},zmm1,[rbx],1; vmovdqu8 [rcx]{k2},zmm1;
    // vpmaskmovd ymm4,ymm5,[rbx]; vpaddd zmm6{k1},zmm7,dword ptr [rbx]{1to16}
    let code = hex("c4e1fb92c8c4e1fb92d262f17fc96f0b62f375493e1b0162f17f4a7f09c4e2558c2362f14559fe33");
    const ALL: u64 = u64::MAX;
    const FAULT: u64 = 14;
    let low = |n: u32| (1 << n) - 1;
    for (from, to, read, written, outcome) in [
        (DATA, DATA + 0x100, ALL, ALL, NOTHING),
        (DATA + 1, DATA + 0x101, 0x1234_5678_9abc_def0, 0xf0f0, NOTHING),
        // Across the edge, with what lies beyond masked off, and not.
        (EDGE - 0x20, DATA, low(32), ALL, NOTHING),
        (EDGE - 0x20, DATA, low(33), ALL, FAULT),
        (DATA, EDGE - 0x10, ALL, low(16), NOTHING),
        (DATA, EDGE - 0x10, ALL, low(17), FAULT),
        // To where nothing may be written, which is nothing.
        (DATA, DATA + 0x9000, ALL, 0, NOTHING),
        (DATA, DATA + 0x9000, ALL, 1, FAULT),
        (DATA, EDGE + 0x100, ALL, 0, NOTHING),
    ] {
        for _ in 0..3 {
            let setup = |guest: &mut Guest| {
                (guest.cpu.gpr[RBX], guest.cpu.gpr[RCX]) = (from, to);
                (guest.cpu.gpr[RAX], guest.cpu.gpr[RDX]) = (read, written);
                // Whose sign bits choose as well: nothing.
                guest.cpu.vector.zmm[5] = [0; 64];
            };
            assert_eq!(pair.run(setup, &code), outcome, "{from:#x} {to:#x} {read:#x} {written:#x}");
        }
    }
}
