//! Numbers that look random and come from a seed: the same run again has the same records.

/// A number for each place of a sequence, without those before it (Steele, Lea and Flood 2014, SplitMix64).
pub fn hash(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `length` bytes that no compressor shortens.
pub fn incompressible(length: usize, seed: u64) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).flat_map(|place| hash(seed, place).to_le_bytes());
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_generator_that_is_named() {
        // The first outputs for seed 0, as its authors give them.
        let first: Vec<u64> = (0..3).map(|place| hash(0, place)).collect();
        assert_eq!(first, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn bytes_do_not_compress_and_come_from_the_seed() {
        let bytes = incompressible(100_001, 7);
        assert_eq!(bytes.len(), 100_001);
        assert_eq!(bytes, incompressible(100_001, 7));
        assert_ne!(bytes, incompressible(100_001, 8));
        let compressed = zstd::bulk::compress(&bytes, 3).expect("it compresses into memory");
        assert!(compressed.len() >= bytes.len(), "{}", compressed.len());
    }
}
