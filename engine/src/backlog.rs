//! Records that wait for a step, from the log.
//!
//! A step that goes leaves them in its default input topic, where nobody reads
//! them: who removes it must know. Looks only; decides nothing.

use pipedoc_model::names::{ClusterName, StepId, Topic};
use pipedoc_model::pipeline::PipelineConfig;
use pipedoc_model::problem::{Problem, chain};
use pipedoc_model::step::StepType;
use pipedoc_transport::error::{Error as LogError, Result as LogResult};
use pipedoc_transport::log::{Log, TopicPartition};

/// Records of topics that a group has not committed yet: end less committed, over
/// all partitions. Topics that do not exist hold none.
pub(crate) async fn waiting(log: &dyn Log, group: &str, topics: &[Topic]) -> LogResult<i64> {
    let committed = log.group_offsets_of(group, topics).await?;
    let mut waiting = 0;
    for topic in topics {
        for (ends, partition) in known(log.ends(topic).await)?.into_iter().zip(0..) {
            let place = committed.get(&TopicPartition::new(topic.clone(), partition));
            let done = place.map_or(ends.start, |place| place.offset.max(ends.start));
            waiting += (ends.end - done).max(0);
        }
    }
    Ok(waiting)
}

/// A topic that does not exist holds nothing.
pub(crate) fn known<T: Default>(found: LogResult<T>) -> LogResult<T> {
    match found {
        Err(LogError::UnknownTopic { .. }) => Ok(T::default()),
        found => found,
    }
}

/// What stands against a pipeline becoming another one, or none: steps that read
/// their default input topic now and will not, while records wait there.
/// `remedy` says how to give those up.
pub(crate) async fn left_behind(
    log: &dyn Log,
    cluster: &ClusterName,
    now: &PipelineConfig,
    then: Option<&PipelineConfig>,
    remedy: &str,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for step in now.steps.iter().filter(|step| step.step_type != StepType::Connector) {
        let stays = then.and_then(|then| then.step(step.name.as_str()));
        if stays.is_some_and(|step| step.step_type != StepType::Connector) {
            continue;
        }
        let id = now.step_id(step);
        let message = match waiting(log, &id.group(cluster), &[id.input_topic(cluster)]).await {
            Ok(0) => continue,
            Ok(records) => waits(&id, records, remedy),
            Err(error) => format!(
                "step {id} would go, and whether records wait for it is not known, because the log does not tell ({}): try again, or {remedy}",
                chain(&error)
            ),
        };
        problems.push(Problem { field: id.step.to_string(), message, ..Problem::default() });
    }
    problems
}

fn waits(id: &StepId, records: i64, remedy: &str) -> String {
    let (noun, verb) = if records == 1 { ("record", "waits") } else { ("records", "wait") };
    format!("step {id} would go while {records} {noun} still {verb} for it: let it finish them first, or {remedy}")
}
