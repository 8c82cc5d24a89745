//! Makes the topics that a plan needs, or checks that they are there.
//!
//! Only ever adds: topics are made and grow; nothing is deleted or shrunk.

use pipedoc_model::names::Topic;
use pipedoc_model::pipeline::TopicPolicy;
use pipedoc_model::plan::{Plan, TopicPlan};
use pipedoc_transport::error::Error as LogError;
use pipedoc_transport::log::{Log, TopicInfo, TopicSettings, TopicSpec};

/// Why topics are not as the plan needs them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Topics that must be there are missing, or do not fit.
    #[error("{}", list(.0))]
    Unfit(Vec<Unfit>),
    /// The log could not make or show a topic.
    #[error("topic {topic} cannot be ensured")]
    Log {
        /// The topic.
        topic: Topic,
        /// Why.
        #[source]
        source: LogError,
    },
}

impl Error {
    /// Whether trying again may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // Somebody may make the topic meanwhile; looking again is cheap.
            Self::Unfit(_) => false,
            Self::Log { source, .. } => source.is_retryable(),
        }
    }
}

/// A topic under `topics: VERIFY` that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It does not exist.
    #[error(
        "topic {topic} does not exist and `topics: VERIFY` forbids making it; make it with {partitions} partitions"
    )]
    Missing {
        /// The topic.
        topic: Topic,
        /// How many partitions it should have.
        partitions: i32,
    },
    /// It has too few partitions.
    #[error(
        "topic {topic} has {found} partitions, fewer than the {wanted} wanted, and `topics: VERIFY` forbids adding them"
    )]
    TooFew {
        /// The topic.
        topic: Topic,
        /// How many it has.
        found: i32,
        /// How many it should have.
        wanted: i32,
    },
    /// It is not compacted.
    #[error("topic {topic} holds a connector's state and must be compacted (cleanup.policy=compact)")]
    NotCompacted {
        /// The topic.
        topic: Topic,
    },
}

fn list(unfit: &[Unfit]) -> String {
    unfit.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Makes the plan's topics exist as it wants them: `CREATE` makes and grows,
/// `VERIFY` only looks, `IGNORE` does nothing. A topic with more partitions than
/// wanted is left as it is. Doing it again changes nothing.
///
/// # Errors
/// All topics that do not fit, at once; else the first trouble with the log.
pub async fn ensure(log: &dyn Log, plan: &Plan) -> Result<(), Error> {
    let unfit = check(log, plan).await?;
    if !unfit.is_empty() {
        return Err(Error::Unfit(unfit));
    }
    match ensure_each(log, plan).await.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

/// The topics under `VERIFY` that do not fit. Makes nothing.
///
/// # Errors
/// When the log cannot show a topic.
pub async fn check(log: &dyn Log, plan: &Plan) -> Result<Vec<Unfit>, Error> {
    let mut unfit = Vec::new();
    for wanted in plan.topics.iter().filter(|wanted| wanted.policy == TopicPolicy::Verify) {
        let found = log.topic(&wanted.topic).await;
        let found = found.map_err(|source| Error::Log { topic: wanted.topic.clone(), source })?;
        unfit.extend(verify(wanted, found));
    }
    Ok(unfit)
}

/// A topic that gets more partitions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic {topic} gets {wanted} partitions instead of {found}: keys move, and a document may overtake older records of itself; where that matters, let its steps work it off first"
)]
pub struct Grows {
    /// The topic.
    pub topic: Topic,
    /// How many it has.
    pub found: i32,
    /// How many it gets.
    pub wanted: i32,
}

/// The topics that are there and would get more partitions. Changes nothing.
///
/// # Errors
/// When the log cannot show a topic.
pub async fn growing(log: &dyn Log, plan: &Plan) -> Result<Vec<Grows>, Error> {
    let mut growing = Vec::new();
    for wanted in plan.topics.iter().filter(|wanted| wanted.policy == TopicPolicy::Create) {
        let found = log.topic(&wanted.topic).await;
        let found = found.map_err(|source| Error::Log { topic: wanted.topic.clone(), source })?;
        if let Some(found) = found.filter(|found| found.partitions < wanted.partitions) {
            growing.push(Grows { topic: found.topic, found: found.partitions, wanted: wanted.partitions });
        }
    }
    Ok(growing)
}

/// Ensures every topic by itself, and gives those where that did not succeed.
pub(crate) async fn ensure_each(log: &dyn Log, plan: &Plan) -> Vec<(Topic, Error)> {
    let mut troubles = Vec::new();
    for wanted in &plan.topics {
        if let Err(error) = ensure_one(log, wanted).await {
            troubles.push((wanted.topic.clone(), error));
        }
    }
    troubles
}

async fn ensure_one(log: &dyn Log, wanted: &TopicPlan) -> Result<(), Error> {
    if wanted.policy == TopicPolicy::Ignore {
        return Ok(());
    }
    let trouble = |source| Error::Log { topic: wanted.topic.clone(), source };
    let found = log.topic(&wanted.topic).await.map_err(trouble)?;
    if wanted.policy == TopicPolicy::Verify {
        return verify(wanted, found).map_or(Ok(()), |unfit| Err(Error::Unfit(vec![unfit])));
    }
    if found.as_ref().is_none_or(|found| !fits(found, wanted)) {
        let partitions = found.map_or(wanted.partitions, |found| found.partitions.max(wanted.partitions));
        log.ensure_topic(&spec(wanted, partitions)).await.map_err(trouble)?;
    }
    Ok(())
}

fn verify(wanted: &TopicPlan, found: Option<TopicInfo>) -> Option<Unfit> {
    let topic = wanted.topic.clone();
    match found {
        None => Some(Unfit::Missing { topic, partitions: wanted.partitions }),
        Some(found) if found.partitions < wanted.partitions => {
            Some(Unfit::TooFew { topic, found: found.partitions, wanted: wanted.partitions })
        }
        Some(found) if wanted.compacted && found.settings.compact != Some(true) => Some(Unfit::NotCompacted { topic }),
        Some(_) => None,
    }
}

/// Whether there is nothing to change.
fn fits(found: &TopicInfo, wanted: &TopicPlan) -> bool {
    let settings = spec(wanted, wanted.partitions).settings;
    found.partitions >= wanted.partitions
        && settings.compact.is_none_or(|compact| found.settings.compact == Some(compact))
        && settings.retention_ms.is_none_or(|ms| found.settings.retention_ms == Some(ms))
        && settings.max_message_bytes.is_none_or(|bytes| found.settings.max_message_bytes == Some(bytes))
}

fn spec(wanted: &TopicPlan, partitions: i32) -> TopicSpec {
    TopicSpec {
        topic: wanted.topic.clone(),
        partitions,
        replication: None,
        settings: TopicSettings {
            // What the plan does not ask for stays as it is.
            compact: wanted.compacted.then_some(true),
            retention_ms: wanted.retention_ms,
            retention_bytes: None,
            max_message_bytes: wanted.max_message_bytes.map(|bytes| i32::try_from(bytes).unwrap_or(i32::MAX)),
        },
    }
}
