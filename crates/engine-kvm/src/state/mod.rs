//! A processor's whole state, to and from KVM.
//!
//! Each part converts between the architecture's terms ([`CpuState`](umbra_engine::CpuState)) and KVM's structures without KVM, and
//! is tested so; [`save`] and [`load`] know the order in which KVM wants to be asked.

pub(crate) mod events;
mod load;
pub(crate) mod msrs;
mod save;
pub(crate) mod segments;
pub(crate) mod xsave;

pub(crate) use load::load;
pub(crate) use msrs::available as available_msrs;
pub(crate) use save::save;
