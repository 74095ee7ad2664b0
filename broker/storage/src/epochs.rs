//! The leader-epoch cache: at which offset each leadership of a partition began.
//!
//! Epochs and start offsets both increase strictly from entry to entry. A leadership is entered when it starts, with
//! the log end offset, even if it never writes; every truncation cuts the cache. It is derived from the frames but for
//! a last entry without any. Drawn in `FORMAT.md`.

use std::io;
use std::path::Path;

use bytes::Buf;
use quire_protocol::ids::{LeaderEpoch, Offset};
use quire_protocol::limits;

use crate::disk::Disk;
use crate::small_file::{self, Format, LoadError};

/// Name of the file in the partition's directory.
pub const FILE_NAME: &str = "epochs";

const ENTRY_LEN: usize = 12;
const FORMAT: Format =
    Format { magic: *b"QEPO", version: 1, body_len_max: ENTRY_LEN * limits::LEADER_EPOCHS_MAX };

/// The start of one leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// Which leadership.
    pub epoch: LeaderEpoch,
    /// The first offset it wrote or would have written.
    pub start_offset: Offset,
}

/// Every leadership that has records in the log, and the current one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EpochCache {
    entries: Vec<EpochStart>,
}

/// A leadership that can not have begun there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leader epoch {} at offset {} does not follow epoch {} at offset {}",
    .next.epoch, .next.start_offset, .last.epoch, .last.start_offset)]
pub struct EpochOrderError {
    /// The last entry.
    pub last: EpochStart,
    /// The entry refused.
    pub next: EpochStart,
}

impl EpochCache {
    /// Without any leadership.
    pub fn new() -> EpochCache {
        EpochCache::default()
    }

    /// Enters that `epoch` began at `start_offset`; whether that was news. A leadership that wrote nothing before the
    /// next began at the same offset leaves the cache.
    ///
    /// # Errors
    /// If the epoch or the offset is below the last one's.
    pub fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) -> Result<bool, EpochOrderError> {
        let next = EpochStart { epoch, start_offset };
        if let Some(last) = self.entries.last().copied() {
            if epoch < last.epoch || start_offset < last.start_offset {
                return Err(EpochOrderError { last, next });
            }
            if epoch == last.epoch {
                return Ok(false);
            }
            if start_offset == last.start_offset {
                self.entries.pop();
            }
        }
        if self.entries.len() == limits::LEADER_EPOCHS_MAX {
            // The oldest leadership is forgotten: who asks for it is sent to the log start.
            self.entries.remove(0);
        }
        self.entries.push(next);
        Ok(true)
    }

    /// The current leadership.
    pub fn latest(&self) -> Option<EpochStart> {
        self.entries.last().copied()
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The leadership that wrote, or would write, the record at `offset`.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.start_offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at].epoch)
    }

    /// The last leadership not after `epoch`, and the offset after its last record, in a log that ends at `log_end`.
    /// `None` if none is known. A follower truncates to the lower of this and its own answer.
    pub fn end_offset_for(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<(LeaderEpoch, Offset)> {
        let after = self.entries.partition_point(|entry| entry.epoch <= epoch);
        let found = self.entries[after.checked_sub(1)?];
        let end = self.entries.get(after).map_or(log_end, |next| next.start_offset);
        Some((found.epoch, end))
    }

    /// The log was truncated and now ends at `end`: leaderships that began there or later never were. Whether any did.
    pub fn truncate(&mut self, end: Offset) -> bool {
        self.keep_front(|entry| entry.start_offset < end)
    }

    /// The log was recovered and ends at `end`. Unlike a truncation this keeps a leadership that began exactly there:
    /// it was entered and had not written. Whether anything was dropped.
    pub fn recover(&mut self, end: Offset) -> bool {
        self.keep_front(|entry| entry.start_offset <= end)
    }

    /// Records before `log_start` are gone: leaderships with no others are forgotten, and the first one left counts
    /// from there. Whether anything changed.
    pub fn forget_before(&mut self, log_start: Offset) -> bool {
        let before = self.entries.partition_point(|entry| entry.start_offset <= log_start);
        let Some(first) = before.checked_sub(1) else {
            return false;
        };
        self.entries.drain(..first);
        let moved = self.entries[0].start_offset < log_start;
        self.entries[0].start_offset = log_start;
        first > 0 || moved
    }

    /// Replaces the partition's file, durably.
    ///
    /// # Errors
    /// As [`small_file::replace`].
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::replace(disk, dir, FILE_NAME, FORMAT, &self.encode())
    }

    /// The partition's file.
    ///
    /// # Errors
    /// As [`small_file::load`], and if its entries are out of order: rebuild it.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<EpochCache, LoadError> {
        let body = small_file::load(disk, dir, FILE_NAME, FORMAT)?;
        EpochCache::decode(&body).map_err(LoadError::Damaged)
    }

    /// The body of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENTRY_LEN * self.entries.len());
        for entry in &self.entries {
            out.extend_from_slice(&entry.epoch.0.to_le_bytes());
            out.extend_from_slice(&entry.start_offset.0.to_le_bytes());
        }
        out
    }

    /// Reads the body of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &[u8]) -> Result<EpochCache, &'static str> {
        let (chunks, rest) = body.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() || chunks.len() > limits::LEADER_EPOCHS_MAX {
            return Err("a wrong length");
        }
        let entries: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                let bytes = &mut chunk.as_slice();
                EpochStart {
                    epoch: LeaderEpoch(bytes.get_u32_le()),
                    start_offset: Offset(bytes.get_u64_le()),
                }
            })
            .collect();
        if entries.iter().any(|entry| entry.start_offset > Offset::MAX) {
            return Err("an impossible offset");
        }
        let is_ordered = |pair: &[EpochStart]| {
            pair[0].epoch < pair[1].epoch && pair[0].start_offset < pair[1].start_offset
        };
        if !entries.windows(2).all(is_ordered) {
            return Err("entries out of order");
        }
        Ok(EpochCache { entries })
    }

    fn keep_front(&mut self, keep: impl Fn(&EpochStart) -> bool) -> bool {
        let kept = self.entries.partition_point(keep);
        let dropped = kept < self.entries.len();
        self.entries.truncate(kept);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::SimDisk;

    fn cache(entries: &[(u32, u64)]) -> EpochCache {
        let mut cache = EpochCache::new();
        for (epoch, start_offset) in entries {
            cache.assign(LeaderEpoch(*epoch), Offset(*start_offset)).expect("in order");
        }
        cache
    }

    fn pairs(cache: &EpochCache) -> Vec<(u32, u64)> {
        cache.entries().iter().map(|entry| (entry.epoch.0, entry.start_offset.0)).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Assign(u32, u64),
        Truncate(u64),
        Recover(u64),
        Forget(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0u32..20, 0u64..100).prop_map(|(epoch, offset)| Step::Assign(epoch, offset)),
            1 => (0u64..100).prop_map(Step::Truncate),
            1 => (0u64..100).prop_map(Step::Recover),
            1 => (0u64..100).prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// Invariant 3: strictly monotonic in epoch and offset, whatever happens; and it survives its file.
        #[test]
        fn it_is_always_strictly_monotonic(steps in proptest::collection::vec(step(), 0..40)) {
            let mut cache = EpochCache::new();
            for step in steps {
                let before = cache.clone();
                match step {
                    Step::Assign(epoch, offset) => {
                        let (epoch, offset) = (LeaderEpoch(epoch), Offset(offset));
                        match cache.assign(epoch, offset) {
                            Ok(true) => prop_assert_eq!(cache.epoch_at(offset), Some(epoch)),
                            Ok(false) | Err(_) => prop_assert_eq!(&cache, &before),
                        }
                    }
                    Step::Truncate(end) => {
                        cache.truncate(Offset(end));
                        prop_assert!(cache.latest().is_none_or(|last| last.start_offset.0 < end));
                    }
                    Step::Recover(end) => {
                        cache.recover(Offset(end));
                        prop_assert!(cache.latest().is_none_or(|last| last.start_offset.0 <= end));
                    }
                    Step::Forget(start) => {
                        let changed = cache.forget_before(Offset(start));
                        prop_assert_eq!(changed, cache != before);
                        for offset in start..100 {
                            prop_assert_eq!(cache.epoch_at(Offset(offset)), before.epoch_at(Offset(offset)));
                        }
                    }
                }
                prop_assert_eq!(EpochCache::decode(&cache.encode()), Ok(cache.clone()));
            }
            let disk = SimDisk::new(0);
            cache.store(&disk, Path::new("/")).expect("room");
            prop_assert_eq!(EpochCache::load(&disk, Path::new("/")).expect("intact"), cache);
        }

        #[test]
        fn any_bytes_are_refused_or_mean_themselves(body in proptest::collection::vec(0u8..3, 0..5 * ENTRY_LEN)) {
            if let Ok(cache) = EpochCache::decode(&body) {
                prop_assert_eq!(cache.encode(), body);
            }
        }
    }

    #[test]
    fn an_epoch_without_writes_is_there_until_the_next_begins() {
        let mut cache = cache(&[(1, 0), (4, 10)]);
        assert_eq!(cache.assign(LeaderEpoch(4), Offset(12)), Ok(false), "already known");
        assert_eq!(cache.assign(LeaderEpoch(6), Offset(10)), Ok(true));
        assert_eq!(pairs(&cache), [(1, 0), (6, 10)]);
        assert!(cache.assign(LeaderEpoch(5), Offset(20)).is_err());
        assert!(cache.assign(LeaderEpoch(7), Offset(9)).is_err());
    }

    #[test]
    fn a_recovered_end_keeps_what_a_truncated_one_does_not() {
        let mut recovered = cache(&[(1, 0), (2, 10), (3, 20)]);
        let mut truncated = recovered.clone();
        assert!(recovered.recover(Offset(10)) && truncated.truncate(Offset(10)));
        assert_eq!(pairs(&recovered), [(1, 0), (2, 10)]);
        assert_eq!(pairs(&truncated), [(1, 0)]);
        assert!(!truncated.truncate(Offset(5)));
    }

    #[test]
    fn a_follower_learns_where_an_epoch_ended() {
        let cache = cache(&[(1, 0), (3, 10), (5, 30)]);
        let end_of =
            |epoch| cache.end_offset_for(LeaderEpoch(epoch), Offset(42)).map(|(epoch, end)| (epoch.0, end.0));
        assert_eq!(end_of(0), None);
        assert_eq!(end_of(1), Some((1, 10)));
        assert_eq!(end_of(4), Some((3, 30)));
        assert_eq!(end_of(9), Some((5, 42)));
    }

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many() {
        let mut cache = EpochCache::new();
        for number in 0..=limits::LEADER_EPOCHS_MAX as u32 {
            cache.assign(LeaderEpoch(number), Offset(u64::from(number))).expect("in order");
        }
        assert_eq!(cache.entries().len(), limits::LEADER_EPOCHS_MAX);
        assert_eq!(cache.epoch_at(Offset(0)), None);
        assert_eq!(cache.epoch_at(Offset(1)), Some(LeaderEpoch(1)));
    }
}
