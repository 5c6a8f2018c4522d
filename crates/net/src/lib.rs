//! Networks for a machine: what is at the other end of a network card's cable.
//!
//! A card ([`Nic`]) and a [`Backend`] meet in a thread of their own ([`LinkThread`]), which moves Ethernet frames both ways
//! and sleeps in one `epoll_wait` when neither has any. Nothing here knows of guest memory, of rings or of engines: a
//! card copies a frame out of the guest's memory once, before anything looks at it, and copies what it is handed into it.
//!
//! Frames may leave work to the side that takes them, as [`VnetHeader`] tells: a checksum to be filled in, or a TCP
//! segment of up to 64 KiB to be cut. Who cannot do that work says so by its [`Offloads`].
//!
//! Guests are hostile, and so is the network: every table has a limit, every queue is bounded, and back pressure runs from a
//! host's socket to a guest's ring and back, so that nobody's data is gathered without end.
#![forbid(unsafe_code)]

mod capture;
mod error;
mod link;
mod poller;
mod thread;
pub mod user;
mod wire;

pub use capture::{Capture, SNAP_LEN};
pub use error::{Error, Result};
pub use link::{Backend, FRAME_MAX, Frame, Nic, Offloads, Received, Sent, Sink};
pub use poller::{Poller, Ready, Wake};
pub use thread::LinkThread;
pub use wire::{Gso, VnetHeader};
