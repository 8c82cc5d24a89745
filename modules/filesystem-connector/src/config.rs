//! What an operator may set.
//!
//! Knows the fields and their defaults; that the folder exists and the globs make
//! sense is found out where they are used.

use std::path::PathBuf;
use std::time;

use pipedoc_sdk::prelude::*;
use pipedoc_sdk::units::{Duration, Size};

/// Configuration of a filesystem connector.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder to read. Relative paths count from where the process was started.
    /// It must exist. Hidden files are read like others; folders named `.pipedoc`,
    /// and folders inside that an object sink writes to, are never read.
    pub folder: PathBuf,

    /// Globs of the files to read; a file must match one of them. Default: all files.
    /// A glob without `/` (`*.pdf`) matches names in every folder, one with `/`
    /// (`reports/**/*.pdf`) the path from `folder`.
    #[serde(default)]
    pub include: Vec<String>,

    /// Globs of files and folders to leave out; wins over `include`. A folder that
    /// matches is left out with all that is in it. Default: none.
    #[serde(default)]
    pub exclude: Vec<String>,

    /// Whether to read the folders inside `folder`. Default: true.
    #[serde(default = "yes")]
    pub recursive: bool,

    /// Whether to follow symbolic links, to files and to folders. Default: false:
    /// links are passed over, what they point to is read where it lies. With true,
    /// a file that is reached on two ways is two documents.
    #[serde(default)]
    pub follow_symlinks: bool,

    /// Files larger than this become dead letters. It also bounds the memory for
    /// files being read. Default: `256MiB`.
    #[serde(default = "max_file_size")]
    #[schemars(default = "max_file_size")]
    pub max_file_size: Size,

    /// What to put before each document's id, so that two connectors on different
    /// folders do not use the same ids (`archive/`). Must not contain `%` or `#`.
    /// Default: nothing: the id is the path from `folder`.
    #[serde(default)]
    pub id_prefix: String,

    /// Whether to stay and send changes as they happen. Default: false: the step
    /// ends when all files have been sent.
    #[serde(default)]
    pub watch: bool,

    /// With `watch`: how long a file must be left alone before it is read. Default:
    /// `500ms`.
    #[serde(default = "debounce")]
    #[schemars(default = "debounce")]
    pub debounce: Duration,

    /// With `watch`: how often to look at all files, for changes that the operating
    /// system did not tell of. Default: `60s`.
    #[serde(default = "rescan")]
    #[schemars(default = "rescan")]
    pub rescan: Duration,
}

fn yes() -> bool {
    true
}

fn max_file_size() -> Size {
    Size(256 << 20)
}

fn debounce() -> Duration {
    Duration(time::Duration::from_millis(500))
}

fn rescan() -> Duration {
    Duration(time::Duration::from_secs(60))
}
