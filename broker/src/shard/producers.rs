//! What is known of a partition's producers, made from its log when that is opened: from what was stored last, and from the
//! frames behind it.

use quire_engine::producer::{ProducerLimits, ProducerStates};
use quire_protocol::{Offset, frame};
use quire_storage::{Log, LogReader};

/// What the log tells of its producers. Blocks on the disk.
///
/// Damage that it comes to ends it: what lies behind can not be read, and a damaged log takes nothing.
pub(super) fn load(log: &Log) -> ProducerStates {
    let reader = log.reader();
    let (mut states, covered) = stored(&reader).unwrap_or_else(|| {
        let states = ProducerStates::new(ProducerLimits::default());
        (states, reader.log_start())
    });
    for frame in reader.frames_since(covered) {
        match frame {
            Ok((header, frame)) => states.replay(&header, &frame[frame::HEADER_LEN..]),
            Err(error) => {
                tracing::warn!(%error, "what is known of the producers ends where the log can not be read");
                break;
            }
        }
    }
    states
}

/// What was stored, and up to where it knows the log. What can not be used is made again from the log.
fn stored(reader: &LogReader) -> Option<(ProducerStates, Offset)> {
    let snapshot = match reader.producers() {
        Ok(snapshot) => snapshot?,
        Err(error) => {
            tracing::warn!(%error, "what is known of the producers can not be read; it is made again from the log");
            return None;
        }
    };
    match ProducerStates::decode(&snapshot.bytes, ProducerLimits::default()) {
        Ok(states) => Some((states, snapshot.covers)),
        Err(error) => {
            tracing::warn!(%error, "what is known of the producers is made again from the log");
            None
        }
    }
}
