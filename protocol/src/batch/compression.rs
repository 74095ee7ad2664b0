//! Compression of a batch's records, with a cap on what decompression may give.

use std::io::{Read, Write};

use crate::limits;

/// How a batch's records are compressed; the numbers are Kafka's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Compression {
    /// As they are.
    #[default]
    None = 0,
    /// gzip.
    Gzip = 1,
    /// Snappy in xerial's framing, as Kafka's clients write it.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

/// Compressed records that could not be restored, or records that could not be compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The compressed bytes are not what their batch says.
    #[error("{0:?} records are damaged: {1}")]
    Damaged(Compression, String),
    /// More came out than any batch may hold.
    #[error("records decompress to more than {} bytes", limits::BATCH_DECOMPRESSED_BYTES_MAX)]
    TooLarge,
}

const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_LEN: usize = 16;
const XERIAL_BLOCK_LEN: usize = 32 * 1024;
const ZSTD_LEVEL: i32 = 3;
/// First allocation for restored records (bytes).
const READ_BYTES_MIN: usize = 4 * 1024;

impl Compression {
    /// The compression of this number, or `None` if there is none.
    pub fn from_number(number: u8) -> Option<Compression> {
        [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|known| known.number() == number)
    }

    /// The number as batches store it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Compresses encoded records, appending to `out`.
    ///
    /// # Errors
    /// Only if the compressor itself fails, which in memory it does not for valid settings.
    pub fn compress(self, records: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        let failed = |error: String| CompressionError::Damaged(self, error);
        match self {
            Compression::None => out.extend_from_slice(records),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder
                    .write_all(records)
                    .and_then(|()| encoder.try_finish())
                    .map_err(|e| failed(e.to_string()))?;
            }
            Compression::Snappy => compress_xerial(records, out).map_err(|e| failed(e.to_string()))?,
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
                encoder.write_all(records).map_err(|e| failed(e.to_string()))?;
                encoder.finish().map_err(|e| failed(e.to_string()))?;
            }
            Compression::Zstd => {
                zstd::stream::copy_encode(records, out, ZSTD_LEVEL).map_err(|e| failed(e.to_string()))?;
            }
        }
        Ok(())
    }

    /// Restores records. The result takes at most [`limits::BATCH_DECOMPRESSED_BYTES_MAX`] and grows only as bytes
    /// really come out; beside it stands the decoder's own window (gzip 32 KiB, LZ4 up to 16 MiB, zstd up to 128 MiB
    /// of address space, touched as far as it is used).
    ///
    /// # Errors
    /// If the bytes are damaged or more comes out than allowed.
    pub fn decompress(self, bytes: &[u8]) -> Result<Vec<u8>, CompressionError> {
        let damaged = |error: std::io::Error| CompressionError::Damaged(self, error.to_string());
        match self {
            Compression::None => Ok(bytes.to_vec()),
            Compression::Gzip => read_capped(flate2::read::MultiGzDecoder::new(bytes), damaged),
            Compression::Snappy => decompress_snappy(bytes),
            Compression::Lz4 => read_capped(lz4_flex::frame::FrameDecoder::new(bytes), damaged),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(damaged)?;
                read_capped(decoder, damaged)
            }
        }
    }
}

fn read_capped(
    mut reader: impl Read,
    damaged: impl Fn(std::io::Error) -> CompressionError,
) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    loop {
        grow(&mut out, 1);
        let start = out.len();
        let room = out.capacity() - start;
        let read = reader.by_ref().take(room as u64).read_to_end(&mut out).map_err(&damaged)?;
        if out.len() > limits::BATCH_DECOMPRESSED_BYTES_MAX {
            return Err(CompressionError::TooLarge);
        }
        if read < room {
            return Ok(out);
        }
    }
}

/// Makes room for `needed` more bytes, doubling, but never for more than a byte beyond the cap: that one tells
/// that there is too much.
fn grow(out: &mut Vec<u8>, needed: usize) {
    if out.capacity() - out.len() < needed {
        let cap = limits::BATCH_DECOMPRESSED_BYTES_MAX + 1;
        let doubled = out.len().clamp(READ_BYTES_MIN, cap.saturating_sub(out.len()).max(READ_BYTES_MIN));
        out.reserve_exact(doubled.max(needed));
    }
}

fn compress_xerial(records: &[u8], out: &mut Vec<u8>) -> Result<(), snap::Error> {
    out.extend_from_slice(&XERIAL_MAGIC);
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(&1u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in records.chunks(XERIAL_BLOCK_LEN) {
        let compressed = encoder.compress_vec(block)?;
        out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
        out.extend_from_slice(&compressed);
    }
    Ok(())
}

/// Some clients write xerial's framing, some a single raw block; both are read, as Kafka does.
fn decompress_snappy(bytes: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    if !bytes.starts_with(&XERIAL_MAGIC) {
        append_snappy_block(bytes, &mut out)?;
        return Ok(out);
    }
    let mut rest = bytes.get(XERIAL_HEADER_LEN..).ok_or_else(|| snappy_damaged("its header is cut short"))?;
    while !rest.is_empty() {
        let (length, after) =
            rest.split_first_chunk::<4>().ok_or_else(|| snappy_damaged("a block length is cut short"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| snappy_damaged("a block is cut short"))?;
        append_snappy_block(block, &mut out)?;
        rest = &after[length..];
    }
    Ok(out)
}

fn append_snappy_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let claimed = snap::raw::decompress_len(block).map_err(|e| snappy_damaged(&e.to_string()))?;
    // A snappy block expands at most about 22-fold, so a larger claim is a lie and nothing is allocated on it.
    if claimed > block.len().saturating_mul(32) {
        return Err(snappy_damaged("a block claims more than it can hold"));
    }
    if out.len() + claimed > limits::BATCH_DECOMPRESSED_BYTES_MAX {
        return Err(CompressionError::TooLarge);
    }
    let start = out.len();
    grow(out, claimed);
    out.resize(start + claimed, 0);
    let written = snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(|e| snappy_damaged(&e.to_string()))?;
    out.truncate(start + written);
    Ok(())
}

fn snappy_damaged(reason: &str) -> CompressionError {
    CompressionError::Damaged(Compression::Snappy, reason.to_owned())
}
