//! What is made by hand is what a decoder reads.

use iced_x86::{Decoder, DecoderOptions};

use super::{A, Asm, B, Mem, Reg, at, cond, group, op, state};

fn texts(asm: &Asm) -> Vec<String> {
    Decoder::new(64, &asm.bytes, DecoderOptions::NONE).iter().map(|i| i.to_string()).collect()
}

fn text(f: impl FnOnce(&mut Asm)) -> String {
    let mut asm = Asm::default();
    f(&mut asm);
    texts(&asm).join("; ")
}

#[test]
fn state_words() {
    assert_eq!(text(|a| a.rm(op::MOV, A, state(0x88))), "mov r10,gs:[88h]");
    assert_eq!(text(|a| a.rm(op::MOV_STORE, 3, state(0x188))), "mov gs:[188h],rbx");
    assert_eq!(text(|a| a.mov_m16(state(8), 0)), "mov gs:[8],ax");
    assert_eq!(text(|a| a.movzx16(0, state(8))), "movzx eax,word ptr gs:[8]");
    assert_eq!(text(|a| a.test_mi8(state(8), 4)), "test byte ptr gs:[8],4");
    assert_eq!(text(|a| a.jmp_m(state(0x90))), "jmp qword ptr gs:[90h]");
    assert_eq!(text(|a| a.jmp_m(at(B, 0x10))), "jmp qword ptr [r11+10h]");
}

#[test]
fn every_base_and_index() {
    let name = |r: Reg| {
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
            .get(usize::from(r))
            .map_or_else(|| format!("r{r}"), |n| (*n).to_owned())
    };
    for base in 0..16 {
        for (disp, shown) in
            [(0, String::new()), (5, "+5".into()), (-5, "-5".into()), (0x1234, "+1234h".into())]
        {
            let got = text(|a| a.rm(op::LEA, B, at(base, disp)));
            assert_eq!(got, format!("lea r11,[{}{shown}]", name(base)));
            for index in (0..16).filter(|i| *i != 4) {
                let m = Mem { index: Some((index, 2)), ..at(base, disp) };
                assert_eq!(
                    text(|a| a.rm(op::ADD, 9, m)),
                    format!("add r9,[{}+{}*4{shown}]", name(base), name(index))
                );
            }
        }
    }
    let m = Mem { gs: false, base: None, index: Some((13, 3)), disp: -1 };
    assert_eq!(text(|a| a.rm(op::LEA, A, m)), "lea r10,[r13*8-1]");
}

#[test]
fn the_rest() {
    assert_eq!(text(|a| a.rr(op::MOV, A, 3)), "mov r10,rbx");
    assert_eq!(text(|a| a.rr32(op::MOV, A, A)), "mov r10d,r10d");
    assert_eq!(text(|a| a.ri(group::AND, A, -4096)), "and r10,0FFFFFFFFFFFFF000h");
    assert_eq!(text(|a| a.ri(group::ADD, B, 1)), "add r11,1");
    assert_eq!(text(|a| a.shift(group::SHR, B, 7)), "shr r11,7");
    assert_eq!(text(|a| a.shift(group::SAR, B, 47)), "sar r11,2Fh");
    assert_eq!(text(|a| a.mi32(group::CMP, at(A, 8), 0x1234)), "cmp dword ptr [r10+8],1234h");
    assert_eq!(text(|a| a.mov_i64(A, 0x1234_5678_9abc)), "mov r10,123456789ABCh");
    assert_eq!(text(|a| a.mov_i32(B, 7)), "mov r11d,7");
    assert_eq!(text(|a| a.crc32(B, A)), "crc32 r11,r10");
    assert_eq!(
        text(|a| a.spill_flags(state(8), A)),
        "mov r10,rax; lahf; seto al; mov gs:[8],ax; mov rax,r10"
    );
    assert_eq!(
        text(|a| a.load_flags(state(8), A)),
        "mov r10,rax; movzx eax,word ptr gs:[8]; add al,7Fh; sahf; mov rax,r10"
    );
}

#[test]
fn holes_lead_where_they_shall() {
    let mut asm = Asm::default();
    let (one, two) = (asm.jcc(cond::NOT_EQUAL), asm.jmp());
    asm.rr(op::MOV, A, B);
    asm.here(one);
    asm.fill(two, 0);
    assert_eq!(texts(&asm), ["jne 000000000000000Eh", "jmp 0", "mov r10,r11"]);
}
