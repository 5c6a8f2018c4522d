//! The file that holds a saved machine: checksummed chunks behind a magic number.
//!
//! ```text
//! header   "UMBRASAV" | format: u32 | crc32 of the 12 bytes before
//! chunk    kind: u32 | address: u64 | length: u32 | crc32 of payload: u32 | crc32 of the 20 bytes before | payload
//! last     a chunk of kind End with no payload; its address is the number of chunks before it
//! ```
//! All integers are little-endian. Every byte of the file is covered by a checksum, so a file that was cut or
//! altered anywhere is refused. Chunks of guest memory are written only where it is not zero.

use std::io::{self, Read, Write};

use thiserror::Error;

/// The version of this container's layout.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"UMBRASAV";
/// No chunk is larger: a hostile length cannot make a reader reserve more.
const PAYLOAD_MAX: usize = 64 << 20;

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ChunkKind {
    /// The machine's specification, JSON.
    Spec = 1,
    /// One saved-state record.
    Record = 2,
    /// Guest memory from the guest physical address in the chunk's address.
    Memory = 3,
    /// The end.
    End = 4,
}

impl ChunkKind {
    fn from_u32(n: u32) -> Option<Self> {
        [Self::Spec, Self::Record, Self::Memory, Self::End].into_iter().find(|k| *k as u32 == n)
    }
}

/// Why a saved file could not be read or written.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// The file is something else.
    #[error("this is not a saved Umbra machine (the first bytes are {0:02x?})")]
    NotSaved(Vec<u8>),
    /// Another version of the container.
    #[error("this machine was saved in file format {0}; this version of Umbra reads format {FORMAT_VERSION}")]
    Version(u32),
    /// The file ends early.
    #[error("the saved file is truncated after {0} chunks; save the machine again")]
    Truncated(u64),
    /// A checksum does not match, or a length is impossible.
    #[error("the saved file is corrupt in chunk {0}; save the machine again")]
    Corrupt(u64),
    /// The system refused.
    #[error("cannot read or write the saved file: {0}")]
    Io(#[from] io::Error),
}

/// Writes a container; call [`ContainerWriter::finish`] at the end.
pub struct ContainerWriter<W: Write> {
    out: W,
    chunks: u64,
}

impl<W: Write> ContainerWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(mut out: W) -> Result<Self, ContainerError> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        out.write_all(&head)?;
        Ok(Self { out, chunks: 0 })
    }

    /// Appends a chunk of at most 64 MiB.
    ///
    /// # Errors
    /// What the system says; a payload that is too large.
    pub fn chunk(&mut self, kind: ChunkKind, address: u64, payload: &[u8]) -> Result<(), ContainerError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(ContainerError::Corrupt(self.chunks));
        }
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&(kind as u32).to_le_bytes());
        head.extend_from_slice(&address.to_le_bytes());
        head.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        self.chunks += 1;
        Ok(())
    }

    /// Writes the end and gives the sink back.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self) -> Result<W, ContainerError> {
        let chunks = self.chunks;
        self.chunk(ChunkKind::End, chunks, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads a container chunk by chunk.
pub struct Container<R: Read> {
    input: R,
    chunks: u64,
    ended: bool,
}

impl<R: Read> Container<R> {
    /// Checks the header.
    ///
    /// # Errors
    /// A file that is no saved machine, or of another version.
    pub fn open(mut input: R) -> Result<Self, ContainerError> {
        let mut head = Vec::with_capacity(16);
        input.by_ref().take(16).read_to_end(&mut head)?;
        if head.get(..8) != Some(MAGIC) {
            head.truncate(8);
            return Err(ContainerError::NotSaved(head));
        }
        let [.., v0, v1, v2, v3, c0, c1, c2, c3] = head[..] else { return Err(ContainerError::Truncated(0)) };
        if head.len() < 16 {
            return Err(ContainerError::Truncated(0));
        }
        if crc32fast::hash(&head[..12]) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(ContainerError::Corrupt(0));
        }
        match u32::from_le_bytes([v0, v1, v2, v3]) {
            FORMAT_VERSION => Ok(Self { input, chunks: 0, ended: false }),
            other => Err(ContainerError::Version(other)),
        }
    }

    /// The next chunk's kind and address, with its payload in `payload`; `None` after the end.
    ///
    /// # Errors
    /// A file that was cut or altered.
    pub fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<(ChunkKind, u64)>, ContainerError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.chunks;
        let mut head = [0u8; 24];
        self.fill(&mut head)?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        if crc32fast::hash(&head[..20]) != word(20) {
            return Err(ContainerError::Corrupt(at));
        }
        let kind = ChunkKind::from_u32(word(0)).ok_or(ContainerError::Corrupt(at))?;
        let address = u64::from(word(4)) | u64::from(word(8)) << 32;
        let len = word(12) as usize;
        if len > PAYLOAD_MAX {
            return Err(ContainerError::Corrupt(at));
        }
        payload.clear();
        payload.resize(len, 0);
        self.fill(payload)?;
        if crc32fast::hash(payload) != word(16) {
            return Err(ContainerError::Corrupt(at));
        }
        if kind == ChunkKind::End {
            self.ended = true;
            let mut more = [0u8; 1];
            if address != at || len != 0 || self.input.read(&mut more)? != 0 {
                return Err(ContainerError::Corrupt(at));
            }
            return Ok(None);
        }
        self.chunks += 1;
        Ok(Some((kind, address)))
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), ContainerError> {
        self.input.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ContainerError::Truncated(self.chunks),
            _ => ContainerError::Io(e),
        })
    }
}
