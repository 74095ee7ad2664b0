//! Who sent a batch, and which of the sender's it is: what tells a batch sent again from a new one.

use crate::ids::{ProducerEpoch, ProducerId, Sequence};

use super::header::{self, BatchError, BatchHeader, HEADER_LEN};

/// Where producer id, producer epoch and base sequence stand in a batch.
pub(super) const PRODUCER_AT: usize = 43;

/// A producer in one of its epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerIdentity {
    /// Its id.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
}

/// A batch's place among those of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbering {
    /// Who sent it.
    pub producer: ProducerIdentity,
    /// The number of its first record.
    pub base_sequence: Sequence,
    /// How many numbers it takes: one for each of its records.
    pub count: u32,
}

impl Numbering {
    /// The number that the producer's next batch begins with.
    pub fn next_sequence(&self) -> Sequence {
        self.base_sequence.plus(self.count)
    }
}

impl BatchHeader {
    /// The batch's place among those of its producer; `None` if it was sent without one.
    ///
    /// # Errors
    /// If id, epoch and sequence contradict each other.
    pub fn numbering(&self) -> Result<Option<Numbering>, BatchError> {
        let BatchHeader { producer_id, producer_epoch, base_sequence, .. } = *self;
        if producer_id == -1 {
            return Ok(None);
        }
        let numbering = (|| {
            let id = ProducerId(u64::try_from(producer_id).ok()?);
            let epoch = ProducerEpoch(u16::try_from(producer_epoch).ok()?);
            let base_sequence = Sequence(u32::try_from(base_sequence).ok()?);
            let producer = ProducerIdentity { id, epoch };
            Some(Numbering { producer, base_sequence, count: self.last_offset_delta + 1 })
        })();
        numbering.map(Some).ok_or(BatchError::Producer { producer_id, producer_epoch, base_sequence })
    }
}

/// Makes a finished batch the producer's batch with this number, and seals it anew.
///
/// # Panics
/// If `batch` is shorter than a header: the caller has built it.
pub fn number(batch: &mut [u8], producer: ProducerIdentity, base_sequence: Sequence) {
    assert!(batch.len() >= HEADER_LEN, "only a finished batch is numbered");
    put(batch, producer, base_sequence);
    header::seal(batch);
}

/// Writes the fields alone.
pub(super) fn put(batch: &mut [u8], producer: ProducerIdentity, base_sequence: Sequence) {
    debug_assert!(producer.epoch <= ProducerEpoch::MAX && base_sequence <= Sequence::MAX);
    batch[PRODUCER_AT..PRODUCER_AT + 8].copy_from_slice(&producer.id.0.to_be_bytes());
    batch[PRODUCER_AT + 8..PRODUCER_AT + 10].copy_from_slice(&producer.epoch.0.to_be_bytes());
    batch[PRODUCER_AT + 10..PRODUCER_AT + 14].copy_from_slice(&base_sequence.0.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::batch::{BatchBuilder, Compression, Record};

    const PRODUCER: ProducerIdentity = ProducerIdentity { id: ProducerId(7000), epoch: ProducerEpoch(3) };

    fn builder(records: usize) -> BatchBuilder {
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some("v".into()), ..Record::default() };
        (0..records).for_each(|_| builder.push(&record, Timestamp(1)).expect("a small record fits"));
        builder
    }

    #[test]
    fn a_batch_is_numbered_when_it_is_finished_or_later() {
        let plain = builder(3).finish().expect("nothing to compress");
        assert_eq!(BatchHeader::check(&plain).expect("intact").numbering(), Ok(None));
        let expected = Numbering { producer: PRODUCER, base_sequence: Sequence(41), count: 3 };
        let mut later = plain.to_vec();
        number(&mut later, PRODUCER, Sequence(41));
        let at_once =
            builder(3).finish_numbered(Some((PRODUCER, Sequence(41)))).expect("nothing to compress");
        assert_eq!(later, at_once);
        let header = BatchHeader::check(&later).expect("sealed anew");
        assert_eq!(header.numbering(), Ok(Some(expected)));
        assert_eq!(expected.next_sequence(), Sequence(44));
    }

    #[test]
    fn half_a_numbering_is_refused() {
        let header = BatchHeader::check(&builder(1).finish().expect("nothing to compress")).expect("intact");
        for (producer_id, producer_epoch, base_sequence) in
            [(-2, 0, 0), (0, -1, 0), (0, 0, -1), (i64::MIN, 0, 0)]
        {
            let header = BatchHeader { producer_id, producer_epoch, base_sequence, ..header };
            assert_eq!(
                header.numbering(),
                Err(BatchError::Producer { producer_id, producer_epoch, base_sequence })
            );
        }
    }
}
