//! What can go wrong in the sink, and whether it may pass.

use std::io;
use std::path::{Path, PathBuf};

use pipedoc_sdk::proto;

/// Why the sink could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names something that the sink cannot write to.
    #[error("`{0}` is not supported yet; `url` must be a path or `file:///path`")]
    Unsupported(String),
    /// The configuration is wrong.
    #[error("configuration cannot be read")]
    Config(#[source] serde_json::Error),
    /// Secrets of the configuration cannot be had.
    #[error("{0}")]
    Secrets(pipedoc_sdk::model::problem::Problems),
    /// The folder to write to cannot be used.
    #[error("folder {} cannot be written to; correct `url`, or the folder's permissions", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder cannot be worked with.
    #[error("{} cannot be {what}", .path.display())]
    Io {
        /// What was to be done (`written`).
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A document has no id.
    #[error("the document has no id, so there is no name for its file")]
    NoId,
    /// A part is not what parts are.
    #[error("`{id}` cannot be part {part} of {parts} of `{parent}`: a part's id is `<parent>#<part>`, counted from 0")]
    Part {
        /// Id of the part.
        id: String,
        /// Id of its parent.
        parent: String,
        /// Its number.
        part: i32,
        /// How many parts there are.
        parts: i32,
    },
    /// A document has no JSON form.
    #[error("document `{id}` cannot be written as JSON")]
    Json {
        /// The document.
        id: String,
        /// Why.
        source: proto::json::Error,
    },
    /// A line of a JSON Lines file is none of ours.
    #[error("{}:{line} is no document; correct or remove the line", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// The writer has ended.
    #[error("the sink has been closed")]
    Closed,
}

impl Error {
    /// The file that something could not be done with.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Folder { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            // Disks are emptied, permissions set right; a name stays wrong.
            Self::Io { source, .. } => source.kind() != io::ErrorKind::InvalidFilename,
            Self::Closed => true,
            Self::Unsupported(_) | Self::Config(_) | Self::Secrets(_) => false,
            Self::NoId | Self::Part { .. } | Self::Json { .. } | Self::Line { .. } => false,
        }
    }

    /// A stable word for machines.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsupported(_) | Self::Config(_) | Self::Secrets(_) => "config",
            Self::Folder { source, .. } | Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "storage-full",
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "permission",
                _ => "storage",
            },
            Self::NoId | Self::Part { .. } | Self::Json { .. } | Self::Line { .. } => "invalid-document",
            Self::Closed => "closed",
        }
    }
}

/// The same for the runtime. `error` may be shared by all documents of a batch.
pub(crate) fn told(
    error: impl std::ops::Deref<Target = Error> + std::error::Error + Send + Sync + 'static,
) -> pipedoc_sdk::error::Error {
    let (kind, retryable) = (error.kind(), error.is_retryable());
    let told = if retryable {
        pipedoc_sdk::error::Error::retryable(error)
    } else {
        pipedoc_sdk::error::Error::permanent(error)
    };
    told.with_kind(kind)
}
