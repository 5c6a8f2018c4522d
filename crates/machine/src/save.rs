//! A whole machine to a file and back.
//!
//! Order in the file: the specification, the clock, processors, devices, then memory. Memory comes last, so that a machine which
//! cannot be restored here is refused before its memory is read.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;

use umbra_device::ClockV1;
use umbra_engine::CpuState;
use umbra_memory::{Backing, Memory, Region};
use umbra_state::{ChunkKind, Container, ContainerWriter, Record, Saved};
use umbra_x86::cpuid::{CpuidTable, feature};

use crate::MachineError;
use crate::machine::{Machine, Parts};
use crate::spec::MachineSpec;

/// Guest memory is written in chunks of at most this many bytes.
const CHUNK: u64 = 1 << 20;
/// Pieces of this many zero bytes are left out.
const PIECE: usize = 4096;
/// Records in a file: processors and devices.
const RECORDS_MAX: usize = 4096;
/// Bytes of all of them: the greatest machine's processors take 2 MiB. They are held in memory before anything is checked.
const RECORD_BYTES_MAX: usize = 16 << 20;

fn vcpu_id(id: usize) -> String {
    format!("vcpu{id}")
}

impl Machine {
    /// Writes the whole state of a paused machine; `spec` is the document to store, as JSON, by which [`Machine::restore`]'s caller
    /// makes the machine anew.
    ///
    /// # Errors
    /// A device or processor that can't be saved; a disk that can't be flushed; what the system says of `out`.
    pub fn save<W: Write>(&self, spec_json: &[u8], out: W) -> Result<W, MachineError> {
        // What the guest was told to be on its disks is on them before the file is.
        self.board.functions.flush_disks()?;
        let mut file = ContainerWriter::new(out)?;
        file.chunk(ChunkKind::Spec, 0, spec_json)?;
        let mut records = vec![ClockV1 { now: self.clock.now() }.to_record("clock")];
        for (id, mut vcpu) in self.crew.vcpus().enumerate() {
            records.push(vcpu.save()?.to_record(&vcpu_id(id)));
        }
        records.extend(self.board.save()?);
        for record in &records {
            let mut bytes = Vec::new();
            umbra_state::Field::put(record, &mut bytes);
            file.chunk(ChunkKind::Record, 0, &bytes)?;
        }
        for (region, _) in self.memory.regions() {
            save_region(&self.memory, region, &mut file)?;
        }
        Ok(file.finish()?)
    }
}

/// Writes what is not zero of a region. Holes of a file behind it are not even looked at.
fn save_region<W: Write>(
    memory: &Memory,
    region: &Region,
    file: &mut ContainerWriter<W>,
) -> Result<(), MachineError> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while let Some(data) = next_data(region, at)? {
        at = data.start;
        while at < data.end {
            let n = CHUNK.min(data.end - at);
            let bytes = &mut buffer[..n as usize];
            memory.read(region.gpa() + at, bytes)?;
            save_pieces(bytes, region.gpa() + at, file)?;
            at += n;
        }
    }
    Ok(())
}

/// Writes the runs of pieces that are not zero.
fn save_pieces<W: Write>(bytes: &[u8], gpa: u64, file: &mut ContainerWriter<W>) -> Result<(), MachineError> {
    let mut run = 0..0;
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        let at = i * PIECE;
        // Without an early end, so that it is done in vectors: most pieces of a large machine are zero.
        if piece.iter().fold(0, |all, b| all | b) != 0 {
            run = if run.is_empty() { at..at + piece.len() } else { run.start..at + piece.len() };
        } else if !run.is_empty() {
            file.chunk(ChunkKind::Memory, gpa + run.start as u64, &bytes[run.clone()])?;
            run = 0..0;
        }
    }
    if !run.is_empty() {
        file.chunk(ChunkKind::Memory, gpa + run.start as u64, &bytes[run])?;
    }
    Ok(())
}

/// The next range of a region, from `at`, that may hold something. Of anonymous memory that is all of it: nothing tells untouched
/// pages from swapped ones (`mincore` does not), and reading an untouched page maps the one page of zeroes that all share.
fn next_data(region: &Region, at: u64) -> Result<Option<Range<u64>>, MachineError> {
    use rustix::fs::{SeekFrom, seek};
    if at >= region.len() {
        return Ok(None);
    }
    let (fd, start) = match region.backing() {
        Backing::File { file, offset } => (file.as_fd(), *offset),
        Backing::Anonymous => return Ok(Some(at..region.len())),
    };
    let host = |e: rustix::io::Errno| MachineError::Host("cannot look for data in guest memory", e.into());
    let last = start + region.len();
    let data = match seek(fd, SeekFrom::Data(start + at)) {
        Ok(data) if data < last => data,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(e) => return Err(host(e)),
    };
    let hole = seek(fd, SeekFrom::Hole(data)).map_err(host)?.min(last);
    Ok(Some(data - start..hole - start))
}

/// A saved machine whose file has been read up to its memory.
pub struct SavedMachine<R: Read> {
    file: Container<R>,
    spec_json: Vec<u8>,
    records: Vec<Record>,
    /// The first chunk of memory: address and bytes.
    first: Option<(u64, Vec<u8>)>,
}

impl<R: Read> SavedMachine<R> {
    /// Reads the specification and all records.
    ///
    /// # Errors
    /// A file that is no saved machine, was cut or altered, or has another order.
    pub fn open(input: R) -> Result<Self, MachineError> {
        let mut file = Container::open(input)?;
        let mut payload = Vec::new();
        let odd = |what: &str| MachineError::Restore(format!("the saved file has {what}"));
        let spec_json = match file.next(&mut payload)? {
            Some((ChunkKind::Spec, _)) => std::mem::take(&mut payload),
            _ => return Err(odd("no specification")),
        };
        let mut records = Vec::new();
        let mut bytes_left = RECORD_BYTES_MAX;
        let first = loop {
            match file.next(&mut payload)? {
                None => break None,
                Some((ChunkKind::Memory, gpa)) => break Some((gpa, std::mem::take(&mut payload))),
                Some((ChunkKind::Record, _)) if records.len() < RECORDS_MAX => {
                    let left = bytes_left.checked_sub(payload.len());
                    bytes_left = left.ok_or_else(|| odd("more state than any machine has"))?;
                    let mut rest = payload.as_slice();
                    records.push(<Record as umbra_state::Field>::take(&mut rest, "record")?);
                }
                Some(_) => return Err(odd("its parts in a wrong order")),
            }
        };
        Ok(Self { file, spec_json, records, first })
    }

    /// The document that was stored.
    pub fn spec_json(&self) -> &[u8] {
        &self.spec_json
    }

    /// Makes the machine and loads it; it is paused.
    ///
    /// # Errors
    /// A machine that this engine or host cannot run; a file that was cut or altered.
    pub fn restore(mut self, spec: MachineSpec, parts: Parts) -> Result<Machine, MachineError> {
        spec.check()?;
        let mut cpus = Vec::new();
        for id in 0..spec.cpus as usize {
            cpus.push(CpuState::from_record(&self.take(&vcpu_id(id))?)?);
        }
        let supported = parts.engine.supported_cpuid()?;
        cpus.iter().try_for_each(|c| check_features(&c.cpuid_table(), &supported, parts.engine.name()))?;
        let clock = ClockV1::from_record(&self.take("clock")?)?;
        let machine = Machine::with_cpuid(spec, parts, Some(&cpus))?;
        if let Some((gpa, bytes)) = self.first.take() {
            machine.memory.write(gpa, &bytes)?;
        }
        let mut payload = Vec::new();
        while let Some((kind, gpa)) = self.file.next(&mut payload)? {
            match kind {
                ChunkKind::Memory => machine.memory.write(gpa, &payload)?,
                _ => {
                    return Err(MachineError::Restore(
                        "the saved file has its parts in a wrong order".into(),
                    ));
                }
            }
        }
        machine.clock.set(clock.now);
        machine.board.load(&mut self.records)?;
        if let Some(extra) = self.records.first() {
            return Err(MachineError::Restore(format!(
                "it has a device `{}` that this version of Umbra does not know",
                extra.id
            )));
        }
        for (state, mut vcpu) in cpus.iter().zip(machine.crew.vcpus()) {
            vcpu.load(state)?;
        }
        Ok(machine)
    }

    fn take(&mut self, id: &str) -> Result<Record, MachineError> {
        take_record(&mut self.records, id)
    }
}

/// The document stored in a saved machine, read from the start of its file.
///
/// # Errors
/// A file that is no saved machine, or was cut or altered there.
pub fn saved_spec(input: impl Read) -> Result<Vec<u8>, MachineError> {
    let mut payload = Vec::new();
    match Container::open(input)?.next(&mut payload)? {
        Some((ChunkKind::Spec, _)) => Ok(payload),
        _ => Err(MachineError::Restore("the saved file has no specification".into())),
    }
}

/// Removes and returns the record `id`.
pub(crate) fn take_record(records: &mut Vec<Record>, id: &str) -> Result<Record, MachineError> {
    let at = records.iter().position(|r| r.id == id);
    let at = at.ok_or_else(|| MachineError::Restore(format!("the saved file lacks the state of `{id}`")))?;
    Ok(records.remove(at))
}

/// Every feature that the guest was shown must be there.
fn check_features(shown: &CpuidTable, supported: &CpuidTable, engine: &str) -> Result<(), MachineError> {
    let live = [feature::OSXSAVE, feature::HTT];
    let missing =
        feature::ALL.iter().filter(|(_, f)| shown.has(*f) && !supported.has(*f) && !live.contains(f));
    let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(MachineError::Restore(format!(
        "its processors have features that the {engine} engine on this host lacks: {}; save machines that shall move with --cpu-model portable",
        missing.join(", ")
    )))
}
