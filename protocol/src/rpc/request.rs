//! Decoding requests on a stranger's word.
//!
//! A repeated field costs the sender two bytes an element and the decoder a whole struct each. So a request is walked
//! first, without allocating, and one with more fields than any honest one has is refused. Lists of numbers are packed: one
//! field, and a byte a number. They are counted where they stand.

use prost::Message;

use crate::limits;

use super::control::Request;

/// Bytes that are not a request this side takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Longer than any control message.
    #[error("request of {0} bytes exceeds the limit of {max}", max = limits::RPC_BYTES_MAX)]
    TooLong(usize),
    /// More fields than any honest one has, or more numbers in its lists.
    #[error("request asks for too many items at once")]
    TooManyItems,
    /// Not protobuf, or not of the schema.
    #[error("request is malformed: {0}")]
    Malformed(String),
}

/// Decodes a request; allocates in proportion to `bytes`.
///
/// # Errors
/// If it is too long, asks for too much at once, or is not a request.
pub fn decode_request(bytes: &[u8]) -> Result<Request, InvalidRequest> {
    if bytes.len() > limits::RPC_BYTES_MAX {
        return Err(InvalidRequest::TooLong(bytes.len()));
    }
    check_items(bytes, limits::RPC_REQUEST_ITEMS_MAX)?;
    check_numbers(bytes)?;
    Request::decode(bytes).map_err(|error| InvalidRequest::Malformed(error.to_string()))
}

/// Counts the fields of a message and of its bodies. One level down is enough: what is repeated stands there.
///
/// # Errors
/// If there are more than `items_max`, or it is not protobuf.
pub fn check_items(mut request: &[u8], items_max: usize) -> Result<(), InvalidRequest> {
    let mut items = 0;
    while !request.is_empty() {
        let mut body = take_field(&mut request)?;
        items += 1;
        while !body.is_empty() && items <= items_max {
            take_field(&mut body)?;
            items += 1;
        }
        if items > items_max {
            return Err(InvalidRequest::TooManyItems);
        }
    }
    Ok(())
}

/// Where requests have lists of numbers: the fields that lead there.
const NUMBERS: &[&[u64]] = &[
    &[23, 1],     // plan_rebalance.without
    &[24, 3],     // reassign.replicas
    &[31, 13, 2], // group_heartbeat.owned.partitions
    &[33, 2, 2],  // fetch_offsets.partitions.partitions
    &[36, 3, 2],  // reset_offsets.forget.partitions
];

/// Counts the numbers in a request's lists, packed or not.
fn check_numbers(request: &[u8]) -> Result<(), InvalidRequest> {
    let mut numbers = 0;
    for path in NUMBERS {
        numbers += count_numbers(request, path)?;
    }
    if numbers > limits::GROUP_PARTITIONS_MAX {
        return Err(InvalidRequest::TooManyItems);
    }
    Ok(())
}

fn count_numbers(mut message: &[u8], path: &[u64]) -> Result<usize, InvalidRequest> {
    let Some((first, rest)) = path.split_first() else {
        // A list itself: each number ends with a byte below 128.
        return Ok(message.iter().filter(|byte| **byte < 0x80).count());
    };
    let mut numbers = 0;
    while !message.is_empty() {
        let number = take_varint(&mut { message })? >> 3;
        let content = take_field(&mut message)?;
        numbers += match () {
            () if number != *first => 0,
            // One that is not packed.
            () if content.is_empty() && rest.is_empty() => 1,
            () => count_numbers(content, rest)?,
        };
    }
    Ok(numbers)
}

/// Takes one field off the front; gives the content of a length-delimited one, nothing for numbers.
fn take_field<'a>(message: &mut &'a [u8]) -> Result<&'a [u8], InvalidRequest> {
    let key = take_varint(message)?;
    let (length, is_number) = match key & 7 {
        0 => (take_varint(message).map(|_| 0)?, true),
        1 => (8, true),
        2 => (take_varint(message)?, false),
        5 => (4, true),
        _ => return Err(malformed("unknown wire type")),
    };
    let length = usize::try_from(length).map_err(|_| malformed("impossible length"))?;
    let (content, rest) = message.split_at_checked(length).ok_or_else(|| malformed("field is cut short"))?;
    *message = rest;
    Ok(if is_number { &[] } else { content })
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, InvalidRequest> {
    prost::encoding::decode_varint(bytes).map_err(|_| malformed("number is cut short"))
}

fn malformed(what: &str) -> InvalidRequest {
    InvalidRequest::Malformed(what.to_owned())
}
