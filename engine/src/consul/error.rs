//! What goes wrong between us and Consul, and what people are told of it.

use std::sync::Arc;
use std::time::SystemTime;

use rustify::errors::ClientError;

use crate::store::{Cause, Error, Key, silent};

/// A value holds at most so many bytes (Consul's `kv_max_value_size`).
pub(super) const VALUE_LIMIT: usize = 512 * 1024;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No answer: unreachable, too slow, broken off, or without a leader of its own.
    #[error("Consul at {address} {}", silent(*.since))]
    Away {
        address: String,
        /// Since when; none: since now.
        since: Option<SystemTime>,
        #[source]
        source: Cause,
    },
    /// 403: the token is unknown, or lacks a right.
    #[error("Consul refused it: {message}")]
    Denied { message: String },
    /// Another status than one that means success.
    #[error("Consul answered {code}: {message}")]
    Status { code: u16, message: String },
    /// The answer cannot be read, or the question could not be asked.
    #[error("the answer of Consul cannot be read")]
    Unreadable(#[source] Cause),
}

impl Failure {
    /// What it means, by status where there is one.
    pub(super) fn of(address: &str, error: ClientError) -> Self {
        let gone = |source| Self::Away { address: address.to_owned(), since: None, source };
        match error {
            ClientError::ServerResponseError { code: 403, content } => {
                Self::Denied { message: content.unwrap_or_default().trim().to_owned() }
            }
            ClientError::ServerResponseError { code, content } => {
                let message = content.unwrap_or_default().trim().to_owned();
                // 500 "No cluster leader", 503 and the like while servers restart; 429 when limits are set.
                if code >= 500 || code == 429 {
                    gone(Arc::new(std::io::Error::other(format!("status {code}: {message}"))))
                } else {
                    Self::Status { code, message }
                }
            }
            ClientError::RequestError { source, .. } | ClientError::ResponseError { source } => {
                gone(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(source)))
            }
            other => Self::Unreadable(Arc::new(other)),
        }
    }

    /// As an error of the store. `right` is what a token needs for the operation.
    pub(super) fn into_store(self, operation: &'static str, target: &str, right: &str) -> Error {
        match self {
            Self::Away { address, since, source } => Error::Unreachable { address, since, source },
            // A token that was deleted, or is another Consul's.
            Self::Denied { message } if message.contains("ACL not found") => Error::Denied {
                operation,
                target: target.to_owned(),
                right: "to be one that Consul knows".to_owned(),
                message,
            },
            Self::Denied { message } => {
                Error::Denied { operation, target: target.to_owned(), right: right.to_owned(), message }
            }
            other => Error::Backend { operation, target: target.to_owned(), retryable: false, source: Arc::new(other) },
        }
    }
}

/// Refuses what no value can hold.
pub(super) fn check_size(key: &Key, text: &str) -> Result<(), Error> {
    if text.len() <= VALUE_LIMIT {
        return Ok(());
    }
    Err(Error::TooLarge { key: key.clone(), size: text.len(), limit: VALUE_LIMIT })
}
