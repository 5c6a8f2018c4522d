//! The few instructions that the guests are made of: 32-bit code, flat segments.

/// Machine code.
#[derive(Clone, Default)]
pub struct Asm(pub Vec<u8>);

/// Offsets of local APIC registers.
pub mod apic {
    pub const EOI: u32 = 0xb0;
    pub const SVR: u32 = 0xf0;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LINT0: u32 = 0x350;
    pub const TMICT: u32 = 0x380;
    pub const TDCR: u32 = 0x3e0;
}

impl Asm {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn with(self, bytes: &[u8], word: u32) -> Self {
        self.bytes(bytes).bytes(&word.to_le_bytes())
    }

    /// `mov dword [address], value`
    pub fn store(self, address: u32, value: u32) -> Self {
        self.with(&[0xc7, 0x05], address).bytes(&value.to_le_bytes())
    }

    /// `inc dword [address]`
    pub fn inc(self, address: u32) -> Self {
        self.with(&[0xff, 0x05], address)
    }

    /// `mov register, value`
    pub fn mov(self, register: u8, value: u32) -> Self {
        self.with(&[0xb8 + register], value)
    }

    /// `mov [address], eax`
    pub fn store_eax(self, address: u32) -> Self {
        self.with(&[0xa3], address)
    }

    /// Writes a local APIC register in its page.
    pub fn apic(self, offset: u32, value: u32) -> Self {
        self.store(0xfee0_0000 + offset, value)
    }

    /// Switches the local APIC on, by software.
    pub fn apic_on(self) -> Self {
        self.apic(apic::SVR, 0x1ff)
    }

    /// `wrmsr` of a constant.
    pub fn wrmsr(self, number: u32, value: u64) -> Self {
        self.mov(1, number).mov(0, value as u32).mov(2, (value >> 32) as u32).bytes(&[0x0f, 0x30])
    }

    /// `out port, al`
    pub fn out(self, port: u8) -> Self {
        self.bytes(&[0xe6, port])
    }

    pub fn sti(self) -> Self {
        self.bytes(&[0xfb])
    }

    pub fn hlt(self) -> Self {
        self.bytes(&[0xf4])
    }

    pub fn iret(self) -> Self {
        self.bytes(&[0xcf])
    }

    /// `jmp` back to the code's byte `target`.
    pub fn jmp_to(self, target: usize) -> Self {
        let back = target as i32 - (self.0.len() as i32 + 5);
        self.with(&[0xe9], back as u32)
    }

    /// `sti`, and `hlt` for ever.
    pub fn idle(self) -> Self {
        let s = self.sti();
        let at = s.0.len();
        s.hlt().jmp_to(at)
    }

    /// `sti`, and a loop for ever.
    pub fn spin(self) -> Self {
        let s = self.sti();
        let at = s.0.len();
        s.jmp_to(at)
    }

    /// A handler that counts at `address` and ends the interrupt.
    pub fn counting(address: u32) -> Self {
        Self::new().inc(address).apic(apic::EOI, 0).iret()
    }
}
