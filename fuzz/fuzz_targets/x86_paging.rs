//! Page walks through arbitrary memory: they end, and what they find is what the address allows.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Input;
use umbra_x86::paging::{Access, Kind, Paging, PagingMode, Physical};
use umbra_x86::reg::{Cr0, Cr4, Efer};

/// Memory that repeats the fuzzer's bytes, so that tables are found whatever an entry says. Every `stubborn`th replacement
/// fails, as if another processor had been there.
struct Ram<'a> {
    pattern: &'a [u8],
    /// What was replaced, the latest last.
    written: RefCell<Vec<(u64, u8)>>,
    stubborn: u8,
    replaced: RefCell<u8>,
}

/// Addresses are taken modulo this.
const LEN: u64 = 0x1_0000;

impl Ram<'_> {
    fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        assert_eq!(gpa % N as u64, 0, "entries are aligned");
        let written = self.written.borrow();
        std::array::from_fn(|n| {
            let at = gpa % LEN + n as u64;
            let found = written.iter().rev().find(|(gpa, _)| *gpa == at);
            found.map_or(self.pattern[at as usize % self.pattern.len()], |(_, byte)| *byte)
        })
    }

    fn replace<const N: usize>(&self, gpa: u64, old: [u8; N], new: [u8; N]) -> bool {
        let mut count = self.replaced.borrow_mut();
        *count = count.wrapping_add(1);
        if self.get(gpa) != old || self.stubborn != 0 && *count % self.stubborn == 0 {
            return false;
        }
        let changed = new.into_iter().zip(gpa % LEN..).zip(old).filter(|((new, _), old)| new != old);
        self.written.borrow_mut().extend(changed.map(|((new, at), _)| (at, new)));
        true
    }
}

impl Physical for Ram<'_> {
    fn read_u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.get(gpa))
    }
    fn read_u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.get(gpa))
    }
    fn replace_u32(&self, gpa: u64, old: u32, new: u32) -> bool {
        self.replace(gpa, old.to_le_bytes(), new.to_le_bytes())
    }
    fn replace_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        self.replace(gpa, old.to_le_bytes(), new.to_le_bytes())
    }
}

fn walk(paging: &Paging, ram: &Ram<'_>, linear: u64, access: Access) {
    match paging.walk(ram, linear, access) {
        Ok(t) => {
            assert!(t.page_len.is_power_of_two() && t.page_len >= 4096);
            assert!(
                !access.user || paging.mode == PagingMode::Off || t.user,
                "a user got at a supervisor's page"
            );
            if access.kind == Kind::Write && paging.mode != PagingMode::Off {
                assert!(t.dirty && (t.writable || !access.user && !paging.wp));
            }
            assert_eq!(t.gpa % 4096, linear % 4096);
            if paging.mode != PagingMode::Off {
                assert!(t.gpa >> paging.physical_bits == 0, "beyond physical addresses");
            }
        }
        Err(code) => assert_eq!(code & !0x1f, 0),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (cr0, cr4) = (u64::from(input.u32()), u64::from(input.u32()));
    let efer = Efer::from_bits_truncate(input.u16().into());
    let (cr3, physical_bits) = (input.u64(), 36 + u32::from(input.below(17)));
    let mut paging = Paging::new(
        Cr0::from_bits_truncate(cr0),
        cr3 & (u64::MAX >> (64 - physical_bits)),
        Cr4::from_bits_truncate(cr4),
        efer,
        physical_bits,
        input.u8() & 1 != 0,
    );
    paging.pdptes = [(); 4].map(|()| input.u64());
    if paging.pdptes.iter().any(|p| paging.pdpte_is_reserved(*p)) {
        paging.pdptes = [0; 4];
    }
    let stubborn = input.u8();
    let linears: [u64; 4] = [(); 4].map(|()| input.u64());
    let pattern = input.rest();
    if pattern.is_empty() {
        return;
    }
    let written = RefCell::new(Vec::new());
    let ram = Ram { pattern, written, stubborn, replaced: RefCell::new(0) };
    for mut linear in linears {
        if paging.mode != PagingMode::Level4 {
            linear &= 0xffff_ffff;
        }
        for kind in [Kind::Read, Kind::Write, Kind::Fetch] {
            for (user, ac) in [(false, false), (true, false), (false, true)] {
                walk(&paging, &ram, linear, Access { kind, user, ac });
            }
        }
    }
});
