//! How pipelines and steps are doing: what instances report, and what the log says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_model::step::{Delivery, InputSource, StepPlan, StepType};
use pipedoc_proto::v1::{
    EngineStatus, InstanceStatus, PipelineStatus, Problem, StatusResponse, StepState, StepStatus,
    StepType as ProtoStepType,
};
use pipedoc_transport::error::Result as LogResult;
use pipedoc_transport::log::Log;
use tokio::time::Instant;

use crate::backlog::{known, waiting};
use crate::dead_letters::{self, Count, DeadLetters};
use crate::sessions::{Attached, StepNow};
use crate::store::{Leadership, Peer};
use crate::view::{PipelineView, View, serves};
use pipedoc_model::problem::chain;

/// Everything, or only what concerns one pipeline.
pub(crate) async fn status(
    cluster: &ClusterName,
    view: &View,
    instances: &[Arc<Attached>],
    log: &dyn Log,
    dead_letters: &DeadLetters,
    only: Option<&PipelineView>,
) -> StatusResponse {
    let mut problems: Vec<Problem> = view.problems.iter().cloned().map(problem).collect();
    let mut warnings: Vec<Problem> = view.warnings.iter().cloned().map(problem).collect();
    let deadline = Instant::now() + dead_letters::PATIENCE;
    let mut pipelines = Vec::new();
    let chosen = |pipeline: &&PipelineView| only.is_none_or(|only| only.name == pipeline.name);
    for pipeline in view.pipelines.iter().filter(chosen) {
        let mut steps = Vec::with_capacity(pipeline.steps.len());
        for step in pipeline.steps.iter() {
            let mut status = step_status(&step.plan, instances);
            match numbers(&step.plan, log, dead_letters, deadline).await {
                Ok((lag, Count { letters, at_most })) => {
                    (status.lag, status.dead_letters) = (lag, letters);
                    let warning = |why: String| {
                        let message = format!("step {} has {letters} dead letters at most: {why}", step.plan.id);
                        Problem { message, ..Problem::default() }
                    };
                    warnings.extend(at_most.map(warning));
                }
                Err(error) => problems.push(Problem {
                    message: format!("lag and dead letters of step {} are not known: {}", step.plan.id, chain(&error)),
                    ..Problem::default()
                }),
            }
            steps.push(status);
        }
        pipelines.push(PipelineStatus { pipeline: pipeline.name.to_string(), revision: pipeline.revision, steps });
    }
    if only.is_none() {
        pipelines.extend(unknown(view, instances));
    }
    problems.extend(instances.iter().filter(|instance| !instance.refusals.is_empty()).map(|instance| {
        let Attached { instance_id, module, refusals, .. } = &**instance;
        let message =
            format!("instance {instance_id} of module {module} refuses its assignment: {}", refusals.join("; "));
        Problem { message, ..Problem::default() }
    }));
    StatusResponse {
        cluster: cluster.to_string(),
        generation: view.generation.map_or(0, |generation| generation.0),
        pipelines,
        instances: instances.iter().map(|attached| instance_status(attached, only)).collect(),
        problems,
        warnings,
        engines: Vec::new(),
    }
}

/// The engines, by address: this one, the one that leads as far as it knows, and those
/// of the catalog. One that was killed and is back at its address is one.
pub(crate) fn engines(own: &str, leadership: &Leadership, catalog: Vec<Peer>) -> Vec<EngineStatus> {
    let mut healthy: BTreeMap<String, bool> = BTreeMap::new();
    for Peer { address, healthy: passes } in catalog {
        *healthy.entry(address).or_default() |= passes;
    }
    let leader = match leadership {
        Leadership::Leads(_) => Some(own),
        Leadership::Follows(leader) => leader.as_deref(),
        Leadership::Hindered(_) => None,
    };
    for address in [Some(own), leader].into_iter().flatten() {
        // Nobody checks one that is not in the catalog.
        healthy.entry(address.to_owned()).or_insert(true);
    }
    let status = |(address, healthy): (String, bool)| EngineStatus {
        answers: address == own,
        leads: leader == Some(address.as_str()),
        address,
        healthy,
    };
    healthy.into_iter().map(status).collect()
}

/// A problem as it travels.
pub(crate) fn problem(problem: pipedoc_model::problem::Problem) -> Problem {
    let pipedoc_model::problem::Problem { file, line, column, field, message } = problem;
    Problem { file, line, column, field, message }
}

/// An instance, with what it reports of all its steps or only of one pipeline's.
fn instance_status(attached: &Attached, only: Option<&PipelineView>) -> InstanceStatus {
    let chosen = |step: &&StepNow| only.is_none_or(|only| only.name.as_str() == step.name().0);
    InstanceStatus {
        instance_id: attached.instance_id.clone(),
        module: attached.module.to_string(),
        version: attached.version.clone(),
        endpoint: attached.endpoint.clone(),
        generation: attached.generation,
        from_disk: attached.from_disk,
        started_at: attached.started_at,
        last_report_at: Some(attached.reported_at.into()),
        refusals: attached.refusals.clone(),
        steps: attached.steps().filter(chosen).map(StepNow::to_report).collect(),
    }
}

fn step_status(plan: &StepPlan, instances: &[Arc<Attached>]) -> StepStatus {
    let serving: Vec<_> = instances.iter().filter(|attached| serves(plan, &attached.module, &attached.serve)).collect();
    let (pipeline, step) = (plan.id.pipeline.as_str(), plan.id.step.as_str());
    let reports: Vec<_> = serving.iter().map(|attached| attached.step(pipeline, step)).collect();
    let states = reports.iter().map(|report| report.map_or(StepState::Starting, StepNow::state));
    let state = states.max_by_key(|state| severity(*state)).unwrap_or(StepState::WaitingForModule);
    let reports: Vec<_> = reports.into_iter().flatten().collect();
    let newest = reports
        .iter()
        .filter(|report| !report.last_error().is_empty())
        .max_by_key(|report| report.last_error_at().map(|at| (at.seconds, at.nanos)));
    StepStatus {
        step: plan.id.step.to_string(),
        r#type: match plan.step_type {
            StepType::Connector => ProtoStepType::Connector,
            StepType::Pipeline => ProtoStepType::Pipeline,
            StepType::Sink => ProtoStepType::Sink,
        }
        .into(),
        module: plan.module.to_string(),
        state: state.into(),
        lag: 0,
        in_flight: reports.iter().map(|report| report.in_flight).sum(),
        done: reports.iter().map(|report| report.done).sum(),
        failed: reports.iter().map(|report| report.failed).sum(),
        dead_letters: 0,
        last_error: newest.map(|report| report.last_error().to_owned()).unwrap_or_default(),
        last_error_at: newest.and_then(|report| report.last_error_at()),
        instances: u32::try_from(serving.len()).unwrap_or(u32::MAX),
        paused: reports.iter().flat_map(|report| report.paused()).cloned().collect(),
    }
}

/// Pipelines that instances run and the view does not have: the store has lost them,
/// or they are going.
fn unknown(view: &View, instances: &[Arc<Attached>]) -> Vec<PipelineStatus> {
    let mut pipelines: BTreeMap<&str, BTreeMap<&str, StepStatus>> = BTreeMap::new();
    for attached in instances {
        for report in attached.steps() {
            let (pipeline, step) = report.name();
            if view.pipeline(pipeline).is_some() {
                continue;
            }
            let status = pipelines.entry(pipeline).or_default().entry(step).or_insert_with(|| StepStatus {
                step: step.to_owned(),
                module: attached.module.to_string(),
                ..StepStatus::default()
            });
            add(status, report);
        }
    }
    let status = |(name, steps): (&str, BTreeMap<&str, StepStatus>)| PipelineStatus {
        pipeline: name.to_owned(),
        revision: 0,
        steps: steps.into_values().collect(),
    };
    pipelines.into_iter().map(status).collect()
}

/// Adds an instance's report to what is known of a step.
fn add(status: &mut StepStatus, report: &StepNow) {
    if status.instances == 0 || severity(report.state()) > severity(status.state()) {
        status.set_state(report.state());
    }
    status.instances += 1;
    status.lag += report.lag;
    status.in_flight += report.in_flight;
    status.done += report.done;
    status.failed += report.failed;
    status.paused.extend_from_slice(report.paused());
    let at = |at: Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
    if !report.last_error().is_empty() && at(report.last_error_at()) >= at(status.last_error_at) {
        report.last_error().clone_into(&mut status.last_error);
        status.last_error_at = report.last_error_at();
    }
}

/// Of several instances' states the worst is the step's. A connector that is
/// completed in one instance is completed, though others stand by as running.
fn severity(state: StepState) -> u8 {
    match state {
        StepState::Failed => 8,
        StepState::Stopping => 7,
        StepState::Stopped => 6,
        StepState::Paused => 5,
        StepState::Starting => 4,
        StepState::Completed => 3,
        StepState::Running => 2,
        StepState::Unspecified => 1,
        StepState::WaitingForModule => 0,
    }
}

/// Lag and dead letters of a step, from the log.
async fn numbers(
    plan: &StepPlan,
    log: &dyn Log,
    dead_letters: &DeadLetters,
    deadline: Instant,
) -> LogResult<(i64, Count)> {
    let dead_letters = match plan.delivery {
        Delivery::ExactlyOnce => dead_letters.count(log, &plan.dead_letters, deadline).await?,
        // Each has an offset, and nothing else has.
        Delivery::AtLeastOnce | Delivery::AtMostOnce => {
            let ends = known(log.ends(&plan.dead_letters).await)?;
            Count { letters: ends.iter().map(|ends| ends.end - ends.start).sum(), at_most: None }
        }
    };
    if plan.inputs.is_empty() {
        return Ok((0, dead_letters));
    }
    let topics = input_topics(plan, log).await?;
    Ok((waiting(log, &plan.group, &topics).await?, dead_letters))
}

async fn input_topics(plan: &StepPlan, log: &dyn Log) -> LogResult<Vec<Topic>> {
    let mut topics = BTreeSet::new();
    let mut all = None;
    for input in &plan.inputs {
        match &input.source {
            InputSource::Topic(topic) => drop(topics.insert(topic.clone())),
            InputSource::Pattern(pattern) => {
                let all = match &mut all {
                    Some(all) => all,
                    none => none.insert(log.topics().await?),
                };
                // It compiled when the pipeline was taken.
                let Ok(whole) = regex::Regex::new(&format!("^(?:{pattern})$")) else { continue };
                let matching = all.iter().filter(|topic| !topic.is_internal() && whole.is_match(topic.as_str()));
                topics.extend(matching.cloned());
            }
        }
    }
    Ok(topics.into_iter().collect())
}
