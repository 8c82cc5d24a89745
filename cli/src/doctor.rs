//! `pipedoc doctor`: whether the files of a data folder are sound, how large they
//! are, and giving their free room back. Looks at files; asks no engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use pipedoc_engine::store::folder::APPLICATION_ID;
use pipedoc_transport::error::{Error, FileProblem};
use pipedoc_transport::open::LogUrl;
use pipedoc_transport::sqlite::doctor::{self, Holds, Report, Severity, Sizes};
use serde_json::{Value, json};

use crate::args::{DoctorArgs, OutputFormat};
use crate::exit::{FAILED, Refused};
use crate::show;
use crate::show::{say, tell};

/// The engine's own file in a data folder.
const CONTROL: &str = "control.db";

/// Runs the command.
pub async fn main(args: DoctorArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let files = files(&args)?;
    let mut reports = Vec::new();
    for file in files {
        // Not a task of the runtime's own threads: reading a large file takes long.
        let examined = tokio::task::spawn_blocking(move || examine(&file, args.compact)).await;
        reports.push(examined.context("looking at a file")??);
    }
    match output {
        OutputFormat::Json => {
            say!("{}", serde_json::to_string_pretty(&Value::from_iter(reports.iter().map(Seen::json)))?)
        }
        OutputFormat::Text => print(&reports),
    }
    let sound = reports.iter().all(|seen| seen.report.is_sound());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// The files to look at: the one that was named, or all of the data folder.
fn files(args: &DoctorArgs) -> anyhow::Result<Vec<PathBuf>> {
    match &args.log {
        Some(LogUrl::Sqlite(path)) => return Ok(vec![path.clone()]),
        Some(other) => {
            let message = format!("{other} is not in a file; `pipedoc doctor` looks at SQLite files");
            return Err(Refused(message).into());
        }
        None => {}
    }
    let there = |name: &str| Some(args.data.join(name)).filter(|path| path.exists());
    let files: Vec<PathBuf> = ["log.db", CONTROL].into_iter().filter_map(there).collect();
    if files.is_empty() {
        let data = args.data.display();
        return Err(Refused(format!("there is no log in {data}; name the data folder with --data")).into());
    }
    Ok(files)
}

/// A file that was looked at.
struct Seen {
    report: Report,
    /// Its sizes before it was compacted, if it was.
    before: Option<Sizes>,
}

/// Looks at a file and, if that was asked and it is sound, compacts it.
fn examine(path: &Path, compact: bool) -> anyhow::Result<Seen> {
    let mut report = doctor::examine(path).map_err(refuse)?;
    let mut before = None;
    let application = match report.holds {
        Holds::Log { .. } => None,
        Holds::Other { application } => Some(application),
    };
    if report.is_sound() && application.is_some_and(|id| !path.ends_with(CONTROL) || id != APPLICATION_ID) {
        let message = format!("{} is not PipeDoc's, or holds nothing yet; it was left as it is", path.display());
        return Err(Refused(message).into());
    }
    if compact && report.is_sound() {
        let (old, new) = doctor::compact(path).map_err(|error| match &error {
            Error::File { problem: FileProblem::Locked, .. } => {
                let who = "stop the processes that use it first";
                anyhow::Error::from(Refused(format!("{} is in use and was not compacted; {who}", path.display())))
            }
            _ => anyhow::Error::from(error),
        })?;
        before = Some(old);
        report.sizes = new;
    }
    Ok(Seen { report, before })
}

/// What is no file of ours is a mistake of the caller, not a damage.
fn refuse(error: Error) -> anyhow::Error {
    match &error {
        Error::File {
            problem: FileProblem::NotALog | FileProblem::TooNew { .. } | FileProblem::CannotOpen, ..
        } => Refused(error.to_string()).into(),
        _ => error.into(),
    }
}

impl Seen {
    fn state(&self) -> &'static str {
        if self.report.is_sound() { "sound" } else { "DAMAGED" }
    }

    fn holds(&self) -> String {
        match self.report.holds {
            Holds::Log { format } if format == doctor::NEWEST_FORMAT => format!("log, format {format}"),
            Holds::Log { format } => {
                format!("log, format {format}; the next start brings it to {}", doctor::NEWEST_FORMAT)
            }
            Holds::Other { .. } if self.report.path.ends_with(CONTROL) => "pipelines of the engine".to_owned(),
            Holds::Other { .. } => "cannot be told".to_owned(),
        }
    }

    fn json(&self) -> Value {
        let Report { path, holds, sizes, contents, findings } = &self.report;
        let sizes_of = |sizes: &Sizes| json!({"file": sizes.file, "wal": sizes.wal, "free": sizes.free});
        let format = match holds {
            Holds::Log { format } => Some(*format),
            Holds::Other { .. } => None,
        };
        let findings: Vec<Value> = findings
            .iter()
            .map(|finding| {
                let damage = finding.severity == Severity::Damage;
                json!({"damage": damage, "check": finding.check, "found": finding.found})
            })
            .collect();
        let contents = contents.map(|contents| {
            json!({
                "topics": contents.topics, "partitions": contents.partitions, "records": contents.records,
                "groups": contents.groups, "members": contents.members,
            })
        });
        json!({
            "file": path, "sound": self.report.is_sound(), "holds": if format.is_some() { "log" } else { "other" },
            "format": format, "newest_format": doctor::NEWEST_FORMAT, "bytes": sizes_of(sizes),
            "bytes_before": self.before.as_ref().map(sizes_of), "contents": contents, "findings": findings,
        })
    }
}

fn print(reports: &[Seen]) {
    let rows: Vec<_> = reports
        .iter()
        .map(|seen| {
            let sizes = &seen.report.sizes;
            vec![
                seen.report.path.display().to_string(),
                seen.state().to_owned(),
                size(sizes.file),
                size(sizes.free),
                size(sizes.wal),
                seen.report.contents.map_or_else(|| "-".to_owned(), |contents| contents.topics.to_string()),
                seen.report.contents.map_or_else(|| "-".to_owned(), |contents| contents.records.to_string()),
                seen.holds(),
            ]
        })
        .collect();
    show::table(&["FILE", "STATE", "SIZE", "FREE", "WAL", "TOPICS", "RECORDS", "HOLDS"], &rows);
    for seen in reports {
        let path = seen.report.path.display();
        if let Some(before) = &seen.before {
            say!("{path}: compacted from {} to {}", size(before.file + before.wal), size(seen.report.sizes.file));
        }
        for finding in &seen.report.findings {
            let word = if finding.severity == Severity::Damage { "damage" } else { "notice" };
            say!("{path}: {word}: {finding}");
        }
        if !seen.report.is_sound() {
            let then = if seen.report.path.ends_with(CONTROL) {
                "the pipelines in the folder are taken anew"
            } else {
                "what was not finished is sent anew"
            };
            tell!("{path} is damaged; move it and its -wal and -shm files away, and {then}");
        }
    }
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    let mut number = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if number < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{number:.1} {unit}") };
        }
        number /= 1024.0;
    }
    format!("{number:.1} GiB")
}
