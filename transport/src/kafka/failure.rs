//! Kafka's errors as the contract's: here it is decided what may be tried again.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::kafka;
use pipedoc_model::names::Topic;
use pipedoc_model::problem::{Problem, Problems};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::contact::Contact;
use super::files;
use crate::error::Resource;
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
    /// The operation of access lists that this needs, on topics above all.
    right: &'static str,
    /// The group it is made for.
    group: Option<&'a str>,
    /// The operation of access lists that this needs on that group.
    group_right: &'static str,
    /// The transactional id it is made for.
    id: Option<&'a str>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(operation: &'static str, contact: &'a Contact, waited: Duration) -> Self {
        Self {
            operation,
            waited,
            contact,
            who: "the client",
            right: "Describe",
            group: None,
            group_right: "Read",
            id: None,
        }
    }

    /// Names the operation of access lists that it needs.
    pub(super) fn needs(self, right: &'static str) -> Self {
        Self { right, ..self }
    }

    /// It is made for a group.
    pub(super) fn of_group(self, group: &'a str) -> Self {
        Self { group: Some(group), ..self }
    }

    /// It only looks at a group.
    pub(super) fn looking_at_group(self, group: &'a str) -> Self {
        Self { group_right: "Describe", ..self.of_group(group) }
    }

    /// It is made for a transactional id.
    pub(super) fn of_id(self, id: &'a str) -> Self {
        Self { id: Some(id), ..self }
    }

    pub(super) fn by(self, who: &'a str) -> Self {
        Self { who, ..self }
    }

    /// The contract's error for one of rdkafka.
    pub(super) fn failed(&self, error: KafkaError) -> Error {
        self.failed_with(None, error)
    }

    /// As [`failed_on`](Self::failed_on), for calls that answer with a bare code.
    /// ([`KafkaError::AdminOp`] does not give its code back.)
    pub(super) fn refused_on(&self, topic: &Topic, code: Code) -> Error {
        self.typed(Some(topic), code).unwrap_or_else(|| self.backend(is_passing(code), KafkaError::AdminOp(code)))
    }

    /// As [`failed`](Self::failed), for an operation on one topic.
    pub(super) fn failed_on(&self, topic: &Topic, error: KafkaError) -> Error {
        match error.rdkafka_error_code() {
            Some(code) if is_unknown_topic(code) => Error::UnknownTopic { topic: topic.clone() },
            _ => self.failed_with(Some(topic), error),
        }
    }

    pub(super) fn timed_out(&self) -> Error {
        self.contact.out_of_reach(self.operation).unwrap_or_else(|| Error::TimedOut {
            operation: self.operation,
            target: self.contact.target(),
            waited: self.waited,
        })
    }

    fn failed_with(&self, topic: Option<&Topic>, error: KafkaError) -> Error {
        if let Some(error) = error.rdkafka_error_code().and_then(|code| self.typed(topic, code)) {
            return error;
        }
        let retryable = match &error {
            KafkaError::Transaction(error) => error.is_retriable(),
            other => other.rdkafka_error_code().is_some_and(is_passing),
        };
        self.backend(retryable, error)
    }

    /// The error for a code that has one of its own.
    fn typed(&self, topic: Option<&Topic>, code: Code) -> Option<Error> {
        let (operation, address) = (self.operation, self.contact.addresses().to_owned());
        let unauthorized = |right, resource| Some(Error::Unauthorized { operation, right, resource });
        match code {
            code if is_silence(code) => Some(self.timed_out()),
            code if is_fenced(code) => Some(Error::Fenced { who: self.who.to_owned() }),
            Code::TopicAuthorizationFailed => {
                unauthorized(self.right, topic.cloned().map_or(Resource::SomeTopic, Resource::Topic))
            }
            Code::GroupAuthorizationFailed => {
                unauthorized(self.group_right, Resource::Group(self.group.unwrap_or("of the client").to_owned()))
            }
            Code::TransactionalIdAuthorizationFailed => {
                unauthorized("Write", Resource::TransactionalId(self.id.unwrap_or("of the client").to_owned()))
            }
            Code::ClusterAuthorizationFailed => unauthorized(self.right, Resource::Cluster),
            Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
                let reason = self.contact.refusal().unwrap_or_else(|| code.to_string());
                Some(Error::Authentication { address, reason })
            }
            Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedForMessageFormat => {
                Some(Error::UnsupportedBroker {
                    operation,
                    address,
                    needs: "Kafka 2.5 or newer is needed, and 4.0 for group.protocol=consumer",
                })
            }
            _ => None,
        }
    }

    /// The error for something that passes when it is tried again.
    pub(super) fn passing(&self, error: KafkaError) -> Error {
        self.backend(true, error)
    }

    fn backend(&self, retryable: bool, error: KafkaError) -> Error {
        Error::Backend { operation: self.operation, target: self.contact.target(), retryable, source: Arc::new(error) }
    }
}

/// The error for a client that cannot be made: its settings are to blame.
pub(super) fn not_made(config: &ClientConfig) -> impl Fn(KafkaError) -> Error {
    move |error| {
        let problem = match error {
            // What librdkafka says may quote the value.
            KafkaError::ClientConfig(_, _, name, _) if kafka::is_secret(&name) => {
                Problem { field: name, message: "its value cannot be used".to_owned(), ..Problem::default() }
            }
            KafkaError::ClientConfig(_, message, name, _) => Problem { field: name, message, ..Problem::default() },
            KafkaError::ClientCreation(message) => files::blamed(|name| config.get(name), message),
            other => Problem { message: other.to_string(), ..Problem::default() },
        };
        Error::Settings { source: Problems(vec![problem]) }
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
