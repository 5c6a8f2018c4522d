//! A set of interrupt vectors, as the IRR, ISR and TMR are.

/// 256 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vectors([u64; 4]);

impl Vectors {
    /// Whether `vector` is in the set.
    pub(crate) fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    /// Adds `vector`; false if it was there.
    pub(crate) fn insert(&mut self, vector: u8) -> bool {
        let word = &mut self.0[usize::from(vector >> 6)];
        let bit = 1 << (vector & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes `vector` out.
    pub(crate) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    /// The highest vector, or 0: vectors below 16 are never in an APIC's sets.
    pub(crate) fn highest(&self) -> u8 {
        for (i, word) in [(3, self.0[3]), (2, self.0[2]), (1, self.0[1]), (0, self.0[0])] {
            if word != 0 {
                return i * 64 + (63 - word.leading_zeros() as u8);
            }
        }
        0
    }

    /// The 32-bit register `index` of eight.
    pub(crate) fn register(&self, index: u32) -> u32 {
        let index = index & 7;
        (self.0[(index / 2) as usize] >> (32 * (index & 1))) as u32
    }

    /// Sets the 32-bit register `index` of eight; the vectors below 16, which cannot occur, stay out.
    pub(crate) fn set_register(&mut self, index: u32, value: u32) {
        let index = index & 7;
        let value = if index == 0 { value & 0xffff_0000 } else { value };
        let shift = 32 * (index & 1);
        let word = &mut self.0[(index / 2) as usize];
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }
}
