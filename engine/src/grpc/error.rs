//! Errors as gRPC statuses: one match for all of them.

use tonic::{Code, Status};

use crate::error::Error;
use crate::store;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::UnknownPipeline { .. }
            | Error::Deleted { .. }
            | Error::Lost { .. }
            | Error::UnknownStep { .. }
            | Error::NoSuchStep { .. }
            | Error::UnknownRevision { .. } => Code::NotFound,
            Error::NothingBefore { .. } => Code::FailedPrecondition,
            Error::AmbiguousStep { .. } | Error::Invalid(_) => Code::InvalidArgument,
            Error::NotSupported { .. } => Code::Unimplemented,
            Error::Store(store::Error::TooNew { .. }) => Code::FailedPrecondition,
            Error::Store(store::Error::Denied { .. }) => Code::PermissionDenied,
            Error::NotReady => Code::Unavailable,
            Error::Store(source) if source.is_retryable() => Code::Unavailable,
            Error::Log(source) if source.is_retryable() => Code::Unavailable,
            Error::Store(_) | Error::Log(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
