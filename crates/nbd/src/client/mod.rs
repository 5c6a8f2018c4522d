//! The client: a connection on which several requests are in flight, and an export as a storage.

pub(crate) mod connection;
pub(crate) mod handshake;
mod link;
mod reply;
mod storage;

pub use storage::NbdStorage;
