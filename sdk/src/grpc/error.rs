//! What a call can be refused for. A document that the module refuses is none of
//! these: it is an outcome.

use pipedoc_model::names::{self, ModuleName};

use crate::error::Error as ModuleError;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to do.
    #[error("the request has neither `document` nor `deleted_id`; set one of them")]
    NothingGiven,
    /// Two things to do.
    #[error("the request has both `document` and `deleted_id`; set only one of them")]
    BothGiven,
    /// The document has no identity.
    #[error("`document.id` is empty; every document has an id")]
    NoId,
    /// The step cannot be named so.
    #[error("`step` cannot be named so")]
    Step(#[source] names::Error),
    /// The module is a connector.
    #[error("{module} is a connector: it brings documents in from outside and takes none")]
    Connector {
        /// The module.
        module: ModuleName,
    },
    /// The module works on records.
    #[error("{module} works on records of a log and takes no documents")]
    Records {
        /// The module.
        module: ModuleName,
    },
    /// The module could not be opened with this configuration.
    #[error("{module} could not be opened: {}", error.chain().join(": "))]
    Open {
        /// The module.
        module: ModuleName,
        /// Why.
        error: ModuleError,
    },
    /// The process stops.
    #[error("{module} is stopping; call another instance")]
    Stopping {
        /// The module.
        module: ModuleName,
    },
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NothingGiven | Error::BothGiven | Error::NoId | Error::Step(_) => tonic::Code::InvalidArgument,
            Error::Connector { .. } | Error::Records { .. } => tonic::Code::FailedPrecondition,
            Error::Open { error, .. } if error.is_retryable() => tonic::Code::Unavailable,
            Error::Open { .. } => tonic::Code::InvalidArgument,
            Error::Stopping { .. } => tonic::Code::Unavailable,
        };
        let mut message = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            message.push_str(": ");
            message.push_str(&cause.to_string());
        }
        tonic::Status::new(code, message)
    }
}
