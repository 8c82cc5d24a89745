//! Names of clusters, pipelines, steps and topics, and the names made of them.
//!
//! Cluster, pipeline and step names match `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`,
//! so that dots only separate and every name is safe in topics, groups, paths
//! and keys.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name does not match the pattern.
    #[error(
        "{kind} name {found:?} must be 1 to 63 characters of a-z, 0-9 and `-`, \
         beginning and ending with a letter or a digit"
    )]
    Pattern {
        /// What it was to name.
        kind: &'static str,
        /// The name.
        found: String,
    },
    /// The name is taken by PipeDoc itself.
    #[error("step name {found:?} is reserved for the topics that PipeDoc keeps beside a step")]
    Reserved {
        /// The name.
        found: String,
    },
    /// Kafka would not take the name.
    #[error(
        "topic name {found:?} must be 1 to 249 characters of a-z, A-Z, 0-9, `.`, `_` and `-`, \
         and neither `.` nor `..`"
    )]
    Topic {
        /// The name.
        found: String,
    },
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    matches!(bytes, [first, .., last] if edge(*first) && edge(*last))
        && bytes.len() <= 63
        && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
        || matches!(bytes, [only] if edge(*only))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks the name.
            ///
            /// # Errors
            /// When it does not match the pattern or is reserved.
            pub fn new(text: &str) -> Result<Self, Error> {
                let reserved: &[&str] = $reserved;
                if !is_name(text) {
                    return Err(Error::Pattern { kind: $kind, found: text.to_owned() });
                }
                if reserved.contains(&text) {
                    return Err(Error::Reserved { found: text.to_owned() });
                }
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_like!($type);
    };
}

macro_rules! text_like {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(&text)
            }
        }
        impl std::str::FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name!(
    /// One named installation; prefix of its keys, topics and groups.
    ClusterName, "cluster", &[]
);
name!(
    /// A graph of steps.
    PipelineName, "pipeline", &[]
);
name!(
    /// A node of a pipeline. `dlq` and `state` are reserved.
    StepName, "step", &["dlq", "state"]
);
name!(
    /// A program behind steps.
    ModuleName, "module", &[]
);

/// A topic's name, as Kafka allows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks the name: 1 to 249 characters of `a-zA-Z0-9._-`, not `.` or `..`
    /// (Kafka's `org.apache.kafka.common.internals.Topic`).
    ///
    /// # Errors
    /// When Kafka would not take it.
    pub fn new(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = (1..=249).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != "..";
        if fits { Ok(Self(text.into())) } else { Err(Error::Topic { found: text.to_owned() }) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a regex may ever select it: dead letters, connector state and
    /// replies are never picked up by patterns.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.0.ends_with(".dlq") || self.0.ends_with(".state") || self.0.ends_with(".replies")
    }
}

text_like!(Topic);

/// A step of a pipeline, by both names. Written `pipeline/step`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepId {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// The step within it.
    pub step: StepName,
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pipeline, self.step)
    }
}

impl StepId {
    /// Names a step.
    #[must_use]
    pub fn new(pipeline: PipelineName, step: StepName) -> Self {
        Self { pipeline, step }
    }

    /// The step's consumer group, `<cluster>.<pipeline>.<step>`.
    #[must_use]
    pub fn group(&self, cluster: &ClusterName) -> String {
        format!("{cluster}.{}.{}", self.pipeline, self.step)
    }

    /// The step's default input topic; named like its group.
    #[must_use]
    pub fn input_topic(&self, cluster: &ClusterName) -> Topic {
        Topic(self.group(cluster).into())
    }

    /// The step's dead letters, `<cluster>.<pipeline>.<step>.dlq`.
    #[must_use]
    pub fn dead_letter_topic(&self, cluster: &ClusterName) -> Topic {
        Topic(format!("{}.dlq", self.group(cluster)).into())
    }

    /// A connector's state, `<cluster>.<pipeline>.<step>.state`.
    #[must_use]
    pub fn state_topic(&self, cluster: &ClusterName) -> Topic {
        Topic(format!("{}.state", self.group(cluster)).into())
    }
}

/// A counter that only grows, of heads and of the assignments made from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        for good in ["a", "7", "library", "step-2", &"x".repeat(63)] {
            assert!(PipelineName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "-a", "a-", "A", "a.b", "a_b", "ä", &"x".repeat(64)] {
            assert!(PipelineName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_may_not_take_the_names_of_their_own_topics() {
        assert_eq!(StepName::new("dlq"), Err(Error::Reserved { found: "dlq".into() }));
        assert!(StepName::new("state").is_err());
        assert!(PipelineName::new("state").is_ok());
    }

    #[test]
    fn topics_and_groups_are_made_of_names() {
        let step = StepId::new(PipelineName::new("library").unwrap(), StepName::new("parse").unwrap());
        let cluster = ClusterName::new("local").unwrap();
        assert_eq!(step.input_topic(&cluster).as_str(), "local.library.parse");
        assert_eq!(step.dead_letter_topic(&cluster).as_str(), "local.library.parse.dlq");
        assert_eq!(step.state_topic(&cluster).as_str(), "local.library.parse.state");
        assert!(step.state_topic(&cluster).is_internal());
    }
}
