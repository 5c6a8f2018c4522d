//! Files to the guest and from it.

use core::ffi::CStr;

use crate::frames::{end, fail, receive, send, send_pair, write_all};
use crate::protocol::{BODY_MAX, END, EXIT, IN, OUT, STARTED, step};
use crate::strings::{PATH_MAX, join, next};
use crate::sys::{self, EINVAL, ENAMETOOLONG, O_CREAT, O_NOCTTY, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY};

const KIND: u32 = 0o170000;
const FOLDER: u32 = 0o040000;
const READ_AT_ONCE: usize = 32 << 10;

fn is_folder(path: &CStr) -> bool {
    let Ok(fd) = sys::open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0) else { return false };
    let status = sys::file_status(fd);
    sys::close(fd);
    matches!(status, Ok((mode, _)) if mode & KIND == FOLDER)
}

/// What the host asks for: permissions, a path, and a name in it.
fn read_request(bytes: &[u8]) -> Option<(u32, &CStr, &CStr)> {
    let (mode, mut strings) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*mode) & 0o7777, next(&mut strings)?, next(&mut strings)?))
}

/// Writes a file of the host's.
pub fn write(fd: i32, request: &[u8]) -> ! {
    let (mode, path, name) = read_request(request).unwrap_or_else(|| fail(fd, step::REQUEST, EINVAL));
    let mut space = [0; PATH_MAX];
    let path = match is_folder(path) {
        true => join(&mut space.as_mut_slice(), &[path.to_bytes(), b"/", name.to_bytes()])
            .unwrap_or_else(|| fail(fd, step::OPEN, ENAMETOOLONG)),
        false => path,
    };
    let file = sys::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY, 0o600);
    let file = file.unwrap_or_else(|error| fail(fd, step::OPEN, error));
    send(fd, STARTED, &[]);
    let mut body = [0; BODY_MAX];
    loop {
        match receive(fd, &mut body) {
            (IN, bytes) => {
                if let Err(error) = write_all(file, bytes) {
                    fail(fd, step::WRITE, error);
                }
            }
            (END, _) => break,
            _ => fail(fd, step::REQUEST, EINVAL),
        }
    }
    if let Err(error) = sys::set_mode(file, mode) {
        fail(fd, step::WRITE, error);
    }
    sys::close(file);
    send_pair(fd, EXIT, 0, 0);
    end(fd);
}

/// Reads a file for the host.
pub fn read(fd: i32, request: &[u8]) -> ! {
    let path = CStr::from_bytes_until_nul(request).unwrap_or_else(|_| fail(fd, step::REQUEST, EINVAL));
    let file = sys::open(path, O_RDONLY | O_NOCTTY, 0);
    let file = file.unwrap_or_else(|error| fail(fd, step::OPEN, error));
    let (mode, size) = sys::file_status(file).unwrap_or_else(|error| fail(fd, step::OPEN, error));
    if mode & KIND == FOLDER {
        fail(fd, step::IS_FOLDER, 0);
    }
    let mut about = [0; 12];
    let (first, second) = about.split_at_mut(4);
    first.copy_from_slice(&(mode & 0o7777).to_le_bytes());
    second.copy_from_slice(&size.to_le_bytes());
    send(fd, STARTED, &about);
    let mut bytes = [0; READ_AT_ONCE];
    loop {
        match sys::read(file, &mut bytes) {
            Ok(0) => break,
            Ok(n) => send(fd, OUT, bytes.get(..n).unwrap_or_default()),
            Err(error) => fail(fd, step::READ, error),
        }
    }
    send_pair(fd, EXIT, 0, 0);
    end(fd);
}
