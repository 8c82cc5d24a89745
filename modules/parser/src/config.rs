//! The step's configuration.

use std::time::Duration;

use pipedoc_sdk::units;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pool::Limits;

/// How files are parsed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the file itself stays in the document. Default: false, so that
    /// records stay small; the sink then stores text and metadata alone.
    pub keep_blob: bool,
    /// Largest file that is parsed; a larger one is a permanent error. It may
    /// unpack to four times as much. Default: `256MiB`.
    pub max_file_size: units::Size,
    /// Longest time for one file, from when a child takes it; then the child is
    /// ended, and the file is a permanent error. Keep it below the step's own
    /// `timeout`, which counts as passing and is tried again. Default: `45s`.
    pub timeout: units::Duration,
    /// Memory that a child may take beyond what the program needs by itself.
    /// Default: `512MiB`.
    pub memory_limit: units::Size,
    /// Child processes at most; 0: as many as there are cores. Default: 0.
    pub children: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep_blob: false,
            max_file_size: units::Size(256 << 20),
            timeout: units::Duration(Duration::from_secs(45)),
            memory_limit: units::Size(512 << 20),
            children: 0,
        }
    }
}

impl Config {
    /// What children may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Limits {
            children: if self.children == 0 { cores() } else { self.children },
            timeout: self.timeout.0,
            memory: self.memory_limit.0,
            max_file_size: self.max_file_size.0,
        }
    }
}
