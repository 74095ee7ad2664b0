//! Which segments are old or many enough to go, and how a whole log goes.

use std::io;
use std::path::Path;
use std::time::Duration;

use quire_protocol::ids::Timestamp;

use crate::disk::Disk;
use crate::log::Log;
use crate::manifest;
use crate::segment::Segment;

impl Log {
    /// Marks whole sealed segments for deletion: those whose newest record was appended longer ago than `retention`,
    /// and the oldest while the log is larger than `retention_bytes`. Nothing at or beyond the high watermark goes. An
    /// active segment that has become too old, or of which nothing is to be kept, is sealed: its turn comes the next
    /// time. The next jobs do both.
    pub fn retain(&mut self, now: Timestamp, retention: Option<Duration>, retention_bytes: Option<u64>) {
        let high_watermark = self.high_watermark();
        let segments = self.segments();
        let is_last_expired = segments.last().is_some_and(|last| {
            !last.is_empty() && last.end() <= high_watermark && is_older(last, now, retention)
        });
        if is_last_expired || self.is_active_old(now) {
            self.seal_active();
        }
        let mut excess = retention_bytes.map_or(0, |most| self.size_bytes().saturating_sub(most));
        let mut keep_from = None;
        // The last one stays: the log goes on from it.
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            let len = segment.position();
            // An empty one holds nothing worth its files, whatever is kept.
            let is_over_size = excess >= len;
            if segment.end() > high_watermark || !(is_over_size || is_older(segment, now, retention)) {
                break;
            }
            excess = excess.saturating_sub(len);
            keep_from = Some(segment.end());
        }
        if let Some(offset) = keep_from {
            self.retain_from_segment(offset);
        }
    }

    fn is_active_old(&self, now: Timestamp) -> bool {
        let age_ms = i64::try_from(self.segment_age_ms()).unwrap_or(i64::MAX);
        self.oldest_active_append_time().is_some_and(|oldest| now.0.saturating_sub(oldest.0) > age_ms)
    }
}

fn is_older(segment: &Segment, now: Timestamp, retention: Option<Duration>) -> bool {
    let age_ms = now.0.saturating_sub(segment.last_append_time().0);
    retention.is_some_and(|retention| u128::try_from(age_ms).is_ok_and(|age| age > retention.as_millis()))
}

/// Deletes the log in `dir` and the directory. A crash in between leaves a directory that no log opens from; call it
/// again. Two may do it at the same time.
///
/// # Errors
/// If a file can not be removed. What is not there is no error.
pub fn remove_log(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let names = or_gone(disk.list(dir))?;
    // The manifest last: what is half deleted is refused at open, and not taken for an empty log.
    for name in names.iter().filter(|name| *name != manifest::FILE_NAME) {
        or_gone(disk.remove(&dir.join(name)))?;
    }
    if names.iter().any(|name| name == manifest::FILE_NAME) {
        or_gone(disk.remove(&dir.join(manifest::FILE_NAME)))?;
    }
    or_gone(disk.remove_dir(dir))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => or_gone(disk.sync_dir(parent)),
        _ => Ok(()),
    }
}

/// What is gone already needs no removing.
fn or_gone<T: Default>(done: io::Result<T>) -> io::Result<T> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        done => done,
    }
}
