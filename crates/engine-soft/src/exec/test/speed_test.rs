//! How fast it is; run by hand in a release build: `cargo test --release -p umbra-engine-soft speed -- --ignored --nocapture`.

use umbra_x86::reg::gpr::{RBX, RCX};

use super::guest::{DATA, Guest};

/// Seconds that this thread has run.
fn cpu_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is written by the call and nothing else is touched.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn measure(name: &str, code: &[u8], n: u64) {
    let mut guest = Guest::new();
    guest.cpu.gpr[RCX] = n;
    guest.cpu.gpr[RBX] = DATA;
    let start = cpu_seconds();
    guest.run(code);
    let seconds = cpu_seconds() - start;
    let instructions = guest.cpu.fast.instructions + guest.cpu.fast.translated;
    println!("{name}: {:.0} million instructions a second", instructions as f64 / seconds / 1e6);
    assert!(instructions >= n);
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    const N: u64 = 50_000_000;
    // dec rcx; jnz
    measure("dec, jnz", &[0x48, 0xff, 0xc9, 0x75, 0xfb], N);
    // mov rax,[rbx]; add rax,rcx; mov [rbx],rax; add [rbx+8],rcx; dec rcx; jnz
    let memory = [
        0x48, 0x8b, 0x03, 0x48, 0x01, 0xc8, 0x48, 0x89, 0x03, 0x48, 0x01, 0x4b, 0x08, 0x48, 0xff, 0xc9, 0x75,
        0xee,
    ];
    measure("memory", &memory, N);
    // jmp over; f: lea rax,[rcx+1]; ret; over: call f; push rax; pop rdx; dec rcx; jnz over
    let calls = [
        0xeb, 0x05, 0x48, 0x8d, 0x41, 0x01, 0xc3, 0xe8, 0xf6, 0xff, 0xff, 0xff, 0x50, 0x5a, 0x48, 0xff, 0xc9,
        0x75, 0xf4,
    ];
    measure("calls", &calls, N);
    // mov eax,ecx; imul eax,eax,3; shr eax,5; and eax,0xff; cmp eax,7; jne +2; inc edx; movzx esi,al; add rdx,rsi; dec rcx; jnz
    let mixed = [
        0x89, 0xc8, 0x6b, 0xc0, 0x03, 0xc1, 0xe8, 0x05, 0x25, 0xff, 0, 0, 0, 0x83, 0xf8, 0x07, 0x75, 0x02,
        0xff, 0xc2, 0x0f, 0xb6, 0xf0, 0x48, 0x01, 0xf2, 0x48, 0xff, 0xc9, 0x75, 0xe1,
    ];
    measure("mixed", &mixed, N);
}
