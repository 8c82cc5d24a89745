//! What the connector's state says of a document, and what the file system says of
//! a file: enough to tell whether it must be read again.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pipedoc_sdk::bytes::Bytes;
use pipedoc_sdk::prelude::*;
use serde::Serialize;

/// File systems stamp times with a clock that ticks slowly: a file written twice
/// within a tick looks the same both times. Files as fresh as this are read again
/// next time, whatever they look like.
const FRESH: Duration = Duration::from_millis(50);

/// What a file looks like from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stat {
    /// Size in bytes.
    pub size: u64,
    /// When the content was changed, in nanoseconds since 1970; 0 when not to be
    /// relied on.
    pub mtime: i64,
    /// When content or attributes were changed, in nanoseconds since 1970. Unlike
    /// `mtime`, no program can set it.
    pub ctime: i64,
}

impl Stat {
    /// What metadata say.
    pub fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The same, not to be relied on if the file was changed just before `read_at`.
    #[must_use]
    pub fn unless_fresh(self, read_at: SystemTime) -> Self {
        let read_at = read_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = i64::try_from(read_at.saturating_sub(FRESH).as_nanos()).unwrap_or(i64::MAX);
        if self.mtime.max(self.ctime) >= settled { self.unreliable() } else { self }
    }

    /// The same, not to be relied on.
    #[must_use]
    pub fn unreliable(self) -> Self {
        Self { mtime: 0, ..self }
    }
}

/// What the state says of a document. Its JSON is the state's value; its key is
/// the document's id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Known {
    /// Version last given to the document.
    pub version: i64,
    /// What the file looked like then.
    #[serde(flatten)]
    pub stat: Stat,
    /// SHA-256 of its content, hexadecimal; empty when it could not be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Why it could not be read, the error's kind; none when it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Known {
    /// What the state says of a document. An entry that cannot be read counts as
    /// none: the document is sent again.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn of(state: &State, id: &str) -> Result<Option<Self>> {
        Ok(state.get(id)?.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    /// The change that writes it.
    ///
    /// # Errors
    /// Never for the types at hand.
    pub fn change(&self, id: &str) -> Result<StateChanges> {
        Ok(vec![(id.to_owned(), Some(Bytes::from(serde_json::to_vec(self)?)))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_being_written() {
        let stat = Stat { size: 3, mtime: 1_700_000_000_000_000_001, ctime: 2 };
        for known in [
            Known { version: 7, stat, sha256: "ab".into(), failed: None },
            Known { version: 8, stat, sha256: String::new(), failed: Some("too-large".into()) },
        ] {
            let change = known.change("x").unwrap();
            let value = change[0].1.as_ref().unwrap();
            assert_eq!(serde_json::from_slice::<Known>(value).unwrap(), known);
        }
    }

    #[test]
    fn a_file_changed_a_moment_ago_is_not_trusted() {
        let read_at = UNIX_EPOCH + Duration::from_secs(100);
        let stat = Stat { size: 1, mtime: 99_999_000_000, ctime: 1 };
        assert_ne!(stat.unless_fresh(read_at), stat);
        let stat = Stat { size: 1, mtime: 99_000_000_000, ctime: 99_000_000_000 };
        assert_eq!(stat.unless_fresh(read_at), stat);
    }
}
