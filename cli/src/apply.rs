//! `pipedoc apply`, `rollback` and `delete`: what changes the pipelines that run.
//!
//! Each first looks which revision is the current one and insists on it, so that of
//! two who change a pipeline at once one is told what the other did.

use std::collections::HashMap;
use std::process::ExitCode;

use pipedoc_model::problem::Problems;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_proto::v1::{self, ApplyRequest, ApplyResponse, DeleteRequest, GetRequest, RollbackRequest};
use tonic::transport::Channel;

use crate::args::{ApplyArgs, DeleteArgs, OutputFormat, RollbackArgs, TermsArgs};
use crate::compare::Comparison;
use crate::exit::REFUSED;
use crate::pipelines::{describe, summary_json};
use crate::plan::problem;
use crate::show::{say, tell};
use crate::{connect, load};

type Client = PipelineControlClient<Channel>;

/// Runs `apply`.
pub async fn main(args: ApplyArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let file = load::read(&args.pipeline)?;
    // Nothing is filled in from the current folder: what is applied runs elsewhere.
    let variables: HashMap<_, _> = args.variables.into_iter().collect();
    let request = ApplyRequest {
        text: file.text,
        file: file.path.display().to_string(),
        variables,
        dry_run: true,
        expected_revision: args.terms.expect,
        abandon: args.terms.abandon,
        by: by(&args.terms),
    };
    let mut client = connect::control(&args.engine).await?;
    let looked = client.apply(request.clone()).await.map_err(connect::said)?.into_inner();
    if args.dry_run || !looked.accepted {
        return match accepted(&mut client, &looked, output).await? {
            Some(refused) => Ok(refused),
            None => would_be(&mut client, &request, &looked, output).await,
        };
    }
    let expected = args.terms.expect.unwrap_or(looked.revision);
    let request = ApplyRequest { dry_run: false, expected_revision: Some(expected), ..request };
    let answer = client.apply(request.clone()).await.map_err(connect::said)?.into_inner();
    let lost_a_race = answer.conflict.is_some() && args.terms.expect.is_none();
    let same = if lost_a_race { same_already(&mut client, request).await? } else { None };
    let answer = same.unwrap_or(answer);
    if let Some(refused) = accepted(&mut client, &answer, output).await? {
        return Ok(refused);
    }
    match output {
        OutputFormat::Json => say!(
            "{}",
            serde_json::json!({"pipeline": answer.pipeline, "revision": answer.revision, "generation": answer.generation, "replaced": looked.revision, "unchanged": answer.unchanged, "dry_run": false})
        ),
        OutputFormat::Text if answer.unchanged => {
            say!("pipeline {} is revision {} already; nothing was changed", answer.pipeline, answer.revision);
        }
        OutputFormat::Text => {
            say!("pipeline {} is revision {} (generation {})", answer.pipeline, answer.revision, answer.generation);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `rollback`.
pub async fn rollback(args: RollbackArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let request = RollbackRequest {
        pipeline: args.pipeline,
        revision: args.to,
        expected_revision: args.terms.expect,
        abandon: args.terms.abandon,
        by: by(&args.terms),
    };
    let mut client = connect::control(&args.engine).await?;
    let answer = client.rollback(request).await.map_err(connect::said)?.into_inner();
    if let Some(refused) = accepted(&mut client, &answer, output).await? {
        return Ok(refused);
    }
    let rollback_of = if answer.unchanged {
        0
    } else {
        let get = GetRequest { pipeline: answer.pipeline.clone(), revision: Some(answer.revision) };
        client.get(get).await.map_err(connect::said)?.into_inner().summary.map_or(0, |made| made.rollback_of)
    };
    let ApplyResponse { pipeline, revision, generation, unchanged, .. } = answer;
    match output {
        OutputFormat::Json => say!(
            "{}",
            serde_json::json!({"pipeline": pipeline, "revision": revision, "generation": generation, "unchanged": unchanged, "rollback_of": rollback_of})
        ),
        OutputFormat::Text if unchanged => {
            say!("pipeline {pipeline} is still revision {revision}, which has that text; nothing was changed");
        }
        OutputFormat::Text => {
            say!(
                "pipeline {pipeline} is revision {revision} (generation {generation}), with the text of revision {rollback_of}"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `delete`.
pub async fn delete(args: DeleteArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let mut client = connect::control(&args.engine).await?;
    let expected = match args.terms.expect {
        Some(expected) => expected,
        None => {
            let get = GetRequest { pipeline: args.pipeline.clone(), revision: None };
            client.get(get).await.map_err(connect::said)?.into_inner().revision
        }
    };
    let request = DeleteRequest {
        pipeline: args.pipeline.clone(),
        abandon: args.terms.abandon,
        expected_revision: Some(expected),
        by: by(&args.terms),
    };
    let answer = client.delete(request).await.map_err(connect::said)?.into_inner();
    if !answer.accepted {
        return refused(&mut client, &args.pipeline, &answer.errors, answer.conflict.as_ref(), output).await;
    }
    match output {
        OutputFormat::Json => say!(
            "{}",
            serde_json::json!({"pipeline": args.pipeline, "revision": answer.revision, "generation": answer.generation})
        ),
        OutputFormat::Text => say!(
            "pipeline {name} is deleted (it was revision {}); its topics and revisions stay, and `pipedoc rollback {name}` brings it back",
            answer.revision,
            name = args.pipeline
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Of a lost race, whether the other one wanted the same: then all is as it should be.
async fn same_already(client: &mut Client, request: ApplyRequest) -> anyhow::Result<Option<ApplyResponse>> {
    let request = ApplyRequest { dry_run: true, expected_revision: None, ..request };
    let looked = client.apply(request).await.map_err(connect::said)?.into_inner();
    Ok(looked.unchanged.then_some(looked))
}

/// Shows what an apply would do.
async fn would_be(
    client: &mut Client,
    request: &ApplyRequest,
    looked: &ApplyResponse,
    output: OutputFormat,
) -> anyhow::Result<ExitCode> {
    let current = match looked.revision {
        0 => None,
        revision => {
            let get = GetRequest { pipeline: looked.pipeline.clone(), revision: Some(revision) };
            Some(client.get(get).await.map_err(connect::said)?.into_inner())
        }
    };
    let changes = current.map(|current| {
        let proposed = v1::GetResponse {
            text: request.text.clone(),
            variables: request.variables.clone(),
            revision: 0,
            ..current.clone()
        };
        Comparison::of(&current, &proposed)
    });
    match output {
        OutputFormat::Json => say!(
            "{}",
            serde_json::json!({"pipeline": looked.pipeline, "revision": looked.revision, "generation": looked.generation, "unchanged": looked.unchanged, "dry_run": true, "changes": changes})
        ),
        OutputFormat::Text => {
            if let Some(changes) = &changes {
                changes.print();
                say!("");
            }
            say!("pipeline {} is good; nothing was changed", looked.pipeline);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells warnings; gives the exit code when it was refused.
async fn accepted(
    client: &mut Client,
    answer: &ApplyResponse,
    output: OutputFormat,
) -> anyhow::Result<Option<ExitCode>> {
    for warning in &answer.warnings {
        tell!("warning: {}", problem(warning));
    }
    if answer.accepted {
        return Ok(None);
    }
    refused(client, &answer.pipeline, &answer.errors, answer.conflict.as_ref(), output).await.map(Some)
}

/// Shows why something was refused; of a lost race, what the other one changed.
async fn refused(
    client: &mut Client,
    pipeline: &str,
    errors: &[v1::Problem],
    conflict: Option<&v1::Conflict>,
    output: OutputFormat,
) -> anyhow::Result<ExitCode> {
    let problems = Problems(errors.iter().map(problem).collect());
    let Some(conflict) = conflict else { return Err(problems.into()) };
    let changes = match &conflict.current {
        Some(current) if conflict.expected > 0 => {
            let mut get = async |revision| {
                let request = GetRequest { pipeline: pipeline.to_owned(), revision: Some(revision) };
                // It may be gone by now; then there is only less to show.
                client.get(request).await.ok().map(tonic::Response::into_inner)
            };
            let (from, to) = (get(conflict.expected).await, get(current.revision).await);
            from.zip(to).map(|(from, to)| Comparison::of(&from, &to))
        }
        _ => None,
    };
    let current = conflict.current.as_ref();
    match output {
        OutputFormat::Json => {
            let current = current.map(summary_json).transpose()?;
            say!(
                "{}",
                serde_json::json!({"error": "conflict", "pipeline": pipeline, "expected": conflict.expected, "current": current, "changes": changes})
            );
        }
        OutputFormat::Text => {
            for problem in &problems.0 {
                tell!("error: {problem}");
            }
            if let Some(current) = current {
                tell!("revision {}: {}", current.revision, describe(current));
            }
            if let Some(changes) = changes {
                tell!("{}", changes.to_text().trim_end());
            }
            tell!("nothing was done");
        }
    }
    Ok(ExitCode::from(REFUSED))
}

/// Who asks, for the history.
fn by(terms: &TermsArgs) -> String {
    if let Some(by) = &terms.by {
        return by.clone();
    }
    let user = ["USER", "LOGNAME", "USERNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let parts = [user, host].into_iter().flatten().map(|part| part.trim().to_owned());
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("@")
}
