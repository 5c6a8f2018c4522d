//! A guest with wild addresses in every form of operand reaches its own memory or a fault, and nothing else.
//!
//! The same goes through the interpreter, and both must come to the same. Around the guest's memory and beside the tables lie pages and
//! words that nobody may touch; the state block's own fields that no guest reaches stay as they are.

use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::reg::gpr::RSP;
use umbra_x86::segment::{Segment, sreg};

use super::hex;
use crate::exec::test::guest::{CODE, DATA, Guest, RAM, SEEN, STACK};
use crate::exec::{self, Stop};
use crate::fixture::Random;
use crate::mmu::{ENTRIES, no_tag, page_of};
use crate::native::Pool;

/// An operand each, by all forms of address; RBX is the base, RCX the index. 64-bit code.
#[rustfmt::skip]
fn accesses() -> Vec<Vec<u8>> {
    vec![
        // mov rax,[rbx]
        hex("488b03"),
        // mov [rbx],rax
        hex("488903"),
        // mov [rbx+0x7f],eax
        hex("89437f"),
        // mov eax,[rbx-0x80000000]
        hex("8b8300000080"),
        // add [rbx+0x7fffffff],rdx
        hex("480193ffffff7f"),
        // mov ax,[rbx+rcx]
        hex("668b040b"),
        // mov [rbx+rcx*8+0x1000],al
        hex("8884cb00100000"),
        // inc qword ptr [rcx*8-8]
        hex("48ff04cdf8ffffff"),
        // lock xadd [rbx+rcx*4],rdx
        hex("f0480fc1148b"),
        // xchg [rbx+rcx*2-1],rax
        hex("4887444bff"),
        // mov rax,[rip+0x7ffffff0]
        hex("488b05f0ffff7f"),
        // mov [rip-0x7ffffff0],rax
        hex("48890510000080"),
        // cmp byte ptr [rip-0x10000000],3
        hex("803d000000f003"),
        // mov rax,fs:[0]
        hex("64488b042500000000"),
        // mov fs:[rbx],rax
        hex("64488903"),
        // mov rax,gs:[rbx+rcx]
        hex("65488b040b"),
        // add gs:[-8],rax
        hex("6548010425f8ffffff"),
        // mov dword ptr gs:[rcx*4],0x5555
        hex("65c7048d0000000055550000"),
        // mov rax,[ebx]
        hex("67488b03"),
        // mov [ebx+ecx*8+0x7fffffff],rax
        hex("67488984cbffffff7f"),
        // mov fs:[ebx],al
        hex("64678803"),
        // mov eax,[0x12345678]
        hex("8b042578563412"),
        // mov [-8],rax
        hex("48890425f8ffffff"),
        // movabs rax,[0x7fffffffffff]
        hex("48a1ffffffffff7f0000"),
        // movabs [0xffff800000000000],eax
        hex("a3000000000080ffff"),
        // movups xmm0,[rbx+rcx]
        hex("0f10040b"),
        // movaps [rbx],xmm0
        hex("0f2903"),
        // movsd [rbx+8],xmm1
        hex("f20f114b08"),
        // paddd xmm1,[rbx+rcx*8]
        hex("660ffe0ccb"),
        // vmovdqu ymm0,[rbx]
        hex("c5fe6f03"),
        // vmovdqu [rbx+rcx],ymm0
        hex("c5fe7f040b"),
        // vmovdqu64 zmm0,[rbx-0x40]
        hex("62f1fe486f43ff"),
        // vmovdqu64 [rbx+rcx*4],zmm1
        hex("62f1fe487f0c8b"),
        // lock cmpxchg16b [rbx]
        hex("f0480fc70b"),
        // lock cmpxchg [rbx+rcx],rdx
        hex("f0480fb1140b"),
        // bts [rbx],rcx
        hex("480fab0b"),
        // btr dword ptr [rbx],5
        hex("0fba3305"),
        // setz [rbx+rcx]
        hex("0f94040b"),
        // cmovz rax,[rbx]
        hex("480f4403"),
        // imul rax,[rbx+rcx],3
        hex("486b040b03"),
        // div qword ptr [rbx]
        hex("48f733"),
        // shl byte ptr [rbx],cl
        hex("d223"),
        // movbe rax,[rbx]
        hex("480f38f003"),
        // mov r10,[rbx]; mov [r10],r11
        hex("4c8b134d891a"),
        // mov r10,rbx; mov r11,rcx; mov [r10+r11*8+5],r15
        hex("4989da4989cb4f897cda05"),
        // mov r15,rbx; xchg r15,[r15]
        hex("4989df4d873f"),
        // mov rsp,rbx; push rax
        hex("4889dc50"),
        // mov rsp,rbx; pop rax
        hex("4889dc58"),
        // mov rsp,rbx; push qword ptr [rcx]
        hex("4889dcff31"),
        // mov rsp,rbx; call .+5
        hex("4889dce800000000"),
        // mov rsp,rbx; ret
        hex("4889dcc3"),
        // mov rsp,rbx; pushfq
        hex("4889dc9c"),
        // mov rbp,rbx; leave
        hex("4889ddc9"),
        // mov rsp,rbx; mov rax,[rsp+rcx-8]
        hex("4889dc488b440cf8"),
        // jmp rbx
        hex("ffe3"),
        // call rbx
        hex("ffd3"),
        // jmp [rbx]
        hex("ff23"),
        // call [rbx+rcx*8]
        hex("ff14cb"),
        // mov r10,rbx; jmp r10
        hex("4989da41ffe2"),
        // push rbx; ret
        hex("53c3"),
        // push rbx; mov rsp,rsp; ret 0xfff8
        hex("534889e4c2f8ff"),
        // mov rdi,rbx; stosq
        hex("4889df48ab"),
        // mov rsi,rbx; mov rdi,rcx; movsb
        hex("4889de4889cfa4"),
        // add rbx,rcx; mov al,[rbx]; mov [rbx+1],al; mov [rbx-1],al
        hex("4801cb8a038843018843ff"),
        // mov rax,[rbx]; add rbx,8; mov [rbx],rax; sub rbx,rcx; mov [rbx],rax
        hex("488b034883c3084889034829cb488903"),
    ]
}

/// The same in 32-bit code.
fn narrow_accesses() -> Vec<Vec<u8>> {
    vec![
        // mov eax,[ebx]
        hex("8b03"),
        // mov [ebx+0x7fffffff],al
        hex("8883ffffff7f"),
        // add [ebx+ecx*8-1],edx
        hex("0154cbff"),
        // mov ax,[ebx+ecx]
        hex("668b040b"),
        // inc dword ptr [ecx*4-4]
        hex("ff048dfcffffff"),
        // mov eax,[0xfffffffe]
        hex("a1feffffff"),
        // mov [0xffffffff],al
        hex("a2ffffffff"),
        // mov eax,fs:[ebx]
        hex("648b03"),
        // mov gs:[ebx+ecx],al
        hex("6588040b"),
        // lock xadd [ebx+ecx*2],edx
        hex("f00fc1144b"),
        // lock cmpxchg8b [ebx]
        hex("f00fc70b"),
        // movups xmm0,[ebx+ecx]
        hex("0f10040b"),
        // movups [ebx-16],xmm1
        hex("0f114bf0"),
        // vmovdqu [ebx],ymm1
        hex("c5fe7f0b"),
        // vmovdqu64 zmm1,[ebx+ecx*8]
        hex("62f1fe486f0ccb"),
        // mov esp,ebx; push eax
        hex("89dc50"),
        // mov esp,ebx; pop eax
        hex("89dc58"),
        // mov esp,ebx; call .+5
        hex("89dce800000000"),
        // mov esp,ebx; ret
        hex("89dcc3"),
        // mov ebp,ebx; leave
        hex("89ddc9"),
        // jmp ebx
        hex("ffe3"),
        // jmp [ebx+ecx]
        hex("ff240b"),
        // call [ebx]
        hex("ff13"),
        // bts [ebx],ecx
        hex("0fab0b"),
        // mov al,[bx+si]
        hex("678a00"),
        // mov edi,ebx; stosd
        hex("89dfab"),
    ]
}

/// Memory of the host that nobody may touch, filled with a pattern.
struct Canary {
    at: *mut u8,
    len: usize,
}

const PATTERN: u8 = 0xa7;

impl Canary {
    /// Pages at `at`, if nothing is there yet.
    fn map(at: usize, len: usize) -> Option<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
        );
        // SAFETY: a new mapping, which replaces none.
        let place = unsafe { libc::mmap(at as *mut _, len, protection, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: just mapped.
        unsafe { place.cast::<u8>().write_bytes(PATTERN, len) };
        Some(Self { at: place.cast(), len })
    }

    /// Pages before and after the reservation that `inside` lies in.
    fn around(inside: *const u8) -> Vec<Self> {
        const LEN: usize = 16 << 12;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ranges: Vec<(usize, usize)> = maps
            .lines()
            .map(|line| {
                let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
                let [from, to] = [from, to].map(|n| usize::from_str_radix(n, 16).unwrap());
                (from, to)
            })
            .collect();
        let at = ranges.iter().position(|r| (r.0..r.1).contains(&(inside as usize))).unwrap();
        let mut first = at;
        while first > 0 && ranges[first - 1].1 == ranges[first].0 {
            first -= 1;
        }
        let mut last = at;
        while last + 1 < ranges.len() && ranges[last].1 == ranges[last + 1].0 {
            last += 1;
        }
        [ranges[first].0 - LEN, ranges[last].1].into_iter().filter_map(|at| Self::map(at, LEN)).collect()
    }

    fn check(&self) {
        // SAFETY: mapped, and nobody else writes.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, self.len) };
        assert!(bytes.iter().all(|b| *b == PATTERN), "a canary was touched");
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// What code it runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub bits: u32,
    pub user: bool,
}

/// One guest, and what it may not touch.
pub(super) struct Prisoner {
    pub guest: Guest,
    ram: *mut u8,
    canaries: Vec<Canary>,
    /// As it starts.
    segments: [Segment; 6],
    /// On the heap, before and after the guest's tables.
    neighbours: [Vec<Box<[u8]>>; 2],
}

/// Boxes of the sizes of a processor's parts.
fn neighbours() -> Vec<Box<[u8]>> {
    let sizes = [size_of::<crate::cpu::Cpu>(), size_of::<crate::mmu::Tlb>(), 32 << 14, 4096, 64];
    sizes.iter().cycle().take(2 * sizes.len()).map(|len| vec![PATTERN; *len].into()).collect()
}

impl Prisoner {
    pub(super) fn new(after: u32, mode: Mode) -> Self {
        let before = neighbours();
        let region = Region::map(0, RAM, RegionKind::Ram, Backing::memfd(c"guest", RAM).unwrap()).unwrap();
        let ram = region.host();
        let canaries = Canary::around(ram);
        let memory = Memory::new(vec![region]).unwrap();
        // Wherever it jumps to, it halts.
        memory.write(0, &vec![0xf4; RAM as usize]).unwrap();
        let shared =
            crate::vm::Shared::new(std::sync::Arc::new(memory), umbra_device::Clock::new(), 1, 2_000_000);
        let mut guest = Guest::of(shared, 0);
        guest.cpu.translator.after = after;
        guest.cpu.cr4.insert(umbra_x86::reg::Cr4::OSXSAVE);
        guest.cpu.xcr0 = if std::arch::is_x86_feature_detected!("avx512f") { 0xe7 } else { 7 };
        guest.cpu.update_context();
        if mode.bits == 32 {
            guest.narrow();
        }
        if mode.user {
            guest.user();
        }
        let segments = guest.cpu.seg;
        Self { guest, ram, canaries, segments, neighbours: [before, neighbours()] }
    }

    pub(super) fn check(&self) {
        self.canaries.iter().for_each(Canary::check);
        let all = self.neighbours.iter().flatten();
        assert!(all.flat_map(|b| b.iter()).all(|b| *b == PATTERN), "a neighbour was touched");
        let cpu = &self.guest.cpu;
        let ram = self.ram as u64;
        for (n, entry) in cpu.tlb.entries.iter().enumerate() {
            for tag in [entry.read, entry.write].into_iter().filter(|tag| *tag != no_tag(n)) {
                assert_eq!(page_of(n, tag).wrapping_add(entry.addend), entry.host, "{entry:x?}");
                assert!((ram..ram + RAM).contains(&entry.host), "{entry:x?}");
            }
        }
        assert_eq!(cpu.tlb.entries.len(), 4 * ENTRIES);
        for jump in cpu.translator.table() {
            assert!(jump.code.is_null() || Pool::Blocks.contains(jump.code as usize));
        }
        assert_eq!(cpu.id, 0);
        assert!(std::ptr::eq(cpu.fast.this, &**cpu) || cpu.fast.this.is_null());
    }

    /// Addresses of this process that a guest might long for, as a linear address that would lead there by the addend of its memory.
    fn targets(&self) -> Vec<u64> {
        let cpu = &*self.guest.cpu;
        let mut all = vec![
            &raw const *cpu as u64,
            &raw const *cpu.tlb as u64,
            cpu.translator.jumps() as u64,
            self.ram as u64,
        ];
        all.extend(self.canaries.iter().map(|c| c.at as u64));
        all.extend(self.neighbours.iter().flatten().map(|n| n.as_ptr() as u64));
        let apart: Vec<u64> = all.iter().map(|at| at.wrapping_sub(self.ram as u64)).collect();
        all.extend(apart);
        all
    }

    /// Runs until HLT or what ends a processor: how it stopped, with what, where.
    fn run(&mut self, code: &[u8], base: u64, index: u64, bases: [u64; 2]) -> (Stop, u64, u64, [u64; 16]) {
        let guest = &mut self.guest;
        guest.put(SEEN, 0xff, 4);
        guest.cpu.gpr = std::array::from_fn(|n| 0x1234_5678_9abc_def0u64.rotate_left(n as u32 * 4));
        (guest.cpu.gpr[3], guest.cpu.gpr[1]) = (base, index);
        guest.cpu.gpr[RSP] = STACK;
        guest.cpu.rflags = 2;
        guest.cpu.seg = self.segments;
        (guest.cpu.seg[sreg::FS].base, guest.cpu.seg[sreg::GS].base) = (bases[0], bases[1]);
        guest.cpu.update_mode();
        guest.cpu.cr2 = 0;
        guest.bytes(CODE, code);
        guest.bytes(CODE + code.len() as u64, &[0xf4]);
        guest.cpu.rip = CODE;
        guest.cpu.run_state = umbra_engine::RunState::Running;
        let stop = exec::run(&mut guest.cpu);
        (stop, guest.peek(SEEN, 4), guest.cpu.cr2, guest.cpu.gpr)
    }
}

/// Numbers that addresses go wrong at.
const EDGES: [u64; 12] = [
    0,
    u64::MAX,
    1 << 31,
    1 << 32,
    1 << 47,
    1 << 48,
    1 << 63,
    0xffff_8000_0000_0000,
    0x7fff_ffff_f000,
    RAM,
    0x100_0000,
    DATA,
];

fn wild(random: &mut Random, targets: &[u64]) -> u64 {
    let near = (random.next() >> 32 & 0x1ff).wrapping_sub(0x100);
    match random.next() >> 60 {
        0..5 => random.of(&EDGES).wrapping_add(near),
        5..9 => random.of(targets).wrapping_add(near),
        9 => random.next(),
        10 => random.next() >> 17,
        11 => random.of(targets) | random.next() & 0xffff << 48,
        12 => random.of(targets) / 8,
        13 => DATA + (random.next() >> 46),
        14 => (DATA + 0x1000 * (random.next() >> 60)).wrapping_add(near),
        _ => near,
    }
}

/// How many of the rounds ended in an exception whose handler ran.
fn roam(mode: Mode, seed: u64, rounds: usize) -> usize {
    let mut random = Random(seed);
    let pair = || [Prisoner::new(0, mode), Prisoner::new(u32::MAX, mode)];
    let mut prisoners = pair();
    let accesses = if mode.bits == 64 { accesses() } else { narrow_accesses() };
    let accesses: Vec<&Vec<u8>> = accesses.iter().collect();
    let mut targets = prisoners[0].targets();
    let mut faults = 0;
    for round in 0..rounds {
        let mut code = random.of(&accesses).clone();
        if random.next() >> 62 == 0 {
            code.extend(random.of(&accesses));
        }
        let (base, index) = (wild(&mut random, &targets), wild(&mut random, &targets));
        let mut bases = [wild(&mut random, &targets), wild(&mut random, &targets)];
        if mode.bits == 32 {
            bases = bases.map(|base| base & 0xffff_ffff);
        }
        let [one, two] = prisoners.each_mut().map(|p| p.run(&code, base, index, bases));
        assert_eq!(one, two, "{mode:?} {seed:#x} {round}: {code:x?} {base:#x} {index:#x} {bases:x?}");
        faults += usize::from(one.1 != 0xff);
        if round % 512 == 0 {
            prisoners.iter().for_each(Prisoner::check);
        }
        // It may have broken its own tables. In user mode no handler can run.
        let works = |p: &mut Prisoner| mode.user || p.run(&[0x0f, 0x0b], 0, 0, [0, 0]).1 == 6;
        if round % 64 == 0 && !prisoners.iter_mut().all(works) || round % 2048 == 2047 {
            prisoners.iter().for_each(Prisoner::check);
            prisoners = pair();
            targets = prisoners[0].targets();
        }
    }
    prisoners.iter().for_each(Prisoner::check);
    faults
}

#[test]
fn wild_addresses_stay_inside() {
    const ROUNDS: usize = 5_000;
    for seed in [0x9e37_79b9_7f4a_7c15, 0xb5ad_4ece_da1c_e2a9] {
        let faults = roam(Mode { bits: 64, user: false }, seed, ROUNDS);
        assert!(faults > ROUNDS / 3 && faults < ROUNDS, "{faults}");
    }
    let faults = roam(Mode { bits: 32, user: false }, 0x1234_5678_9abc_def1, ROUNDS);
    assert!(faults > ROUNDS / 3 && faults < ROUNDS, "{faults}");
    roam(Mode { bits: 64, user: true }, 0x2545_f491_4f6c_dd1d, ROUNDS);
}

#[test]
fn canaries_are_there() {
    let mut prisoner = Prisoner::new(0, Mode { bits: 64, user: false });
    assert!(!prisoner.canaries.is_empty());
    prisoner.check();
    // SAFETY: the canary's own page.
    unsafe { *prisoner.canaries[0].at = 0 };
    let canary = std::panic::AssertUnwindSafe(&prisoner.canaries[0]);
    assert!(std::panic::catch_unwind(|| canary.check()).is_err());
}
