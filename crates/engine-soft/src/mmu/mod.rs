//! Every access to guest memory by linear address.

use crate::cpu::Cpu;
use crate::fault::Exec;

/// An integer that an instruction loads or stores at once.
pub trait Word: Copy + Default + Eq + Send + 'static {
    /// From the low bits of a 64-bit value.
    fn from_u64(value: u64) -> Self;
    /// Zero-extended, or the low 64 bits.
    fn to_u64(self) -> u64;
}

macro_rules! word {
    ($($t:ty),*) => {$(impl Word for $t {
        fn from_u64(value: u64) -> Self { value as Self }
        fn to_u64(self) -> u64 { self as u64 }
    })*};
}
word!(u8, u16, u32, u64, u128);

/// The software TLB.
pub struct Tlb {}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Box<Self> {
        Box::new(Self {})
    }
}

/// Where a checked memory operand is.
pub enum Host {
    /// In guest RAM, in one piece: `len` bytes readable (and, if asked for, writable) at this host address. For a write, dirty tracking and code on the
    /// page have been seen to.
    Direct(*mut u8),
    /// Device memory, or across a page: the caller copies through a buffer with `load_bytes` and `store_bytes`. Accesses and permissions have been checked.
    Bounce,
}

impl Cpu {
    /// Loads at the current privilege.
    pub fn load<T: Word>(&mut self, linear: u64) -> Exec<T> {
        let _ = linear;
        todo!()
    }
    /// Stores at the current privilege.
    pub fn store<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        let _ = (linear, value);
        todo!()
    }
    /// Loads as the processor does for descriptor tables and task state: as supervisor, whatever the CPL.
    pub fn load_system<T: Word>(&mut self, linear: u64) -> Exec<T> {
        let _ = linear;
        todo!()
    }
    /// Stores as supervisor.
    pub fn store_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        let _ = (linear, value);
        todo!()
    }
    /// Loads bytes at the current privilege; may cross pages. Faults before anything with a side effect is read.
    pub fn load_bytes(&mut self, linear: u64, data: &mut [u8]) -> Exec {
        let _ = (linear, data);
        todo!()
    }
    /// Stores bytes at the current privilege; may cross pages. Faults before anything is written.
    pub fn store_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        let _ = (linear, data);
        todo!()
    }
    /// Checks an access of `len` bytes at the current privilege and says where the bytes are.
    pub fn host(&mut self, linear: u64, len: u64, write: bool) -> Exec<Host> {
        let _ = (linear, len, write);
        todo!()
    }
    /// Forgets translations of one linear address in every context (INVLPG, INVPCID of one address).
    pub fn flush_page(&mut self, linear: u64) {
        let _ = linear;
    }
    /// Forgets translations of one PCID (INVPCID of one context).
    pub fn flush_pcid(&mut self, pcid: u16) {
        let _ = pcid;
    }
    /// Forgets all translations.
    pub fn flush_all(&mut self) {}
    /// CR3 has been written. `keep` is its bit 63 with CR4.PCIDE set: translations of its PCID stay.
    pub fn cr3_written(&mut self, keep: bool) {
        let _ = keep;
    }
    /// CR0, CR4 or EFER has been written, or the whole state loaded: forgets all translations. Calls [`Cpu::update_context`].
    pub fn paging_changed(&mut self) {}
    /// Loads the page-directory-pointer entries from where `cr3` says: call it on a write of CR3 in PAE mode (not long mode) and when paging with PAE is
    /// switched on, before anything has changed. Faults with #GP on reserved bits.
    pub fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let _ = cr3;
        todo!()
    }
    /// Derives what translation depends on besides the page tables: CPL, RFLAGS.AC, CS. [`Cpu::update_mode`] calls it; so must
    /// whoever changes RFLAGS.AC or DR7.
    pub fn update_context(&mut self) {}
}
