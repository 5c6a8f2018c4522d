//! The server: disks as exports, to several clients at once.
//!
//! A client gets no further than its limits: so many connections, a time for the handshake, so many requests in flight,
//! so many bytes of them. Each connection has a thread, and more only while it has more requests in flight.

mod handshake;
mod listen;
mod reply;
mod request;
mod session;

use std::fmt;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_block::{BitmapInfo, Disk, Node};

pub use listen::{Ended, Listener, ServeOptions};

use crate::channel::Channel;
use crate::tls::TlsServer;
use crate::wire::{DIRTY_BITMAP, STRING_MAX};
use crate::{Error, Result};

/// How long a handshake may take: QEMU's server allows as much.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A disk under a name.
pub struct Export {
    /// What clients ask for.
    pub name: String,
    /// What they may be told of it; empty for nothing.
    pub description: String,
    /// The disk.
    pub disk: Arc<Disk>,
    /// Whether it is not to be written.
    pub read_only: bool,
    /// Persistent dirty bitmaps of the disk, or of an image below it, that clients may see, each as the context
    /// `qemu:dirty-bitmap:NAME`.
    pub bitmaps: Vec<String>,
}

impl Export {
    /// The node that has a bitmap of this name, and what the bitmap is.
    ///
    /// # Errors
    /// Bitmaps that cannot be read.
    pub fn bitmap(&self, name: &str) -> umbra_block::Result<Option<(Arc<Node>, BitmapInfo)>> {
        let mut next = Some(self.disk.node());
        while let Some(node) = next {
            let list = node.format().bitmaps().map_or(Ok(Vec::new()), |bitmaps| bitmaps.list())?;
            if let Some(found) = list.into_iter().find(|bitmap| bitmap.name == name) {
                return Ok(Some((node, found)));
            }
            next = node.backing();
        }
        Ok(None)
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// Disks that are served.
#[derive(Debug)]
pub struct Server {
    exports: Vec<Export>,
    tls: Option<TlsServer>,
}

impl Server {
    /// With these exports; over TLS only where there are certificates.
    ///
    /// # Errors
    /// No export, a name twice, or one that the protocol has no room for.
    pub fn new(exports: Vec<Export>, tls: Option<TlsServer>) -> Result<Self> {
        if exports.is_empty() {
            return Err(Error::address("there is nothing to serve"));
        }
        for (index, export) in exports.iter().enumerate() {
            let context_max = STRING_MAX - DIRTY_BITMAP.len();
            if export.bitmaps.iter().any(|name| name.len() > context_max) {
                return Err(Error::address(format!("names of bitmaps have up to {context_max} bytes")));
            }
            if export.name.len() > STRING_MAX || export.description.len() > STRING_MAX {
                return Err(Error::address(format!("names and descriptions have up to {STRING_MAX} bytes")));
            }
            if exports[..index].iter().any(|other| other.name == export.name) {
                return Err(Error::address(format!("export name '{}' is there twice", export.name)));
            }
        }
        Ok(Self { exports, tls })
    }

    /// All.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// The export of a name. The empty one means the only export, where there is but one.
    fn find(&self, name: &str) -> Option<&Export> {
        let only = || self.exports.first().filter(|_| name.is_empty() && self.exports.len() == 1);
        self.exports.iter().find(|export| export.name == name).or_else(only)
    }

    /// Serves one client until it leaves.
    ///
    /// # Errors
    /// What ended the connection, if it was not the client's farewell.
    pub fn serve(&self, stream: UnixStream) -> Result<()> {
        self.serve_channel(Channel::plain(stream), || ())
    }

    /// Serves one client; `opened` is called when it has chosen an export.
    fn serve_channel(&self, channel: Channel, opened: impl FnOnce()) -> Result<()> {
        channel.socket().set_deadline(Some(Instant::now() + HANDSHAKE))?;
        let early = channel.clone();
        let agreed = match handshake::negotiate(self, channel) {
            Ok(Some(agreed)) => agreed,
            left => {
                early.socket().shutdown(Shutdown::Both);
                return left.map(drop);
            }
        };
        agreed.channel.socket().set_deadline(None)?;
        opened();
        let done = session::run(&agreed);
        agreed.channel.end(&[]);
        done
    }
}
