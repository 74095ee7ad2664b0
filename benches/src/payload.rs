//! Bytes that do not compress, the same in every run.

use bytes::Bytes;

/// `len` bytes from a xorshift generator (Marsaglia 2003, 64 bits), which no compressor shortens.
pub fn incompressible(len: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    Bytes::from(out)
}
