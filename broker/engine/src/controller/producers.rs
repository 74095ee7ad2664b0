//! Decisions about producer ids: brokers hand them out of blocks, so that no two producers ever share one.

use quire_protocol::{BrokerId, limits};

use super::Refusal;
use super::brokers::current;
use super::image::Image;
use super::records::Record;

/// Decides a block of ids; also says where it begins. A block whose answer is lost is lost.
pub(super) fn allocate(image: &Image, broker: BrokerId, epoch: u64) -> Result<(u64, Record), Refusal> {
    current(image, broker, epoch)?;
    let first = image.next_producer_id();
    let next = first
        .checked_add(limits::PRODUCER_ID_BLOCK)
        .filter(|next| i64::try_from(*next).is_ok())
        .ok_or(Refusal::ProducerIdsExhausted)?;
    Ok((first, Record::ProducerIdsAllocated { broker, next }))
}
