//! A pipeline that can be trusted: made by [`super::parse`] only, after which
//! nothing is checked again. Names no cluster; the planner brings it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::names::{ModuleName, PipelineName, StepId, StepName, Topic};
use crate::step::{Batch, Delivery, FailureRate, Format, Hydration, Input, OnExhausted, Ordering, Retries, StepType};

/// Whether the engine makes a topic, only looks at it, or leaves it alone.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopicPolicy {
    /// Make it where it is missing, and let it grow.
    #[default]
    Create,
    /// Demand that it is there and fits.
    Verify,
    /// Neither make it nor look at it.
    Ignore,
}

/// A pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineConfig {
    /// Its name.
    pub name: PipelineName,
    /// Partitions of the topics it makes.
    pub partitions: i32,
    /// Its steps, in the file's order; at least one.
    pub steps: Vec<StepConfig>,
}

impl PipelineConfig {
    /// A step by name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&StepConfig> {
        self.steps.iter().find(|step| step.name.as_str() == name)
    }

    /// Full name of one of its steps.
    #[must_use]
    pub fn step_id(&self, step: &StepConfig) -> StepId {
        StepId::new(self.name.clone(), step.name.clone())
    }
}

/// A step of a pipeline; defaults are filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct StepConfig {
    /// Its name.
    pub name: StepName,
    /// Its type.
    pub step_type: StepType,
    /// The module behind it.
    pub module: ModuleName,
    /// The module's configuration; variables expanded, secrets not.
    pub config: serde_json::Value,
    /// Inputs beside the default one, as written.
    pub inputs: Vec<Input>,
    /// Its outputs, in the file's order; `output_kafka_topics` come after them.
    pub outputs: Vec<OutputConfig>,
    /// Topics that code may name beside the outputs.
    pub allowed_topics: Vec<Topic>,
    /// What it promises about duplicates.
    pub delivery: Delivery,
    /// What must not overtake what.
    pub ordering: Ordering,
    /// Deliveries at work at once, in one instance; 0: the number of cores.
    pub concurrency: usize,
    /// Bounds of `process_batch`.
    pub batch: Option<Batch>,
    /// How failed attempts are repeated.
    pub retries: Retries,
    /// What happens to a record that is given up on.
    pub on_exhausted: OnExhausted,
    /// At which share of failed deliveries it stops itself; none: never.
    pub stop_at_failure_rate: Option<FailureRate>,
    /// Longest time of one attempt.
    pub timeout: Duration,
    /// How long open deliveries may finish when their partition is revoked.
    pub revoke_grace: Duration,
    /// Records with more hops than this are permanent errors.
    pub max_hops: Option<u32>,
    /// Whether its topics are made.
    pub topics: TopicPolicy,
    /// Blobs above so many bytes become claims.
    pub claim_threshold: u64,
    /// When claims are read back.
    pub hydration: Hydration,
    /// With EAGER, more than so many bytes of claims in one document is an error.
    pub hydrate_max: u64,
    /// Settings for the log's consumer.
    pub consumer_settings: BTreeMap<String, String>,
    /// Settings for the log's producer.
    pub producer_settings: BTreeMap<String, String>,
}

/// Where an output leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a step of the same pipeline: into its default input topic.
    Step(StepName),
    /// To a topic.
    Topic(Topic),
}

/// A way out of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputConfig {
    /// Its name: as given, else the target's.
    pub name: String,
    /// Where it leads.
    pub target: Target,
    /// What is written.
    pub format: Format,
    /// CEL condition; it compiles.
    pub when: Option<String>,
    /// Taken only when no conditional output is.
    pub otherwise: bool,
    /// Share among the outputs with weights.
    pub weight: Option<u32>,
    /// CEL expression for the key; it compiles.
    pub key: Option<String>,
    /// Whether its topic keeps only the newest record of each key.
    pub compacted: bool,
}
