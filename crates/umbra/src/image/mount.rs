//! `mount`: a disk as a file of the host, by FUSE. Whatever reads and writes files can use it then, a loop device for one.
//!
//! The mount point is a file, which shows the disk for as long as the command runs: it is the root of a file system with
//! nothing else. Ctrl-C unmounts, flushes and closes the image; where somebody still has the file open, the disk is served
//! until it is closed. Authority: Linux, `Documentation/filesystems/fuse.rst`.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use umbra_block::{Disk, Error};

use super::failure::{Doing, Failure, Outcome, reason, told};
use super::getopt::Parsed;
use super::open::Want;
use super::{Tool, print, tell};

/// How long the kernel may keep what it was told of the file. Only we change it.
const KEPT: Duration = Duration::from_secs(60);
/// How often it is looked whether to end.
const INTERVAL: Duration = Duration::from_millis(50);
const THREADS_MAX: usize = 4;
/// Errors that are told, of each mount: a broken image has one for every request.
const ERRORS_TOLD_MAX: u32 = 20;

/// Modes of `fallocate`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 0x10;
/// Where `lseek` goes.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let [name, point] = parsed.operands.as_slice() else {
        return Err(Failure::usage("Expecting image file name and mount point"));
    };
    let read_only = parsed.has("read-only");
    let want = Want::new(parsed, name)?;
    let disk = Arc::new(tool.open(&if read_only { want } else { want.writable() })?);
    let point = Point::make(Path::new(point), &files_of(&disk))?;
    let session = mount(&disk, &point.path, read_only, parsed.has("allow-other"))
        .doing(|| format!("Could not mount '{name}' at '{}'", point.path.display()))?;
    if !parsed.has("quiet") {
        print(&format!("'{name}' is mounted at '{}'; Ctrl-C unmounts it\n", point.path.display()));
    }
    serve(tool, session, &point.path);
    match Arc::try_unwrap(disk) {
        Ok(disk) => disk.close()?,
        Err(shared) => shared.flush()?,
    }
    Ok(0)
}

/// Files of the chain: none of them can be the mount point.
fn files_of(disk: &Disk) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut next = Some(Disk::over(disk.node()));
    while let Some(disk) = next {
        for storage in disk.node().format().storages() {
            paths.extend(Path::new(&storage.info().name).canonicalize());
        }
        next = disk.backing();
    }
    paths
}

/// The file that the disk is mounted over.
struct Point {
    path: PathBuf,
    /// It was made for that, and goes with it.
    made: bool,
}

impl Point {
    fn make(path: &Path, taken: &[PathBuf]) -> Outcome<Point> {
        let shown = path.display();
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => {
                let path = path.canonicalize().map_err(|error| {
                    Failure::new(format!("Could not open mount point '{shown}': {}", reason(&error)))
                })?;
                match taken.contains(&path) {
                    true => Err(Failure::new(format!("'{shown}' is a file of the image itself"))),
                    false => Ok(Point { path, made: false }),
                }
            }
            Ok(_) => Err(Failure::new(format!(
                "The mount point '{shown}' is no file: the disk is shown as one file; name one, which may be missing yet"
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = File::options().write(true).create_new(true).open(path);
                let path = made.and_then(|_| path.canonicalize()).map_err(|error| {
                    Failure::new(format!("Could not create mount point '{shown}': {}", reason(&error)))
                })?;
                Ok(Point { path, made: true })
            }
            Err(error) => {
                Err(Failure::new(format!("Could not open mount point '{shown}': {}", reason(&error))))
            }
        }
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        // Empty still, unless it is mounted, and then it cannot be removed.
        if self.made && std::fs::metadata(&self.path).is_ok_and(|meta| meta.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn mount(disk: &Arc<Disk>, point: &Path, read_only: bool, all: bool) -> Outcome<BackgroundSession> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(Failure::new(match error.kind() {
            std::io::ErrorKind::NotFound => {
                "/dev/fuse is not there: load the kernel's module (modprobe fuse); a container must be given the device \
                 (--device /dev/fuse --cap-add SYS_ADMIN)"
                    .to_owned()
            }
            _ => format!("/dev/fuse cannot be opened: {}; may this user use FUSE?", reason(&error)),
        }));
    }
    let file = DiskFile { disk: disk.clone(), read_only, since: SystemTime::now(), told: AtomicU32::new(0) };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("umbra".to_owned()),
        MountOption::Subtype("umbra-image".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if all { SessionACL::All } else { SessionACL::Owner };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some(cores.clamp(1, THREADS_MAX));
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "; without the right to mount, fusermount3 (Debian: fuse3) is needed"
            }
            _ => "",
        };
        Failure::new(format!("{}{hint}", reason(&error)))
    };
    Session::new(file, point, &config).and_then(Session::spawn).map_err(failed)
}

/// Waits until it is unmounted, by the user's wish or from elsewhere.
fn serve(tool: &Tool, session: BackgroundSession, point: &Path) {
    while !session.guard.is_finished() && !tool.signals.cancel().is_cancelled() {
        std::thread::sleep(INTERVAL);
    }
    if !session.guard.is_finished() && !unmount(point, false) {
        tool.say(&format!(
            "'{}' is in use: it is unmounted now, and the disk closed when nobody has it open any more",
            point.display()
        ));
        unmount(point, true);
    }
    // What ends the session with an error has been told to whoever used the file.
    let _ = session.join();
}

/// Unmounts; `lazily` also where it is in use. By the kernel, or by the program that may do so for users.
fn unmount(point: &Path, lazily: bool) -> bool {
    use rustix::mount::{UnmountFlags, unmount};
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match unmount(point, flags) {
        Ok(()) => true,
        Err(rustix::io::Errno::PERM) => ["fusermount3", "fusermount"].iter().any(|program| {
            let word = if lazily { "-uzq" } else { "-uq" };
            Command::new(program).arg(word).arg(point).status().is_ok_and(|status| status.success())
        }),
        // Nothing is mounted there any more.
        Err(error) => error == rustix::io::Errno::INVAL,
    }
}

/// The disk as the kernel asks for it.
struct DiskFile {
    disk: Arc<Disk>,
    read_only: bool,
    since: SystemTime,
    told: AtomicU32,
}

impl DiskFile {
    fn attributes(&self) -> FileAttr {
        let size = self.disk.size();
        FileAttr {
            ino: INodeNo::ROOT,
            size,
            blocks: size.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: FileType::RegularFile,
            perm: if self.read_only { 0o400 } else { 0o600 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 65536,
            flags: 0,
        }
    }

    /// An error as a number, told in words too, up to a limit.
    fn errno(&self, error: &Error) -> Errno {
        if self.told.fetch_add(1, Ordering::Relaxed) < ERRORS_TOLD_MAX {
            tell(&told(error));
        }
        match error {
            Error::Io { source, .. } => {
                Errno::from_i32(source.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
            }
            Error::ReadOnly(_) => Errno::EROFS,
            Error::OutOfRange { .. } => Errno::EINVAL,
            Error::Unsupported(_) => Errno::EOPNOTSUPP,
            _ => Errno::EIO,
        }
    }

    fn settle(&self, done: umbra_block::Result<()>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno(&error)),
        }
    }

    /// The next byte of data, or of a hole, from `offset` on.
    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Error> {
        let size = self.disk.size();
        let mut at = offset;
        while at < size {
            let status = self.disk.block_status(at, size - at)?;
            if status.zero == hole {
                return Ok(Some(at));
            }
            at += status.len.max(1);
        }
        Ok((hole && offset < size).then_some(size))
    }
}

impl Filesystem for DiskFile {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOTDIR);
    }

    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEPT, &self.attributes());
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The disk's size stays: `resize` changes it. What truncates a file before it writes it whole is let through.
        let truncates = size.is_some_and(|size| size != self.disk.size());
        match mode.is_some() || uid.is_some() || gid.is_some() || truncates && size != Some(0) {
            true => reply.error(Errno::EPERM),
            false => reply.attr(&KEPT, &self.attributes()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.read_only && flags.acc_mode() != fuser::OpenAccMode::O_RDONLY {
            true => reply.error(Errno::EROFS),
            false => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.disk.size().saturating_sub(offset).min(size.into());
        // At most what the kernel asks for at once.
        let mut bytes = vec![0; len as usize];
        match self.disk.read(offset, &mut bytes) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(self.errno(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = self.disk.size().saturating_sub(offset).min(data.len() as u64);
        if len == 0 && !data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        match self.disk.write(offset, &data[..len as usize]) {
            Ok(()) => reply.written(len as u32),
            Err(error) => reply.error(self.errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.settle(self.disk.flush(), reply);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.settle(self.disk.flush(), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        let size = self.disk.size();
        if mode & KEEP_SIZE == 0 && end > size {
            return reply.error(Errno::ENOSPC);
        }
        let len = end.min(size).saturating_sub(offset);
        match mode & !KEEP_SIZE {
            PUNCH_HOLE => self.settle(self.disk.write_zeroes(offset.min(size), len, true), reply),
            ZERO_RANGE => self.settle(self.disk.write_zeroes(offset.min(size), len, false), reply),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let (SEEK_DATA | SEEK_HOLE, Ok(from)) = (whence, u64::try_from(offset)) else {
            return reply.error(Errno::EINVAL);
        };
        match self.seek(from, whence == SEEK_HOLE) {
            // A disk's size is below 2^63.
            Ok(Some(at)) => reply.offset(at as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(self.errno(&error)),
        }
    }
}
