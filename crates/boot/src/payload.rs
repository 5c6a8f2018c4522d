//! Unpacking the kernel inside a bzImage.
//!
//! The file is not trusted: output is bounded by what the kernel's own header asks for, memory of the decoders by a
//! limit, time by both. The build appends the unpacked size as four bytes to all formats but gzip, which has it
//! anyway; it is used as a hint for the allocation only.

use std::io::{self, Read};

use liblzma::read::XzDecoder;
use liblzma::stream::Stream;

use crate::error::{BootError, starts_with};

/// The greatest dictionary that a kernel build uses is 128 MiB; the decoder needs a little more.
const DECODER_MEMORY_MAX: u64 = 160 << 20;
/// Legacy LZ4 cuts its input into pieces of this size before it packs them.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Lzma,
    Lz4,
    Zstd,
    Plain,
}

impl Format {
    fn of(payload: &[u8]) -> Result<Self, BootError> {
        let unknown = match payload {
            [0x7f, b'E', b'L', b'F', ..] => return Ok(Self::Plain),
            [0x1f, 0x8b, ..] => return Ok(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Ok(Self::Xz),
            [0x5d, 0, 0, ..] => return Ok(Self::Lzma),
            [0x02, 0x21, 0x4c, 0x18, ..] => return Ok(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => "bzip2".to_owned(),
            [0x89, b'L', b'Z', b'O', ..] => "LZO".to_owned(),
            other => format!("something unknown that starts with {}", starts_with(other)),
        };
        Err(BootError::UnknownCompression(unknown))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "LZMA",
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
            Self::Plain => "plain",
        }
    }
}

/// Unpacks `payload` to at most `max` bytes.
///
/// # Errors
///
/// [`BootError`] where the format is unknown, the data damaged or larger than `max`.
pub fn unpack(payload: &[u8], max: u64) -> Result<Vec<u8>, BootError> {
    let format = Format::of(payload)?;
    let damaged = |reason: String| BootError::Unpack { format: format.name(), reason };
    let out = Output::new(payload, format, max);
    match format {
        Format::Gzip => out.read(flate2::read::GzDecoder::new(payload)),
        Format::Xz => {
            let stream =
                Stream::new_stream_decoder(DECODER_MEMORY_MAX, 0).map_err(|e| damaged(e.to_string()))?;
            out.read(XzDecoder::new_stream(payload, stream))
        }
        Format::Lzma => {
            let stream = Stream::new_lzma_decoder(DECODER_MEMORY_MAX).map_err(|e| damaged(e.to_string()))?;
            out.read(XzDecoder::new_stream(payload, stream))
        }
        Format::Zstd => {
            let mut decoder = ruzstd::decoding::FrameDecoder::new();
            decoder.set_max_window_size(DECODER_MEMORY_MAX);
            let stream = ruzstd::decoding::StreamingDecoder::new_with_decoder(payload, decoder)
                .map_err(|e| damaged(e.to_string()))?;
            out.read(stream)
        }
        Format::Lz4 => out.lz4_legacy(payload),
        Format::Plain => out.read(payload),
    }
}

/// The unpacked bytes, with their limit.
struct Output {
    bytes: Vec<u8>,
    format: Format,
    max: usize,
}

impl Output {
    fn new(payload: &[u8], format: Format, max: u64) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let hint = match payload.last_chunk() {
            Some(size) => usize::try_from(u32::from_le_bytes(*size)).unwrap_or_default(),
            None => 0,
        };
        // One byte more than the hint: the reader finds the end without growing the buffer.
        Self { bytes: Vec::with_capacity(hint.min(max).saturating_add(1)), format, max }
    }

    fn too_large(&self) -> BootError {
        BootError::UnpacksTooLarge { format: self.format.name(), limit: self.max as u64 }
    }

    fn damaged(&self, reason: impl ToString) -> BootError {
        BootError::Unpack { format: self.format.name(), reason: reason.to_string() }
    }

    fn read(mut self, from: impl Read) -> Result<Vec<u8>, BootError> {
        let limit = (self.max as u64).saturating_add(1);
        let result: io::Result<usize> = from.take(limit).read_to_end(&mut self.bytes);
        match result {
            Err(e) => Err(self.damaged(e)),
            Ok(_) if self.bytes.len() > self.max => Err(self.too_large()),
            Ok(_) => Ok(self.bytes),
        }
    }

    /// The LZ4 command's legacy format: a magic number, then pieces of (packed length, LZ4 block).
    fn lz4_legacy(mut self, payload: &[u8]) -> Result<Vec<u8>, BootError> {
        let mut rest = payload.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
        // What is left at the end is the size that the kernel's build appends.
        while rest.len() > 4 {
            let Some((length, tail)) = rest.split_first_chunk::<4>() else { break };
            if *length == LZ4_LEGACY_MAGIC {
                rest = tail;
                continue;
            }
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let Some((block, tail)) = tail.split_at_checked(length).filter(|_| length > 0) else {
                return Err(
                    self.damaged(format!("a block of {length} bytes in the last {} bytes", tail.len()))
                );
            };
            self.lz4_block(block)?;
            rest = tail;
        }
        Ok(self.bytes)
    }

    fn lz4_block(&mut self, block: &[u8]) -> Result<(), BootError> {
        let start = self.bytes.len();
        // LZ4 makes at most 255 bytes of one, so a short block needs no 8 MiB.
        let size = LZ4_LEGACY_BLOCK.min(block.len().saturating_mul(255)).min(self.max - start);
        self.bytes.resize(start + size, 0);
        let target = self.bytes.get_mut(start..).unwrap_or_default();
        match lz4_flex::block::decompress_into(block, target) {
            Ok(length) => {
                self.bytes.truncate(start + length);
                Ok(())
            }
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if size < LZ4_LEGACY_BLOCK => {
                Err(self.too_large())
            }
            Err(e) => Err(self.damaged(e)),
        }
    }
}
