//! What broker and worker say to each other: one JSON message a packet on a socket pair, with descriptors beside it.
//!
//! The worker believes the broker. The broker does not believe the worker, which a guest may have taken over: what comes from there is parsed
//! as data, bounded by the packet, and opens nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use umbra_machine::MachineSpec;

/// No message is longer. The longest are the counters of 254 processors with a profile of all, and a specification whose command line is all escapes. A
/// socket's buffer takes some 200 KiB.
const MESSAGE_MAX: usize = 160 << 10;
/// Descriptors beside one message.
const DESCRIPTORS_MAX: usize = 128;

/// A network, as the worker is told of it. Descriptors: the gate's socket, the ports' in their order, the capture's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStart {
    pub restricted: bool,
    pub host_loopback: bool,
    pub ipv6: bool,
    pub mtu: u16,
    pub resolvers: Vec<SocketAddr>,
    pub hostname: String,
    pub ports: Vec<PortStart>,
    pub captured: bool,
}

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PortStart {
    pub udp: bool,
    pub host: SocketAddr,
    pub guest_port: u16,
}

/// The first message: what to be. The descriptors beside it are, in this order: the console, then those that are named here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// The machine, unless it is restored.
    pub spec: Option<MachineSpec>,
    /// A descriptor of /dev/kvm follows; else the software engine runs.
    pub kvm: bool,
    /// A kernel follows.
    pub kernel: bool,
    /// An initrd follows.
    pub initrd: bool,
    /// A saved machine follows.
    pub saved: bool,
    /// The images of its disks, in their order; the worker asks for their files.
    pub disks: Vec<DiskFile>,
    /// Its networks; each says which descriptors of it follow.
    pub networks: Vec<NetworkStart>,
    /// What its socket device is joined to follows: where the host connects, and where connections of the guest's are asked for.
    pub vsock: bool,
    /// A reset ends the machine.
    pub no_reboot: bool,
    /// Stay paused.
    pub paused: bool,
    /// Say at the end what was counted.
    pub stats: bool,
    /// Sample what the processors do, and say it with what was counted.
    pub profile: bool,
}

/// An image that the user names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Its name, as the broker opens it.
    pub name: String,
    /// Its format, unless its content shall tell.
    pub format: Option<String>,
    /// It is not written.
    pub read_only: bool,
}

/// A file that the worker needs for a disk while it makes the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Number of the disk.
    pub disk: u32,
    /// The file's name.
    pub name: String,
    /// For writing too.
    pub write: bool,
}

/// What the broker sends after that.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// An answer is due.
    Ask(Request),
    /// End; the answer is [`Message::Ended`].
    Stop,
    /// The answer to [`Message::Open`]: a descriptor follows, or why there is none.
    File(Result<(), String>),
}

/// What the broker asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Processors and time stand.
    Pause,
    /// They go on.
    Resume,
    /// Write the machine into the descriptor that follows; it stays paused.
    Save,
    /// Press the power button.
    PowerButton,
    /// Counters.
    Stats,
    /// Let a port of the host, whose socket follows, lead to the guest.
    AddPort(PortStart),
    /// Close one; connections that came through it live on.
    RemovePort {
        /// UDP, and else TCP.
        udp: bool,
        /// Where the host listens.
        host: SocketAddr,
    },
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// A file of a disk is needed; comes before [`Message::Created`] only.
    Open(OpenFile),
    /// The machine is there.
    Created(MachineSpec),
    /// Its processors run for the first time.
    Booted,
    /// Its processors go on where they were saved.
    Restored,
    /// The answer to the latest request.
    Answer(Result<Answer, String>),
    /// The guest reset the machine; it goes on.
    Reset,
    /// What the processors counted, at the end.
    Counted(Vec<Vec<(String, u64)>>),
    /// The machine has ended; the worker ends as well.
    Ended(Ending),
}

/// The good answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// Counters of each vCPU.
    Stats(Vec<Vec<(String, u64)>>),
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The guest switched the power off.
    PowerOff,
    /// The guest asked for a reset, and `--no-reboot` was given.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// A processor shut down.
    TripleFault,
    /// We failed.
    Error(String),
    /// It could not be made.
    NotStarted(String),
    /// The user ended it.
    Stopped,
}

/// One end of the connection.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    sending: Mutex<()>,
}

impl Link {
    /// Both ends.
    ///
    /// # Errors
    /// What the host says.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(ours), theirs))
    }

    /// The end that `socket` is.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, sending: Mutex::new(()) }
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let _one_at_a_time = self.sending.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sendmsg(self.socket.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives a message and the descriptors beside it; `None` when the other side is gone.
    ///
    /// # Errors
    /// A message that is no such message, is longer than one may be, or has more descriptors beside it.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            match recvmsg(
                self.socket.as_fd(),
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        if got.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        // The system's room for descriptors is rounded up, so that a few more than asked for may have come.
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
            || descriptors.len() > DESCRIPTORS_MAX
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message larger than one may be"));
        }
        Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, descriptors)))
    }
}

#[cfg(test)]
#[path = "protocol_test.rs"]
mod protocol_test;
