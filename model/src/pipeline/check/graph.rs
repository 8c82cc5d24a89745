//! The shape of the graph: cycles, and steps that no document reaches. Steps are
//! tied by outputs to steps, and by topics that one writes and another reads, those of
//! dead letters among them.

use std::collections::VecDeque;

use super::super::config::{StepConfig, Target};
use super::super::tree::Path;
use super::Checker;
use crate::names::{PipelineName, Topic};
use crate::step::{Format, Input, InputSource, StepType};

/// An edge: to which step, and by which output.
struct Edge {
    to: usize,
    output: usize,
}

impl Checker<'_> {
    /// Looks at the graph of those steps that could be read.
    pub(super) fn graph(&mut self, pipeline: Option<&PipelineName>, steps: &[Option<StepConfig>]) {
        let edges: Vec<Vec<Edge>> = steps.iter().map(|step| edges_of(pipeline, step.as_ref(), steps)).collect();
        self.cycles(steps, &edges);
        self.dead_letters(pipeline, steps);
        self.formats(pipeline, steps);
        // With a step missing, what it leads to cannot be told.
        if steps.iter().all(Option::is_some) && self.findings.errors.is_empty() {
            self.unreached(steps, &edges);
        }
    }

    /// Every cycle needs a step that bounds the hops.
    fn cycles(&mut self, steps: &[Option<StepConfig>], edges: &[Vec<Edge>]) {
        let bounded = |step: usize| steps[step].as_ref().is_none_or(|step| step.max_hops.is_some());
        let mut reported = vec![false; steps.len()];
        for start in 0..steps.len() {
            if bounded(start) || reported[start] {
                continue;
            }
            let Some(path) = way_back(start, edges, &bounded) else { continue };
            let name = |step: usize| steps[step].as_ref().map_or("?", |step| step.name.as_str());
            let mut shown: Vec<_> = path.iter().map(|(step, _)| name(*step)).collect();
            shown.push(name(start));
            for (step, _) in &path {
                reported[*step] = true;
            }
            let (last, output) = path.last().copied().unwrap_or((start, 0));
            let message = format!(
                "documents can go round this cycle for ever: {}; give one of its steps `max_hops`",
                shown.join(" → ")
            );
            let at = self.output_path(last, output, steps);
            self.error(&at, message);
        }
    }

    /// Whatever is given up on again and again would go round for ever where steps read
    /// each other's dead letters, or their own: no `max_hops` ends that, as a record over
    /// it is given up on as well.
    fn dead_letters(&mut self, pipeline: Option<&PipelineName>, steps: &[Option<StepConfig>]) {
        let reads = |reader: &Option<StepConfig>, writer: &StepConfig| {
            reader.iter().flat_map(|reader| &reader.inputs).any(|input| buries(pipeline, writer, input))
        };
        let edges_of = |writer: &Option<StepConfig>| {
            let Some(writer) = writer else { return Vec::new() };
            (0..steps.len()).filter(|to| reads(&steps[*to], writer)).map(|to| Edge { to, output: 0 }).collect()
        };
        let edges: Vec<Vec<Edge>> = steps.iter().map(edges_of).collect();
        let mut reported = vec![false; steps.len()];
        for start in 0..steps.len() {
            let path = if reported[start] { None } else { way_back(start, &edges, &|_| false) };
            let (Some(path), Some(reader)) = (path, &steps[start]) else { continue };
            for (step, _) in &path {
                reported[*step] = true;
            }
            let Some(writer) = path.last().and_then(|(last, _)| steps[*last].as_ref()) else { continue };
            let Some(index) = reader.inputs.iter().position(|input| buries(pipeline, writer, input)) else { continue };
            let InputSource::Topic(topic) = &reader.inputs[index].source else { continue };
            let names = path.iter().map(|(step, _)| *step).chain([start]).filter_map(|step| steps[step].as_ref());
            let round: Vec<_> = names.map(|step| step.name.as_str()).collect();
            let whose = if round.len() == 2 { "its own dead letters" } else { "dead letters that come round to it" };
            let message = format!(
                "step {} reads {whose}: found {topic}; what is given up on would go round for ever ({}). Read \
                 them with a step whose dead letters none of these reads, or send them again with `pipedoc run \
                 --retry-failed`",
                reader.name,
                round.join(" → "),
            );
            self.error(&self.input_path(start, topic), message);
        }
    }

    /// Where an input of a step that names a topic stands in the text.
    fn input_path(&self, step: usize, topic: &Topic) -> Path {
        let at = Path::default().field("steps").index(step).field("input_kafka_topic");
        let topic = topic.as_str();
        let alone = [at.field("topic"), at.clone()].into_iter().find(|path| self.is_text(path, topic));
        let listed = || self.entry(&at, Some("topic"), topic).or_else(|| self.entry(&at, None, topic));
        alone.or_else(listed).unwrap_or(at)
    }

    /// A topic is read as what it is written as.
    fn formats(&mut self, pipeline: Option<&PipelineName>, steps: &[Option<StepConfig>]) {
        for (at, reader) in steps.iter().enumerate().filter_map(|(at, step)| Some((at, step.as_ref()?))) {
            let here = Path::default().field("steps").index(at).field("input_kafka_topic");
            for input in &reader.inputs {
                if input.format != Format::Pipedoc
                    && let InputSource::Topic(topic) = &input.source
                    && is_own(pipeline, reader, topic)
                {
                    let found = input.format.name();
                    let message = format!("{topic} is the step's own input topic, which is PIPEDOC; found {found}");
                    self.error(&here, message);
                }
            }
            for writer in steps.iter().flatten().filter(|writer| writer.step_type != StepType::Sink) {
                for output in &writer.outputs {
                    let Target::Topic(topic) = &output.target else { continue };
                    let Some(read) = format_of(pipeline, reader, topic) else { continue };
                    // Anything can be read as bytes, and bytes may be JSON.
                    let fits = read == output.format
                        || read == Format::Raw
                        || (read == Format::Json && output.format == Format::Raw);
                    if !fits {
                        let (writes, reads) = (output.format.name(), read.name());
                        let message =
                            format!("{topic} is read as {reads}, but step {} writes {writes} to it", writer.name);
                        self.error(&here, message);
                    }
                }
            }
        }
    }

    fn unreached(&mut self, steps: &[Option<StepConfig>], edges: &[Vec<Edge>]) {
        let steps: Vec<_> = steps.iter().flatten().collect();
        let mut followed = vec![false; steps.len()];
        for edge in edges.iter().flatten() {
            followed[edge.to] = true;
        }
        let brings = |step: &StepConfig| step.step_type == StepType::Connector || !step.inputs.is_empty();
        let mut roots: VecDeque<usize> = (0..steps.len()).filter(|n| brings(steps[*n])).collect();
        if roots.is_empty() {
            // Documents are submitted to the steps at the beginning.
            roots = (0..steps.len()).filter(|n| !followed[*n]).collect();
        }
        if roots.is_empty() {
            return;
        }
        let mut reached = vec![false; steps.len()];
        while let Some(step) = roots.pop_front() {
            if !std::mem::replace(&mut reached[step], true) {
                roots.extend(edges[step].iter().map(|edge| edge.to));
            }
        }
        for (index, step) in steps.iter().enumerate() {
            let at = Path::default().field("steps").index(index).field("name");
            if !reached[index] {
                let message =
                    format!("no connector or input leads to step {}; only submitted documents reach it", step.name);
                self.findings.warning(self.tree, &at, message);
            }
            if step.step_type != StepType::Sink && step.outputs.is_empty() && step.allowed_topics.is_empty() {
                let message = format!("step {} has no outputs; what comes of its documents is dropped", step.name);
                self.findings.warning(self.tree, &at, message);
            }
        }
    }

    /// Where the output of a step stands in the text.
    fn output_path(&self, step: usize, output: usize, steps: &[Option<StepConfig>]) -> Path {
        let at = Path::default().field("steps").index(step);
        let listed = at.field("outputs");
        let Some(output) = steps[step].as_ref().and_then(|step| step.outputs.get(output)) else { return listed };
        match &output.target {
            Target::Step(name) => self.entry(&listed, Some("to"), name.as_str()).unwrap_or(listed),
            Target::Topic(topic) => {
                let topics = at.field("output_kafka_topics");
                let topic = topic.as_str();
                let found = self.entry(&listed, Some("topic"), topic).or_else(|| self.entry(&topics, None, topic));
                found.or_else(|| self.entry(&topics, Some("topic"), topic)).unwrap_or(topics)
            }
        }
    }

    /// The first entry of a list that is this text, or has it in a field.
    fn entry(&self, list: &Path, field: Option<&str>, text: &str) -> Option<Path> {
        let entries = (0..).map(|n| list.index(n)).take_while(|path| self.tree.get(path).is_some());
        let mut texts = entries.map(|path| field.map_or_else(|| path.clone(), |field| path.field(field)));
        texts.find(|path| self.is_text(path, text))
    }

    fn is_text(&self, path: &Path, text: &str) -> bool {
        match self.tree.get(path).map(|node| &node.kind) {
            Some(super::super::tree::Kind::Text(found)) => found.value == text,
            _ => false,
        }
    }
}

fn edges_of(pipeline: Option<&PipelineName>, step: Option<&StepConfig>, steps: &[Option<StepConfig>]) -> Vec<Edge> {
    let mut edges = Vec::new();
    // A sink that has outputs was refused for them.
    let step = step.filter(|step| step.step_type != StepType::Sink);
    for (output, config) in step.iter().flat_map(|step| step.outputs.iter().enumerate()) {
        for (to, other) in steps.iter().enumerate() {
            let Some(other) = other else { continue };
            let leads = match &config.target {
                Target::Step(name) => other.name == *name,
                Target::Topic(topic) => reads(pipeline, other, topic),
            };
            if leads {
                edges.push(Edge { to, output });
            }
        }
    }
    edges
}

/// Whether a step reads a topic: named, matched, or its own default one.
fn reads(pipeline: Option<&PipelineName>, step: &StepConfig, topic: &Topic) -> bool {
    if step.step_type == StepType::Connector {
        return false;
    }
    is_own(pipeline, step, topic) || step.inputs.iter().any(|input| takes(input, topic))
}

/// Whether a topic is a step's default input topic.
fn is_own(pipeline: Option<&PipelineName>, step: &StepConfig, topic: &Topic) -> bool {
    pipeline.is_some_and(|pipeline| {
        // The cluster's name is not known here; any will do.
        let mut parts = topic.as_str().split('.');
        let (_, of, named, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        of == Some(pipeline.as_str()) && named == Some(step.name.as_str()) && end.is_none()
    })
}

/// Whether an input names the topic of a step's dead letters; patterns leave those out.
fn buries(pipeline: Option<&PipelineName>, step: &StepConfig, input: &Input) -> bool {
    let InputSource::Topic(topic) = &input.source else { return false };
    // Of any cluster, as above.
    let own = topic.as_str().strip_suffix(".dlq").and_then(|own| Topic::new(own).ok());
    own.is_some_and(|own| is_own(pipeline, step, &own))
}

fn takes(input: &Input, topic: &Topic) -> bool {
    match &input.source {
        InputSource::Topic(name) => name == topic,
        InputSource::Pattern(pattern) => {
            !topic.is_internal()
                && regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(topic.as_str()))
        }
    }
}

/// As what a step reads a topic, if it reads it: as the input that names it says,
/// else as the first one that it matches.
fn format_of(pipeline: Option<&PipelineName>, step: &StepConfig, topic: &Topic) -> Option<Format> {
    if step.step_type == StepType::Connector {
        return None;
    }
    if is_own(pipeline, step, topic) {
        return Some(Format::Pipedoc);
    }
    let named = step.inputs.iter().find(|input| matches!(&input.source, InputSource::Topic(name) if name == topic));
    named.or_else(|| step.inputs.iter().find(|input| takes(input, topic))).map(|input| input.format)
}

/// The shortest way from a step back to itself that passes no bounded step, as
/// steps and the outputs taken.
fn way_back(start: usize, edges: &[Vec<Edge>], bounded: &impl Fn(usize) -> bool) -> Option<Vec<(usize, usize)>> {
    let mut came_from: Vec<Option<(usize, usize)>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(step) = queue.pop_front() {
        for edge in &edges[step] {
            if edge.to == start {
                let mut path = vec![(step, edge.output)];
                while let Some(before) = path.last().filter(|(at, _)| *at != start).and_then(|(at, _)| came_from[*at]) {
                    path.push(before);
                }
                path.reverse();
                return Some(path);
            }
            if !bounded(edge.to) && came_from[edge.to].is_none() {
                came_from[edge.to] = Some((step, edge.output));
                queue.push_back(edge.to);
            }
        }
    }
    None
}
