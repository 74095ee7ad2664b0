//! Record batches, byte for byte in Kafka's v2 format, so that Kafka's clients need no conversion.
//!
//! ```text
//! 0        8      12    16 17    21 23    27        35        43     51 53   57   61
//! | base   | batch | lead | m | CRC | at | last   | base     | max     | prod | p | seq | rec | records…
//! | offset | len   | epoch| 2 | 32C | tr | delta  | time     | time    | id   | e |     | count
//! ```
//! All integers here are big-endian, as Kafka has them. The CRC-32C covers everything from the attributes on.

mod builder;
mod compaction;
mod compression;
mod header;
mod numbering;
mod records;
mod varint;

pub use builder::{BatchBuilder, EncodeError};
pub use compaction::{Compactable, KeyHasher, RecordKey};
pub use compression::{Compression, CompressionError};
pub use header::{BatchError, BatchHeader, CRC_AT, HEADER_LEN, TimestampType, set_append_time, stamp};
pub use numbering::{Numbering, ProducerIdentity, number};
pub use records::{Header, Record, RecordView, Records, RecordsError};
