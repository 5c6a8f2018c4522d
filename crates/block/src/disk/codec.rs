//! Compression of units. What is compressed or decompressed is a copy of our own, never memory that others write.

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use crate::{Codec, Error, Result};

/// The window that qcow2 readers have for raw deflate: 4 KiB.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// As hard as zstd tries by itself.
const ZSTD_LEVEL: i32 = 3;

/// Decompresses one unit into `unit`, all of which must be filled. Bytes behind the end of the data are ignored.
pub(crate) fn decompress(codec: Codec, data: &[u8], unit: &mut [u8]) -> Result<()> {
    let filled = match codec {
        Codec::Deflate => inflate(Decompress::new(false), data, unit)?,
        Codec::Zlib => inflate(Decompress::new(true), data, unit)?,
        Codec::Zstd => unzstd(data, unit)?,
    };
    if filled == unit.len() {
        Ok(())
    } else {
        Err(Error::corrupt(format!("compressed data ends after {filled} of {} bytes", unit.len())))
    }
}

fn inflate(mut stream: Decompress, data: &[u8], unit: &mut [u8]) -> Result<usize> {
    // Whether the end mark follows a full unit does not matter.
    stream
        .decompress(data, unit, FlushDecompress::Finish)
        .map_err(|error| Error::corrupt(format!("compressed data: {error}")))?;
    usize::try_from(stream.total_out()).map_err(|_| Error::corrupt("compressed data is too long"))
}

fn unzstd(data: &[u8], unit: &mut [u8]) -> Result<usize> {
    // Streaming, because what follows the frame in the last sector is not part of it.
    let mut decoder = zstd::stream::raw::Decoder::new()
        .map_err(|error| Error::io("start decompressing", "zstd data", error))?;
    let mut input = zstd::stream::raw::InBuffer::around(data);
    let mut output = zstd::stream::raw::OutBuffer::around(unit);
    while output.pos() < output.capacity() && input.pos() < data.len() {
        let (read, written) = (input.pos(), output.pos());
        let left = zstd::stream::raw::Operation::run(&mut decoder, &mut input, &mut output)
            .map_err(|error| Error::corrupt(format!("compressed data: {error}")))?;
        // A frame's end before the unit's: another frame may follow, as zstd allows.
        if left != 0 && (read, written) == (input.pos(), output.pos()) {
            break;
        }
    }
    Ok(output.pos())
}

/// Compresses a unit; `None` where it does not get smaller. With [`Codec::Zlib`] it may get larger: images with that
/// codec hold nothing plain.
pub(crate) fn compress(codec: Codec, unit: &[u8]) -> Result<Option<Vec<u8>>> {
    let room = match codec {
        // Stored blocks have 5 bytes before each 16 KiB at least, and the stream a few more.
        Codec::Zlib => unit.len() + unit.len() / 1000 + 64,
        Codec::Deflate | Codec::Zstd => unit.len().saturating_sub(1),
    };
    let mut out = vec![0; room];
    let len = match codec {
        Codec::Deflate => deflate(
            Compress::new_with_window_bits(flate2::Compression::default(), false, DEFLATE_WINDOW_BITS),
            unit,
            &mut out,
        )?,
        Codec::Zlib => deflate(Compress::new(flate2::Compression::default(), true), unit, &mut out)?,
        Codec::Zstd => zstd::bulk::compress_to_buffer(unit, &mut out, ZSTD_LEVEL).ok(),
    };
    Ok(len.map(|len| {
        out.truncate(len);
        out
    }))
}

fn deflate(mut stream: Compress, unit: &[u8], out: &mut [u8]) -> Result<Option<usize>> {
    let status = stream
        .compress(unit, out, FlushCompress::Finish)
        .map_err(|error| Error::Unsupported(format!("compressing: {error}")))?;
    Ok((status == Status::StreamEnd).then(|| usize::try_from(stream.total_out()).ok()).flatten())
}
