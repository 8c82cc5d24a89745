//! The planner: what topics there must be and what every step has to do.
//!
//! A pure function of pipelines and controls. It knows no clock, no store, no
//! log and no instances, so every engine computes the same plan from the same
//! head.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::names::{ClusterName, PipelineName, StepId, Topic};
use crate::pipeline::{OutputConfig, PipelineConfig, StepConfig, Target, TopicPolicy};
use crate::step::{ControlState, Format, Input, InputSource, Output, StepPlan, StepType};

/// Kafka's default of `max.message.bytes`.
pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;

/// How much more a dead-letter topic takes than its source: room for the error's
/// headers.
pub const DEAD_LETTER_ROOM: u64 = 64 * 1024;

/// What operators want of pipelines and steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Controls {
    /// Of whole pipelines.
    pub pipelines: BTreeMap<PipelineName, ControlState>,
    /// Of single steps.
    pub steps: BTreeMap<StepId, ControlState>,
}

impl Controls {
    /// What is wanted of a step: the stricter of its own and its pipeline's.
    #[must_use]
    pub fn of(&self, step: &StepId) -> ControlState {
        let of_pipeline = self.pipelines.get(&step.pipeline).copied().unwrap_or_default();
        let of_step = self.steps.get(step).copied().unwrap_or_default();
        match (of_pipeline, of_step) {
            (ControlState::Stopped, _) | (_, ControlState::Stopped) => ControlState::Stopped,
            (ControlState::Paused, _) | (_, ControlState::Paused) => ControlState::Paused,
            (ControlState::Running, ControlState::Running) => ControlState::Running,
        }
    }
}

/// A topic that steps need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPlan {
    /// Its name.
    pub topic: Topic,
    /// How many partitions it is to have at least.
    pub partitions: i32,
    /// Whether the engine makes it.
    pub policy: TopicPolicy,
    /// Whether only the newest record of each key is kept.
    pub compacted: bool,
    /// Largest record; none: the log's own default (or as it is).
    pub max_message_bytes: Option<u64>,
    /// How long records are kept, in milliseconds; -1: for ever; none: the log's
    /// own default (or as it is).
    pub retention_ms: Option<i64>,
}

/// Everything that is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The topics, by name.
    pub topics: Vec<TopicPlan>,
    /// The steps: pipelines by name, steps in the file's order.
    pub steps: Vec<StepPlan>,
}

/// Plans pipelines. The order of `pipelines` does not matter.
#[must_use]
pub fn plan(cluster: &ClusterName, pipelines: &[PipelineConfig], controls: &Controls) -> Plan {
    let mut pipelines: Vec<_> = pipelines.iter().collect();
    pipelines.sort_by(|a, b| a.name.cmp(&b.name));
    let plans: Vec<_> = pipelines.into_iter().map(|pipeline| plan_one(cluster, pipeline, controls)).collect();
    let topics = join_topics(plans.iter().flat_map(|plan| &plan.topics));
    Plan { topics, steps: plans.into_iter().flat_map(|plan| plan.steps).collect() }
}

/// Plans one pipeline: what its steps have to do depends on no other pipeline. The
/// topics of several are to be joined ([`join_topics`]).
#[must_use]
pub fn plan_one(cluster: &ClusterName, pipeline: &PipelineConfig, controls: &Controls) -> Plan {
    let mut topics = BTreeMap::new();
    let mut steps = Vec::with_capacity(pipeline.steps.len());
    for step in &pipeline.steps {
        let planned = plan_step(cluster, pipeline, step, controls);
        plan_topics(pipeline, step, &planned, &mut topics);
        steps.push(planned);
    }
    Plan { topics: topics.into_values().collect(), steps }
}

/// The topics of several pipelines, pipelines by name, each once. One that several
/// name gets as many partitions as any of them wants and is made if any makes it.
#[must_use]
pub fn join_topics<'a>(topics: impl IntoIterator<Item = &'a TopicPlan>) -> Vec<TopicPlan> {
    let mut joined: BTreeMap<&Topic, Cow<'_, TopicPlan>> = BTreeMap::new();
    for topic in topics {
        match joined.entry(&topic.topic) {
            Entry::Vacant(entry) => drop(entry.insert(Cow::Borrowed(topic))),
            Entry::Occupied(mut known) => known.get_mut().to_mut().join(topic),
        }
    }
    joined.into_values().map(Cow::into_owned).collect()
}

impl TopicPlan {
    /// Wants what another wants as well.
    fn join(&mut self, other: &Self) {
        self.partitions = self.partitions.max(other.partitions);
        self.policy = stricter(self.policy, other.policy);
        self.compacted |= other.compacted;
    }
}

fn plan_step(cluster: &ClusterName, pipeline: &PipelineConfig, step: &StepConfig, controls: &Controls) -> StepPlan {
    let id = pipeline.step_id(step);
    let connector = step.step_type == StepType::Connector;
    let mut inputs = Vec::new();
    if !connector {
        // Also when it has inputs of its own: redrive, intake and replay need a place to go.
        let own = Input { source: InputSource::Topic(id.input_topic(cluster)), format: Format::Pipedoc };
        inputs.push(own.clone());
        inputs.extend(step.inputs.iter().filter(|input| input.source != own.source).cloned());
    }
    StepPlan {
        cluster: cluster.clone(),
        step_type: step.step_type,
        module: step.module.clone(),
        group: id.group(cluster),
        inputs,
        dead_letters: id.dead_letter_topic(cluster),
        state: connector.then(|| id.state_topic(cluster)),
        outputs: step.outputs.iter().map(|output| plan_output(cluster, pipeline, output)).collect(),
        allowed_topics: step.allowed_topics.clone(),
        config: step.config.clone(),
        control: controls.of(&id),
        delivery: step.delivery,
        ordering: step.ordering,
        concurrency: step.concurrency,
        batch: step.batch,
        retries: step.retries,
        on_exhausted: step.on_exhausted,
        stop_at_failure_rate: step.stop_at_failure_rate,
        timeout: step.timeout,
        revoke_grace: step.revoke_grace,
        max_hops: step.max_hops,
        claim_threshold: step.claim_threshold,
        hydration: step.hydration,
        hydrate_max: step.hydrate_max,
        consumer_settings: step.consumer_settings.clone(),
        producer_settings: step.producer_settings.clone(),
        id,
    }
}

fn plan_output(cluster: &ClusterName, pipeline: &PipelineConfig, output: &OutputConfig) -> Output {
    let topic = match &output.target {
        Target::Step(step) => StepId::new(pipeline.name.clone(), step.clone()).input_topic(cluster),
        Target::Topic(topic) => topic.clone(),
    };
    Output {
        name: output.name.clone(),
        topic,
        format: output.format,
        when: output.when.clone(),
        otherwise: output.otherwise,
        weight: output.weight,
        key: output.key.clone(),
        compacted: output.compacted,
    }
}

/// Adds the topics of a step. One that several steps name is made if any of them
/// makes it.
fn plan_topics(
    pipeline: &PipelineConfig,
    step: &StepConfig,
    planned: &StepPlan,
    topics: &mut BTreeMap<Topic, TopicPlan>,
) {
    let mut add = |topic: TopicPlan| match topics.entry(topic.topic.clone()) {
        Entry::Vacant(entry) => drop(entry.insert(topic)),
        Entry::Occupied(mut known) => known.get_mut().join(&topic),
    };
    let ordinary = |topic: &Topic| TopicPlan {
        topic: topic.clone(),
        partitions: pipeline.partitions,
        policy: step.topics,
        compacted: false,
        max_message_bytes: None,
        retention_ms: None,
    };
    for input in &planned.inputs {
        if let InputSource::Topic(topic) = &input.source {
            add(ordinary(topic));
        }
    }
    // A step's input topic is that step's own business, also for those who write to it.
    let to_topics = step.outputs.iter().zip(&planned.outputs);
    for (_, output) in to_topics.filter(|(config, _)| matches!(config.target, Target::Topic(_))) {
        add(TopicPlan { compacted: output.compacted, ..ordinary(&output.topic) });
    }
    for topic in &planned.allowed_topics {
        add(ordinary(topic));
    }
    add(TopicPlan {
        max_message_bytes: Some(DEFAULT_MAX_MESSAGE_BYTES + DEAD_LETTER_ROOM),
        // A dead letter goes when somebody has dealt with it, not by itself.
        retention_ms: Some(-1),
        ..ordinary(&planned.dead_letters)
    });
    if let Some(state) = &planned.state {
        // One partition: its owner is the one instance that runs the connector.
        add(TopicPlan { partitions: 1, compacted: true, retention_ms: Some(-1), ..ordinary(state) });
    }
}

fn stricter(a: TopicPolicy, b: TopicPolicy) -> TopicPolicy {
    match (a, b) {
        (TopicPolicy::Create, _) | (_, TopicPolicy::Create) => TopicPolicy::Create,
        (TopicPolicy::Verify, _) | (_, TopicPolicy::Verify) => TopicPolicy::Verify,
        (TopicPolicy::Ignore, TopicPolicy::Ignore) => TopicPolicy::Ignore,
    }
}

impl StepPlan {
    /// The step as canonical JSON: fields in the order of this type, objects of
    /// the configuration with sorted names, no white space.
    ///
    /// # Errors
    /// Never for a step that the planner made; it has no maps with other keys
    /// than texts.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut plan = self.clone();
        plan.config.sort_all_objects();
        serde_json::to_string(&plan)
    }

    /// A step from its JSON.
    ///
    /// # Errors
    /// When the text is no planned step.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// SHA-256 of [`to_json`](Self::to_json), in hex: two steps with the same
    /// hash have the same to do.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    pub fn hash(&self) -> Result<String, serde_json::Error> {
        Ok(hash_of(&self.to_json()?))
    }
}

/// SHA-256 of a step's JSON, in hex; to check what travelled.
#[must_use]
pub fn hash_of(json: &str) -> String {
    Sha256::digest(json.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
