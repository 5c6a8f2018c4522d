//! The target: blocks at their places.

use std::io::{Seek, SeekFrom, Write};

use crate::error::{Error, Result};
use crate::layout::BLOCK;

/// Writes blocks, and seeks only where it must.
#[derive(Debug)]
pub struct Output<W> {
    to: W,
    at: Option<u64>,
}

impl<W: Write + Seek> Output<W> {
    pub fn new(to: W) -> Self {
        Self { to, at: None }
    }

    /// Writes at a byte.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.at != Some(offset) {
            self.to.seek(SeekFrom::Start(offset)).map_err(Error::Write)?;
        }
        // Unknown until all of it is there.
        self.at = None;
        self.to.write_all(bytes).map_err(Error::Write)?;
        self.at = Some(offset + bytes.len() as u64);
        Ok(())
    }

    /// Writes whole blocks.
    pub fn write_block(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        self.write_at(block * BLOCK as u64, bytes)
    }

    pub fn finish(mut self) -> Result<W> {
        self.to.flush().map_err(Error::Write)?;
        Ok(self.to)
    }
}
