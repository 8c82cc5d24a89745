//! `pipedoc run`: one pipeline, all steps in this process, to the end.
//!
//! The story: read and check, look whether the ends can be opened, take the data
//! folder, make the topics, start the steps, wait for the end, sum up.

mod drain;
mod ledger;
mod progress;
mod retry;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pipedoc_model::names::{ClusterName, Generation};
use pipedoc_model::problem::Problem;
use pipedoc_model::step::{StepPlan, StepType};
use pipedoc_sdk::instance::{Instance, InstanceConfig, StepState, StepStatus};
use pipedoc_sdk::process::Signals;
use pipedoc_transport::log::Log;
use tokio_util::sync::CancellationToken;

use self::drain::Drain;
use self::ledger::{Counts, Ledger};
use self::progress::Progress;
use crate::args::{OutputFormat, RunArgs};
use crate::exit::{self, Refused};
use crate::show::{self, say, tell};
use crate::{connect, load, modules};

/// How long steps may finish what is in flight when the run is interrupted.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How often progress is shown and the end is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Runs the command.
pub async fn main(args: RunArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (steps, topics) = plan(&args)?;
    preflight(&steps).await?;
    let data = DataFolder::take(args.data.clone().unwrap_or_else(|| args.out.join(".pipedoc")), &args.out)?;
    let telemetry = pipedoc_telemetry::init(&pipedoc_telemetry::TelemetryConfig::quiet("pipedoc"))?;

    let log = connect::log(&args.log, &data.path, Some(&telemetry)).await?;
    pipedoc_engine::topics::ensure(log.as_ref(), &topics).await.context("making the topics")?;
    if args.retry_failed {
        retry::forget_failed(log.as_ref(), &steps).await.context("looking for documents to try again")?;
    }

    let sinks = steps.iter().filter(|step| step.step_type == StepType::Sink).map(|step| step.id.clone()).collect();
    let ledger = Arc::new(Ledger::new(sinks));
    let instance = Instance::start(InstanceConfig {
        log: Arc::clone(&log),
        objects: Arc::new(pipedoc_transport::objects::Objects::local(&data.path.join("objects"))?),
        id: "run".into(),
        data: data.path.join("run"),
        factories: modules::factories(),
        observer: Arc::clone(&ledger) as _,
        layers: Default::default(),
    });
    instance.apply(Generation(1), steps.clone());

    let mut signals = Signals::new()?;
    let ended = follow(&instance, log.as_ref(), &steps, &ledger, args.watch, &mut signals).await;
    // What cannot be written now is not waited for.
    instance.stop(if matches!(ended, Ended::Failed(_)) { Duration::ZERO } else { STOP_GRACE }).await;
    finish(&steps)?;
    drop(instance);

    let complete = matches!(ended, Ended::Done);
    let place = match args.log.named() {
        Some(log) => format!("--log {log}"),
        None => format!("--data {}", data.path.display()),
    };
    let report = Report { counts: ledger.counts(), complete, out: args.out.clone(), place, took: started.elapsed() };
    match ended {
        Ended::Done => {
            report.show(&ledger, output);
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted => {
            report.show(&ledger, output);
            tell!("interrupted; the same command goes on where this one stopped");
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
        Ended::Failed(reason) => {
            anyhow::bail!("{reason}\n{}; the same command goes on where this one stopped", report.line())
        }
    }
}

/// Reads and checks the pipeline; says the warnings.
fn plan(args: &RunArgs) -> anyhow::Result<(Vec<StepPlan>, pipedoc_model::plan::Plan)> {
    let file = load::read(&args.pipeline)?;
    let variables = load::variables(&file, args.input.as_deref(), &args.out, &args.variables)?;
    keep_apart(variables.get("in"), variables.get("out"))?;
    let name = file.path.display().to_string();
    let parsed = pipedoc_model::pipeline::parse(&file.text, &name, &variables, &modules::known(), true)?;
    for warning in &parsed.warnings {
        warn(warning);
    }
    let cluster = ClusterName::new("local")?;
    let mut plan = pipedoc_model::plan::plan(&cluster, &[parsed.config], &Default::default());
    if args.watch {
        for step in plan.steps.iter_mut().filter(|step| step.step_type == StepType::Connector) {
            watch(step);
        }
    }
    Ok((plan.steps.clone(), plan))
}

/// Refuses one folder for both ends: each result would be the next document, for ever.
fn keep_apart(input: Option<&String>, out: Option<&String>) -> anyhow::Result<()> {
    let real = |folder: Option<&String>| folder.and_then(|folder| Path::new(folder).canonicalize().ok());
    match real(input) {
        Some(folder) if real(out).as_ref() == Some(&folder) => {
            let folder = folder.display();
            Err(Refused(format!("--in and --out are both {folder}; give another --out, or a folder inside")).into())
        }
        _ => Ok(()),
    }
}

/// Tells a connector that can to watch its source, unless its configuration says otherwise.
fn watch(step: &mut StepPlan) {
    let known = modules::known();
    let Some(info) = known.get(&step.module) else { return };
    let can = info.config_schema.pointer("/properties/watch").is_some();
    if let (true, serde_json::Value::Object(config)) = (can, &mut step.config) {
        config.entry("watch").or_insert(true.into());
    }
}

fn warn(warning: &Problem) {
    tell!("warning: {warning}");
}

/// Opens and closes the modules at the pipeline's ends before anything is made: a
/// missing source or a place that cannot be written is told while nothing is done.
/// Sinks are opened only when all sources are there, since they make their folders.
async fn preflight(steps: &[StepPlan]) -> anyhow::Result<()> {
    let factories = modules::factories();
    let mut problems = Vec::new();
    let of = |step_type| steps.iter().filter(move |step| step.step_type == step_type);
    for step in of(StepType::Connector).chain(of(StepType::Sink)) {
        if step.step_type == StepType::Sink && !problems.is_empty() {
            break;
        }
        let Some(factory) = factories.iter().find(|factory| factory.info().module == step.module) else { continue };
        let config = match pipedoc_sdk::secrets::expand(&step.config) {
            Ok(config) => config,
            Err(errors) => {
                problems.extend(errors.into_iter().map(|error| format!("step {}: {error}", step.id.step)));
                continue;
            }
        };
        let open = pipedoc_sdk::module::Step::planned(step, std::env::temp_dir(), CancellationToken::new());
        match factory.open(config, &open).await {
            Ok(program) => program.close().await,
            Err(error) => problems.push(format!("step {}: {error}", step.id.step)),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Refused(problems.join("\n")).into()) }
}

/// The data folder, held by this process alone.
struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder and takes its lock.
    fn take(path: PathBuf, out: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).and_then(|()| std::fs::create_dir_all(&path)).map_err(|error| {
            Refused(format!("folder {} cannot be made: {error}; check its permissions", path.display()))
        })?;
        let file = path.join("run.lock");
        let lock = File::create(&file).map_err(|error| {
            Refused(format!("{} cannot be written: {error}; check the folder's permissions", file.display()))
        })?;
        if lock.try_lock().is_err() {
            let message =
                format!("another `pipedoc run` is at work in {}; wait for it or give another --out", path.display());
            return Err(Refused(message).into());
        }
        Ok(Self { path, _lock: lock })
    }
}

/// How a run ended.
enum Ended {
    Done,
    Interrupted,
    Failed(String),
}

/// Shows progress until the end, an interruption, or a step that cannot go on.
async fn follow(
    instance: &Instance,
    log: &dyn Log,
    steps: &[StepPlan],
    ledger: &Ledger,
    stay: bool,
    signals: &mut Signals,
) -> Ended {
    let mut progress = Progress::start(steps);
    let mut drain = Drain::new();
    let mut tick = tokio::time::interval(TICK);
    let ended = loop {
        tokio::select! {
            _ = signals.next() => break Ended::Interrupted,
            _ = tick.tick() => {}
        }
        let statuses = instance.status();
        progress.update(&statuses, ledger.counts());
        if let Some(reason) = ledger.trouble().or_else(|| failed(&statuses)) {
            break Ended::Failed(reason);
        }
        if stay || !connectors_completed(steps, &statuses) {
            continue;
        }
        match drain.reached(log, steps).await {
            Ok(true) => break Ended::Done,
            Ok(false) => {}
            Err(error) if error.is_retryable() => {}
            Err(error) => break Ended::Failed(format!("{:#}", anyhow::Error::new(error))),
        }
    };
    progress.finish();
    ended
}

/// Why a step cannot go on, if one cannot.
fn failed(statuses: &[StepStatus]) -> Option<String> {
    let step = statuses.iter().find(|status| status.state == StepState::Failed)?;
    Some(format!("step {} failed: {}", step.id.step, step.last_error))
}

fn connectors_completed(steps: &[StepPlan], statuses: &[StepStatus]) -> bool {
    steps
        .iter()
        .filter(|step| step.step_type == StepType::Connector)
        .all(|step| statuses.iter().any(|status| status.id == step.id && status.state == StepState::Completed))
}

/// Merges what sinks wrote in parts.
fn finish(steps: &[StepPlan]) -> anyhow::Result<()> {
    let name = <pipedoc_object_sink::ObjectSink as pipedoc_sdk::module::Module>::NAME;
    for step in steps.iter().filter(|step| step.module.as_str() == name) {
        pipedoc_object_sink::finish(&step.config)
            .with_context(|| format!("merging what step {} wrote", step.id.step))?;
    }
    Ok(())
}

/// What a run came to.
struct Report {
    counts: Counts,
    /// Whether everything found has come to its end.
    complete: bool,
    out: PathBuf,
    /// How other commands are told of the log.
    place: String,
    took: Duration,
}

impl Report {
    /// Shows the summary, for people or for machines.
    fn show(&self, ledger: &Ledger, output: OutputFormat) {
        match output {
            OutputFormat::Json => {
                let mut value = serde_json::to_value(self.counts).unwrap_or_default();
                if let serde_json::Value::Object(fields) = &mut value {
                    fields.insert("out".into(), self.out.display().to_string().into());
                }
                say!("{value}");
            }
            OutputFormat::Text => {
                say!("{} in {:.1} s", self.line(), self.took.as_secs_f64());
                let dead = ledger.dead_letters();
                if !dead.is_empty() {
                    say!("\ngiven up on (dead letters):");
                    for letter in dead.iter().take(20) {
                        let (document, error) = (show::word(&letter.document), show::word(&letter.error));
                        say!("  {document}: {error} [{}, {}]", letter.step, letter.kind);
                    }
                    if dead.len() > 20 {
                        say!("  … and more");
                    }
                    say!("  see them all: pipedoc dlq list {}", self.place);
                }
                say!("\nresults: {}", self.out.display());
            }
        }
    }

    fn line(&self) -> String {
        let rest = if self.complete { "filtered" } else { "filtered or under way" };
        let Counts { found, delivered, unchanged, filtered, dead_letters, deleted } = self.counts;
        format!(
            "found {found}: {delivered} delivered, {unchanged} unchanged, {filtered} {rest}, \
             {dead_letters} dead letters; {deleted} deleted"
        )
    }
}
