//! `pipedoc plan`: what a pipeline file would run.

use std::path::Path;
use std::process::ExitCode;

use pipedoc_model::names::ClusterName;
use pipedoc_model::problem::Problem;
use pipedoc_model::step::{Format, InputSource};
use pipedoc_proto::v1;

use crate::args::{OutputFormat, PlanArgs};
use crate::show::{say, tell};
use crate::{load, modules, show};

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
                            InputSource::Topic(topic) => in_format(topic.to_string(), input.format),
                            InputSource::Pattern(pattern) => in_format(format!("/{pattern}/"), input.format),
                        })
                        .collect();
                    let outputs: Vec<_> =
                        step.outputs.iter().map(|output| in_format(output.topic.to_string(), output.format)).collect();
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

/// A topic, with its format where it is one of another system.
fn in_format(topic: String, format: Format) -> String {
    if format == Format::Pipedoc { topic } else { format!("{topic} ({})", format.name()) }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
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
