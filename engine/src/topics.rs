//! Makes the topics that a plan needs, or checks that they are there.
//!
//! Only ever adds: topics are made and grow; nothing is deleted or shrunk. An
//! engine asks the log only for topics that are new to it, and looks at all others
//! slowly, again and again: somebody may have deleted one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use pipedoc_model::pipeline::TopicPolicy;
use pipedoc_model::plan::{Plan, TopicPlan};
use pipedoc_transport::error::Error as LogError;
use pipedoc_transport::log::{Log, TopicInfo, TopicSettings, TopicSpec};
use tokio::sync::{Notify, watch};

/// How often each topic is looked at though the plan is the same.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// So many are looked at in a row, and then the rest has its turn.
const ROW: usize = 256;
/// So many the log is asked for at once.
const AT_ONCE: usize = 16;

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
    #[error("topic {topic} is to keep the newest record of each key and must be compacted (cleanup.policy=compact)")]
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
    for wanted in &plan.topics {
        ensure_one(log, wanted).await?;
    }
    Ok(())
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

/// An engine's topics: those that were well are not asked for again.
pub(crate) struct Keeper {
    log: Arc<dyn Log>,
    well: BTreeMap<Topic, TopicPlan>,
    /// All that is wanted, for who looks at it again and again.
    wanted: watch::Sender<Arc<Vec<TopicPlan>>>,
    suspects: Arc<Mutex<BTreeSet<Topic>>>,
}

impl Keeper {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, well: BTreeMap::new(), wanted: watch::Sender::default(), suspects: Arc::default() }
    }

    /// Looks at all topics again and again; never returns. Wakes the engine when one
    /// is not as it was.
    pub(crate) fn look_after(&self, nudge: Arc<Notify>) -> impl Future<Output = ()> + Send + use<> {
        self.look_after_each(LOOK_EVERY, nudge)
    }

    fn look_after_each(&self, every: Duration, nudge: Arc<Notify>) -> impl Future<Output = ()> + Send + use<> {
        look_after(Arc::clone(&self.log), self.wanted.subscribe(), Arc::clone(&self.suspects), every, nudge)
    }

    /// Whether some topic is not as it was.
    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.lock().is_empty()
    }

    /// Ensures every topic by itself, and gives those where that did not succeed.
    /// Where the log is away it gives up at once.
    pub(crate) async fn ensure(&mut self, wanted: Vec<TopicPlan>) -> Vec<(Topic, Error)> {
        let suspects = std::mem::take(&mut *self.suspects.lock());
        let well =
            |wanted: &&TopicPlan| self.well.get(&wanted.topic) == Some(wanted) && !suspects.contains(&wanted.topic);
        let open: Vec<_> = wanted.iter().filter(|wanted| !well(wanted)).cloned().collect();
        self.well.retain(|topic, _| wanted.binary_search_by(|wanted| wanted.topic.cmp(topic)).is_ok());
        for wanted in &open {
            self.well.remove(&wanted.topic);
        }
        let log = self.log.as_ref();
        let ensured = futures::stream::iter(open).map(async |wanted| (ensure_one(log, &wanted).await, wanted));
        let mut ensured = std::pin::pin!(ensured.buffer_unordered(AT_ONCE));
        let mut troubles = Vec::new();
        while let Some((outcome, wanted)) = ensured.next().await {
            let Err(error) = outcome else {
                self.well.insert(wanted.topic.clone(), wanted);
                continue;
            };
            let away = error.is_retryable();
            troubles.push((wanted.topic, error));
            if away {
                break;
            }
        }
        self.wanted.send_replace(Arc::new(wanted));
        troubles.sort_by(|(a, _), (b, _)| a.cmp(b));
        troubles
    }
}

async fn look_after(
    log: Arc<dyn Log>,
    wanted: watch::Receiver<Arc<Vec<TopicPlan>>>,
    suspects: Arc<Mutex<BTreeSet<Topic>>>,
    every: Duration,
    nudge: Arc<Notify>,
) {
    loop {
        let round = Arc::clone(&wanted.borrow());
        let rows = round.len().div_ceil(ROW).max(1);
        let pause = every / u32::try_from(rows).unwrap_or(u32::MAX);
        for row in 0..rows {
            tokio::time::sleep(pause).await;
            for wanted in round.iter().skip(row * ROW).take(ROW) {
                if !is_well(log.as_ref(), wanted).await {
                    tracing::warn!(topic = %wanted.topic, "the topic is not as it was; it is looked after");
                    suspects.lock().insert(wanted.topic.clone());
                    nudge.notify_one();
                }
            }
        }
    }
}

/// Whether a topic is as it must be. A log that does not answer says nothing
/// against it.
async fn is_well(log: &dyn Log, wanted: &TopicPlan) -> bool {
    if wanted.policy == TopicPolicy::Ignore {
        return true;
    }
    match log.topic(&wanted.topic).await {
        Ok(found) if wanted.policy == TopicPolicy::Verify => verify(wanted, found).is_none(),
        Ok(found) => found.is_some_and(|found| fits(&found, wanted)),
        Err(_) => true,
    }
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
        let partitions = found.as_ref().map_or(wanted.partitions, |found| found.partitions.max(wanted.partitions));
        let mut spec = spec(wanted, partitions);
        // One that takes more, as somebody had to write more, goes on taking it.
        let found = found.and_then(|found| found.settings.max_message_bytes);
        spec.settings.max_message_bytes =
            spec.settings.max_message_bytes.map(|limit| found.map_or(limit, |found| found.max(limit)));
        log.ensure_topic(&spec).await.map_err(trouble)?;
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
        && settings.max_message_bytes.is_none_or(|bytes| found.settings.max_message_bytes >= Some(bytes))
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

#[cfg(test)]
mod tests {
    use pipedoc_transport::memory::MemoryLog;

    use super::*;

    fn wanted(name: &str, partitions: i32) -> TopicPlan {
        TopicPlan {
            topic: name.parse().unwrap(),
            partitions,
            policy: TopicPolicy::Create,
            compacted: false,
            max_message_bytes: None,
            retention_ms: None,
        }
    }

    async fn partitions(log: &MemoryLog, name: &str) -> Option<i32> {
        log.topic(&name.parse().unwrap()).await.unwrap().map(|topic| topic.partitions)
    }

    #[tokio::test]
    async fn only_new_topics_are_asked_for_and_one_that_is_lost_comes_back() {
        let log = MemoryLog::new();
        let mut keeper = Keeper::new(Arc::new(log.clone()));
        let nudge = Arc::new(Notify::new());
        let all = || vec![wanted("a", 1), wanted("b", 1)];
        assert!(keeper.ensure(all()).await.is_empty());
        log.delete_topic(&"a".parse().unwrap()).await.unwrap();
        assert!(keeper.ensure(vec![wanted("a", 1), wanted("b", 3)]).await.is_empty());
        assert_eq!((partitions(&log, "a").await, partitions(&log, "b").await), (None, Some(3)), "a was well before");

        let looking = tokio::spawn(keeper.look_after_each(Duration::from_millis(1), Arc::clone(&nudge)));
        nudge.notified().await;
        assert!(keeper.has_suspects());
        assert!(keeper.ensure(all()).await.is_empty());
        assert_eq!(partitions(&log, "a").await, Some(1), "it is made again");
        looking.abort();
    }

    #[tokio::test]
    async fn a_limit_that_an_operator_has_raised_stays_so() {
        let log = MemoryLog::new();
        let wanted = TopicPlan { max_message_bytes: Some(1_000_000), retention_ms: Some(-1), ..wanted("a", 1) };
        let limit = async || log.topic(&wanted.topic).await.unwrap().unwrap().settings.max_message_bytes;
        ensure_one(&log, &wanted).await.unwrap();
        assert_eq!(limit().await, Some(1_000_000));
        let settings = TopicSettings { max_message_bytes: Some(5_000_000), ..spec(&wanted, 1).settings };
        log.ensure_topic(&TopicSpec { settings, ..spec(&wanted, 1) }).await.unwrap();
        assert!(is_well(&log, &wanted).await);
        // Neither when something else is to be changed.
        for wanted in [wanted.clone(), TopicPlan { partitions: 2, ..wanted.clone() }] {
            ensure_one(&log, &wanted).await.unwrap();
            assert_eq!(limit().await, Some(5_000_000));
        }
        let more = TopicPlan { max_message_bytes: Some(6_000_000), ..wanted.clone() };
        ensure_one(&log, &more).await.unwrap();
        assert_eq!(limit().await, Some(6_000_000));
    }

    #[tokio::test]
    async fn what_is_no_longer_wanted_is_asked_for_when_it_is_wanted_again() {
        let log = MemoryLog::new();
        let mut keeper = Keeper::new(Arc::new(log.clone()));
        assert!(keeper.ensure(vec![wanted("a", 1)]).await.is_empty());
        assert!(keeper.ensure(Vec::new()).await.is_empty());
        log.delete_topic(&"a".parse().unwrap()).await.unwrap();
        assert!(keeper.ensure(vec![wanted("a", 1)]).await.is_empty());
        assert_eq!(partitions(&log, "a").await, Some(1));
        let missing = TopicPlan { policy: TopicPolicy::Verify, ..wanted("c", 1) };
        let troubles = keeper.ensure(vec![wanted("a", 1), missing]).await;
        assert!(matches!(&troubles[..], [(topic, Error::Unfit(_))] if topic.as_str() == "c"), "{troubles:?}");
    }
}
