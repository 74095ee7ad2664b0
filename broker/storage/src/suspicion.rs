//! What is held against a replica: why records that it acknowledged may be missing from it, or be damaged.
//!
//! It stands in a small file beside the log from the moment it is known, because what tells of it is soon gone: the next
//! stop may be an orderly one, a failed sync is reported once, and a damaged frame below the recovery point is not read
//! by recovery. It goes when the replica has caught up with a leader; one that has begun anew lacks records until then.
//! Drawn in `FORMAT.md`.

use std::fmt;
use std::io;
use std::path::Path;

use crate::disk::Disk;
use crate::small_file::{self, Format, LoadError};

/// Name of the file in the partition's directory.
pub(crate) const FILE_NAME: &str = "suspect";

const FORMAT: Format = Format { magic: *b"QSUS", version: 1, body_len_max: 1 };
const FLAG_UNCLEAN: u8 = 1;
const FLAG_LOST_WRITES: u8 = 2;
const FLAG_DAMAGED: u8 = 4;

/// Why a replica is not to be trusted with leadership; for no reason, if nothing is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Suspicion {
    /// It was not closed in order, and acknowledged before it synced, or was cut at a bad frame while it was behind its
    /// leader, or has begun anew: the last records may be missing.
    pub is_unclean: bool,
    /// A sync failed, or a write of an earlier process was lost unseen.
    pub has_lost_writes: bool,
    /// Records that were on disk are damaged.
    pub is_damaged: bool,
}

impl Suspicion {
    /// The last records may be missing.
    pub(crate) const UNCLEAN: Suspicion =
        Suspicion { is_unclean: true, has_lost_writes: false, is_damaged: false };
    /// A sync failed.
    pub(crate) const LOST_WRITES: Suspicion =
        Suspicion { is_unclean: false, has_lost_writes: true, is_damaged: false };
    /// Damage was found.
    pub(crate) const DAMAGED: Suspicion =
        Suspicion { is_unclean: false, has_lost_writes: false, is_damaged: true };

    /// Whether anything is held against the replica.
    pub fn is_any(self) -> bool {
        self != Suspicion::default()
    }

    /// What either holds against it.
    pub(crate) fn and(self, other: Suspicion) -> Suspicion {
        Suspicion {
            is_unclean: self.is_unclean || other.is_unclean,
            has_lost_writes: self.has_lost_writes || other.has_lost_writes,
            is_damaged: self.is_damaged || other.is_damaged,
        }
    }

    /// What is held against the log in `dir`. A damaged file held something, and now holds everything.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Suspicion> {
        match small_file::load(disk, dir, FILE_NAME, FORMAT) {
            Ok(body) => Ok(Suspicion::decode(&body)),
            Err(LoadError::Missing) => Ok(Suspicion::default()),
            Err(LoadError::Damaged(_) | LoadError::Version { .. }) => Ok(Suspicion::decode(&[])),
            Err(LoadError::Io(error)) => Err(error),
        }
    }

    /// Holds it against the log in `dir`, durably, beside what already was. Gives all that is.
    pub(crate) fn add(self, disk: &dyn Disk, dir: &Path) -> io::Result<Suspicion> {
        let before = Suspicion::load(disk, dir)?;
        let all = before.and(self);
        if all != before {
            small_file::replace(disk, dir, FILE_NAME, FORMAT, &[all.encode()])?;
        }
        Ok(all)
    }

    /// As [`Suspicion::add`], where the disk is in trouble already: if it refuses this too, the operator is told.
    pub(crate) fn add_if_possible(self, disk: &dyn Disk, dir: &Path) {
        if let Err(error) = self.add(disk, dir) {
            tracing::warn!(log = %dir.display(), %error, why = %self, "a suspicion is not noted, and does not survive a restart");
        }
    }

    /// Holds this against the log in `dir`, durably, and nothing else any more.
    pub(crate) fn store(self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::replace(disk, dir, FILE_NAME, FORMAT, &[self.encode()])
    }

    /// Nothing is held against the log in `dir` any more, durably.
    pub(crate) fn remove(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::remove(disk, dir, FILE_NAME).map(drop)
    }

    fn encode(self) -> u8 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.is_unclean, FLAG_UNCLEAN)
            | flag(self.has_lost_writes, FLAG_LOST_WRITES)
            | flag(self.is_damaged, FLAG_DAMAGED)
    }

    fn decode(body: &[u8]) -> Suspicion {
        let known = FLAG_UNCLEAN | FLAG_LOST_WRITES | FLAG_DAMAGED;
        let flags = match body {
            [flags] if *flags & !known == 0 => *flags,
            _ => known,
        };
        Suspicion {
            is_unclean: flags & FLAG_UNCLEAN != 0,
            has_lost_writes: flags & FLAG_LOST_WRITES != 0,
            is_damaged: flags & FLAG_DAMAGED != 0,
        }
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (
                self.is_unclean,
                "it was not closed in order or has begun anew, and its last records may be missing",
            ),
            (self.has_lost_writes, "a sync failed or a write was lost"),
            (self.is_damaged, "records are damaged"),
        ];
        let mut reasons = reasons.iter().filter(|(is_set, _)| *is_set).map(|(_, reason)| *reason);
        write!(f, "{}", reasons.next().unwrap_or("nothing"))?;
        reasons.try_for_each(|reason| write!(f, "; {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{CrashOptions, SimDisk};

    fn root() -> &'static Path {
        Path::new("/")
    }

    #[test]
    fn every_suspicion_survives_its_file_and_adds_to_the_others() {
        let disk = SimDisk::new(1);
        assert_eq!(Suspicion::load(&disk, root()).expect("none"), Suspicion::default());
        let mut all = Suspicion::default();
        for flags in [FLAG_DAMAGED, FLAG_UNCLEAN, FLAG_LOST_WRITES] {
            let one = Suspicion::decode(&[flags]);
            assert_eq!(one.encode(), flags);
            all = all.and(one);
            assert_eq!(one.add(&disk, root()).expect("room"), all);
            disk.crash(&CrashOptions::default());
            assert_eq!(Suspicion::load(&disk, root()).expect("intact"), all);
        }
        assert_eq!(all.encode(), 7);
        Suspicion::remove(&disk, root()).expect("there");
        disk.crash(&CrashOptions::default());
        assert!(!Suspicion::load(&disk, root()).expect("none").is_any());
    }

    #[test]
    fn a_damaged_file_holds_everything() {
        let disk = SimDisk::new(1);
        Suspicion::LOST_WRITES.add(&disk, root()).expect("room");
        disk.flip_bit(&root().join(FILE_NAME), 12, 0);
        assert_eq!(Suspicion::load(&disk, root()).expect("readable").encode(), 7);
        assert_eq!(Suspicion::decode(&[8]).encode(), 7, "what is not known is not nothing");
    }
}
