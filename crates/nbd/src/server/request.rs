//! Carrying out requests.
//!
//! Authority: `doc/proto.md`, "Request types" and "Error values".

use std::io;

use umbra_block::{Disk, Error as BlockError};

use super::Export;
use super::handshake::Context;
use super::reply::{Failure, Reply};
use super::session::{Ordered, Session};
use crate::wire::{Allocation, CommandFlags, DIRTY, PAYLOAD_MAX, command, errno};

/// Bytes of a read that are one chunk: they are sent while they are in a processor's cache.
const PIECE: u32 = 512 << 10;
/// Reads from this length on leave out what is zero.
const SPARSE_MIN: u32 = 32 << 10;
/// Extents of one reply.
const EXTENTS_MAX: usize = 4096;
/// Runs of the disk that are looked at for one reply.
const RUNS_MAX: usize = 16384;
/// Memory that a thread keeps for its next request.
const KEPT: usize = 1 << 20;

type Done<T = ()> = Result<T, Failure>;

/// A request that is checked.
struct Checked<'a> {
    disk: &'a Disk,
    flags: CommandFlags,
    offset: u64,
    len: u32,
}

/// Carries a request out and replies; memory for the next one.
///
/// # Errors
/// The client takes no reply.
pub fn carry_out(session: &Session<'_>, ordered: Ordered) -> io::Result<Vec<u8>> {
    let Ordered { head, mut data, .. } = ordered;
    let reply = Reply::to(session, head.cookie.get());
    let (offset, len) = (head.offset.get(), head.len.get());
    match check(session, head.command.get(), head.flags.get(), offset, len) {
        Err(failure) => reply.failed(failure)?,
        Ok(request) => match head.command.get() {
            command::READ => read(session, &reply, &request, &mut data)?,
            command::BLOCK_STATUS => statuses(session, &reply, &request)?,
            other => match change(other, &request, &mut data) {
                Ok(()) => reply.done()?,
                Err(failure) => reply.failed(failure)?,
            },
        },
    }
    if data.capacity() > KEPT {
        data = Vec::new();
    }
    Ok(data)
}

/// Bytes that a read holds at once.
pub fn read_weight(session: &Session<'_>, len: u32, flags: u16) -> u32 {
    let whole = !session.agreed.structured || flags & CommandFlags::DF.bits() != 0;
    if whole { len.min(PAYLOAD_MAX) } else { len.min(PIECE) }
}

fn invalid(what: &'static str) -> Failure {
    Failure(errno::EINVAL, what)
}

fn check<'a>(session: &Session<'a>, kind: u16, flags: u16, offset: u64, len: u32) -> Done<Checked<'a>> {
    let export = session.agreed.export;
    let flags = CommandFlags::from_bits(flags).ok_or(invalid("flags that are not known"))?;
    // Flags that a request may have beside FUA, which all may.
    let (known, writes) = match kind {
        command::READ if session.agreed.structured => (CommandFlags::DF, false),
        command::READ | command::CACHE => (CommandFlags::empty(), false),
        command::WRITE | command::TRIM => (CommandFlags::empty(), true),
        command::WRITE_ZEROES => (CommandFlags::NO_HOLE, true),
        command::BLOCK_STATUS => (CommandFlags::REQ_ONE, false),
        command::FLUSH => (CommandFlags::empty(), false),
        _ => return Err(invalid("this request is not known here")),
    };
    if !(known | CommandFlags::FUA).contains(flags) {
        return Err(invalid("flags that do not belong to the request"));
    }
    if writes && export.read_only {
        return Err(Failure(errno::EPERM, "the export is read-only"));
    }
    let disk = &*export.disk;
    let is_flush = kind == command::FLUSH;
    if !is_flush && offset.checked_add(u64::from(len)).is_none_or(|end| end > disk.size()) {
        let code = if writes { errno::ENOSPC } else { errno::EINVAL };
        return Err(Failure(code, "behind the end of the disk"));
    }
    if kind == command::READ && len > PAYLOAD_MAX {
        return Err(Failure(errno::EOVERFLOW, "more than 32 MiB at once"));
    }
    if kind == command::BLOCK_STATUS && (session.agreed.contexts.is_empty() || len == 0) {
        return Err(invalid("no context was negotiated, or no length is given"));
    }
    Ok(Checked { disk, flags, offset, len })
}

/// The number for an error of the disk.
fn code(error: &BlockError) -> u32 {
    match error {
        BlockError::ReadOnly(_) => errno::EPERM,
        BlockError::OutOfRange { .. } => errno::EINVAL,
        BlockError::Unsupported(_) => errno::ENOTSUP,
        BlockError::Io { source, .. } => {
            let host = source.raw_os_error().and_then(|code| u32::try_from(code).ok());
            match host.filter(|code| errno::ALL.contains(code)) {
                Some(code) => code,
                None if source.kind() == io::ErrorKind::StorageFull => errno::ENOSPC,
                None => errno::EIO,
            }
        }
        _ => errno::EIO,
    }
}

fn told(what: &'static str) -> impl Fn(BlockError) -> Failure {
    move |error| Failure(code(&error), what)
}

/// Reads, and sends what was read. An error behind the first chunk comes as the last one.
fn read(
    session: &Session<'_>,
    reply: &Reply<'_, '_>,
    request: &Checked<'_>,
    data: &mut Vec<u8>,
) -> io::Result<()> {
    let Checked { disk, flags, offset, len } = *request;
    let failed = told("reading failed");
    if len == 0 {
        return reply.done();
    }
    if !session.agreed.structured || flags.contains(CommandFlags::DF) || len < SPARSE_MIN {
        data.resize(len as usize, 0);
        return match disk.read(offset, data) {
            Ok(()) => reply.whole(offset, data),
            Err(error) => reply.failed(failed(error)),
        };
    }
    let mut done = 0;
    while done < len {
        let (at, left) = (offset + u64::from(done), len - done);
        let status = match disk.block_status(at, u64::from(left)) {
            Ok(status) => status,
            Err(error) => return reply.failed(failed(error)),
        };
        // At most what was asked for, and at least a byte.
        let run = u32::try_from(status.len).unwrap_or(left).clamp(1, left);
        // Holes that are smaller than a block cost more than they save.
        if status.zero && (run >= 4096 || run == left) {
            done += run;
            reply.hole(at, run, done == len)?;
            continue;
        }
        let part = if status.zero { left.min(PIECE) } else { run.min(PIECE) };
        data.resize(part as usize, 0);
        match disk.read(at, data) {
            Ok(()) => {
                done += part;
                reply.data(at, data, done == len)?;
            }
            Err(error) => return reply.failed(failed(error)),
        }
    }
    Ok(())
}

fn change(kind: u16, request: &Checked<'_>, data: &mut Vec<u8>) -> Done {
    let Checked { disk, flags, offset, len } = *request;
    match kind {
        command::WRITE => disk.write(offset, data).map_err(told("writing failed"))?,
        command::WRITE_ZEROES => {
            let unmap = !flags.contains(CommandFlags::NO_HOLE);
            disk.write_zeroes(offset, u64::from(len), unmap).map_err(told("writing zeroes failed"))?;
        }
        command::TRIM => disk.discard(offset, u64::from(len)).map_err(told("discarding failed"))?,
        command::CACHE => cache(request, data)?,
        _ => {}
    }
    let durable = flags.contains(CommandFlags::FUA)
        && matches!(kind, command::WRITE | command::WRITE_ZEROES | command::TRIM);
    if durable || kind == command::FLUSH {
        disk.flush().map_err(told("flushing failed"))?;
    }
    Ok(())
}

/// Reads what will be wanted, so that the host has it at hand: as much of it as could be read by one request.
fn cache(request: &Checked<'_>, data: &mut Vec<u8>) -> Done {
    let mut done = 0;
    let wanted = request.len.min(PAYLOAD_MAX);
    while done < wanted {
        let part = (wanted - done).min(PIECE);
        data.resize(part as usize, 0);
        request.disk.read(request.offset + u64::from(done), data).map_err(told("reading failed"))?;
        done += part;
    }
    Ok(())
}

/// Tells of the runs in every context that the client has chosen.
fn statuses(session: &Session<'_>, reply: &Reply<'_, '_>, request: &Checked<'_>) -> io::Result<()> {
    let contexts = &session.agreed.contexts;
    for (index, context) in contexts.iter().enumerate() {
        let extents = match context {
            Context::Allocation => status(request),
            Context::Bitmap(place) => dirty(session.agreed.export, *place, request),
        };
        match extents {
            Ok(extents) => reply.extents(context.id(), &extents, index + 1 == contexts.len())?,
            // It is the last chunk: nothing comes behind a failure.
            Err(failure) => return reply.failed(failure),
        }
    }
    Ok(())
}

/// What is dirty in a bitmap, and what is not, by turns.
fn dirty(export: &Export, place: usize, request: &Checked<'_>) -> Done<Vec<(u32, u32)>> {
    let failed = told("reading the bitmap failed");
    let gone = || Failure(errno::EIO, "the bitmap is gone");
    let name = export.bitmaps.get(place).ok_or_else(gone)?;
    let (node, _) = export.bitmap(name).map_err(&failed)?.ok_or_else(gone)?;
    let bitmaps = node.format().bitmaps().ok_or_else(gone)?;
    let end = request.offset + u64::from(request.len);
    let most = if request.flags.contains(CommandFlags::REQ_ONE) { 1 } else { EXTENTS_MAX };
    let mut extents = Vec::new();
    let mut at = request.offset;
    while at < end && extents.len() < most {
        let found = bitmaps.next_dirty(name, at).map_err(&failed)?;
        let (start, len) = found.filter(|(start, _)| *start < end).unwrap_or((end, 0));
        // Both ends lie within the request, which has no more than 32 bits of length.
        if start > at {
            extents.push(((start - at) as u32, 0));
        }
        let behind = start.saturating_add(len).min(end);
        if behind > start && extents.len() < most {
            extents.push(((behind - start) as u32, DIRTY));
        }
        at = behind.max(start);
    }
    Ok(extents)
}

/// What is where: lengths and flags of runs, neighbours of one kind joined.
fn status(request: &Checked<'_>) -> Done<Vec<(u32, u32)>> {
    let Checked { disk, flags, offset, len } = *request;
    let one = flags.contains(CommandFlags::REQ_ONE);
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut done = 0;
    for _ in 0..RUNS_MAX {
        if done == len {
            break;
        }
        let left = len - done;
        let status = disk
            .block_status(offset + u64::from(done), u64::from(left))
            .map_err(told("looking at the disk failed"))?;
        let run = u32::try_from(status.len).unwrap_or(left).clamp(1, left);
        let mut kind = Allocation::empty();
        kind.set(Allocation::HOLE, !status.data);
        kind.set(Allocation::ZERO, status.zero);
        let count = extents.len();
        match extents.last_mut() {
            // Both lie within one request.
            Some(last) if last.1 == kind.bits() => last.0 += run,
            Some(_) if one || count == EXTENTS_MAX => break,
            _ => extents.push((run, kind.bits())),
        }
        done += run;
    }
    Ok(extents)
}
