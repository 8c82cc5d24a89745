//! What the sink must know of what it has written: the first fields of a JSON file,
//! read without the rest.
//!
//! Knows that `id` and `version` come first in what the sink writes.

use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The first fields of a document, tombstone or note.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Its version; 0 when it has none.
    pub version: i64,
}

/// Reads the first fields. What is none of ours counts as having no version, so
/// that it is replaced.
pub fn read(file: impl Read) -> Head {
    let mut head = Head::default();
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1024, file));
    // Ends with an error on purpose as soon as it knows enough.
    let _ = json.deserialize_map(Fields(&mut head));
    head
}

struct Fields<'h>(&'h mut Head);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "id" => {
                    map.next_value::<IgnoredAny>()?;
                }
                "version" => {
                    self.0.version = map.next_value::<Int64>()?.0;
                    break;
                }
                _ => break,
            }
        }
        Err(serde::de::Error::custom("known enough"))
    }
}

/// An int64 of the proto3 JSON mapping: a string, or a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Int64(pub i64);

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
            value => value.as_i64().map(Self).ok_or_else(|| serde::de::Error::custom("no 64-bit integer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_without_the_rest() {
        for (text, version) in [
            (r#"{"id":"a","version":"12","body":"never closed"#, 12),
            ("{\n  \"id\": \"a\",\n  \"version\": 7\n}", 7),
            (r#"{"id":"a","body":"x","version":"9"}"#, 0),
            (r#"{"id":"a"}"#, 0),
            ("", 0),
            ("[1]", 0),
        ] {
            assert_eq!(read(text.as_bytes()).version, version, "{text}");
        }
    }
}
