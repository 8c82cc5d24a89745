//! What is about to be sent: a piped record before its last change, or something new.

use bytes::Bytes;
use pipedoc_model::headers::Headers;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::OutgoingRecord;

/// A record to be written, whose topic is given where it is sent.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The key; none is not the same as an empty one.
    pub key: Option<Bytes>,
    /// The value; none writes a tombstone.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Headers,
    /// The partition. None: by the key; without a key, a piped record follows its
    /// source's partition, and anything else goes to any partition.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch; none: now.
    pub timestamp: Option<i64>,
}

impl Message {
    /// A message with a key and a value, without headers.
    #[must_use]
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), value: Some(value.into()), ..Self::default() }
    }

    pub(crate) fn to(self, topic: Topic) -> OutgoingRecord {
        let Self { key, value, headers, partition, timestamp } = self;
        OutgoingRecord { topic, partition, timestamp, key, value, headers }
    }
}
