//! The recovery point, and the clean-shutdown marker.
//!
//! Both say the same of a log: up to here everything was covered by a successful sync. A *checkpoint* is taken now and
//! then, so that recovery reads no more than what came after it. The *clean marker* is written last at shutdown, when
//! there is nothing after it, and is removed durably before recovery starts: whoever finds one knows that the last
//! process ended in order, and a process that dies in between leaves none. Drawn in `FORMAT.md`.

use std::io;
use std::path::Path;

use bytes::Buf;
use quire_protocol::frame::Chain;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};

use crate::disk::Disk;
use crate::manifest::SEGMENT_LEN_MAX;
use crate::small_file::{self, Format, LoadError};

/// Name of the checkpoint in the partition's directory.
pub const FILE_NAME: &str = "checkpoint";
/// Name of the clean-shutdown marker in the partition's directory.
pub const CLEAN_FILE_NAME: &str = "clean";

const BODY_LEN: usize = 73;
const FORMAT: Format = Format { magic: *b"QCKP", version: 1, body_len_max: BODY_LEN };
const CLEAN_FORMAT: Format = Format { magic: *b"QCLN", version: 1, body_len_max: BODY_LEN };
const FLAG_SYNCED: u8 = 1;
const FLAG_BEHIND: u8 = 2;

/// A point of a log below which everything was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The serial of the segment that the point lies in.
    pub segment_serial: u32,
    /// The point: the position in that segment's file (bytes) after the last synced frame.
    pub position: u64,
    /// The offset that the frame at the point has or will have.
    pub next_offset: Offset,
    /// The chain up to the point.
    pub chain: Chain,
    /// The append time of the last frame before the point.
    pub last_append_time: Timestamp,
    /// The leadership of the last frame before the point.
    pub leader_epoch: LeaderEpoch,
    /// The high watermark then. Above `next_offset` if records count as committed before they are synced here.
    pub high_watermark: Offset,
    /// Whether the log acknowledged nothing that it had not synced. If not, records after the point may have been
    /// acknowledged and lost, and the replica is suspect after an unclean stop.
    pub is_synced: bool,
    /// Whether the log, a follower's, takes frames whose durable floor is above what it has synced itself: what they say
    /// was on disk when they were appended was not on this one. If not, a floor above a bad frame proves damage.
    pub is_behind: bool,
}

impl Checkpoint {
    /// The chain up to the point, if it is known: a log that began anew in the middle of its leader's does not know what
    /// came before its first frame.
    pub(crate) fn known_chain(&self) -> Option<Chain> {
        Some(self.chain).filter(|chain| *chain != Chain::START || self.next_offset == Offset::ZERO)
    }

    /// Replaces the partition's checkpoint, durably. Only what a successful sync covered may be in it.
    ///
    /// # Errors
    /// As [`small_file::replace`].
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::replace(disk, dir, FILE_NAME, FORMAT, &self.encode())
    }

    /// The partition's checkpoint.
    ///
    /// # Errors
    /// As [`small_file::load`], and if it says the impossible.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Checkpoint, LoadError> {
        let body = small_file::load(disk, dir, FILE_NAME, FORMAT)?;
        Checkpoint::decode(&body).map_err(LoadError::Damaged)
    }

    /// Marks the log as closed in order at this point: the last thing done to it.
    ///
    /// # Errors
    /// As [`small_file::replace`].
    pub fn mark_clean(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::replace(disk, dir, CLEAN_FILE_NAME, CLEAN_FORMAT, &self.encode())
    }

    /// Where the log was closed, if it was closed in order; looks, and leaves the marker. A damaged marker is none.
    ///
    /// # Errors
    /// If the marker is there and can not be read.
    pub fn peek_clean(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Checkpoint>> {
        match small_file::load(disk, dir, CLEAN_FILE_NAME, CLEAN_FORMAT) {
            Ok(body) => Ok(Checkpoint::decode(&body).ok()),
            Err(LoadError::Missing | LoadError::Damaged(_) | LoadError::Version { .. }) => Ok(None),
            Err(LoadError::Io(error)) => Err(error),
        }
    }

    /// Where the log was closed, if it was closed in order. Removes the marker durably: the first thing done to a log.
    ///
    /// # Errors
    /// If the marker is there and can not be read or removed.
    pub fn take_clean(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Checkpoint>> {
        let clean = Checkpoint::peek_clean(disk, dir)?;
        small_file::remove(disk, dir, CLEAN_FILE_NAME)?;
        Ok(clean)
    }

    /// The body of the file.
    pub fn encode(&self) -> [u8; BODY_LEN] {
        let mut out = [0; BODY_LEN];
        out[..4].copy_from_slice(&self.segment_serial.to_le_bytes());
        out[4..12].copy_from_slice(&self.position.to_le_bytes());
        out[12..20].copy_from_slice(&self.next_offset.0.to_le_bytes());
        out[20..52].copy_from_slice(&self.chain.0);
        out[52..60].copy_from_slice(&self.last_append_time.0.to_le_bytes());
        out[60..64].copy_from_slice(&self.leader_epoch.0.to_le_bytes());
        out[64..72].copy_from_slice(&self.high_watermark.0.to_le_bytes());
        out[72] = if self.is_synced { FLAG_SYNCED } else { 0 } | if self.is_behind { FLAG_BEHIND } else { 0 };
        out
    }

    /// Reads the body of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Checkpoint, &'static str> {
        let mut body: &[u8] =
            body.first_chunk::<BODY_LEN>().filter(|head| head.len() == body.len()).ok_or("wrong length")?;
        let (segment_serial, position) = (body.get_u32_le(), body.get_u64_le());
        let next_offset = Offset(body.get_u64_le());
        let mut chain = Chain::START;
        body.copy_to_slice(&mut chain.0);
        let last_append_time = Timestamp(body.get_i64_le());
        let leader_epoch = LeaderEpoch(body.get_u32_le());
        let high_watermark = Offset(body.get_u64_le());
        let flags = body.get_u8();
        if flags & !(FLAG_SYNCED | FLAG_BEHIND) != 0 {
            return Err("unknown flags");
        }
        let (is_synced, is_behind) = (flags & FLAG_SYNCED != 0, flags & FLAG_BEHIND != 0);
        if next_offset > Offset::MAX || high_watermark > Offset::MAX {
            return Err("an impossible offset");
        }
        if position > SEGMENT_LEN_MAX {
            return Err("an impossible position");
        }
        Ok(Checkpoint {
            segment_serial,
            position,
            next_offset,
            chain,
            last_append_time,
            leader_epoch,
            high_watermark,
            is_synced,
            is_behind,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::{CrashOptions, SimDisk};

    prop_compose! {
        fn any_checkpoint()(
            segment_serial in any::<u32>(),
            position in 0..=SEGMENT_LEN_MAX,
            offsets in (0..=Offset::MAX.0, 0..=Offset::MAX.0),
            chain in any::<[u8; 32]>(),
            last_append_time in any::<i64>(),
            leader_epoch in any::<u32>(),
            flags in any::<(bool, bool)>(),
        ) -> Checkpoint {
            Checkpoint {
                segment_serial,
                position,
                next_offset: Offset(offsets.0),
                chain: Chain(chain),
                last_append_time: Timestamp(last_append_time),
                leader_epoch: LeaderEpoch(leader_epoch),
                high_watermark: Offset(offsets.1),
                is_synced: flags.0,
                is_behind: flags.1,
            }
        }
    }

    fn root() -> &'static Path {
        Path::new("/")
    }

    proptest! {
        #[test]
        fn a_checkpoint_survives_its_file(checkpoint in any_checkpoint()) {
            let disk = SimDisk::new(0);
            checkpoint.store(&disk, root()).expect("room");
            checkpoint.mark_clean(&disk, root()).expect("room");
            disk.crash(&CrashOptions::default());
            prop_assert_eq!(Checkpoint::load(&disk, root()).expect("intact"), checkpoint);
            prop_assert_eq!(Checkpoint::take_clean(&disk, root()).expect("readable"), Some(checkpoint));
        }

        #[test]
        fn any_bytes_are_refused_or_mean_themselves(body in proptest::collection::vec(any::<u8>(), 70..76)) {
            if let Ok(checkpoint) = Checkpoint::decode(&body) {
                prop_assert_eq!(checkpoint.encode().to_vec(), body);
            }
        }

        #[test]
        fn damaged_bytes_are_refused_or_mean_themselves(
            checkpoint in any_checkpoint(),
            at in 0..BODY_LEN,
            byte in any::<u8>(),
        ) {
            let mut body = checkpoint.encode();
            body[at] = byte;
            if let Ok(other) = Checkpoint::decode(&body) {
                prop_assert_eq!(other.encode(), body);
            }
        }
    }

    #[test]
    fn a_clean_marker_is_taken_once_and_a_crash_does_not_bring_it_back() {
        let checkpoint = Checkpoint::decode(&[0; BODY_LEN]).expect("all zeros is the start of a log");
        let disk = SimDisk::new(0);
        checkpoint.mark_clean(&disk, root()).expect("room");
        assert_eq!(Checkpoint::peek_clean(&disk, root()).expect("readable"), Some(checkpoint));
        assert_eq!(Checkpoint::take_clean(&disk, root()).expect("readable"), Some(checkpoint));
        disk.crash(&CrashOptions::default());
        assert_eq!(Checkpoint::take_clean(&disk, root()).expect("none"), None);
    }

    #[test]
    fn a_damaged_clean_marker_is_none_and_goes_away() {
        let checkpoint = Checkpoint::decode(&[0; BODY_LEN]).expect("all zeros is the start of a log");
        let disk = SimDisk::new(0);
        checkpoint.mark_clean(&disk, root()).expect("room");
        disk.flip_bit(&root().join(CLEAN_FILE_NAME), 20, 3);
        assert_eq!(Checkpoint::take_clean(&disk, root()).expect("readable"), None);
        assert_eq!(disk.list(root()).expect("the root"), Vec::<String>::new());
    }
}
