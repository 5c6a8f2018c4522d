//! The network block device protocol: a client, which is a storage, and a server for disks.
//!
//! Fixed newstyle negotiation with structured replies, the context of allocation and TLS. Both ends take their peer for
//! hostile: every length that it says has a limit, every handshake a deadline, and what breaks the protocol ends the
//! connection.
//!
//! Authority: `doc/proto.md` and `doc/uri.md` of the NetworkBlockDevice project.
#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod address;
mod channel;
mod client;
mod error;
mod server;
mod socket;
mod tls;
mod wire;

#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod loop_test;
#[cfg(test)]
mod peer_test;
#[cfg(test)]
mod power_test;
#[cfg(test)]
mod test_help;

pub use address::{Address, Credentials, Endpoint, TlsChoice};
pub use client::NbdStorage;
pub use error::{Error, Result};
pub use server::{Ended, Export, Listener, ServeOptions, Server};
pub use tls::{TlsClient, TlsServer};
pub use wire::PORT;

/// Takes a lock, also after a thread that had it has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
