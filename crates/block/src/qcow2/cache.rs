//! Pieces of tables in memory: of L2 tables, or of refcount blocks. Bounded; what is dirty stays until it is written.

use std::collections::HashMap;

use crate::{Error, Result, Storage, StorageExt};

/// Bytes of one piece, at most: a table may have 2 MiB.
pub(super) const PIECE_MAX: u64 = 16 << 10;
/// The fewest pieces that are kept: one write works on several.
const PIECES_MIN: usize = 16;

#[derive(Debug)]
pub(super) struct Piece {
    pub bytes: Box<[u8]>,
    pub dirty: bool,
    used: u64,
}

impl Piece {
    pub(super) fn word(&self, index: u64) -> u64 {
        let at = index as usize * 8;
        self.bytes.get(at..at + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()))
    }

    pub(super) fn set_word(&mut self, index: u64, value: u64) {
        let at = index as usize * 8;
        if let Some(bytes) = self.bytes.get_mut(at..at + 8) {
            bytes.copy_from_slice(&value.to_be_bytes());
            self.dirty = true;
        }
    }
}

/// Pieces by their offset in the file.
#[derive(Debug)]
pub(super) struct Cache {
    pieces: HashMap<u64, Piece>,
    piece_len: u64,
    max: usize,
    clock: u64,
    dirty_count: usize,
}

impl Cache {
    /// For tables of one cluster each; `bytes_max` of them.
    pub(super) fn new(cluster: u64, bytes_max: u64) -> Self {
        let piece_len = cluster.min(PIECE_MAX);
        let mut cache = Self { pieces: HashMap::new(), piece_len, max: 0, clock: 0, dirty_count: 0 };
        cache.set_limit(bytes_max);
        cache
    }

    /// Keeps to another limit from now on.
    pub(super) fn set_limit(&mut self, bytes_max: u64) {
        self.max = usize::try_from(bytes_max / self.piece_len).unwrap_or(usize::MAX).max(PIECES_MIN);
    }

    pub(super) fn piece_len(&self) -> u64 {
        self.piece_len
    }

    /// Whether the next piece that is not here finds no room: everything must be written back first.
    pub(super) fn is_full_of_dirt(&self) -> bool {
        self.dirty_count >= self.max * 3 / 4
    }

    pub(super) fn has_dirty(&self) -> bool {
        self.dirty_count > 0
    }

    /// The piece at `offset`, read where it is not here.
    pub(super) fn get(&mut self, storage: &dyn Storage, offset: u64) -> Result<&mut Piece> {
        self.clock += 1;
        if !self.pieces.contains_key(&offset) {
            self.make_room();
            let bytes = storage.read_vec(offset, self.piece_len as usize)?;
            self.pieces.insert(offset, Piece { bytes: bytes.into(), dirty: false, used: 0 });
        }
        let piece =
            self.pieces.get_mut(&offset).ok_or_else(|| Error::corrupt("a table's piece is not kept"))?;
        piece.used = self.clock;
        Ok(piece)
    }

    /// Changes the piece at `offset`.
    pub(super) fn change<T>(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        work: impl FnOnce(&mut Piece) -> T,
    ) -> Result<T> {
        let piece = self.get(storage, offset)?;
        let was = piece.dirty;
        let done = work(piece);
        let is = piece.dirty;
        self.dirty_count += usize::from(is && !was);
        Ok(done)
    }

    /// Forgets pieces of `start..end` without writing them: the clusters are somebody else's now.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        let mut offset = start;
        while offset < end && !self.pieces.is_empty() {
            if self.pieces.remove(&offset).is_some_and(|piece| piece.dirty) {
                self.dirty_count -= 1;
            }
            offset += self.piece_len;
        }
    }

    /// Forgets everything; nothing is dirty.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.dirty_count = 0;
    }

    /// Writes what is dirty, in the order of offsets.
    pub(super) fn write_dirty(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.dirty_count == 0 {
            return Ok(());
        }
        let dirty = self.pieces.iter().filter(|(_, piece)| piece.dirty);
        let mut offsets: Vec<u64> = dirty.map(|(&offset, _)| offset).collect();
        offsets.sort_unstable();
        for offset in offsets {
            if let Some(piece) = self.pieces.get_mut(&offset) {
                storage.write_at(offset, &piece.bytes)?;
                piece.dirty = false;
                self.dirty_count -= 1;
            }
        }
        Ok(())
    }

    /// Throws out a quarter of the clean pieces, those that were not used for longest, where there is no room.
    fn make_room(&mut self) {
        if self.pieces.len() < self.max {
            return;
        }
        let mut clean: Vec<u64> =
            self.pieces.values().filter(|piece| !piece.dirty).map(|piece| piece.used).collect();
        if clean.is_empty() {
            return;
        }
        let keep = clean.len() / 4;
        let (_, &mut limit, _) = clean.select_nth_unstable(keep);
        self.pieces.retain(|_, piece| piece.dirty || piece.used > limit);
    }
}
