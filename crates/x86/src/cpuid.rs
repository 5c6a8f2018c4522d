//! CPUID leaves as data (SDM volume 2, CPUID).

/// What one (leaf, subleaf) answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidEntry {
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID, for leaves that look at it.
    pub subleaf: u32,
    /// Whether the leaf looks at ECX.
    pub indexed: bool,
    /// The answer.
    pub eax: u32,
    /// The answer.
    pub ebx: u32,
    /// The answer.
    pub ecx: u32,
    /// The answer.
    pub edx: u32,
}

/// Which of the four result registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuidReg {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl CpuidEntry {
    /// One of the four results.
    pub fn reg(&self, reg: CpuidReg) -> u32 {
        match reg {
            CpuidReg::Eax => self.eax,
            CpuidReg::Ebx => self.ebx,
            CpuidReg::Ecx => self.ecx,
            CpuidReg::Edx => self.edx,
        }
    }

    /// One of the four results, to change.
    pub fn reg_mut(&mut self, reg: CpuidReg) -> &mut u32 {
        match reg {
            CpuidReg::Eax => &mut self.eax,
            CpuidReg::Ebx => &mut self.ebx,
            CpuidReg::Ecx => &mut self.ecx,
            CpuidReg::Edx => &mut self.edx,
        }
    }
}

/// A feature bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Register.
    pub reg: CpuidReg,
    /// Bit.
    pub bit: u8,
}

/// All that a processor answers to CPUID, sorted by leaf and subleaf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuidTable(Vec<CpuidEntry>);

impl CpuidTable {
    /// A table of these entries; a later entry replaces an earlier one of the same leaf and subleaf.
    pub fn new(entries: impl IntoIterator<Item = CpuidEntry>) -> Self {
        let mut all: Vec<_> = entries.into_iter().collect();
        // Not one by one: a saved file can hold a great many, in the worst order. The sort keeps the order of equals.
        all.sort_by_key(|e| (e.leaf, e.subleaf));
        all.dedup_by(|later, kept| {
            let same = (later.leaf, later.subleaf) == (kept.leaf, kept.subleaf);
            if same {
                *kept = *later;
            }
            same
        });
        Self(all)
    }

    /// All entries, sorted.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.0
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&(leaf, subleaf), |e| (e.leaf, e.subleaf))
    }

    /// Adds or replaces an entry.
    pub fn set(&mut self, entry: CpuidEntry) {
        match self.find(entry.leaf, entry.subleaf) {
            Ok(i) => self.0[i] = entry,
            Err(i) => self.0.insert(i, entry),
        }
    }

    /// Removes all entries that do not satisfy `keep`.
    pub fn retain(&mut self, keep: impl FnMut(&CpuidEntry) -> bool) {
        self.0.retain(keep);
    }

    /// The entry of exactly this leaf and subleaf.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.find(leaf, subleaf).ok().map(|i| &self.0[i])
    }

    /// As [`CpuidTable::get`], to change.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut CpuidEntry> {
        self.find(leaf, subleaf).ok().map(|i| &mut self.0[i])
    }

    /// What the instruction CPUID answers: a leaf that does not look at ECX answers for every subleaf; an
    /// unknown subleaf is all zero; a leaf above the greatest of its range answers as the greatest basic leaf
    /// (as Intel processors do; leaves from 0x4000_0000 to 0x4fff_ffff answer zero instead).
    pub fn answer(&self, leaf: u32, subleaf: u32) -> CpuidEntry {
        let lookup = |leaf| {
            let first = self.0.partition_point(|e| e.leaf < leaf);
            let of_leaf = self.0[first..].iter().take_while(|e| e.leaf == leaf);
            let mut of_leaf = of_leaf.skip_while(|e| e.indexed && e.subleaf != subleaf);
            of_leaf.next().copied()
        };
        let in_range = |base: u32| self.get(base, 0).is_some_and(|e| (base..=e.eax).contains(&leaf));
        let zero = CpuidEntry { leaf, subleaf, indexed: true, ..CpuidEntry::default() };
        if in_range(0) || in_range(0x8000_0000) || (0x4000_0000..0x5000_0000).contains(&leaf) {
            return lookup(leaf).unwrap_or(zero);
        }
        self.get(0, 0).and_then(|e| lookup(e.eax)).unwrap_or(zero)
    }

    /// Whether the vendor shown is AMD or Hygon, whose processors behave alike (leaf 0, EBX).
    pub fn is_amd(&self) -> bool {
        self.get(0, 0).is_some_and(|e| matches!(&e.ebx.to_le_bytes(), b"Auth" | b"Hygo"))
    }

    /// Whether a feature bit is set.
    pub fn has(&self, f: Feature) -> bool {
        self.get(f.leaf, f.subleaf).is_some_and(|e| e.reg(f.reg) >> f.bit & 1 != 0)
    }

    /// Sets or clears a feature bit; a missing entry is made.
    pub fn set_feature(&mut self, f: Feature, on: bool) {
        if self.get(f.leaf, f.subleaf).is_none() {
            let indexed = matches!(f.leaf, 4 | 7 | 0xb | 0xd | 0x14 | 0x1f | 0x8000_001d);
            self.set(CpuidEntry { leaf: f.leaf, subleaf: f.subleaf, indexed, ..CpuidEntry::default() });
        }
        if let Some(e) = self.get_mut(f.leaf, f.subleaf) {
            let r = e.reg_mut(f.reg);
            *r = *r & !(1 << f.bit) | u32::from(on) << f.bit;
        }
    }
}

/// Leaf with KVM's signature.
pub const KVM_SIGNATURE: u32 = 0x4000_0000;
/// Leaf with KVM's features.
pub const KVM_FEATURES: u32 = 0x4000_0001;
/// Leaf with the TSC's and the APIC bus' frequency in kHz (EAX, EBX), as several hypervisors have it.
pub const HYPERVISOR_FREQUENCY: u32 = 0x4000_0010;

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $leaf:literal, $sub:literal, $reg:ident, $bit:literal;)*) => {
        /// Feature bits by the names of `/proc/cpuinfo`.
        pub mod feature {
            use super::{CpuidReg, Feature};
            $($(#[$doc])* #[doc = concat!("CPUID leaf ", stringify!($leaf), ".", stringify!($sub), " ", stringify!($reg), " bit ", stringify!($bit), ".")]
            pub const $name: Feature = Feature { leaf: $leaf, subleaf: $sub, reg: CpuidReg::$reg, bit: $bit };)*
            /// Every bit above with its name.
            pub const ALL: &[(&str, Feature)] = &[$((stringify!($name), $name),)*];
        }
    };
}
features! {
    SSE3 = 1, 0, Ecx, 0; PCLMULQDQ = 1, 0, Ecx, 1; MONITOR = 1, 0, Ecx, 3; VMX = 1, 0, Ecx, 5; SSSE3 = 1, 0, Ecx, 9;
    FMA = 1, 0, Ecx, 12; CX16 = 1, 0, Ecx, 13; PCID = 1, 0, Ecx, 17; SSE4_1 = 1, 0, Ecx, 19; SSE4_2 = 1, 0, Ecx, 20;
    X2APIC = 1, 0, Ecx, 21; MOVBE = 1, 0, Ecx, 22; POPCNT = 1, 0, Ecx, 23; TSC_DEADLINE = 1, 0, Ecx, 24; AES = 1, 0, Ecx, 25;
    XSAVE = 1, 0, Ecx, 26; OSXSAVE = 1, 0, Ecx, 27; AVX = 1, 0, Ecx, 28; F16C = 1, 0, Ecx, 29; RDRAND = 1, 0, Ecx, 30;
    HYPERVISOR = 1, 0, Ecx, 31;
    FPU = 1, 0, Edx, 0; VME = 1, 0, Edx, 1; DE = 1, 0, Edx, 2; PSE = 1, 0, Edx, 3; TSC = 1, 0, Edx, 4; MSR = 1, 0, Edx, 5;
    PAE = 1, 0, Edx, 6; MCE = 1, 0, Edx, 7; CX8 = 1, 0, Edx, 8; APIC = 1, 0, Edx, 9; SEP = 1, 0, Edx, 11; MTRR = 1, 0, Edx, 12;
    PGE = 1, 0, Edx, 13; MCA = 1, 0, Edx, 14; CMOV = 1, 0, Edx, 15; PAT = 1, 0, Edx, 16; PSE36 = 1, 0, Edx, 17;
    CLFSH = 1, 0, Edx, 19; MMX = 1, 0, Edx, 23; FXSR = 1, 0, Edx, 24; SSE = 1, 0, Edx, 25; SSE2 = 1, 0, Edx, 26; HTT = 1, 0, Edx, 28;
    FSGSBASE = 7, 0, Ebx, 0; TSC_ADJUST = 7, 0, Ebx, 1; BMI1 = 7, 0, Ebx, 3; AVX2 = 7, 0, Ebx, 5; SMEP = 7, 0, Ebx, 7;
    BMI2 = 7, 0, Ebx, 8; ERMS = 7, 0, Ebx, 9; INVPCID = 7, 0, Ebx, 10; AVX512F = 7, 0, Ebx, 16; AVX512DQ = 7, 0, Ebx, 17;
    RDSEED = 7, 0, Ebx, 18; ADX = 7, 0, Ebx, 19; SMAP = 7, 0, Ebx, 20; AVX512IFMA = 7, 0, Ebx, 21; CLFLUSHOPT = 7, 0, Ebx, 23;
    CLWB = 7, 0, Ebx, 24; AVX512CD = 7, 0, Ebx, 28; SHA = 7, 0, Ebx, 29; AVX512BW = 7, 0, Ebx, 30; AVX512VL = 7, 0, Ebx, 31;
    AVX512VBMI = 7, 0, Ecx, 1; UMIP = 7, 0, Ecx, 2; PKU = 7, 0, Ecx, 3; AVX512VBMI2 = 7, 0, Ecx, 6; GFNI = 7, 0, Ecx, 8; VAES = 7, 0, Ecx, 9;
    VPCLMULQDQ = 7, 0, Ecx, 10; AVX512VNNI = 7, 0, Ecx, 11; AVX512BITALG = 7, 0, Ecx, 12; AVX512VPOPCNTDQ = 7, 0, Ecx, 14;
    LA57 = 7, 0, Ecx, 16; RDPID = 7, 0, Ecx, 22;
    FSRM = 7, 0, Edx, 4; ARCH_CAPABILITIES = 7, 0, Edx, 29;
    XSAVEOPT = 0xd, 1, Eax, 0; XSAVEC = 0xd, 1, Eax, 1; XGETBV1 = 0xd, 1, Eax, 2; XSAVES = 0xd, 1, Eax, 3;
    LAHF_LM = 0x8000_0001, 0, Ecx, 0; SVM = 0x8000_0001, 0, Ecx, 2; ABM = 0x8000_0001, 0, Ecx, 5; SSE4A = 0x8000_0001, 0, Ecx, 6;
    PREFETCHW = 0x8000_0001, 0, Ecx, 8; SYSCALL = 0x8000_0001, 0, Edx, 11; NX = 0x8000_0001, 0, Edx, 20;
    PDPE1GB = 0x8000_0001, 0, Edx, 26; RDTSCP = 0x8000_0001, 0, Edx, 27; LM = 0x8000_0001, 0, Edx, 29;
    INVARIANT_TSC = 0x8000_0007, 0, Edx, 8;
    KVM_CLOCKSOURCE = 0x4000_0001, 0, Eax, 0; KVM_CLOCKSOURCE2 = 0x4000_0001, 0, Eax, 3; KVM_STEAL_TIME = 0x4000_0001, 0, Eax, 5;
    KVM_PV_EOI = 0x4000_0001, 0, Eax, 6; KVM_PV_UNHALT = 0x4000_0001, 0, Eax, 7; KVM_PV_TLB_FLUSH = 0x4000_0001, 0, Eax, 9;
    KVM_PV_SEND_IPI = 0x4000_0001, 0, Eax, 11; KVM_CLOCKSOURCE_STABLE = 0x4000_0001, 0, Eax, 24;
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod cpuid_test;
