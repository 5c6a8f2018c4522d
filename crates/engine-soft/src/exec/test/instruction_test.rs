//! Single instructions and short programs.

use umbra_x86::reg::Rflags;
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSP};

use super::guest::{CODE, DATA, DEVICE, Guest, STACK};

/// Runs `code` with RAX, RBX, RCX and RDX set, and gives them back.
fn run(code: &[u8], regs: [u64; 4]) -> [u64; 4] {
    let mut guest = Guest::new();
    (guest.cpu.gpr[RAX], guest.cpu.gpr[RBX]) = (regs[0], regs[1]);
    (guest.cpu.gpr[RCX], guest.cpu.gpr[RDX]) = (regs[2], regs[3]);
    guest.run(code);
    [guest.cpu.gpr[RAX], guest.cpu.gpr[RBX], guest.cpu.gpr[RCX], guest.cpu.gpr[RDX]]
}

const X: u64 = 0x1122_3344_5566_7788;

#[test]
fn widths_of_registers() {
    assert_eq!(run(&[0x88, 0xcc], [X, 0, 0xee, 0])[0], 0x1122_3344_5566_ee88, "mov ah, cl");
    assert_eq!(run(&[0x88, 0xe1], [X, 0, X, 0])[2], 0x1122_3344_5566_7777, "mov cl, ah");
    assert_eq!(run(&[0x66, 0x89, 0xc8], [X, 0, 0xdead, 0])[0], 0x1122_3344_5566_dead, "mov ax, cx");
    assert_eq!(run(&[0x89, 0xc8], [X, 0, u64::MAX, 0])[0], 0xffff_ffff, "mov eax, ecx");
    assert_eq!(run(&[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff], [X, 0, 0, 0])[0], u64::MAX, "mov rax, -1");
    assert_eq!(
        run(&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], [0; 4])[0],
        0x0807_0605_0403_0201,
        "mov rax, imm64"
    );
    assert_eq!(run(&[0x0f, 0xb6, 0xc5], [X, 0, X, 0])[0], 0x77, "movzx eax, ch");
    assert_eq!(run(&[0x48, 0x0f, 0xbe, 0xc1], [X, 0, 0x80, 0])[0], !0x7f, "movsx rax, cl");
    assert_eq!(run(&[0x48, 0x63, 0xc1], [X, 0, 0x8000_0000, 0])[0], 0xffff_ffff_8000_0000, "movsxd rax, ecx");
    assert_eq!(run(&[0x91], [1, 0, X, 0])[2], 1, "xchg eax, ecx");
    assert_eq!(run(&[0x0f, 0xc8], [X, 0, 0, 0])[0], 0x8877_6655, "bswap eax");
    assert_eq!(run(&[0x48, 0x98], [0x8000_0000, 0, 0, 0])[0], 0xffff_ffff_8000_0000, "cdqe");
    assert_eq!(run(&[0x66, 0x99], [0x8000, 0, 0, X])[3], 0x1122_3344_5566_ffff, "cwd");
}

#[test]
fn addresses() {
    let mut guest = Guest::new();
    guest.put(DATA + 0x40, X, 8);
    guest.cpu.gpr[RBX] = DATA;
    guest.cpu.gpr[RCX] = 4;
    // mov rax, [rbx+rcx*8+0x20]; lea rdx, [rbx+rcx*4-1]
    guest.run(&[0x48, 0x8b, 0x44, 0xcb, 0x20, 0x48, 0x8d, 0x54, 0x8b, 0xff]);
    assert_eq!((guest.cpu.gpr[RAX], guest.cpu.gpr[RDX]), (X, DATA + 15));
    // mov eax, [rip+0x0fff3a]: from CODE+6 to DATA+0x40.
    let distance = (DATA + 0x40 - (CODE + 6)) as u32;
    let mut code = vec![0x8b, 0x05];
    code.extend(distance.to_le_bytes());
    guest.run(&code);
    assert_eq!(guest.cpu.gpr[RAX], X & 0xffff_ffff);
    // The same behind a NOP: RIP-relative addresses are not the block's.
    code[2..6].copy_from_slice(&(distance - 1).to_le_bytes());
    code.insert(0, 0x90);
    guest.run(&code);
    assert_eq!(guest.cpu.gpr[RAX], X & 0xffff_ffff);
    // mov al, [moffs64]
    let mut code = vec![0xa0];
    code.extend((DATA + 0x41).to_le_bytes());
    guest.run(&code);
    assert_eq!(guest.cpu.gpr[RAX] & 0xff, 0x77);
    // mov rax, fs:[0x40]
    guest.cpu.seg[4].base = DATA;
    guest.run(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x40, 0, 0, 0]);
    assert_eq!(guest.cpu.gpr[RAX], X);
    // mov rax, [ebx+0x40], the upper half of RBX being rubbish.
    guest.cpu.gpr[RBX] = DATA | 0xabcd << 48;
    guest.run(&[0x67, 0x48, 0x8b, 0x43, 0x40]);
    assert_eq!(guest.cpu.gpr[RAX], X);
}

#[test]
fn stores_and_read_modify_write() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = DATA;
    guest.cpu.gpr[RAX] = X;
    // mov [rbx],rax; add dword [rbx],1; not byte [rbx+7]; shl word [rbx+4],4; neg qword [rbx+8]; inc qword [rbx+8]
    let code = [
        0x48, 0x89, 0x03, 0x83, 0x03, 0x01, 0xf6, 0x53, 0x07, 0x66, 0xc1, 0x63, 0x04, 0x04, 0x48, 0xf7, 0x5b,
        0x08, 0x48, 0xff, 0x43, 0x08,
    ];
    guest.run(&code);
    assert_eq!(guest.peek(DATA, 8), 0xee22_3440_5566_7789);
    assert_eq!(guest.peek(DATA + 8, 8), 1);
    // Across pages: mov [rbx-3], rax; lock add [rbx-3], rax; xchg [rbx-3], rcx
    guest.cpu.gpr[RBX] = DATA + 0x1000;
    guest.run(&[0x48, 0x89, 0x43, 0xfd, 0xf0, 0x48, 0x01, 0x43, 0xfd, 0x48, 0x87, 0x4b, 0xfd]);
    assert_eq!(guest.cpu.gpr[RCX], X * 2);
    assert_eq!(guest.peek(DATA + 0xffd, 8), 0);
    // Devices: mov [rax],ecx; add dword [rax], 1; mov rdx,[rax-4], which is half a page of memory that is not there.
    guest.cpu.gpr[RAX] = DEVICE + 0x10;
    guest.cpu.gpr[RCX] = 0x1234_5678;
    guest.run(&[0x89, 0x08, 0x83, 0x00, 0x01, 0x48, 0x8b, 0x50, 0xfc]);
    assert_eq!(guest.cpu.gpr[RDX], 0x1312_1110_0f0e_0d0c);
    let written = guest.devices.written.lock().unwrap();
    assert_eq!(
        *written,
        [(DEVICE + 0x10, vec![0x78, 0x56, 0x34, 0x12]), (DEVICE + 0x10, vec![0x11, 0x11, 0x12, 0x13])]
    );
}

#[test]
fn calls_and_stack() {
    let mut guest = Guest::new();
    // call f; push rax; push 7; pop rcx; pop rdx; jmp end; f: mov eax, 5; ret 0; end:
    let code = [0xe8, 0x07, 0, 0, 0, 0x50, 0x6a, 0x07, 0x59, 0x5a, 0xeb, 0x08, 0xb8, 5, 0, 0, 0, 0xc2, 0, 0];
    guest.run(&code);
    assert_eq!((guest.cpu.gpr[RCX], guest.cpu.gpr[RDX], guest.cpu.gpr[RSP]), (7, 5, STACK));
    // push rsp pushes what it was; pop rsp takes what was there.
    guest.run(&[0x54, 0x58]);
    assert_eq!(guest.cpu.gpr[RAX], STACK);
    // pop [rsp+8]: the address is computed after the pop.
    guest.cpu.gpr[RSP] = STACK - 8;
    guest.put(STACK - 8, 0x77, 8);
    guest.run(&[0x8f, 0x44, 0x24, 0x08]);
    assert_eq!(guest.peek(STACK + 8, 8), 0x77);
    // 16 bits: push ax; pop cx
    guest.run(&[0x66, 0x50, 0x66, 0x59]);
    assert_eq!(guest.cpu.gpr[RSP], STACK);
    assert_eq!(guest.cpu.gpr[RCX] & 0xffff, guest.cpu.gpr[RAX] & 0xffff);
    // mov rbp,rsp-like frames: push rbp; mov rbp,rsp; sub rsp,32; leave
    guest.run(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0xc9]);
    assert_eq!(guest.cpu.gpr[RSP], STACK);
}

#[test]
fn loops_and_conditions() {
    // mov ecx,10; l: add rax,rcx; loop l
    assert_eq!(run(&[0xb9, 10, 0, 0, 0, 0x48, 0x01, 0xc8, 0xe2, 0xfb], [0; 4])[0], 55);
    // xor eax,eax; l: inc eax; cmp eax,100; jne l; setg bl; cmovl edx,eax
    let r = run(
        &[0x31, 0xc0, 0xff, 0xc0, 0x83, 0xf8, 100, 0x75, 0xf9, 0x0f, 0x9f, 0xc3, 0x0f, 0x4c, 0xd0],
        [0, X, 0, X],
    );
    assert_eq!(r, [100, X & !0xff, 0, X & 0xffff_ffff]);
    // jrcxz over inc
    assert_eq!(run(&[0xe3, 0x02, 0xff, 0xc0], [0, 0, 0, 0])[0], 0);
    assert_eq!(run(&[0xe3, 0x02, 0xff, 0xc0], [0, 0, 1, 0])[0], 1);
}

#[test]
fn multiplication_and_division() {
    assert_eq!(run(&[0x48, 0xf7, 0xe1], [u64::MAX, 0, u64::MAX, 0]), [1, 0, u64::MAX, u64::MAX - 1]);
    assert_eq!(
        run(&[0xf7, 0xe9], [0xffff_ffff, 0, 0xffff_ffff, X])[3],
        0,
        "imul ecx clears the upper half of RDX"
    );
    let n = 3u128 << 64 | 5;
    assert_eq!(run(&[0x48, 0xf7, 0xf1], [5, 0, 7, 3]), [(n / 7) as u64, 0, 7, (n % 7) as u64]);
    assert_eq!(run(&[0x48, 0x99, 0x48, 0xf7, 0xf9], [(-7i64) as u64, 0, 2, 0])[0], (-3i64) as u64);
    assert_eq!(run(&[0xf6, 0xf1], [0x0107, 0, 0x10, 0])[0], 0x0710, "div cl");
    assert_eq!(run(&[0x0f, 0xaf, 0xc1], [X, 0, 3, 0])[0], (X * 3) & 0xffff_ffff);
    assert_eq!(run(&[0x48, 0x69, 0xc1, 0, 1, 0, 0], [0, 0, X, 0])[0], X << 8);
}

#[test]
fn bits() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = DATA + 0x100;
    // bts [rbx], rcx with bit -9: the bit before the byte before.
    guest.cpu.gpr[RCX] = (-9i64) as u64;
    guest.run(&[0x48, 0x0f, 0xab, 0x0b]);
    assert_eq!(guest.peek(DATA + 0xf8, 8), 1 << 55);
    assert!(!guest.cpu.flag(Rflags::CF));
    guest.run(&[0x48, 0x0f, 0xa3, 0x0b]);
    assert!(guest.cpu.flag(Rflags::CF));
    // lock btr dword [rbx-8+4], 23
    guest.run(&[0xf0, 0x0f, 0xba, 0x73, 0xfc, 23]);
    assert_eq!(guest.peek(DATA + 0xf8, 8), 0);
    assert_eq!(run(&[0x48, 0x0f, 0xbc, 0xc1], [0, 0, 0x50, 0])[0], 4, "bsf");
    assert_eq!(run(&[0x48, 0x0f, 0xbd, 0xc1], [0, 0, 0x50, 0])[0], 6, "bsr");
    assert_eq!(run(&[0x48, 0x0f, 0xbc, 0xc1], [X, 0, 0, 0])[0], X, "bsf of zero leaves the destination");
    assert_eq!(run(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], [X, 0, 0xff00, 0])[0], 8, "popcnt");
    assert_eq!(run(&[0x0f, 0xba, 0xf8, 0x01], [0, 0, 0, 0])[0], 2, "btc eax, 1");
}

#[test]
fn compare_and_exchange() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = DATA;
    guest.put(DATA, X, 8);
    (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (X, 1);
    guest.run(&[0xf0, 0x48, 0x0f, 0xb1, 0x0b]);
    assert_eq!((guest.peek(DATA, 8), guest.cpu.flag(Rflags::ZF)), (1, true));
    guest.run(&[0xf0, 0x48, 0x0f, 0xb1, 0x0b]);
    assert_eq!((guest.cpu.gpr[RAX], guest.cpu.flag(Rflags::ZF)), (1, false));
    // lock xadd [rbx], ecx
    guest.run(&[0xf0, 0x0f, 0xc1, 0x0b]);
    assert_eq!((guest.peek(DATA, 8), guest.cpu.gpr[RCX]), (2, 1));
}

#[test]
fn flat_32_bit_code() {
    let mut guest = Guest::new();
    guest.narrow();
    (guest.cpu.gpr[RBX], guest.cpu.gpr[RDX]) = (DATA, 0);
    // mov dword [ebx+4], 0x12345678; push dword [ebx+4]; pop ecx; call f; jmp end; f: inc eax; ret; end: dec edx (one byte)
    guest.run(&[
        0xc7, 0x43, 0x04, 0x78, 0x56, 0x34, 0x12, 0xff, 0x73, 0x04, 0x59, 0xe8, 2, 0, 0, 0, 0xeb, 0x02, 0x40,
        0xc3, 0x4a,
    ]);
    assert_eq!((guest.cpu.gpr[RCX], guest.cpu.gpr[RAX], guest.cpu.gpr[RDX]), (0x1234_5678, 1, 0xffff_ffff));
    assert_eq!(guest.cpu.gpr[RSP], STACK);
}

#[test]
fn sse_runs_natively() {
    let mut guest = Guest::new();
    guest.put(DATA, X, 8);
    guest.cpu.gpr[RBX] = DATA;
    // movq xmm0,[rbx]; paddq xmm0,xmm0; movq [rbx+8],xmm0
    guest.run(&[0xf3, 0x0f, 0x7e, 0x03, 0x66, 0x0f, 0xd4, 0xc0, 0x66, 0x0f, 0xd6, 0x43, 0x08]);
    assert_eq!(guest.peek(DATA + 8, 8), X.wrapping_mul(2));
}
