//! `pipedoc plan` and `pipedoc apply`: what a pipeline file would run, and making it run.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use pipedoc_model::names::ClusterName;
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::step::InputSource;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_proto::v1::{self, ApplyRequest};

use crate::args::{ApplyArgs, OutputFormat, PlanArgs};
use crate::show::{say, tell};
use crate::{connect, load, modules, show};

/// Runs `plan`.
pub fn main(args: PlanArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let file = load::read(&args.pipeline)?;
    let variables = load::variables(&file, None, Path::new("out"), &args.variables)?;
    let name = file.path.display().to_string();
    let parsed = pipedoc_model::pipeline::parse(&file.text, &name, &variables, &modules::known(), args.strict)?;
    for warning in &parsed.warnings {
        tell!("warning: {warning}");
    }
    let plan = pipedoc_model::plan::plan(&ClusterName::new(&args.cluster)?, &[parsed.config], &Default::default());
    match output {
        OutputFormat::Json => {
            let steps: Vec<_> = plan.steps.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            let topics: Vec<_> = plan
                .topics
                .iter()
                .map(|topic| serde_json::json!({"topic": topic.topic.as_str(), "partitions": topic.partitions}))
                .collect();
            say!("{}", serde_json::to_string_pretty(&serde_json::json!({"steps": steps, "topics": topics}))?);
        }
        OutputFormat::Text => {
            let rows: Vec<_> = plan
                .steps
                .iter()
                .map(|step| {
                    let inputs: Vec<_> = step
                        .inputs
                        .iter()
                        .map(|input| match &input.source {
                            InputSource::Topic(topic) => topic.to_string(),
                            InputSource::Pattern(pattern) => format!("/{pattern}/"),
                        })
                        .collect();
                    let outputs: Vec<_> = step.outputs.iter().map(|output| output.topic.to_string()).collect();
                    vec![step.id.step.to_string(), step.module.to_string(), list(&inputs), list(&outputs)]
                })
                .collect();
            show::table(&["STEP", "MODULE", "READS", "WRITES"], &rows);
            say!("");
            let rows: Vec<_> =
                plan.topics.iter().map(|topic| vec![topic.topic.to_string(), topic.partitions.to_string()]).collect();
            show::table(&["TOPIC", "PARTITIONS"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

/// Runs `apply`.
pub async fn apply(args: ApplyArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let file = load::read(&args.pipeline)?;
    // Nothing is filled in from the current folder: what is applied runs elsewhere.
    let variables: HashMap<_, _> = args.variables.into_iter().collect();
    let request = ApplyRequest {
        text: file.text,
        file: file.path.display().to_string(),
        variables,
        dry_run: args.dry_run,
        expected_revision: 0,
    };
    let mut client = PipelineControlClient::new(connect::engine(&args.engine.engine).await?);
    let answer = client.apply(request).await.map_err(connect::said)?.into_inner();
    for warning in &answer.warnings {
        tell!("warning: {}", problem(warning));
    }
    if !answer.accepted {
        return Err(Problems(answer.errors.iter().map(problem).collect()).into());
    }
    match output {
        OutputFormat::Json => say!(
            "{}",
            serde_json::json!({"pipeline": answer.pipeline, "revision": answer.revision, "generation": answer.generation, "dry_run": args.dry_run})
        ),
        OutputFormat::Text if args.dry_run => say!("pipeline {} is good; nothing was changed", answer.pipeline),
        OutputFormat::Text => {
            say!("pipeline {} is revision {} (generation {})", answer.pipeline, answer.revision, answer.generation);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A problem as the engine sent it.
pub fn problem(problem: &v1::Problem) -> Problem {
    Problem {
        file: problem.file.clone(),
        line: problem.line,
        column: problem.column,
        field: problem.field.clone(),
        message: problem.message.clone(),
    }
}
