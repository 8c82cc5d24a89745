//! Ways out of a step: targets, names, conditions, weights, keys.

use std::collections::BTreeMap;

use super::super::config::{OutputConfig, Target};
use super::super::tree::Path;
use super::super::wire;
use super::Checker;
use crate::condition::{CompileErrors, Condition, KeyExpr};
use crate::names::{StepName, Topic};
use crate::step::{Format, StepType};
use crate::text::nearest;

impl Checker<'_> {
    pub(super) fn outputs(&mut self, step: &wire::Step, at: &Path) -> Vec<OutputConfig> {
        let here = at.field("outputs");
        let mut outputs = Vec::new();
        for (index, output) in step.outputs.iter().flatten().enumerate() {
            let Some(output) = output else { continue };
            let at = here.index(index);
            if let Some(config) = self.output(output, &at) {
                outputs.push((at, config));
            }
        }
        self.otherwise(step, &here);
        let here = at.field("output_kafka_topics");
        for (index, topic) in step.output_kafka_topics.iter().flatten().enumerate() {
            let Some(topic) = topic else { continue };
            let at = here.index(index);
            if let Some(config) = self.output_topic(topic, &at) {
                outputs.push((at, config));
            }
        }
        self.unique_names(&outputs);
        outputs.into_iter().map(|(_, config)| config).collect()
    }

    fn output(&mut self, output: &wire::Output, at: &Path) -> Option<OutputConfig> {
        let target = self.target(output, at);
        if output.transport == Some(wire::Transport::Grpc) {
            self.error(&at.field("transport"), "transport GRPC is not supported yet; use TOPIC");
        }
        self.expression(output.when.as_deref(), &at.field("when"), |text| Condition::compile(text).err());
        self.key(output.key.as_deref(), &at.field("key"));
        let otherwise = output.otherwise.unwrap_or(false);
        if otherwise && output.when.is_some() {
            self.error(&at.field("when"), "an output with `otherwise` has no condition of its own");
        }
        if otherwise && output.weight.is_some() {
            self.error(&at.field("weight"), "an output with `otherwise` has no weight");
        }
        if output.name.as_ref().is_some_and(|name| name.is_empty()) {
            self.error(&at.field("name"), "the name of an output is not empty; leave it out for the target's name");
        }
        if matches!(target, Some(Target::Step(_))) {
            self.only_with_topic(output, at);
        }
        let target = target?;
        let name = output.name.clone().unwrap_or_else(|| match &target {
            Target::Step(step) => step.to_string(),
            Target::Topic(topic) => topic.to_string(),
        });
        Some(OutputConfig {
            name,
            target,
            format: output.format.unwrap_or_default(),
            when: output.when.clone(),
            otherwise,
            weight: output.weight,
            key: output.key.clone(),
            compacted: output.compacted.unwrap_or(false),
        })
    }

    /// What a step's input topic is, is that step's own business.
    fn only_with_topic(&mut self, output: &wire::Output, at: &Path) {
        if output.format.is_some_and(|format| format != Format::Pipedoc) {
            let reason = "a step reads PIPEDOC from the steps before it; `format` is for outputs with `topic`";
            self.error(&at.field("format"), reason);
        }
        if output.compacted == Some(true) {
            let reason = "a step gets every record, not the newest alone; `compacted` is for outputs with `topic`";
            self.error(&at.field("compacted"), reason);
        }
    }

    fn target(&mut self, output: &wire::Output, at: &Path) -> Option<Target> {
        match (&output.to, &output.topic) {
            (Some(to), None) => self.step_target(to, &at.field("to")).map(Target::Step),
            (None, Some(topic)) => self.name(Some(topic), &at.field("topic"), Topic::new).map(Target::Topic),
            (Some(_), Some(_)) => {
                self.error(at, "an output has either `to` (a step) or `topic`, not both");
                None
            }
            (None, None) => {
                if !self.stands(at, "to") && !self.stands(at, "topic") {
                    self.error(at, "an output needs `to` (a step) or `topic`");
                }
                None
            }
        }
    }

    fn step_target(&mut self, to: &str, at: &Path) -> Option<StepName> {
        match self.steps.get(to) {
            None => {
                let hint = nearest(to, self.steps.keys().map(String::as_str));
                let known: Vec<_> = self.steps.keys().map(String::as_str).collect();
                let hint = if hint.is_empty() { format!("; there are {}", known.join(", ")) } else { hint };
                self.error(at, format!("no step is named {to:?}{hint}"));
                None
            }
            Some((_, Some(StepType::Connector))) => {
                self.error(at, format!("step {to:?} is a CONNECTOR, which takes no documents"));
                None
            }
            // A name that is no name was reported where the step is.
            Some(_) => StepName::new(to).ok(),
        }
    }

    fn output_topic(&mut self, output: &wire::OutputTopic, at: &Path) -> Option<OutputConfig> {
        let plain = wire::OutputTopicDetails::default();
        let (topic, details) = match output {
            wire::OutputTopic::Name(topic) => (self.name(Some(topic), at, Topic::new)?, &plain),
            wire::OutputTopic::Detailed(details) => {
                self.key(details.key.as_deref(), &at.field("key"));
                (self.name(details.topic.as_deref(), &at.field("topic"), Topic::new)?, details)
            }
        };
        Some(OutputConfig {
            name: topic.to_string(),
            target: Target::Topic(topic),
            format: details.format.unwrap_or_default(),
            when: None,
            otherwise: false,
            weight: None,
            key: details.key.clone(),
            compacted: details.compacted.unwrap_or(false),
        })
    }

    fn key(&mut self, text: Option<&str>, at: &Path) {
        self.expression(text, at, |text| KeyExpr::compile(text).err());
        if text.and_then(|text| KeyExpr::compile(text).ok()).is_some_and(|key| key.reads_doc()) {
            let reason = "this key reads `doc`, which deletions do not have: they end here and do not reach the target";
            self.findings.warning(self.tree, at, reason);
        }
    }

    fn expression(&mut self, text: Option<&str>, at: &Path, compile: impl FnOnce(&str) -> Option<CompileErrors>) {
        let Some(text) = text else { return };
        for error in compile(text).into_iter().flat_map(|errors| errors.0) {
            let line = text.get(..error.offset).unwrap_or_default();
            // Columns within the first line are columns of the file.
            let position =
                if line.contains('\n') { self.tree.position(at) } else { self.tree.position_in_text(at, error.column) };
            self.findings.error_at(position, at, format!("`{}`: {}", text.trim_end(), error.message));
        }
    }

    /// An output with `otherwise` needs one with a condition to stand beside.
    fn otherwise(&mut self, step: &wire::Step, at: &Path) {
        let outputs =
            || step.outputs.iter().flatten().enumerate().filter_map(|(n, output)| Some((n, output.as_ref()?)));
        let conditional = outputs().any(|(n, _)| self.stands(&at.index(n), "when"));
        let lonely: Vec<_> = outputs().filter(|(_, output)| output.otherwise == Some(true)).map(|(n, _)| n).collect();
        if !conditional {
            for index in lonely {
                let reason = "`otherwise` is for when no output with a condition is taken; no output here has `when`";
                self.error(&at.index(index).field("otherwise"), reason);
            }
        }
    }

    /// Code names outputs, so each name stands for one.
    fn unique_names(&mut self, outputs: &[(Path, OutputConfig)]) {
        let mut first: BTreeMap<&str, &Path> = BTreeMap::new();
        for (at, output) in outputs {
            match first.get(output.name.as_str()) {
                None => {
                    first.insert(&output.name, at);
                }
                Some(first) => {
                    let name = &output.name;
                    self.error(at, format!("two outputs are named {name:?}, also {first}; give one of them a `name`"));
                }
            }
        }
    }
}
