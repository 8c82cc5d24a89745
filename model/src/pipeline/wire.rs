//! The pipeline file as it is written. The doc comments here are the manual: they
//! become the descriptions of the JSON Schema.
//!
//! Everything is optional in these types, since what the schema check refuses is
//! taken out before they are read; what must be there is said to the schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::TopicPolicy;
use crate::step::{Delivery, Format, Hydration, OnExhausted, Ordering, StepType};

/// Titles of texts say what kind of text it is, in the words of mistakes.
const DURATION: &str = "a duration such as `30s`";
const RATE: &str = "a rate such as `20% of the last 500`";

/// A pipeline: a graph of steps, each of which names a module, its configuration
/// and where its results go. Texts may hold variables (`${in}`), and secrets
/// (`${env:NAME}`, `${file:PATH}`) that are expanded where the module runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Pipeline {
    /// Name of the pipeline: 1 to 63 characters of a-z, 0-9 and `-`.
    #[schemars(required)]
    pub pipeline: Option<String>,
    /// Settings for all steps that do not say otherwise.
    pub defaults: Option<Defaults>,
    /// The steps; at least one.
    #[schemars(required, with = "Vec<Step>")]
    pub steps: Option<Vec<Option<Step>>>,
}

/// Settings for all steps that do not say otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Defaults {
    /// Partitions of the topics that the pipeline makes. Default 4.
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: Option<u32>,
    #[serde(flatten)]
    pub settings: Settings,
}

/// A step: one kind of work, done by a module.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Step {
    /// Name of the step, unique in the pipeline: 1 to 63 characters of a-z, 0-9
    /// and `-`; not `dlq` or `state`.
    #[schemars(required)]
    pub name: Option<String>,
    /// What the step does with documents.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub step_type: Option<StepType>,
    /// Name of the module behind it.
    #[schemars(required)]
    pub module: Option<String>,
    /// The module's configuration; `pipedoc module NAME --describe` shows its schema.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub config: Option<serde_json::Value>,
    /// Topics that it reads beside its default input topic
    /// (`<cluster>.<pipeline>.<step>`): one or a list.
    pub input_kafka_topic: Option<OneOrMany<Input>>,
    /// Topics that every result also goes to. A step that reads one of them
    /// follows this one.
    #[schemars(with = "Option<Vec<OutputTopic>>")]
    pub output_kafka_topics: Option<Vec<Option<OutputTopic>>>,
    /// Where results go.
    #[schemars(with = "Option<Vec<Output>>")]
    pub outputs: Option<Vec<Option<Output>>>,
    /// Topics that the module's code may name beside the outputs.
    #[schemars(with = "Option<Vec<String>>")]
    pub allowed_kafka_topics: Option<Vec<Option<String>>>,
    #[serde(flatten)]
    pub settings: Settings,
}

/// How steps run.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Settings {
    /// What the step promises about duplicates. Default AT_LEAST_ONCE.
    pub delivery: Option<Delivery>,
    /// What must not overtake what. Default KEY.
    pub ordering: Option<Ordering>,
    /// Documents at work at once, in one instance. Default: the number of cores.
    #[schemars(range(min = 1, max = 65_536))]
    pub concurrency: Option<u32>,
    /// Hands the module several documents at once. Default: one by one.
    pub batch: Option<Batch>,
    /// How failed attempts are repeated.
    pub retries: Option<Retries>,
    /// What happens to a record that is given up on. Default DEAD_LETTER.
    pub on_exhausted: Option<OnExhausted>,
    /// Share of failed deliveries at which the step stands still, as
    /// `20% of the last 500`, before a bad version empties a topic into the dead
    /// letters. Default: never.
    #[schemars(extend("title" = RATE))]
    pub stop_at_failure_rate: Option<String>,
    /// Longest time of one attempt, as a duration (`60s`). Default `60s`.
    #[schemars(extend("title" = DURATION))]
    pub timeout: Option<String>,
    /// How long open deliveries may finish when their partition moves to another
    /// instance, as a duration. Default `5s`.
    #[schemars(extend("title" = DURATION))]
    pub revoke_grace: Option<String>,
    /// How many steps a document may go through; one more is a permanent error.
    /// Every cycle needs a step that says it. Default: no bound.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_hops: Option<u32>,
    /// Whether the step's topics are made. Default CREATE.
    pub topics: Option<TopicPolicy>,
    /// Blobs above this size go to the object store and travel as claims: bytes,
    /// or a size (`256KiB`). Default `256KiB`.
    pub claim_threshold: Option<Size>,
    /// When claims are read back. Default EAGER.
    pub hydration: Option<Hydration>,
    /// With EAGER, more than so many bytes of claims in one document is a permanent
    /// error: bytes, or a size. Default `64MiB`.
    pub hydrate_max: Option<Size>,
    /// Settings for the Kafka clients, by librdkafka's names.
    pub kafka: Option<Kafka>,
}

/// One thing, or a list of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    #[schemars(with = "Vec<T>")]
    Many(Vec<Option<T>>),
}

/// Where records come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Input {
    /// Name of a topic of PipeDocs.
    Name(String),
    /// A topic, or all topics that match.
    Detailed(InputDetails),
}

/// A topic, or all topics that match; one of the two must be given.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct InputDetails {
    /// Name of the topic.
    pub topic: Option<String>,
    /// Regular expression (Rust's syntax) for whole names of topics. Dead letters,
    /// states and replies are never among them.
    pub pattern: Option<String>,
    /// What the records are. Default PIPEDOC.
    pub format: Option<Format>,
}

/// A topic that every result also goes to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OutputTopic {
    /// Name of a topic of PipeDocs.
    Name(String),
    /// A topic with details.
    Detailed(OutputTopicDetails),
}

/// A topic with details.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct OutputTopicDetails {
    /// Name of the topic.
    #[schemars(required)]
    pub topic: Option<String>,
    /// What is written. Default PIPEDOC.
    pub format: Option<Format>,
    /// Key of the records, a CEL expression. Default: the document's id.
    pub key: Option<String>,
    /// Whether the topic keeps only the newest record of each key: the latest form of
    /// each document. Parts of documents are refused there. Default false.
    pub compacted: Option<bool>,
}

/// A way out of a step. One of `to` and `topic` must be given.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Output {
    /// Name of the step that it leads to.
    pub to: Option<String>,
    /// Name of the topic that it leads to.
    pub topic: Option<String>,
    /// Name that the module's code may ask for. Default: the step's or topic's name.
    pub name: Option<String>,
    /// How documents travel. Default TOPIC.
    pub transport: Option<Transport>,
    /// Condition, a CEL expression over `doc`, `headers`, `key` and `step`.
    /// Default: always.
    pub when: Option<String>,
    /// Taken when no output with a condition is. Default false.
    pub otherwise: Option<bool>,
    /// Share among the outputs with weights, of which one is drawn by the key.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: Option<u32>,
    /// Key of the records, a CEL expression. Default: the document's id.
    pub key: Option<String>,
    /// What is written, with `topic`. Default PIPEDOC.
    pub format: Option<Format>,
    /// With `topic`: whether it keeps only the newest record of each key, the latest
    /// form of each document. Parts of documents are refused there. Default false.
    pub compacted: Option<bool>,
}

/// How documents travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Transport {
    /// Through a topic.
    Topic,
    /// By a direct call.
    Grpc,
}

/// Bounds of what a module gets at once.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Batch {
    /// Documents at most. Default 100.
    #[schemars(range(min = 1, max = 100_000))]
    pub records: Option<u32>,
    /// Encoded documents together at most: bytes, or a size. Default `4MiB`.
    pub bytes: Option<Size>,
    /// How long to wait for a full batch, as a duration. Default `100ms`.
    #[schemars(extend("title" = DURATION))]
    pub wait: Option<String>,
}

/// How failed attempts are repeated.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Retries {
    /// Attempts in all, the first one included. Default 5.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempts: Option<u32>,
    /// Wait before the second attempt, as a duration. Default `200ms`.
    #[schemars(extend("title" = DURATION))]
    pub initial: Option<String>,
    /// Longest wait, as a duration. Default `30s`.
    #[schemars(extend("title" = DURATION))]
    pub max: Option<String>,
    /// By how much each wait is longer than the one before. Default 2.
    #[schemars(range(min = 1.0, max = 1_000.0))]
    pub factor: Option<f64>,
    /// Part of the wait that is random, 0 to 1. Default 0.2.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: Option<f64>,
}

/// Settings for the Kafka clients, by librdkafka's names. Other logs ignore them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct Kafka {
    /// For the consumer (`fetch.min.bytes: 1`).
    #[schemars(with = "Option<BTreeMap<String, Scalar>>")]
    pub consumer: Option<BTreeMap<String, Option<Scalar>>>,
    /// For the producer (`linger.ms: 5`).
    #[schemars(with = "Option<BTreeMap<String, Scalar>>")]
    pub producer: Option<BTreeMap<String, Option<Scalar>>>,
}

/// A size: whole bytes, or a text with a unit (`8MiB`).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Size {
    /// Bytes.
    Bytes(u64),
    /// With `B`, `kB`, `KiB`, `MB`, `MiB`, `GB` or `GiB`.
    Text(String),
}

/// A plain value.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Scalar {
    /// true or false.
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(held) => held.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}
