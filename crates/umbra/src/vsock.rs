//! Sockets between programs of the guest and of the host: the option `--vsock`, and how what the device needs comes to the worker.
//!
//! The worker is given a Unix socket that listens, and can open none itself: where the guest connects to a port of the host,
//! it asks the broker, which connects to the path with `_` and the port behind it, and passes the connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use umbra_machine::{MachineSpec, VsockHost, VsockOutside, VsockSpec};

use crate::disk::split;
use crate::paths::{SOCKET_PATH_MAX, control_socket};

/// What `--vsock` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockOption {
    /// No socket device.
    None,
    /// One.
    Device {
        /// The guest's context ID.
        cid: Option<u32>,
        /// Where the host's side is; without it, where `umbra shell` looks for it.
        uds: Option<PathBuf>,
    },
}

/// Reads `none` or `[cid=N][,][uds=PATH]`.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse(text: &str) -> Result<VsockOption, String> {
    if text == "none" {
        return Ok(VsockOption::None);
    }
    let (mut cid, mut uds) = (None, None);
    for part in split(text) {
        match part.split_once('=') {
            Some(("cid", value)) if cid.is_none() => {
                let number = value.parse().ok().filter(|cid| (3..u32::MAX).contains(cid));
                let wrong = || format!("`{value}` is no context ID of a guest; give 3 to {}", u32::MAX - 1);
                cid = Some(number.ok_or_else(wrong)?);
            }
            Some(("uds", value)) if uds.is_none() && !value.is_empty() => uds = Some(PathBuf::from(value)),
            Some((name @ ("cid" | "uds"), _)) => {
                return Err(format!("{name}= is given twice, or is empty"));
            }
            _ => return Err(format!("`{part}` is no option of sockets; they are cid= and uds=")),
        }
    }
    Ok(VsockOption::Device { cid, uds })
}

/// Where the host's side of machine `name`'s sockets is, unless the user says otherwise.
///
/// # Errors
/// There is no folder for it.
pub fn default_path(name: &str) -> anyhow::Result<PathBuf> {
    Ok(control_socket(name)?.with_extension("vsock"))
}

/// The device of a machine that is started, and the path of its host's side. `is_ours`: the guest's image is one of ours, so that
/// it has a device without being asked for one.
///
/// # Errors
/// As [`default_path`].
pub fn of_new(
    option: Option<&VsockOption>,
    is_ours: bool,
    name: &str,
) -> anyhow::Result<(Option<VsockSpec>, Option<PathBuf>)> {
    let (cid, uds) = match option {
        Some(VsockOption::Device { cid, uds }) => (*cid, uds.clone()),
        None if is_ours => (None, None),
        None | Some(VsockOption::None) => return Ok((None, None)),
    };
    let spec = cid.map_or_else(VsockSpec::default, |cid| VsockSpec { cid });
    Ok((Some(spec), Some(uds.map_or_else(|| default_path(name), Ok)?)))
}

/// The path of the host's side of a saved machine's sockets.
///
/// # Errors
/// The machine has no such device, or another one.
pub fn of_saved(
    spec: &MachineSpec,
    option: Option<&VsockOption>,
    name: &str,
) -> anyhow::Result<Option<PathBuf>> {
    match (spec.vsock, option) {
        (None, None | Some(VsockOption::None)) => Ok(None),
        (None, Some(_)) => bail!("the saved machine has no socket device; leave --vsock out"),
        (Some(_), None) => default_path(name).map(Some),
        (Some(_), Some(VsockOption::None)) => {
            bail!("the saved machine has a socket device; leave --vsock none out")
        }
        (Some(_), Some(VsockOption::Device { cid: Some(_), .. })) => {
            bail!("a saved machine keeps its context ID; leave cid= out")
        }
        (Some(_), Some(VsockOption::Device { cid: None, uds })) => {
            uds.clone().map_or_else(|| default_path(name), Ok).map(Some)
        }
    }
}

/// The host's side, listening; its files go away with it.
pub struct Listening {
    path: PathBuf,
    /// Another name of it.
    link: Option<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // What is gone already is well.
        for path in self.link.iter().chain([&self.path]) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listening {
    /// Listens at `path`, for this user alone, and serves the worker with connections from now on. What the worker is to be given.
    ///
    /// # Errors
    /// Somebody listens there already, or the path cannot be.
    pub fn start(path: &Path) -> anyhow::Result<(Self, [OwnedFd; 2])> {
        let failed = || format!("cannot listen at {}", path.display());
        if UnixStream::connect(path).is_ok() {
            bail!("somebody listens at {} already; give another path with --vsock uds=", path.display());
        }
        // What a machine that was killed left; anything else than a socket stays.
        let is_socket = std::fs::symlink_metadata(path)
            .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
        if is_socket {
            std::fs::remove_file(path).with_context(failed)?;
        }
        let listener = UnixListener::bind(path).with_context(failed)?;
        let this = Self { path: path.to_owned(), link: None };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (asks, answers) = pair.context("cannot make a socket")?;
        let base = path.to_owned();
        // It ends when the worker does.
        std::thread::Builder::new().name("vsock".into()).spawn(move || serve(&answers, &base))?;
        Ok((this, [listener.into(), asks]))
    }
}

impl Listening {
    /// Lets it be found at `known` as well, by who knows no more than the machine's name.
    ///
    /// # Errors
    /// Something else than what a machine that was killed left is there.
    pub fn known_as(mut self, known: PathBuf) -> anyhow::Result<Self> {
        if known != self.path {
            let failed = || format!("cannot make {}", known.display());
            if std::fs::symlink_metadata(&known).is_ok_and(|meta| !meta.is_dir() && !meta.is_file()) {
                std::fs::remove_file(&known).with_context(failed)?;
            }
            let path = std::path::absolute(&self.path).with_context(failed)?;
            std::os::unix::fs::symlink(path, &known).with_context(failed)?;
            self.link = Some(known);
        }
        Ok(self)
    }
}

/// Connects for the worker until it ends.
fn serve(asking: &OwnedFd, base: &Path) {
    let mut port = [0; 4];
    loop {
        match rustix::net::recv(asking, &mut port, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((4, 4)) => {
                if answer(asking, connect(base, u32::from_le_bytes(port))).is_err() {
                    return;
                }
            }
            // It has ended, or does not keep to what is agreed on.
            _ => return,
        }
    }
}

/// Connects to whoever listens for connections of the guest to this port, without waiting.
fn connect(base: &Path, port: u32) -> io::Result<OwnedFd> {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    if path.len() > SOCKET_PATH_MAX {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_os_str())?)?;
    Ok(socket)
}

fn answer(asking: &OwnedFd, connected: io::Result<OwnedFd>) -> io::Result<()> {
    let descriptors: Vec<_> = connected.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let is_there = [u8::from(connected.is_ok())];
    sendmsg(asking, &[IoSlice::new(&is_there)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The worker's side: asks the broker.
struct Asking(OwnedFd);

impl VsockOutside for Asking {
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd> {
        rustix::net::send(&self.0, &port.to_le_bytes(), SendFlags::NOSIGNAL)?;
        let mut is_there = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut is_there)];
        while let Err(error) = recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let socket = descriptors.next().and_then(|mut descriptors| descriptors.next());
        socket.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// Makes the worker's end.
///
/// # Errors
/// A descriptor is missing.
pub fn make(descriptors: &mut dyn Iterator<Item = OwnedFd>) -> anyhow::Result<VsockHost> {
    let mut next = || descriptors.next().context("the broker sent no descriptor for sockets");
    Ok(VsockHost { listener: Some(next()?), outside: Box::new(Asking(next()?)) })
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod vsock_test;
