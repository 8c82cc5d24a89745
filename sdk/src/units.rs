//! Durations and sizes as people write them in configurations: `500ms`, `8MiB`.
//!
//! Knows texts and numbers; knows nothing of what is measured.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No duration.
    #[error("`{0}` is no duration; write a number and a unit (`500ms`, `30s`, `5m`, `12h`, `7d`)")]
    Duration(String),
    /// No size.
    #[error("`{0}` is no size; write a number and a unit (`512B`, `64KiB`, `8MiB`, `2GiB`)")]
    Size(String),
}

/// Units of durations, in milliseconds; longer names first, where one ends in another.
const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of sizes, in bytes; `B` last, since the others end in it.
const SIZES: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

/// A size in bytes: a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Duration {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let millis = parse(text, &DURATIONS).ok_or_else(|| Error::Duration(text.to_owned()))?;
        Ok(Self(std::time::Duration::from_millis(millis)))
    }
}

impl FromStr for Size {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text, &SIZES).map(Self).ok_or_else(|| Error::Size(text.to_owned()))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        f.write_str(&show(millis, &DURATIONS))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self.0, &SIZES))
    }
}

/// What both have in common where configurations are read, shown and described.
macro_rules! as_text {
    ($type:ident, $name:literal, $pattern:literal, $examples:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'_, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern, "examples": $examples})
            }
        }
    };
}

as_text!(Duration, "Duration", "^[0-9]+(ms|s|m|h|d)$", ["500ms", "30s", "5m", "12h", "7d"]);
as_text!(Size, "Size", "^[0-9]+(B|KiB|MiB|GiB|TiB)$", ["512B", "64KiB", "8MiB", "2GiB"]);

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// In the largest unit that says it exactly.
fn show(number: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().filter(|(_, factor)| number.is_multiple_of(*factor) && number >= *factor);
    match exact.max_by_key(|(_, factor)| *factor) {
        Some((unit, factor)) => format!("{}{unit}", number / factor),
        None => format!("0{}", units.iter().min_by_key(|(_, factor)| *factor).map_or("", |(unit, _)| unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_shown_again() {
        for (text, millis) in [("0ms", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("7d", 604_800_000)] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!((duration.0.as_millis(), duration.to_string().as_str()), (millis, text));
        }
        for (text, bytes) in [("0B", 0), ("100B", 100), ("64KiB", 65_536), ("8MiB", 8 << 20), ("3TiB", 3 << 40)] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, text));
        }
        assert_eq!("60s".parse::<Duration>().unwrap().to_string(), "1m");
    }

    #[test]
    fn anything_else_is_refused_with_what_would_be_right() {
        for text in ["", "5", "ms", "-1s", "1.5s", "1 s", "1S", "1w", "18446744073709551615d"] {
            assert_eq!(text.parse::<Duration>(), Err(Error::Duration(text.to_owned())));
        }
        for text in ["", "5", "MB", "1MB", "1 MiB", "1mib", "99999999999TiB"] {
            assert_eq!(text.parse::<Size>(), Err(Error::Size(text.to_owned())));
        }
    }
}
