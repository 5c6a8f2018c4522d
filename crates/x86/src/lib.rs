//! Facts of the x86-64 architecture: registers, model-specific registers, CPUID leaves, descriptors, paging.
//!
//! Nothing here does I/O or knows of a virtual machine. The authority is the Intel 64 and IA-32 Architectures
//! Software Developer's Manual (SDM) and, where the two differ, the AMD64 Architecture Programmer's Manual.
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod msr;
pub mod paging;
pub mod reg;
pub mod segment;
