//! The code of thunks: golden data, and an independent look at what it may touch.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, OpKind};

use super::*;

const WIDE: Width = Width::Zmm { wide_masks: true };

/// Instructions, as bytes of 64-bit code.
const SAMPLES: &[&[u8]] = &[
    &[0x0f, 0x58, 0xc1],                            // addps xmm0, xmm1
    &[0x0f, 0x58, 0x44, 0x24, 0x08],                // addps xmm0, [rsp+8]
    &[0xf3, 0x0f, 0xb8, 0xe0],                      // popcnt esp, eax
    &[0xf3, 0x48, 0x0f, 0xb8, 0x27],                // popcnt rsp, [rdi]
    &[0xf6, 0xf4],                                  // div ah
    &[0x0f, 0xb6, 0xe4],                            // movzx esp, ah
    &[0xf0, 0x48, 0x0f, 0xc7, 0x0e],                // lock cmpxchg16b [rsi]
    &[0xd8, 0x06],                                  // fadd dword [rsi]
    &[0xd9, 0xfe],                                  // fsin
    &[0x0f, 0xfc, 0xc1],                            // paddb mm0, mm1
    &[0x66, 0x0f, 0xf7, 0xc1],                      // maskmovdqu xmm0, xmm1
    &[0xc5, 0xf8, 0x58, 0xc1],                      // vaddps xmm0, xmm0, xmm1
    &[0x62, 0xf1, 0x74, 0x49, 0x58, 0x00],          // vaddps zmm0{k1}, zmm1, [rax]
    &[0xc4, 0xe2, 0xf0, 0xf2, 0xc2],                // andn rax, rcx, rdx
    &[0x48, 0x0f, 0xab, 0x08],                      // bts [rax], rcx
    &[0x64, 0x0f, 0x2c, 0x08],                      // cvttps2pi mm1, fs:[rax]
    &[0xc5, 0xf8, 0x93, 0xc1],                      // kmovw eax, k1
    &[0x66, 0x0f, 0x38, 0xf6, 0xc1],                // adcx eax, ecx
    &[0xf2, 0x48, 0x0f, 0x2d, 0x05, 0x10, 0, 0, 0], // cvtsd2si rax, [rip+10h]
    &[0x44, 0x0f, 0xc6, 0x3c, 0x8a, 0x1b],          // shufps xmm15, [rdx+rcx*4], 27
];

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode()
}

fn prepare(bytes: &[u8]) -> Prepared {
    let i = decode(bytes);
    assert!(forms::is_allowed(&i), "{:?}", i.code());
    Prepared::new(&i, &mut InstructionInfoFactory::new()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden() {
    let golden = include_str!("emit_golden.txt");
    let now: Vec<String> = SAMPLES
        .iter()
        .map(|s| {
            let prepared = prepare(s);
            let state = gpr64(prepared.state);
            let listing = prepared
                .list(WIDE)
                .into_iter()
                .map(|i| format!("    {:?} {}", i.code(), operands(state, &i)));
            format!("{}\n{}", hex(s), listing.collect::<Vec<_>>().join("\n"))
        })
        .collect();
    let now = now.join("\n") + "\n";
    assert!(now == golden, "the code of thunks has changed; if that is meant, this is the new file:\n{now}");
}

/// Operands, with places in the state block by name, so that its layout may change.
fn operands(state: Register, i: &Instruction) -> String {
    let one = |n: u32| match i.op_kind(n) {
        OpKind::Register => format!("{:?}", i.op_register(n)),
        OpKind::Memory if i.memory_base() == state => in_state_block(i.memory_displacement64() as usize),
        OpKind::Memory if i.memory_base() == Register::RAX => {
            in_vector_state(i.memory_displacement64() as usize)
        }
        OpKind::Memory => format!("[{:?}]", i.memory_base()),
        OpKind::MemorySegRDI => "[RDI]".to_owned(),
        _ => format!("{:#x}", i.immediate(n)),
    };
    (0..i.op_count()).map(one).collect::<Vec<_>>().join(", ")
}

fn in_state_block(offset: usize) -> String {
    match offset {
        _ if offset == offset_of!(Cpu, rflags) => "rflags".into(),
        _ if offset == offset_of!(Cpu, vector) => "vector".into(),
        _ => format!("gpr[{}]", (offset - offset_of!(Cpu, gpr)) / 8),
    }
}

fn in_vector_state(offset: usize) -> String {
    let (fx, k) = (offset_of!(VectorState, fx), offset_of!(VectorState, k));
    match offset {
        _ if offset == fx => "fx".into(),
        _ if offset == fx + FX_MXCSR => "mxcsr".into(),
        _ if offset >= k => format!("k[{}]", (offset - k) / 8),
        _ => format!("zmm[{}]", (offset - offset_of!(VectorState, zmm)) / 64),
    }
}

/// Whoever reads the finished bytes finds nothing but the instruction, loads and stores of the state block, and balanced use of the stack.
#[test]
fn emitted_code_touches_nothing_else() {
    for sample in SAMPLES {
        for width in [WIDE, Width::Ymm, Width::Xmm] {
            let prepared = prepare(sample);
            let code = prepared.thunk(width).unwrap();
            let decoded: Vec<Instruction> =
                Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).into_iter().collect();
            assert!(decoded.iter().all(|i| !i.is_invalid()));
            check(&prepared, &decoded);
        }
    }
}

fn check(prepared: &Prepared, decoded: &[Instruction]) {
    use Code as C;
    let state = gpr64(prepared.state);
    let own =
        decoded.iter().position(|i| i.code() == prepared.instruction.code() && is_own(prepared, i)).unwrap();
    let mut depth = 0i32;
    for (n, i) in decoded.iter().enumerate() {
        depth -= i.stack_pointer_increment() / 8;
        if n == own {
            assert_eq!(depth, 0, "the instruction runs with the stack as on entry");
            continue;
        }
        let last = n + 1 == decoded.len();
        assert_eq!(i.flow_control() == FlowControl::Return, last);
        let base = i.memory_base();
        if i.op_kinds().any(|k| k == OpKind::Memory) {
            assert!([state, Register::RAX, Register::RSP].contains(&base), "{i:?}");
            assert!(
                i.memory_displacement64() < 4096
                    && i.memory_index() == Register::None
                    && !i.has_segment_prefix()
            );
        }
        let housekeeping = matches!(
            i.code(),
            C::Mov_r64_rm64
                | C::Mov_rm64_r64
                | C::Push_rm64
                | C::Pushq_imm32
                | C::Pushq_imm8
                | C::Pop_r64
                | C::Popfq
                | C::Pushfq
                | C::And_rm64_imm32
                | C::And_rm32_imm32
                | C::And_EAX_imm32
                | C::Or_rm64_r64
                | C::Fxrstor64_m512byte
                | C::Fxsave64_m512byte
                | C::Ldmxcsr_m32
                | C::Stmxcsr_m32
                | C::Fninit
                | C::Movups_xmm_xmmm128
                | C::Movups_xmmm128_xmm
                | C::VEX_Vmovdqu_ymm_ymmm256
                | C::VEX_Vmovdqu_ymmm256_ymm
                | C::EVEX_Vmovdqu64_zmm_k1z_zmmm512
                | C::EVEX_Vmovdqu64_zmmm512_k1z_zmm
                | C::VEX_Kmovq_kr_km64
                | C::VEX_Kmovq_m64_kr
                | C::VEX_Kmovw_kr_km16
                | C::VEX_Kmovw_m16_kr
                | C::VEX_Vzeroupper
                | C::Retnq
        );
        assert!(housekeeping, "{:?}", i.code());
        let writes_host_register =
            i.op0_kind() == OpKind::Register && i.op0_register().full_register() == Register::RSP;
        assert!(!writes_host_register, "the host's stack pointer is written");
    }
    assert_eq!(depth, -1, "only the return address is taken off");
}

fn is_own(prepared: &Prepared, i: &Instruction) -> bool {
    i.memory_base() == prepared.instruction.memory_base()
        && i.op0_register() == prepared.instruction.op0_register()
}

/// The guest's stack pointer never becomes the host's, and an instruction with AH never gets a REX prefix.
#[test]
fn registers_are_renamed() {
    for sample in SAMPLES {
        let p = prepare(sample);
        for n in 0..p.instruction.op_count() {
            let r = p.instruction.op_register(n);
            assert!(r == Register::None || r.full_register() != Register::RSP);
        }
        assert!(p.memory != Some(RSP) && p.state != RSP && p.memory != Some(p.state));
    }
}
