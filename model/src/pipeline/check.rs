//! What no schema can say: names, references, expressions, units, and the shape
//! of the graph. Turns the wire types into the configuration.
//!
//! Works on what the schema check has left; a field that is absent here but
//! stands in the text was reported already and is passed over in silence.

mod graph;
mod outputs;
mod settings;

use std::collections::{BTreeMap, BTreeSet};

use super::config::{PipelineConfig, StepConfig};
use super::tree::{Node, Path, Position};
use super::{Findings, schema, wire};
use crate::names::{ModuleName, PipelineName, StepName, Topic};
use crate::registry::Modules;
use crate::step::{Format, Input, InputSource, StepType, broken_promises};
use crate::text::nearest;

/// Partitions of the topics that a pipeline makes, unless it says otherwise.
const DEFAULT_PARTITIONS: u32 = 4;

pub(super) struct Checker<'a> {
    tree: &'a Node,
    modules: &'a Modules,
    strict: bool,
    findings: &'a mut Findings,
    /// Position of each step name's first use, and its type where it is known.
    steps: BTreeMap<String, (usize, Option<StepType>)>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(tree: &'a Node, modules: &'a Modules, strict: bool, findings: &'a mut Findings) -> Self {
        Self { tree, modules, strict, findings, steps: BTreeMap::new() }
    }

    /// The configuration; none when a part without which there is none is missing
    /// or wrong, which then has been noted.
    pub(super) fn check(mut self, wire: &wire::Pipeline) -> Option<PipelineConfig> {
        let root = Path::default();
        let name = self.name(wire.pipeline.as_deref(), &root.field("pipeline"), PipelineName::new);
        let defaults = wire.defaults.as_ref();
        let base = self.settings(defaults.map(|defaults| &defaults.settings), &root.field("defaults"), None);
        let partitions = defaults.and_then(|defaults| defaults.partitions).unwrap_or(DEFAULT_PARTITIONS);

        let at = root.field("steps");
        if wire.steps.as_ref().is_some_and(Vec::is_empty) {
            self.error(&at, "the pipeline has no steps; it needs at least one");
        }
        let steps = wire.steps.as_deref().unwrap_or_default();
        self.take_names(steps, &at);
        let mut configs = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            // A step that is no mapping was reported already.
            let config = step.as_ref().and_then(|step| self.step(step, &at.index(index), &base));
            configs.push(config);
        }
        self.graph(name.as_ref(), &configs);
        let steps: Option<Vec<_>> = configs.into_iter().collect();
        Some(PipelineConfig { name: name?, partitions: i32::try_from(partitions).ok()?, steps: steps? })
    }

    /// Knows all steps by name before any reference to them is looked at.
    fn take_names(&mut self, steps: &[Option<wire::Step>], at: &Path) {
        for (index, step) in steps.iter().enumerate() {
            let Some(step) = step else { continue };
            let Some(name) = &step.name else { continue };
            match self.steps.get(name) {
                None => {
                    self.steps.insert(name.clone(), (index, step.step_type));
                }
                Some((first, _)) => {
                    let Position { line, column } = self.tree.position(&at.index(*first).field("name"));
                    let place = if line > 0 { format!(", at {line}:{column}") } else { String::new() };
                    let message = format!("two steps are named {name:?}; the first is steps[{first}]{place}");
                    self.error(&at.index(index).field("name"), message);
                }
            }
        }
    }

    fn step(&mut self, step: &wire::Step, at: &Path, base: &settings::Settings) -> Option<StepConfig> {
        let name = self.name(step.name.as_deref(), &at.field("name"), StepName::new);
        let module = self.name(step.module.as_deref(), &at.field("module"), ModuleName::new);
        let config = step.config.clone().unwrap_or_else(|| serde_json::Value::Object(serde_json::Map::new()));
        if let Some(module) = &module {
            self.module(module, step, &config, at);
        }
        let settings = self.settings(Some(&step.settings), at, Some(base));
        self.clients_together(&settings, at);
        let inputs = self.inputs(step, at);
        let outputs = self.outputs(step, at);
        let allowed_topics = self.allowed_topics(step, at);
        match step.step_type {
            Some(StepType::Connector) if step.input_kafka_topic.is_some() => {
                self.error(&at.field("input_kafka_topic"), "a CONNECTOR brings documents in and reads no topics");
            }
            Some(StepType::Sink) => {
                for field in ["outputs", "output_kafka_topics"] {
                    let here = at.field(field);
                    let some = self
                        .tree
                        .get(&here)
                        .is_some_and(|node| !matches!(&node.kind, super::tree::Kind::List(items) if items.is_empty()));
                    if some {
                        self.error(&here, "a SINK takes documents out and has no outputs; make it a PIPELINE step");
                    }
                }
            }
            _ => {}
        }
        self.promise(&settings, step, at);
        Some(StepConfig {
            name: name?,
            step_type: step.step_type?,
            module: module?,
            config,
            inputs,
            outputs,
            allowed_topics,
            delivery: settings.delivery,
            ordering: settings.ordering,
            concurrency: settings.concurrency,
            batch: settings.batch,
            retries: settings.retries,
            on_exhausted: settings.on_exhausted,
            stop_at_failure_rate: settings.stop_at_failure_rate,
            timeout: settings.timeout,
            revoke_grace: settings.revoke_grace,
            max_hops: settings.max_hops,
            topics: settings.topics,
            claim_threshold: settings.claim_threshold,
            hydration: settings.hydration,
            hydrate_max: settings.hydrate_max,
            consumer_settings: settings.clients.consumer.planned(),
            producer_settings: settings.clients.producer.planned(),
        })
    }

    /// What a step's delivery does not go together with.
    fn promise(&mut self, settings: &settings::Settings, step: &wire::Step, at: &Path) {
        let settings::Settings { delivery, on_exhausted, stop_at_failure_rate, .. } = *settings;
        // A step without a type was reported; the rest is known all the same.
        let step_type = step.step_type.unwrap_or(StepType::Pipeline);
        for reason in broken_promises(step_type, delivery, on_exhausted, stop_at_failure_rate) {
            self.error(&at.field("delivery"), reason);
        }
    }

    fn module(&mut self, module: &ModuleName, step: &wire::Step, config: &serde_json::Value, at: &Path) {
        let Some(info) = self.modules.get(module) else {
            let hint = nearest(module.as_str(), self.modules.keys().map(ModuleName::as_str));
            let known = match (hint.is_empty(), self.modules.is_empty()) {
                (true, false) => {
                    let names: Vec<_> = self.modules.keys().map(ModuleName::as_str).collect();
                    format!("; known are {}", names.join(", "))
                }
                (true, true) => "; none is known yet".to_owned(),
                (false, _) => hint,
            };
            let here = at.field("module");
            if self.strict {
                self.error(&here, format!("no module is named {:?}{known}", module.as_str()));
            } else {
                let who = step.name.as_ref().map_or_else(|| "the step".to_owned(), |name| format!("step {name}"));
                let message = format!(
                    "module {:?} was never seen; {who} waits until one of that name is started{known}",
                    module.as_str()
                );
                self.findings.unseen(self.tree, &here, message);
            }
            return;
        };
        if let Some(step_type) = step.step_type.filter(|step_type| !info.step_types.contains(step_type)) {
            let can_be: Vec<_> = info.step_types.iter().map(|can_be| written(*can_be)).collect();
            let message =
                format!("module {} cannot be a {}; it can be {}", info.module, written(step_type), can_be.join(", "));
            self.error(&at.field("type"), message);
        }
        // A `config` that is no mapping was reported and is not here.
        let here = at.field("config");
        if step.config.is_some() || self.tree.get(&here).is_none() {
            schema::check_config(&info.config_schema, self.tree, config, &here, self.findings);
        }
    }

    fn inputs(&mut self, step: &wire::Step, at: &Path) -> Vec<Input> {
        let at = at.field("input_kafka_topic");
        let one;
        let inputs: Vec<(Path, &wire::Input)> = match &step.input_kafka_topic {
            None => Vec::new(),
            Some(wire::OneOrMany::One(input)) => {
                one = input;
                vec![(at, one)]
            }
            Some(wire::OneOrMany::Many(inputs)) => {
                let given = inputs.iter().enumerate();
                given.filter_map(|(index, input)| Some((at.index(index), input.as_ref()?))).collect()
            }
        };
        let mut seen = BTreeSet::new();
        let mut checked = Vec::new();
        for (at, input) in inputs {
            let Some(input) = self.input(input, &at) else { continue };
            if seen.insert(format!("{:?}", input.source)) {
                checked.push(input);
            } else {
                self.error(&at, "the same input is given twice");
            }
        }
        checked
    }

    fn input(&mut self, input: &wire::Input, at: &Path) -> Option<Input> {
        let details = match input {
            wire::Input::Name(name) => {
                let topic = self.name(Some(name), at, Topic::new)?;
                return Some(Input { source: InputSource::Topic(topic), format: Format::Pipedoc });
            }
            wire::Input::Detailed(details) => details,
        };
        let format = details.format.unwrap_or_default();
        match (&details.topic, &details.pattern) {
            (Some(topic), None) => {
                let topic = self.name(Some(topic), &at.field("topic"), Topic::new)?;
                Some(Input { source: InputSource::Topic(topic), format })
            }
            (None, Some(pattern)) => {
                if let Err(error) = regex::Regex::new(&format!("^(?:{pattern})$")) {
                    let reason = error.to_string();
                    let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    self.error(&at.field("pattern"), format!("{pattern:?} is no regular expression: {reason}"));
                    return None;
                }
                Some(Input { source: InputSource::Pattern(pattern.clone()), format })
            }
            (Some(_), Some(_)) => {
                self.error(at, "an input has either `topic` or `pattern`, not both");
                None
            }
            (None, None) => {
                if !self.stands(at, "topic") && !self.stands(at, "pattern") {
                    self.error(at, "an input needs `topic` or `pattern`");
                }
                None
            }
        }
    }

    fn allowed_topics(&mut self, step: &wire::Step, at: &Path) -> Vec<Topic> {
        let at = at.field("allowed_kafka_topics");
        let topics = step.allowed_kafka_topics.iter().flatten().enumerate();
        topics.filter_map(|(index, topic)| self.name(topic.as_deref(), &at.index(index), Topic::new)).collect()
    }

    fn name<T>(
        &mut self,
        text: Option<&str>,
        at: &Path,
        new: impl FnOnce(&str) -> Result<T, crate::names::Error>,
    ) -> Option<T> {
        match new(text?) {
            Ok(name) => Some(name),
            Err(error) => {
                self.error(at, error.to_string());
                None
            }
        }
    }

    fn error(&mut self, at: &Path, message: impl Into<String>) {
        self.findings.error(self.tree, at, message);
    }

    /// Whether a field stands in the text, whatever its value.
    fn stands(&self, at: &Path, name: &str) -> bool {
        self.tree.get(&at.field(name)).is_some()
    }
}

/// A step type as it is written.
fn written(step_type: StepType) -> &'static str {
    match step_type {
        StepType::Connector => "CONNECTOR",
        StepType::Pipeline => "PIPELINE",
        StepType::Sink => "SINK",
    }
}
