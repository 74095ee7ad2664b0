//! The last offset of each key, in memory that is bounded.
//!
//! A key is told by a hash of 128 bits that nobody can choose keys for ([`KeyHasher`]), not by its bytes: an entry takes the
//! same room whatever the key.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

use quire_protocol::batch::{BatchHeader, Compactable, KeyHasher};
use quire_protocol::ids::Offset;

/// The last offsets of keys.
#[derive(Debug)]
pub(super) struct Keys {
    hasher: KeyHasher,
    last: HashMap<KeyHash, Offset, BuildHasherDefault<AsItIs>>,
    keys_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeyHash([u64; 2]);

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// The hash of what is a hash already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let word = bytes.first_chunk().copied().unwrap_or_default();
        self.0 = u64::from_le_bytes(word);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

impl Keys {
    pub(super) fn new(keys_max: usize) -> Keys {
        Keys { hasher: KeyHasher::new(seed()), last: HashMap::default(), keys_max }
    }

    /// Whether the keys of so many more records may not fit. A first batch always does.
    pub(super) fn is_full(&self, records: u32) -> bool {
        !self.last.is_empty() && self.last.len() + records as usize > self.keys_max
    }

    /// Takes note of a batch's keys.
    pub(super) fn note(&mut self, header: &BatchHeader, batch: &[u8]) {
        if header.is_control || header.is_transactional {
            return;
        }
        // What is not what its header says is kept as it is, and replaces nothing.
        let Ok(opened) = Compactable::open(header, batch) else { return };
        for record in opened.keys() {
            let offset = Offset(header.base_offset.0 + u64::from(record.offset_delta));
            if let Some(key) = record.key {
                self.last.insert(KeyHash(self.hasher.hash(key)), offset);
            }
        }
    }

    /// Whether a record of this key is known that comes after `offset`.
    pub(super) fn has_later(&self, key: &[u8], offset: Offset) -> bool {
        self.last.get(&KeyHash(self.hasher.hash(key))).is_some_and(|last| *last > offset)
    }
}

/// Drawn from what the standard library draws for its own maps.
fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    for (number, word) in seed.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&RandomState::new().hash_one(number).to_le_bytes());
    }
    seed
}
