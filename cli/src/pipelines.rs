//! `pipedoc get`, `history` and `diff`: pipelines as they are and as they were.

use std::io::Write;
use std::process::ExitCode;

use pipedoc_proto::v1::{GetRequest, HistoryRequest, HistoryResponse, RevisionSummary, Road};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{DiffArgs, GetArgs, HistoryArgs, OutputFormat};
use crate::compare::Comparison;
use crate::connect;
use crate::exit::Refused;
use crate::show::{self, say};

/// Runs `get`.
pub async fn get(args: GetArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let request = GetRequest { pipeline: args.pipeline, revision: args.revision };
    let got = connect::control(&args.engine).await?.get(request).await.map_err(connect::said)?.into_inner();
    match output {
        OutputFormat::Json => say!("{}", show::json("pipedoc.v1.GetResponse", &got)?),
        // As it is, without a line feed of ours. A reader that has gone away is no error.
        OutputFormat::Text => drop(std::io::stdout().write_all(got.text.as_bytes())),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `history`.
pub async fn history(args: HistoryArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let request = HistoryRequest { pipeline: args.pipeline };
    let history = connect::control(&args.engine).await?.history(request).await.map_err(connect::said)?.into_inner();
    match output {
        OutputFormat::Json => say!("{}", show::json("pipedoc.v1.HistoryResponse", &history)?),
        OutputFormat::Text => print(&history),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `diff`.
pub async fn diff(args: DiffArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let mut client = connect::control(&args.engine).await?;
    let mut get = async |revision: Option<u64>| {
        let request = GetRequest { pipeline: args.pipeline.clone(), revision };
        client.get(request).await.map(tonic::Response::into_inner).map_err(connect::said)
    };
    let to = get(args.to).await?;
    let before = to.summary.as_ref().map_or(0, |summary| summary.replaces);
    let from = match args.from {
        Some(from) => get(Some(from)).await?,
        None if before > 0 => get(Some(before)).await?,
        None => {
            let message = format!(
                "revision {} of pipeline {} is its first; there is nothing to compare it with",
                to.revision, to.pipeline
            );
            return Err(Refused(message).into());
        }
    };
    let comparison = Comparison::of(&from, &to);
    match output {
        OutputFormat::Json => say!("{}", serde_json::to_string(&comparison)?),
        OutputFormat::Text => comparison.print(),
    }
    Ok(ExitCode::SUCCESS)
}

/// How a revision came to be, in words.
pub fn describe(revision: &RevisionSummary) -> String {
    let mut text = format!("{} at {}", road(revision), applied_at(revision));
    for (word, what) in [("by", &revision.by), ("from", &revision.file)] {
        if !what.is_empty() {
            text = format!("{text} {word} {what}");
        }
    }
    text
}

/// A revision's summary for machines.
pub fn summary_json(summary: &RevisionSummary) -> anyhow::Result<serde_json::Value> {
    show::json("pipedoc.v1.RevisionSummary", summary)
}

fn print(history: &HistoryResponse) {
    if let Some(deleted) = history.deleted_at {
        let by = if history.deleted_by.is_empty() { String::new() } else { format!(" by {}", history.deleted_by) };
        say!(
            "pipeline {name} was deleted at {}{by}; `pipedoc rollback {name}` brings it back",
            moment(deleted.seconds),
            name = history.pipeline
        );
    }
    let rows: Vec<_> = history
        .revisions
        .iter()
        .map(|revision| {
            let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            vec![
                format!("{}{}", revision.revision, if revision.current { " (current)" } else { "" }),
                applied_at(revision),
                road(revision),
                revision.steps.to_string(),
                or_dash(&revision.by),
                or_dash(&revision.file),
            ]
        })
        .collect();
    show::table(&["REVISION", "APPLIED AT", "ROAD", "STEPS", "BY", "FROM"], &rows);
}

fn road(revision: &RevisionSummary) -> String {
    match revision.road() {
        Road::Unspecified => "unknown".into(),
        Road::Apply => "apply".into(),
        Road::Inbox => "inbox".into(),
        Road::Rollback => format!("rollback of {}", revision.rollback_of),
    }
}

fn applied_at(revision: &RevisionSummary) -> String {
    revision.applied_at.map_or_else(|| "-".into(), |at| moment(at.seconds))
}

/// A moment in UTC, to the second.
fn moment(seconds: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}
