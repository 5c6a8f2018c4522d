//! What a processor counts.

macro_rules! counts {
    ($($index:ident = $name:literal;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Index { $($index,)* }
        $(#[doc = concat!("Index of `", $name, "`.")] pub const $index: usize = Index::$index as usize;)*
        /// The names, by index.
        pub const NAMES: &[&str] = &[$($name,)*];
    };
}
counts! {
    INSTRUCTIONS = "instructions";
    TRANSLATED = "instructions of translated blocks";
    INTERPRETED = "instructions that translated blocks left to the interpreter";
    ENTERED = "entries into translations";
    BLOCKS_DECODED = "blocks decoded";
    BLOCKS_TRANSLATED = "blocks translated";
    CODE_CACHE_CLEARED = "code cache clearings";
    CODE_INVALIDATIONS = "code invalidations";
    TLB_FILLS = "tlb fills";
    EXCEPTIONS = "exceptions";
    INTERRUPTS = "interrupts";
    HALTS = "halts";
    HALT_POLLS = "halts that ended while polling";
    IPIS = "ipis sent";
    PORT_IO = "port accesses";
    MMIO = "mmio accesses";
    HYPERCALLS = "hypercalls";
}
