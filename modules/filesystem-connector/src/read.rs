//! Reads a file and makes a document of it.
//!
//! Blocks; knows neither the state nor the way out.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pipedoc_sdk::bytes::Bytes;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::{Blob, blob};
use sha2::{Digest, Sha256};
use url::Url;

use crate::known::Stat;

/// Kind of the error for files over the limit.
pub const TOO_LARGE: &str = "too-large";
/// Kind of the error for files that cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// What came of reading a file.
#[derive(Debug)]
pub enum Outcome {
    /// Its content.
    Content(Content),
    /// There is no file any more.
    Vanished,
    /// It cannot be read; the kind of the error says why in one word.
    Failed(&'static str, Error),
}

/// Content of a file.
#[derive(Debug)]
pub struct Content {
    /// The bytes.
    pub bytes: Bytes,
    /// Their SHA-256.
    pub sha256: Bytes,
    /// What the file looks like; unreliable if it may have been read while it was
    /// being written.
    pub stat: Stat,
    /// When the file was changed last.
    pub modified: Option<SystemTime>,
}

impl Content {
    /// SHA-256 as text.
    pub fn hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The document.
    pub fn into_document(self, id: &str, version: i64, path: &Path) -> PipeDoc {
        let blob = Blob {
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            size: self.bytes.len() as u64,
            sha256: self.sha256,
            content: Some(blob::Content::Inline(self.bytes)),
            ..Blob::default()
        };
        PipeDoc {
            id: id.to_owned(),
            version,
            // Only a relative path has no URL.
            source_uri: Url::from_file_path(path).map(String::from).unwrap_or_default(),
            modified_at: self.modified.map(timestamp),
            blobs: vec![blob],
            ..PipeDoc::default()
        }
    }
}

/// Reads a file of at most `max_size` bytes.
pub fn read(path: &Path, max_size: u64) -> Outcome {
    let attempt = || {
        let started = SystemTime::now();
        let (bytes, before, after) = attempt(path, max_size)?;
        let whole = Stat::of(&before) == Stat::of(&after);
        let stat = Stat::of(&after).unless_fresh(started);
        Ok((bytes, if whole { stat } else { stat.unreliable() }, whole, after))
    };
    // A file that changes while it is read is read once more. If it still does, it
    // goes out as it is, and comes again with the next scan.
    let result = match attempt() {
        Ok((_, _, false, _)) => attempt(),
        result => result,
    };
    match result {
        Ok((bytes, stat, _, metadata)) => {
            let sha256 = Bytes::copy_from_slice(&Sha256::digest(&bytes));
            Outcome::Content(Content { bytes: bytes.into(), sha256, stat, modified: metadata.modified().ok() })
        }
        Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => Outcome::Vanished,
        Err(Refusal::Io(error)) => Outcome::Failed(UNREADABLE, unreadable(path, error)),
        Err(Refusal::TooLarge) => {
            let message =
                format!("file {} is larger than {max_size} bytes; raise `max_file_size` to read it", path.display());
            Outcome::Failed(TOO_LARGE, Error::permanent(message).with_kind(TOO_LARGE))
        }
    }
}

/// A permanent error that names the file.
pub fn unreadable(path: &Path, error: io::Error) -> Error {
    let permanent = Error::permanent(error).with_kind(UNREADABLE);
    permanent.context(format!("{} cannot be read", path.display()))
}

enum Refusal {
    Io(io::Error),
    TooLarge,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn attempt(path: &Path, max_size: u64) -> Result<(Vec<u8>, Metadata, Metadata), Refusal> {
    let file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > max_size {
        return Err(Refusal::TooLarge);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or_default());
    // It may grow meanwhile, and some files do not tell their size at all.
    (&file).take(max_size.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_size {
        return Err(Refusal::TooLarge);
    }
    let after = file.metadata()?;
    Ok((bytes, before, after))
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    // Times before 1970 are kept to the second.
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => prost_types::Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        },
        Err(before) => prost_types::Timestamp {
            seconds: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
            nanos: 0,
        },
    }
}
