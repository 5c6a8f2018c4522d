//! Writing: new blocks go to the file's end, their entries through the log.

use std::sync::{Arc, Mutex};

use umbra_block::{
    BackingRef, Error, FormatWrite, Options, Place, Prepare, Prepared, Result, Storage, StorageExt,
    StorageId, Task, Token,
};
use zerocopy::IntoBytes;

use super::layout::{Guid, HEADERS, Header, MIB, Range};
use super::log::{self, PAGES_MAX};
use super::{Image, PRESENT};
use crate::common::{
    Reserved, Unit, absent_run, hold, in_new_unit, in_place, pending, random_uuid, unsupported,
};

/// What an image that is written has.
#[derive(Debug)]
pub(super) struct Session {
    state: Mutex<State>,
    /// Where the next block goes. `None` until somebody allocates.
    end: Mutex<Option<u64>>,
    /// Where no block may be.
    reserved: Reserved,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// Which of the two headers is in use.
    slot: usize,
    /// The sequence number of the last entry of the log.
    sequence: u64,
    /// Whether the header says that this session writes.
    begun: bool,
}

/// A block that waits for its data.
struct Pending {
    block: u64,
    start: u64,
}

impl State {
    /// Makes a changed header the one in use: it is written to the other place.
    fn put(&mut self, storage: &Arc<dyn Storage>) -> Result<()> {
        self.header.sequence = (self.header.sequence.get().wrapping_add(1)).into();
        self.header = self.header.clone().sealed();
        self.slot = 1 - self.slot;
        storage.write_at(HEADERS[self.slot], self.header.as_bytes())?;
        storage.flush()
    }

    /// Before the first change: new identities of the file's content, and of the log.
    fn begin(&mut self, storage: &Arc<dyn Storage>) -> Result<()> {
        if self.begun {
            return Ok(());
        }
        self.header.file_write = random_uuid()?;
        self.header.data_write = random_uuid()?;
        self.header.log = random_uuid()?;
        self.put(storage)?;
        self.begun = true;
        Ok(())
    }
}

impl Session {
    /// Begins with a file whose log is empty.
    pub(super) fn new(slot: usize, header: Header, regions: [Range; 2]) -> Result<Session> {
        let mut reserved = Reserved::default();
        reserved.add("headers", 0, MIB)?;
        reserved.add("log", header.log_offset.get(), header.log_len.get().into())?;
        for region in regions {
            reserved.add("region", region.offset, region.len)?;
        }
        let state = State { header, slot, sequence: 0, begun: false };
        Ok(Session { state: Mutex::new(state), end: Mutex::new(None), reserved })
    }
}

/// Writes what a log orders into the file, and empties the log.
pub(super) fn replay(
    storage: &Arc<dyn Storage>,
    slot: usize,
    header: &Header,
    replay: &log::Replay,
) -> Result<(usize, Header)> {
    for (&offset, page) in &replay.pages {
        storage.write_at(offset, page)?;
    }
    if storage.len()? < replay.file_len && !storage.info().fixed_len {
        storage.set_len(replay.file_len)?;
    }
    storage.flush()?;
    let mut state = State { header: header.clone(), slot, sequence: 0, begun: true };
    state.header.log = Guid::default();
    state.put(storage)?;
    Ok((state.slot, state.header))
}

impl Image {
    pub(super) fn flush_all(&self, session: &Session) -> Result<()> {
        let mut state = hold(&session.state);
        let pages = self.table.changed();
        if !pages.is_empty() {
            state.begin(self.storage())?;
            // Blocks whose end was never written are whole all the same.
            let end = hold(&session.end).unwrap_or(0);
            if self.storage().len()? < end && !self.storage().info().fixed_len {
                self.storage().set_len(end)?;
            }
            self.storage().flush()?;
            let len = self.storage().len()?;
            let room = (state.header.log_len.get() as usize / super::PAGE as usize)
                .saturating_sub(1)
                .clamp(1, PAGES_MAX);
            for batch in pages.chunks(room) {
                state.sequence += 1;
                let entry = log::entry(batch, state.sequence, state.header.log, len);
                self.storage().write_at(state.header.log_offset.get(), &entry)?;
                self.storage().flush()?;
                self.table.write_back(batch)?;
                self.storage().flush()?;
            }
        }
        self.storage().flush()
    }

    pub(super) fn close_session(&self, session: &Session) -> Result<()> {
        self.flush_all(session)?;
        let mut state = hold(&session.state);
        if state.begun {
            state.header.log = Guid::default();
            state.put(self.storage())?;
            state.begun = false;
        }
        Ok(())
    }

    /// Finds the end of the file and of all blocks, wherever the table says that they are.
    fn find_end(&self) -> Result<u64> {
        let mut end = self.storage().len()?;
        for block in 0..self.metadata.blocks() {
            if let Unit::At(start) = self.look(block)? {
                end = end.max(start.saturating_add(self.metadata.block));
            }
        }
        end.checked_next_multiple_of(MIB)
            .ok_or_else(|| Error::corrupt("a block lies behind the end of all files"))
    }

    /// Takes the place of a new block.
    fn allocate(&self, session: &Session) -> Result<u64> {
        let mut end = hold(&session.end);
        let start = match *end {
            Some(end) => end,
            None => self.find_end()?,
        };
        let next = start.checked_add(self.metadata.block).filter(|next| *next <= i64::MAX as u64);
        *end = Some(next.ok_or_else(|| Error::Refused("the image is as large as a file can be".into()))?);
        Ok(start)
    }

    fn session(&self) -> Result<&Session> {
        self.session.as_ref().ok_or_else(|| Error::ReadOnly("write".into()))
    }
}

impl FormatWrite for Image {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        let session = self.session()?;
        if let Prepare::Compressed { .. } = how {
            return Ok(None);
        }
        // Also what is written in place is another content of the file.
        hold(&session.state).begin(self.storage())?;
        let unit = self.metadata.block;
        let block = offset / unit;
        let within = offset % unit;
        let len = len.min(unit - within);
        if let Unit::At(start) = self.look(block)? {
            session.reserved.refuse(start, unit)?;
            return Ok(Some(in_place(Place::plain(StorageId(0), start + within), len)));
        }
        if how == Prepare::InPlace {
            return Ok(None);
        }
        let start = self.allocate(session)?;
        let token = Box::new(Pending { block, start });
        Ok(Some(in_new_unit(&**self.storage(), start, unit, within, len, token)))
    }

    fn commit(&self, token: Token) -> Result<()> {
        let pending: Pending = pending(token)?;
        self.table.set(self.index(pending.block), (pending.start | PRESENT).to_le_bytes())?;
        if self.table.is_full() { self.flush_all(self.session()?) } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64> {
        absent_run(offset, len, self.metadata.block, |block| self.look(block))
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        unsupported("the parent of a VHDX image cannot be changed")
    }

    fn amend(&self, _options: &Options, _task: &Task<'_>) -> Result<()> {
        unsupported("Format driver 'vhdx' does not support option amendment")
    }
}
