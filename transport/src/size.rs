//! Size of a record as Kafka counts it, so that every log has the same limit.
//!
//! A broker compares `max.message.bytes` with the size of a whole record batch.
//! We count an uncompressed v2 batch that holds the record alone: 61 bytes of
//! batch header, then the record with zig-zag varints for its lengths
//! (KIP-98; `org.apache.kafka.common.record.DefaultRecord#sizeInBytes`).

use pipedoc_model::headers::Headers;

use crate::log::{Error, OutgoingRecord, Result};

/// Default limit of a topic, Kafka's `max.message.bytes`.
pub const DEFAULT_LIMIT: usize = 1_048_588;

/// Bytes of a v2 batch before its first record, the batch's own length
/// and base offset included.
const BATCH_OVERHEAD: usize = 61;

/// Bytes of an uncompressed v2 batch that holds the record alone.
#[must_use]
pub fn of_record(key: Option<&[u8]>, value: Option<&[u8]>, headers: &Headers) -> usize {
    // Attributes take a byte; the deltas of timestamp and offset are 0.
    let mut body = 1 + varint(0) + varint(0) + field(key) + field(value) + varint(headers.len() as i64);
    for header in headers.iter() {
        body += field(Some(header.name().as_bytes())) + field(header.value());
    }
    BATCH_OVERHEAD + varint(body as i64) + body
}

/// The size of a record whose size is above a limit; `None` for all others, whose
/// headers are not looked at one by one unless the record comes near it.
#[must_use]
pub fn above(limit: usize, key: Option<&[u8]>, value: Option<&[u8]>, headers: &Headers) -> Option<usize> {
    /// Bytes that a varint takes at most here.
    const VARINT: usize = 5;
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let fixed = BATCH_OVERHEAD + 1 + 6 * VARINT;
    let at_most = fixed + length(key) + length(value) + headers.bytes() + headers.len() * 2 * VARINT;
    if at_most <= limit {
        return None;
    }
    Some(of_record(key, value, headers)).filter(|size| *size > limit)
}

/// Refuses a record whose size is above its topic's limit.
pub(crate) fn check(record: &OutgoingRecord, limit: usize) -> Result<()> {
    match above(limit, record.key.as_deref(), record.value.as_deref(), &record.headers) {
        Some(size) => Err(Error::RecordTooLarge { topic: record.topic.clone(), size, limit }),
        None => Ok(()),
    }
}

/// A length-prefixed field; one without value has length -1.
fn field(bytes: Option<&[u8]>) -> usize {
    bytes.map_or_else(|| varint(-1), |bytes| varint(bytes.len() as i64) + bytes.len())
}

/// Bytes that a number takes as zig-zag varint.
fn varint(number: i64) -> usize {
    let zigzag = ((number << 1) ^ (number >> 63)) as u64;
    (64 - (zigzag | 1).leading_zeros() as usize).div_ceil(7)
}
