//! MSI-X: a table of messages, one a vector, and an array of those that wait behind a mask (PCI Local Bus Specification
//! 3.0, section 6.8.2).
//!
//! The capability's control word is in configuration space ([`crate::ConfigSpace::with_msix`]); table and array are
//! behind a base address register, where the function puts them. Vectors may be sent from any thread: whoever signals
//! needs no lock but the one in here, which is held while a message is sent.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use umbra_device::{DeviceError, Msi, MsiLine};
use umbra_state::{Record, Saved};

use crate::lock;

/// Bytes of an entry: address, data, vector control.
const ENTRY_LEN: usize = 16;
/// Where the vector control word is in an entry.
const VECTOR_CONTROL: usize = 12;
/// Vector control: no message is sent for this entry.
const ENTRY_MASKED: u8 = 1;
/// Message control: all vectors are masked.
const FUNCTION_MASKED: u16 = 1 << 14;
/// Message control: MSI-X is on, and the interrupt pin off.
const ENABLED: u16 = 1 << 15;
/// Message control: what a guest can write.
pub(crate) const CONTROL_WRITABLE: u16 = ENABLED | FUNCTION_MASKED;

umbra_state::saved! {
    /// MSI-X of a function; the control word is saved with its configuration space.
    pub struct MsixV1: "pci-msix", 1 {
        /// The table's bytes.
        1 table: Vec<u8>,
        /// Which vectors wait, one bit each.
        2 pending: Vec<u8>,
    }
}

#[derive(Debug)]
struct State {
    /// The table as a guest sees it.
    table: Vec<u8>,
    /// The pending bit array as a guest sees it: whole quad words.
    pending: Vec<u8>,
    control: u16,
}

struct Shared {
    line: MsiLine,
    state: Mutex<State>,
}

/// A function's vectors. Clones are the same ones.
#[derive(Clone)]
pub struct Msix(Arc<Shared>);

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix").field("vectors", &self.vectors()).finish_non_exhaustive()
    }
}

impl State {
    fn new(vectors: u16) -> Self {
        let mut state = Self { table: Vec::new(), pending: Vec::new(), control: 0 };
        state.clear(usize::from(vectors));
        state
    }

    /// As at power-on: every entry masked.
    fn clear(&mut self, vectors: usize) {
        self.table = [[0; VECTOR_CONTROL].as_slice(), &[ENTRY_MASKED, 0, 0, 0]].concat().repeat(vectors);
        self.pending = vec![0; vectors.div_ceil(64) * 8];
        self.control = 0;
    }

    fn vectors(&self) -> usize {
        self.table.len() / ENTRY_LEN
    }

    fn message(&self, vector: usize) -> Option<(Msi, bool)> {
        let entry = self.table.get(vector * ENTRY_LEN..)?.first_chunk::<ENTRY_LEN>()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, control, ..] = *entry;
        let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let data = u32::from_le_bytes([i, j, k, l]);
        Some((Msi { address, data }, control & ENTRY_MASKED != 0))
    }

    fn set_pending(&mut self, vector: usize, waits: bool) {
        if let Some(byte) = self.pending.get_mut(vector / 8) {
            let bit = 1 << (vector % 8);
            *byte = if waits { *byte | bit } else { *byte & !bit };
        }
    }

    /// Sends what waits among `vectors` and may go.
    fn send_pending(&mut self, line: &MsiLine, vectors: Range<usize>) {
        if self.control & (ENABLED | FUNCTION_MASKED) != ENABLED {
            return;
        }
        for vector in vectors {
            let waits = self.pending.get(vector / 8).is_some_and(|byte| byte >> (vector % 8) & 1 != 0);
            if let Some((message, false)) = self.message(vector).filter(|_| waits) {
                self.set_pending(vector, false);
                line.send(message);
            }
        }
    }
}

/// Copies what `offset` and the bytes from there have in common; the rest reads as zeroes.
fn read_from(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

impl Msix {
    /// The most that a table holds.
    pub const VECTORS_MAX: u16 = 2048;

    /// `vectors` of them (1 to 2,048; others are taken as the nearest), sent by `line`.
    pub fn new(vectors: u16, line: MsiLine) -> Self {
        let state = Mutex::new(State::new(vectors.clamp(1, Self::VECTORS_MAX)));
        Self(Arc::new(Shared { line, state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// How many there are.
    pub fn vectors(&self) -> u16 {
        self.state().vectors() as u16
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        self.state().table.len() as u64
    }

    /// Bytes of the pending bit array.
    pub fn pending_len(&self) -> u64 {
        self.state().pending.len() as u64
    }

    /// Whether the guest has it on; the interrupt pin is then not used.
    pub fn is_enabled(&self) -> bool {
        self.state().control & ENABLED != 0
    }

    /// Signals `vector`: its message is sent, or waits behind a mask. Nothing happens where MSI-X is off or there is no
    /// such vector.
    pub fn signal(&self, vector: u16) {
        let mut state = self.state();
        let vector = usize::from(vector);
        if state.control & ENABLED == 0 {
            return;
        }
        match state.message(vector) {
            Some((message, false)) if state.control & FUNCTION_MASKED == 0 => self.0.line.send(message),
            Some(_) => state.set_pending(vector, true),
            None => {}
        }
    }

    /// A guest reads the table at `offset`, any length.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state().table, offset, data);
    }

    /// A guest reads the pending bit array at `offset`, any length. It cannot be written.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state().pending, offset, data);
    }

    /// A guest writes the table at `offset`, any length. What waits behind a mask that goes is sent.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let Some(at) = usize::try_from(offset).ok().filter(|at| *at < state.table.len()) else { return };
        for ((i, to), from) in state.table.iter_mut().enumerate().skip(at).zip(data) {
            // The other bits of vector control are reserved.
            *to = match i % ENTRY_LEN {
                VECTOR_CONTROL => from & ENTRY_MASKED,
                i if i > VECTOR_CONTROL => 0,
                _ => *from,
            };
        }
        let end = (at + data.len()).div_ceil(ENTRY_LEN).min(state.vectors());
        state.send_pending(&self.0.line, at / ENTRY_LEN..end);
    }

    /// The control word was written.
    pub(crate) fn set_control(&self, control: u16) {
        let mut state = self.state();
        if std::mem::replace(&mut state.control, control) != control {
            let all = 0..state.vectors();
            state.send_pending(&self.0.line, all);
        }
    }

    /// The control word of a restored function: nothing is sent.
    pub(crate) fn restore_control(&self, control: u16) {
        self.state().control = control;
    }

    /// As at power-on.
    pub fn reset(&self) {
        let mut state = self.state();
        let vectors = state.vectors();
        state.clear(vectors);
    }

    /// Table and pending bits, for a saved state.
    pub fn save(&self) -> Record {
        let state = self.state();
        MsixV1 { table: state.table.clone(), pending: state.pending.clone() }.to_record("msix")
    }

    /// Takes a saved state of the function `id`. Nothing is sent.
    ///
    /// # Errors
    /// A state of another number of vectors, or one that no guest could have made.
    pub fn load(&self, id: &str, record: &Record) -> Result<(), DeviceError> {
        let MsixV1 { table, pending } = MsixV1::from_record(record).map_err(DeviceError::state(id))?;
        let mut state = self.state();
        let vectors = state.vectors();
        let control = |entry: &[u8]| matches!(entry.get(VECTOR_CONTROL..), Some([0 | ENTRY_MASKED, 0, 0, 0]));
        let beyond = |vector: &usize| pending.get(vector / 8).is_some_and(|b| b >> (vector % 8) & 1 != 0);
        if table.len() != state.table.len()
            || pending.len() != state.pending.len()
            || !table.chunks(ENTRY_LEN).all(control)
            || (vectors..pending.len() * 8).any(|vector| beyond(&vector))
        {
            return Err(DeviceError::Impossible { id: id.into(), what: "MSI-X table" });
        }
        (state.table, state.pending) = (table, pending);
        Ok(())
    }
}
