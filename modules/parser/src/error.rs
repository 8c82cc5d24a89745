//! What can be wrong with a file, said so that a person can act on it.
//!
//! Travels from a child to its parent as JSON; knows neither processes' ids nor
//! how files reach the parser.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a file was not parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The document carries no file.
    #[error("document {id:?} carries no file: it has no blob, and its body is empty")]
    NoFile {
        /// The document's id.
        id: String,
    },
    /// The file lies in an object store and was not read back.
    #[error(
        "file {name:?} lies in an object store and was not read back; the parser needs `hydration: EAGER` on its step"
    )]
    NotHydrated {
        /// The file.
        name: String,
    },
    /// The file has no content.
    #[error("file {name:?} is empty")]
    Empty {
        /// The file.
        name: String,
    },
    /// The file is larger than the parser takes.
    #[error("file {name:?} has {size} bytes, more than `max_file_size` ({limit} bytes)")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file unpacks to more than the parser takes.
    #[error(
        "file {name:?} would unpack to {size} bytes, more than the {limit} that are allowed (a decompression bomb?)"
    )]
    Expands {
        /// The file.
        name: String,
        /// Bytes that it unpacks to, as far as they were counted.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is of a kind that holds no text the parser can get at.
    #[error("file {name:?} is {mime}, from which no text can be read")]
    Unsupported {
        /// The file.
        name: String,
        /// Its media type, as found in the content.
        mime: String,
    },
    /// The file is protected by a password or by rights management.
    #[error("file {name:?} ({mime}) is encrypted; remove the protection and send it again")]
    Encrypted {
        /// The file.
        name: String,
        /// Its media type.
        mime: String,
    },
    /// The file ends before its end.
    #[error("file {name:?} ({mime}) is truncated after {size} bytes: {missing}")]
    Truncated {
        /// The file.
        name: String,
        /// Its media type.
        mime: String,
        /// Its size in bytes.
        size: u64,
        /// What should stand at its end.
        missing: String,
    },
    /// The file breaks the rules of its format.
    #[error("file {name:?} ({mime}) is damaged: {reason}")]
    Damaged {
        /// The file.
        name: String,
        /// Its media type.
        mime: String,
        /// What the reader stumbled over.
        reason: String,
    },
    /// Parsing took too long and was ended.
    #[error("file {name:?} was not parsed within `timeout` ({limit:?})")]
    TimedOut {
        /// The file.
        name: String,
        /// The limit.
        limit: Duration,
    },
    /// Parsing needed more memory than a child may have.
    #[error("file {name:?} needs more memory to parse than `memory_limit` ({limit} bytes)")]
    OutOfMemory {
        /// The file.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The child that parsed the file died of it.
    #[error("file {name:?} made its parser process die ({how})")]
    Crashed {
        /// The file.
        name: String,
        /// How it died: signal or exit code, and its last words.
        how: String,
    },
    /// The child that parsed the file was ended by somebody else.
    #[error("the parser process was ended from outside ({how}) while it worked on file {name:?}")]
    Killed {
        /// The file.
        name: String,
        /// The signal.
        how: String,
    },
    /// No child could be started.
    #[error("no parser process could be started from {program:?}: {reason}")]
    NoChild {
        /// The program.
        program: String,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// Whether the same file may be parsed at another attempt.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Killed { .. } | Self::NoChild { .. } => true,
            Self::NoFile { .. }
            | Self::NotHydrated { .. }
            | Self::Empty { .. }
            | Self::TooLarge { .. }
            | Self::Expands { .. }
            | Self::Unsupported { .. }
            | Self::Encrypted { .. }
            | Self::Truncated { .. }
            | Self::Damaged { .. }
            | Self::TimedOut { .. }
            | Self::OutOfMemory { .. }
            | Self::Crashed { .. } => false,
        }
    }

    /// A stable word for machines; the dead letter's `error_type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoFile { .. } => "no-file",
            Self::NotHydrated { .. } => "not-hydrated",
            Self::Empty { .. } => "empty",
            Self::TooLarge { .. } => "too-large",
            Self::Expands { .. } => "expands",
            Self::Unsupported { .. } => "unsupported",
            Self::Encrypted { .. } => "encrypted",
            Self::Truncated { .. } => "truncated",
            Self::Damaged { .. } => "damaged",
            Self::TimedOut { .. } => "timed-out",
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::Crashed { .. } => "crashed",
            Self::Killed { .. } => "killed",
            Self::NoChild { .. } => "no-child",
        }
    }

    /// As an error of a module, which may be retried or not, with its kind.
    #[must_use]
    pub fn into_module_error(self) -> pipedoc_sdk::error::Error {
        use pipedoc_sdk::error::Error as ModuleError;
        let kind = self.kind();
        let error = if self.is_retryable() { ModuleError::retryable(self) } else { ModuleError::permanent(self) };
        error.with_kind(kind)
    }
}
