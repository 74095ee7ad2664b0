//! What the drill's records say: a value, and bytes that follow from it, so that reading one back checks every byte.
//!
//! ```text
//! producer u32 │ counter u64 │ bytes that follow from both and the seed, as many as they say   (little-endian)
//! ```

use crate::bench::random::{hash, incompressible};
use crate::drill::history::Value;

const HEAD_LEN: usize = 12;
/// The shortest and the longest record (bytes).
const LEN_MIN: u64 = 100;
const LEN_MAX: u64 = 8 * 1024;

/// The record of a value.
pub fn encode(seed: u64, value: Value) -> Vec<u8> {
    let place = hash(seed ^ u64::from(value.producer), value.counter);
    // Most records are short, as they are in life: the length is the lesser of two draws.
    let draw = |salt| LEN_MIN + hash(place, salt) % (LEN_MAX - LEN_MIN + 1);
    let len = draw(0).min(draw(1)) as usize;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&value.producer.to_le_bytes());
    bytes.extend_from_slice(&value.counter.to_le_bytes());
    bytes.extend_from_slice(&incompressible(len - HEAD_LEN, place));
    bytes
}

/// The value of a record; [`Value::unreadable`] if a byte is not what it should be.
pub fn decode(seed: u64, bytes: &[u8]) -> Value {
    let value = bytes.first_chunk::<4>().zip(bytes.get(4..HEAD_LEN).and_then(|rest| rest.first_chunk::<8>()));
    let value = value.map(|(producer, counter)| Value {
        producer: u32::from_le_bytes(*producer),
        counter: u64::from_le_bytes(*counter),
    });
    let intact = value.filter(|value| encode(seed, *value) == bytes);
    intact.unwrap_or_else(|| {
        Value::unreadable(bytes.iter().fold(seed, |digest, byte| hash(digest, u64::from(*byte))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_survives_and_damage_shows(seed: u64, producer: u32, counter: u64, at: usize) {
            let value = Value { producer, counter };
            let mut bytes = encode(seed, value);
            prop_assert!((LEN_MIN..=LEN_MAX).contains(&(bytes.len() as u64)));
            prop_assert_eq!(decode(seed, &bytes), value);
            let at = at % bytes.len();
            bytes[at] ^= 1;
            prop_assert_eq!(decode(seed, &bytes).producer, u32::MAX);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            prop_assert_eq!(decode(1, &bytes).producer, u32::MAX);
        }
    }
}
