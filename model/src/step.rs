//! A planned step: everything that a runtime needs to know to run it.
//!
//! The planner makes it, an assignment carries it as JSON, the SDK's runtime
//! reads it. Nothing in it depends on instances. Secrets stand in it unexpanded
//! (`${env:NAME}`, `${file:PATH}`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::{ClusterName, ModuleName, StepId, Topic};

/// Type of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepType {
    /// Brings documents in from outside.
    Connector,
    /// Takes documents and gives documents.
    Pipeline,
    /// Takes documents out of the pipeline.
    Sink,
}

/// What an operator wants a step to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ControlState {
    /// Work.
    #[default]
    Running,
    /// Keep membership and position, take nothing new.
    Paused,
    /// Finish what is in flight, commit, leave.
    Stopped,
}

/// What the records of a topic are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Format {
    /// Encoded `PipeDoc` messages.
    #[default]
    Pipedoc,
    /// JSON texts of other systems.
    Json,
    /// Bytes of other systems.
    Raw,
}

impl Format {
    /// As it is written, in pipelines and in the header
    /// [`FORMAT`](crate::headers::FORMAT).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipedoc => "PIPEDOC",
            Self::Json => "JSON",
            Self::Raw => "RAW",
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pipedoc, Self::Json, Self::Raw].into_iter().find(|format| format.name() == name)
    }
}

/// What a step promises about duplicates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Delivery {
    /// Nothing is lost; after a crash something may come again.
    #[default]
    AtLeastOnce,
    /// Outputs and offsets in one transaction.
    ExactlyOnce,
    /// Offset first; after a crash something may be missing.
    AtMostOnce,
}

/// What must not overtake what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Ordering {
    /// Records of one key stay in order; different keys go side by side.
    #[default]
    Key,
    /// Records of one partition stay in order.
    Partition,
    /// No order.
    None,
}

/// What happens to a record that is given up on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OnExhausted {
    /// It goes to the step's dead letters.
    #[default]
    DeadLetter,
    /// Its partition stops.
    Pause,
    /// It is dropped, counted.
    Skip,
}

/// A share of the last deliveries, as `20% of the last 500`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FailureRate {
    /// Percent of them, above 0 up to 100.
    pub percent: f64,
    /// Of how many, at least 1.
    pub last: u32,
}

/// Why a step cannot keep what its settings promise together, in words for its author,
/// with what to take instead; none: it can.
#[must_use]
pub fn broken_promises(
    step_type: StepType,
    delivery: Delivery,
    on_exhausted: OnExhausted,
    stop_at_failure_rate: Option<FailureRate>,
) -> Vec<&'static str> {
    if delivery != Delivery::AtMostOnce {
        return Vec::new();
    }
    let mut broken = Vec::new();
    if step_type == StepType::Connector {
        broken
            .push("delivery AT_MOST_ONCE is not supported yet for a CONNECTOR; give it AT_LEAST_ONCE or EXACTLY_ONCE");
    }
    if on_exhausted == OnExhausted::Pause {
        broken.push(
            "delivery AT_MOST_ONCE contradicts on_exhausted PAUSE: the offset is committed before the work, so the \
             step could not come back to what it stands still for; take DEAD_LETTER or SKIP, or another delivery",
        );
    }
    if stop_at_failure_rate.is_some() {
        broken.push("delivery AT_MOST_ONCE is not supported yet with stop_at_failure_rate; take another delivery");
    }
    broken
}

impl std::fmt::Display for FailureRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}% of the last {}", self.percent, self.last)
    }
}

impl std::str::FromStr for FailureRate {
    type Err = NoFailureRate;

    fn from_str(text: &str) -> Result<Self, NoFailureRate> {
        let mut words = text.split_whitespace();
        let percent = words.next().and_then(|word| word.strip_suffix('%')).and_then(|number| number.parse().ok());
        let fixed = [words.next(), words.next(), words.next()] == [Some("of"), Some("the"), Some("last")];
        let last = words.next().and_then(|number| number.parse().ok());
        let rate = match (percent, last, words.next()) {
            (Some(percent), Some(last), None) if fixed => Self { percent, last },
            _ => return Err(NoFailureRate),
        };
        let is_share = rate.percent > 0.0 && rate.percent <= 100.0;
        if is_share && (1..=1_000_000).contains(&rate.last) { Ok(rate) } else { Err(NoFailureRate) }
    }
}

/// A text is no failure rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a failure rate is written like `20% of the last 500`: above 0 and up to 100 percent, of 1 to 1000000")]
pub struct NoFailureRate;

/// When claims are read back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Hydration {
    /// Before the module sees the document.
    #[default]
    Eager,
    /// When the module asks for it.
    Lazy,
    /// Never; the module sees the claim.
    Never,
}

/// How failed attempts are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retries {
    /// Attempts in all, the first one included; at least 1. Default 5.
    pub attempts: u32,
    /// Wait before the second attempt. Default 200 ms.
    #[serde(with = "millis")]
    pub initial: Duration,
    /// Longest wait. Default 30 s.
    #[serde(with = "millis")]
    pub max: Duration,
    /// By how much each wait is longer than the one before. Default 2.
    pub factor: f64,
    /// Part of the wait that is random, 0 to 1. Default 0.2.
    pub jitter: f64,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 5,
            initial: Duration::from_millis(200),
            max: Duration::from_secs(30),
            factor: 2.0,
            jitter: 0.2,
        }
    }
}

/// Bounds of a batch handed to a module at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Documents at most.
    pub records: usize,
    /// Bytes of encoded documents at most.
    pub bytes: usize,
    /// How long to wait for a full batch.
    #[serde(with = "millis")]
    pub wait: Duration,
}

/// Where a step's records come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// A topic by name.
    Topic(Topic),
    /// All topics whose whole name matches (Rust regex syntax).
    Pattern(String),
}

/// An input of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where from.
    pub source: InputSource,
    /// What the records are.
    #[serde(default)]
    pub format: Format,
}

/// A named way out of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Name that code may ask for: the target step's, the topic's, or as given.
    pub name: String,
    /// Topic that it writes to.
    pub topic: Topic,
    /// What is written.
    #[serde(default)]
    pub format: Format,
    /// CEL condition; none: always.
    pub when: Option<String>,
    /// Taken only when no conditional output is.
    pub otherwise: bool,
    /// Share among the outputs with weights whose conditions hold.
    pub weight: Option<u32>,
    /// CEL expression for the key; none: the document's id (its parent's for parts).
    pub key: Option<String>,
    /// Whether the topic is compacted.
    #[serde(default)]
    pub compacted: bool,
}

/// A planned step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Cluster it runs in.
    pub cluster: ClusterName,
    /// Which step it is.
    pub id: StepId,
    /// Its type.
    pub step_type: StepType,
    /// The module that runs it.
    pub module: ModuleName,
    /// Its consumer group.
    pub group: String,
    /// Where its records come from; a connector has none.
    pub inputs: Vec<Input>,
    /// Where its dead letters go.
    pub dead_letters: Topic,
    /// Where a connector keeps its state.
    pub state: Option<Topic>,
    /// Its outputs, in the file's order; a sink has none.
    pub outputs: Vec<Output>,
    /// Topics that code may name beside the outputs.
    pub allowed_topics: Vec<Topic>,
    /// The module's configuration.
    pub config: serde_json::Value,
    /// What an operator wants.
    pub control: ControlState,
    /// What it promises about duplicates.
    pub delivery: Delivery,
    /// What must not overtake what.
    pub ordering: Ordering,
    /// Deliveries at work at once, in one instance. Default: the number of cores
    /// (0 here).
    pub concurrency: usize,
    /// Bounds of `process_batch`; none: `process`.
    pub batch: Option<Batch>,
    /// How failed attempts are repeated.
    pub retries: Retries,
    /// What happens to a record that is given up on.
    pub on_exhausted: OnExhausted,
    /// At which share of failed deliveries the step stops itself; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at_failure_rate: Option<FailureRate>,
    /// Longest time of one attempt.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// How long open deliveries may finish when their partition is revoked.
    #[serde(with = "millis")]
    pub revoke_grace: Duration,
    /// Records with more hops than this are permanent errors; none: the pipeline
    /// has no cycle and needs no bound.
    pub max_hops: Option<u32>,
    /// Blobs above so many bytes become claims.
    pub claim_threshold: u64,
    /// When claims are read back.
    pub hydration: Hydration,
    /// With EAGER, more than so many bytes of claims in one document is an error.
    pub hydrate_max: u64,
    /// Settings for the log's consumer, by its own names.
    #[serde(default)]
    pub consumer_settings: BTreeMap<String, String>,
    /// Settings for the log's producer, by its own names.
    #[serde(default)]
    pub producer_settings: BTreeMap<String, String>,
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
