//! `pipedoc status`: how everything is doing, as an engine knows it.

use std::process::ExitCode;
use std::time::SystemTime;

use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_proto::v1::{EngineStatus, PipelineStatus, StatusRequest, StatusResponse, StepState, StepStatus, StepType};

use crate::args::{OutputFormat, StatusArgs};
use crate::show::say;
use crate::{connect, plan, show};

/// So much is shown of why a partition stands still: enough for what to do about it.
const PAUSED_SHOWN: usize = 400;

/// Runs the command.
pub async fn main(args: StatusArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let mut client = PipelineControlClient::new(connect::engine(&args.engine.engine).await?);
    let request = StatusRequest { pipeline: args.pipeline.unwrap_or_default() };
    let status = client.status(request).await.map_err(connect::said)?.into_inner();
    match output {
        OutputFormat::Json => say!("{}", show::json("pipedoc.v1.StatusResponse", &status)?),
        OutputFormat::Text => print(&status),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &StatusResponse) {
    say!("cluster {}, generation {}", status.cluster, status.generation);
    say!("engines: {}", engines(&status.engines));
    for problem in &status.problems {
        say!("problem: {}", plan::problem(problem));
    }
    for warning in &status.warnings {
        say!("warning: {}", plan::problem(warning));
    }
    for pipeline in &status.pipelines {
        match pipeline.revision {
            0 => say!("\npipeline {}, not in the configuration: instances still run it", pipeline.pipeline),
            revision => say!("\npipeline {}, revision {revision}", pipeline.pipeline),
        }
        let rows: Vec<_> = pipeline
            .steps
            .iter()
            .map(|step| {
                vec![
                    step.step.clone(),
                    // Not known of a pipeline that is not in the configuration.
                    match step.r#type() {
                        StepType::Unspecified => "-".to_owned(),
                        known => word(known.as_str_name(), "STEP_TYPE_"),
                    },
                    step.module.clone(),
                    word(StepState::try_from(step.state).unwrap_or_default().as_str_name(), "STEP_STATE_"),
                    step.instances.to_string(),
                    step.lag.to_string(),
                    step.in_flight.to_string(),
                    step.done.to_string(),
                    step.dead_letters.to_string(),
                    error(step),
                ]
            })
            .collect();
        let heads =
            ["STEP", "TYPE", "MODULE", "STATE", "INSTANCES", "LAG", "AT WORK", "DONE", "DEAD LETTERS", "LAST ERROR"];
        show::table(&heads, &rows);
        print_paused(pipeline);
    }
    if !status.instances.is_empty() {
        say!("");
        let rows: Vec<_> = status
            .instances
            .iter()
            .map(|instance| {
                let partitions: usize = instance.steps.iter().map(|step| step.partitions.len()).sum();
                vec![
                    instance.instance_id.clone(),
                    instance.module.clone(),
                    instance.version.clone(),
                    format!("{}{}", instance.generation, if instance.from_disk { " (from disk)" } else { "" }),
                    partitions.to_string(),
                    instance.endpoint.clone(),
                ]
            })
            .collect();
        show::table(&["INSTANCE", "MODULE", "VERSION", "GENERATION", "PARTITIONS", "ENDPOINT"], &rows);
    }
    if status.pipelines.is_empty() {
        say!("no pipelines; apply one with `pipedoc apply FILE`");
    }
}

/// The engines, and which of them leads.
fn engines(engines: &[EngineStatus]) -> String {
    let described = engines.iter().map(|engine| {
        let notes =
            [(engine.answers, "this one"), (engine.leads, "leads"), (!engine.healthy, "fails its health check")];
        let notes: Vec<_> = notes.into_iter().filter_map(|(holds, note)| holds.then_some(note)).collect();
        if notes.is_empty() { engine.address.clone() } else { format!("{} ({})", engine.address, notes.join(", ")) }
    });
    let nobody = (!engines.iter().any(|engine| engine.leads)).then(|| "none is known to lead".to_owned());
    described.chain(nobody).collect::<Vec<_>>().join(", ")
}

/// Partitions of a pipeline that stand still by themselves.
fn print_paused(pipeline: &PipelineStatus) {
    let mut rows = Vec::new();
    for step in &pipeline.steps {
        rows.extend(step.paused.iter().map(|paused| {
            vec![
                step.step.clone(),
                paused.partition.clone(),
                ago(paused.since.and_then(|at| SystemTime::try_from(at).ok())).unwrap_or_default(),
                word(paused.reason().as_str_name(), "PAUSE_REASON_"),
                paused.offset.map(|offset| offset.to_string()).unwrap_or_default(),
                paused.document.clone(),
                show::first_line(&paused.error, PAUSED_SHOWN),
            ]
        }));
    }
    if !rows.is_empty() {
        let name = &pipeline.pipeline;
        say!("\npaused by themselves; `pipedoc resume {name} [STEP]` tries again what stopped them");
        show::table(&["STEP", "PARTITION", "SINCE", "REASON", "OFFSET", "DOCUMENT", "ERROR"], &rows);
    }
}

/// The last error of a step and how long ago it was.
fn error(step: &StepStatus) -> String {
    let line = show::first_line(&step.last_error, 80);
    match ago(step.last_error_at.and_then(|at| SystemTime::try_from(at).ok())) {
        Some(ago) if !line.is_empty() => format!("{line} ({ago})"),
        _ => line,
    }
}

/// How long ago something was.
fn ago(at: Option<SystemTime>) -> Option<String> {
    Some(match at?.elapsed().ok()?.as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds => format!("{} h ago", seconds / 3600),
    })
}

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}
