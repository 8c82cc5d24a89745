//! Errors of modules: whether they may be retried is decided where they are born.

use std::error::Error as StdError;
use std::fmt;

use pipedoc_transport::error::FileProblem;
use pipedoc_transport::{log, objects};

/// Result of what a module does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a document was not processed.
///
/// Any error becomes one through `?`, retryable; [`permanent`](Error::permanent)
/// makes it the other kind. It is no `std::error::Error` itself, as `anyhow::Error`
/// is none, so that the blanket conversion can exist.
pub struct Error {
    retryable: bool,
    kind: &'static str,
    storage: Storage,
    source: Box<dyn StdError + Send + Sync>,
}

impl Error {
    /// An error that the same document will meet again: no second attempt is made.
    pub fn permanent(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(false, "permanent", source.into())
    }

    /// An error that may pass: the document is tried again after a while.
    pub fn retryable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(true, "retryable", source.into())
    }

    /// Gives the error a kind, a stable word for machines (`encrypted`,
    /// `timed-out`); it becomes the dead letter's `error_type`.
    #[must_use]
    pub fn with_kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// Says in other words what failed; the error so far becomes its cause.
    #[must_use]
    pub fn context(self, message: impl fmt::Display) -> Self {
        let source = Box::new(Context { message: message.to_string(), source: self.source });
        Self { source, ..self }
    }

    /// Makes the error permanent.
    #[must_use]
    pub fn into_permanent(mut self) -> Self {
        self.retryable = false;
        if self.kind == "retryable" {
            self.kind = "permanent";
        }
        self
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether a disk is full, according to the error or any of its causes
    /// ([`std::io::ErrorKind::StorageFull`], a full log, SQLite file or object store). A document
    /// that meets a retryable error of this kind waits for room; no attempt counts.
    #[must_use]
    pub fn is_storage_full(&self) -> bool {
        self.storage == Storage::Full
    }

    /// Whether the log's file is damaged or cannot be used, according to the error or
    /// any of its causes: only a person can mend that.
    pub(crate) fn is_log_broken(&self) -> bool {
        self.storage == Storage::Broken
    }

    fn new(retryable: bool, kind: &'static str, source: Box<dyn StdError + Send + Sync>) -> Self {
        let storage = Storage::of(source.as_ref());
        Self { retryable, kind, storage, source }
    }

    /// The same error again, for another document that it struck; its causes are
    /// kept as words.
    #[must_use]
    pub(crate) fn duplicate(&self) -> Self {
        self.duplicate_with(|words| words)
    }

    /// As [`duplicate`](Self::duplicate), in other words.
    pub(crate) fn duplicate_with(&self, words: impl FnMut(String) -> String) -> Self {
        let mut chain = self.chain().into_iter().map(words).rev();
        let first = chain.next().unwrap_or_default();
        let source = chain.fold(first.into(), |source, message| Box::new(Context { message, source }) as Box<_>);
        Self { source, ..*self }
    }

    /// Its kind, a stable word for machines.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// What failed and why, outermost first.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.source.to_string()];
        let mut next = self.source.source();
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        chain
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for Error {
    fn from(source: E) -> Self {
        Self::retryable(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain().join(": "))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {self}", if self.retryable { "retryable" } else { "permanent" }, self.kind)
    }
}

/// What is wrong with what is written to, as far as an error tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// Nothing that is known.
    Fine,
    /// A disk is full.
    Full,
    /// The log's file is damaged or cannot be used.
    Broken,
}

impl Storage {
    /// Looks through an error and its causes.
    fn of(error: &(dyn StdError + 'static)) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let full = if let Some(error) = error.downcast_ref::<std::io::Error>() {
            matches!(error.kind(), StorageFull | QuotaExceeded)
        } else if let Some(log::Error::File { problem, .. }) = error.downcast_ref() {
            return match problem {
                FileProblem::Full => Self::Full,
                FileProblem::Locked => Self::Fine,
                _ => Self::Broken,
            };
        } else if let Some(error) = error.downcast_ref::<rusqlite::Error>() {
            error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
        } else {
            matches!(error.downcast_ref(), Some(objects::Error::Full { .. }))
        };
        if full { Self::Full } else { error.source().map_or(Self::Fine, Self::of) }
    }
}

#[derive(Debug)]
struct Context {
    message: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Context {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.source.as_ref())
    }
}

/// `.permanent()` and `.context(..)` on results.
pub trait ResultExt<T> {
    /// Makes an error permanent: the same document will meet it again.
    ///
    /// # Errors
    /// The error, made permanent.
    fn permanent(self) -> Result<T>;

    /// Says in other words what failed.
    ///
    /// # Errors
    /// The error, with the words before it.
    fn context(self, message: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn permanent(self) -> Result<T> {
        self.map_err(|error| error.into().into_permanent())
    }

    fn context(self, message: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(message))
    }
}
