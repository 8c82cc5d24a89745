//! What an instance of many steps holds and uses on Kafka while nothing comes.
//!
//! The steps are real: a chain of `echo` steps in one process, each with its own
//! topic and group, through which some documents pass before they are left alone.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pipedoc_tests::bed::process::Process;

use super::bed::Bed;
use super::broker::Broker;
use super::documents::Records;
use super::piped;
use crate::cpu;
use crate::options::Options;
use crate::report::{Figure, Report, Target};

/// Documents that pass through before.
const RECORDS: Records = Records { count: 1000, keys: 100 };

/// How long they may take: each step joins its group first.
const LIMIT: Duration = Duration::from_secs(120);

/// What one process of so many steps came to.
struct Idle {
    memory: cpu::Memory,
    /// Share of a core.
    client: f64,
    server: f64,
}

/// Measures it.
///
/// # Errors
/// When something is missing on this machine, or a step lost a document.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let program = std::env::current_exe().context("the path of this program")?;
    let broker = Broker::start()?;
    let (settle, watch) = (Duration::from_secs(options.size(10, 1)), Duration::from_secs(options.size(30, 2)));
    let many = options.size(50, 5);
    let mut figures = Vec::new();
    let mut one = None;
    for steps in [1, many] {
        let idle = run(&program, &broker, steps, settle, watch)?;
        let name = |what: &str| format!("{steps} step{}: {what}", if steps == 1 { "" } else { "s" });
        figures.extend([
            Figure::new(name("threads"), idle.memory.threads as f64, ""),
            Figure::new(name("resident memory"), mib(idle.memory.rss), "MiB"),
            Figure::new(name("of it its own"), mib(idle.memory.pss), "MiB"),
            Figure::new(name("CPU while idle"), 100.0 * idle.client, "% of a core"),
            Figure::new(name("CPU of the broker meanwhile"), 100.0 * idle.server, "% of a core"),
        ]);
        one.get_or_insert(idle);
    }
    let one = one.context("one step was measured")?;
    let targets = vec![
        Target::below("one idle step: resident MiB", mib(one.memory.rss), 50.0),
        Target::below("one idle step: % of a core", 100.0 * one.client, 1.0),
    ];
    let what = format!("idle for {} s after {} documents, 4 partitions a topic", watch.as_secs(), RECORDS.count);
    Ok(Report { bench: "kafka-idle", what, comparison: None, figures, targets })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn run(program: &Path, broker: &Broker, steps: usize, settle: Duration, watch: Duration) -> anyhow::Result<Idle> {
    let pipeline = format!("idle-{steps}");
    let (input, end) = (format!("bench.{pipeline}.step-1"), format!("bench.{pipeline}-end"));
    broker.create_topic(&input)?;
    broker.create_topic(&end)?;
    broker.write(&input, RECORDS)?;

    let folder = tempfile::tempdir().context("a folder for the instance")?;
    let mut command = Command::new(program);
    command.args(["kafka-steps", &broker.url(), &pipeline, &end]).arg(steps.to_string());
    command.env("TMPDIR", folder.path());
    let mut process = Process::start("steps", &mut command, &folder.path().join("printed.txt"), None);
    let began = Instant::now();
    while broker.ends(&end)?.iter().sum::<i64>() < i64::try_from(RECORDS.count)? {
        ensure!(process.is_running(), "the steps ended; they printed:\n{}", process.output());
        ensure!(began.elapsed() < LIMIT, "not through in {LIMIT:?}; they printed:\n{}", process.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    broker.count(&end, RECORDS)?;

    std::thread::sleep(settle);
    let used = || -> anyhow::Result<_> {
        let server = broker.server().map(cpu::of_process).transpose()?.unwrap_or_default();
        Ok((Instant::now(), cpu::of_process(process.id())?, server))
    };
    let (from, client_from, server_from) = used()?;
    std::thread::sleep(watch);
    let (to, client_to, server_to) = used()?;
    let share = |used: Duration| used.as_secs_f64() / (to - from).as_secs_f64();
    Ok(Idle {
        memory: cpu::memory(process.id())?,
        client: share(client_to.saturating_sub(client_from)),
        server: share(server_to.saturating_sub(server_from)),
    })
}

/// What the process of the steps is told.
#[derive(Debug, Clone, clap::Args)]
pub struct StepsArgs {
    /// The log.
    log: String,
    /// Name of the pipeline.
    pipeline: String,
    /// Topic that the last step writes to.
    end: String,
    /// How many steps there are.
    steps: usize,
}

/// Runs the steps until the process is ended.
///
/// # Errors
/// When they cannot be planned or the log cannot be opened.
pub fn steps(args: &StepsArgs) -> anyhow::Result<()> {
    let mut text = format!("pipeline: {}\nsteps:\n", args.pipeline);
    for step in 1..=args.steps {
        let out = if step == args.steps {
            format!("output_kafka_topics: [{}]", args.end)
        } else {
            format!("outputs: [{{to: step-{}}}]", step + 1)
        };
        text.push_str(&format!("- {{name: step-{step}, type: PIPELINE, module: echo, {out}}}\n"));
    }
    piped::run_plan(&args.log, &piped::plan_text(&text)?)
}
