//! Whether a run has come to its end: all connectors have completed and every
//! step has committed all that lies in its topics.
//!
//! Asks the log alone, so it is right whoever runs the steps. Two rounds in a row
//! must find everything done, with no output written in between: one round goes over
//! the steps one after the other, and a later step may write to an earlier one.

use std::collections::BTreeMap;

use pipedoc_model::names::Topic;
use pipedoc_model::step::{InputSource, StepPlan};
use pipedoc_transport::log::{Ends, Log, TopicPartition};

/// Watches a plan's steps for the end.
pub struct Drain {
    last: Option<BTreeMap<TopicPartition, i64>>,
}

impl Drain {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self { last: None }
    }

    /// Looks once: true when this round and the one before found all done and the
    /// same ends.
    pub async fn reached(&mut self, log: &dyn Log, steps: &[StepPlan]) -> pipedoc_transport::error::Result<bool> {
        let mut ends = BTreeMap::new();
        for step in steps.iter().filter(|step| !step.inputs.is_empty()) {
            if !done(log, step, &mut ends).await? {
                self.last = None;
                return Ok(false);
            }
        }
        let settled = self.last.as_ref() == Some(&ends);
        self.last = Some(ends);
        Ok(settled)
    }
}

/// Whether a step has committed all of its topics; adds their ends to `seen`.
async fn done(
    log: &dyn Log,
    step: &StepPlan,
    seen: &mut BTreeMap<TopicPartition, i64>,
) -> pipedoc_transport::error::Result<bool> {
    let topics = inputs(log, step).await?;
    let committed = log.group_offsets_of(&step.group, &topics).await?;
    for topic in topics {
        for (partition, Ends { start, end }) in (0..).zip(log.ends(&topic).await?) {
            let partition = TopicPartition::new(topic.clone(), partition);
            let done = committed.get(&partition).map_or(start, |committed| committed.offset);
            if done < end {
                return Ok(false);
            }
            seen.insert(partition, end);
        }
    }
    Ok(true)
}

/// The topics that a step reads, patterns resolved.
async fn inputs(log: &dyn Log, step: &StepPlan) -> pipedoc_transport::error::Result<Vec<Topic>> {
    let mut topics = Vec::new();
    let mut patterns = Vec::new();
    for input in &step.inputs {
        match &input.source {
            InputSource::Topic(topic) => topics.push(topic.clone()),
            InputSource::Pattern(pattern) => patterns.extend(regex::Regex::new(&format!("^(?:{pattern})$")).ok()),
        }
    }
    if !patterns.is_empty() {
        let all = log.topics().await?;
        let matching = |topic: &Topic| !topic.is_internal() && patterns.iter().any(|one| one.is_match(topic.as_str()));
        topics.extend(all.into_iter().filter(matching));
    }
    topics.sort();
    topics.dedup();
    Ok(topics)
}
