//! Makes our errors of SQLite's. Knows what a person can do about each.

use std::path::Path;
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::error::{Error, FileProblem};

/// `SQLITE_IOERR_SHMSIZE`: the shared memory file could not grow, for want of room.
const SHM_SIZE: i32 = 10 | (19 << 8);

/// What became of work inside a write transaction.
#[derive(Debug)]
pub(super) enum Fault {
    /// The work was refused before it changed anything; the transaction goes on.
    Refused(Error),
    /// SQLite failed; the whole transaction is undone.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Fault {
    /// As an error of an operation on a file.
    pub(super) fn explain(self, path: &Path, operation: &'static str) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Sql(error) => explain(path, operation, error),
        }
    }
}

/// An error of SQLite as ours.
pub(super) fn explain(path: &Path, operation: &'static str, error: rusqlite::Error) -> Error {
    let problem = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::NotADatabase => Some(FileProblem::NotALog),
            ErrorCode::DatabaseCorrupt => Some(FileProblem::Corrupt),
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Some(FileProblem::ReadOnly),
            ErrorCode::DiskFull => Some(FileProblem::Full),
            ErrorCode::SystemIoFailure if failure.extended_code == SHM_SIZE => Some(FileProblem::Full),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some(FileProblem::Locked),
            ErrorCode::CannotOpen => Some(FileProblem::CannotOpen),
            _ => None,
        },
        _ => None,
    };
    let source = Arc::new(error);
    match problem {
        Some(problem) => Error::File { path: path.to_owned(), problem, source: Some(source) },
        // What SQLite says else (an IO error, no memory) may pass.
        None => Error::Backend { operation, target: path.display().to_string(), retryable: true, source },
    }
}

/// A problem without a cause.
pub(super) fn problem(path: &Path, problem: FileProblem) -> Error {
    Error::File { path: path.to_owned(), problem, source: None }
}
