//! `pipedoc status`: how everything is doing, as an engine knows it.

use std::process::ExitCode;
use std::time::SystemTime;

use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_proto::v1::{StatusRequest, StatusResponse, StepState, StepStatus, StepType};

use crate::args::{OutputFormat, StatusArgs};
use crate::show::say;
use crate::{connect, plan, show};

/// Runs the command.
pub async fn main(args: StatusArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let mut client = PipelineControlClient::new(connect::engine(&args.engine.engine).await?);
    let request = StatusRequest { pipeline: args.pipeline.unwrap_or_default() };
    let status = client.status(request).await.map_err(connect::said)?.into_inner();
    match output {
        OutputFormat::Json => {
            let bytes = prost::Message::encode_to_vec(&status);
            let value = pipedoc_proto::json::message_to_json("pipedoc.v1.StatusResponse", &bytes)?;
            say!("{value}");
        }
        OutputFormat::Text => print(&status),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &StatusResponse) {
    say!("cluster {}, generation {}", status.cluster, status.generation);
    for problem in &status.problems {
        say!("problem: {}", plan::problem(problem));
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

/// The last error of a step and how long ago it was.
fn error(step: &StepStatus) -> String {
    let line = show::first_line(&step.last_error, 80);
    let at = step.last_error_at.and_then(|at| SystemTime::try_from(at).ok());
    match at.and_then(|at| at.elapsed().ok()).map(|age| age.as_secs()) {
        Some(_) if line.is_empty() => line,
        None => line,
        Some(seconds @ 0..120) => format!("{line} ({seconds} s ago)"),
        Some(seconds @ 120..7200) => format!("{line} ({} min ago)", seconds / 60),
        Some(seconds) => format!("{line} ({} h ago)", seconds / 3600),
    }
}

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}
