//! Kafka's errors as the contract's: here it is decided what may be tried again.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::Topic;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::contact::Contact;
use crate::log::Error;

/// What was tried when an error came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt<'a> {
    /// The operation, for the error's text.
    pub(super) operation: &'static str,
    /// How long it was waited for.
    pub(super) waited: Duration,
    /// The way to the cluster.
    pub(super) contact: &'a Contact,
    /// Who is fenced when somebody is: a member or a transactional id.
    pub(super) who: &'a str,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(operation: &'static str, contact: &'a Contact, waited: Duration) -> Self {
        Self { operation, waited, contact, who: "the client" }
    }

    pub(super) fn by(self, who: &'a str) -> Self {
        Self { who, ..self }
    }

    /// The contract's error for one of rdkafka.
    pub(super) fn failed(&self, error: KafkaError) -> Error {
        if let Some(code) = error.rdkafka_error_code() {
            if is_silence(code) {
                return self.timed_out();
            }
            if is_fenced(code) {
                return Error::Fenced { who: self.who.to_owned() };
            }
        }
        let retryable = match &error {
            KafkaError::Transaction(error) => error.is_retriable(),
            other => other.rdkafka_error_code().is_some_and(is_passing),
        };
        self.backend(retryable, error)
    }

    /// As [`failed`](Self::failed), for calls that answer with a bare code.
    /// ([`KafkaError::AdminOp`] does not give its code back.)
    pub(super) fn refused(&self, code: Code) -> Error {
        if is_silence(code) { self.timed_out() } else { self.backend(is_passing(code), KafkaError::AdminOp(code)) }
    }

    /// As [`failed`](Self::failed), for an operation on one topic.
    pub(super) fn failed_on(&self, topic: &Topic, error: KafkaError) -> Error {
        match error.rdkafka_error_code() {
            Some(code) if is_unknown_topic(code) => Error::UnknownTopic { topic: topic.clone() },
            _ => self.failed(error),
        }
    }

    pub(super) fn timed_out(&self) -> Error {
        Error::TimedOut { operation: self.operation, target: self.contact.target(), waited: self.waited }
    }

    fn backend(&self, retryable: bool, error: KafkaError) -> Error {
        Error::Backend { operation: self.operation, target: self.contact.target(), retryable, source: Arc::new(error) }
    }
}

/// The topic is not there.
pub(super) fn is_unknown_topic(code: Code) -> bool {
    matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId)
}

/// Somebody else has taken the place of the member or producer.
pub(super) fn is_fenced(code: Code) -> bool {
    matches!(
        code,
        Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::FencedInstanceId
            | Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch
            | Code::AssignmentLost
    )
}

/// Nobody has answered.
fn is_silence(code: Code) -> bool {
    matches!(
        code,
        Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::WaitingForCoordinator
    )
}

/// The broker has refused for a reason that passes.
pub(super) fn is_passing(code: Code) -> bool {
    is_silence(code)
        || matches!(
            code,
            Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::ReplicaNotAvailable
                | Code::BrokerNotAvailable
                | Code::NetworkException
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::NotController
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::RebalanceInProgress
                | Code::UnstableOffsetCommit
                | Code::ConcurrentTransactions
                | Code::KafkaStorageError
                | Code::PreferredLeaderNotAvailable
                | Code::OffsetNotAvailable
                | Code::ThrottlingQuotaExceeded
                | Code::QueueFull
                | Code::Retry
                | Code::State
                | Code::Outdated
        )
}
