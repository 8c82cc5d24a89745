//! What an operator may set.

use std::time;

use pipedoc_sdk::prelude::*;
use pipedoc_sdk::units::Duration;

/// Configuration of an object sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to write: a folder, as a path or as `file:///path`. It is made if it
    /// is missing; relative paths count from where the process was started. Object
    /// stores (`s3://…`) are not supported yet.
    pub url: String,

    /// How documents are written. Default: `JSON`.
    #[serde(default)]
    pub format: Format,

    /// Whether to write JSON with line breaks and indentation, for people; only with
    /// `JSON`. Default: false.
    #[serde(default)]
    pub pretty: bool,

    /// What to do with the inline content of blobs. Default: `KEEP`.
    #[serde(default)]
    pub blobs: Blobs,

    /// Whether a document counts as stored only when it is on the disk, so that it
    /// survives a power cut. Default: true. With false it survives the end of the
    /// process, and writing is faster.
    #[serde(default = "yes")]
    pub fsync: bool,

    /// How long to remember that a document was deleted, so that an old version
    /// that comes late does not bring it back. Default: `30d`.
    #[serde(default = "deletion_horizon")]
    #[schemars(default = "deletion_horizon")]
    pub deletion_horizon: Duration,
}

/// How documents are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Format {
    /// One JSON file for each document, named by its id: `reports/may.pdf` becomes
    /// `reports/may.pdf.json`.
    #[default]
    #[serde(rename = "JSON", alias = "json")]
    Json,
    /// JSON Lines: files `part-….jsonl` that never change, a line for each document
    /// or deletion as it came. `pipedoc run` merges them at its end into one
    /// `documents.jsonl` that holds the newest version of each document.
    #[serde(rename = "JSONL", alias = "jsonl")]
    Jsonl,
}

/// What to do with the inline content of blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Blobs {
    /// Write it, in base64.
    #[default]
    Keep,
    /// Write only name, type, size and SHA-256.
    Omit,
}

fn yes() -> bool {
    true
}

fn deletion_horizon() -> Duration {
    Duration(time::Duration::from_secs(30 * 24 * 3600))
}
