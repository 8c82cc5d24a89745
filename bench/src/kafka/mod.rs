//! Kafka: one topic passed on to another, by PipeDoc, by a loop written by hand
//! with rdkafka, and by Kafka Streams, all on one real broker.
//!
//! ```text
//! documents   the records, and how each is known again
//! bed, broker what arms run on
//! raw, piped, peer    what is measured: by hand, PipeDoc's roads, Java
//! pass        runs one of them as a process of its own, and what it cost
//! watch, count    what was used by when; what arrived
//! idle, keys      two further benches on the same bed
//! ```

mod bed;
mod broker;
mod count;
mod documents;
mod idle;
mod keys;
mod pass;
mod peer;
mod piped;
mod raw;
mod settings;
mod watch;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use self::bed::Bed;
use self::broker::Broker;
use self::documents::{Records, VALUE_BYTES};
use self::pass::{Bench, Passing, Task};
use self::peer::Peer;
use self::piped::{PassStep, Road};
use crate::method::{self, Arm, Comparison};
use crate::options::Options;
use crate::report::{Report, Target};

pub use self::idle::{StepsArgs, bench as idle, steps};
pub use self::keys::bench as keys;

/// What the Kafka bench can be told.
#[derive(Debug, Clone, clap::Args)]
pub struct KafkaArgs {
    /// How many records count in each run. Default: 1,000,000, and 20,000 with --quick.
    #[arg(long, value_name = "N")]
    records: Option<u64>,

    /// How many records come before, to warm up. Default: a third of --records.
    #[arg(long, value_name = "N")]
    warm_up: Option<u64>,

    /// Which arms run against the raw loop, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Way::COMPARED)]
    arms: Vec<Way>,

    /// Further fields of PipeDoc's step, as in a pipeline file: `concurrency: 8`.
    #[arg(long, value_name = "FIELDS", default_value = "")]
    step: String,
}

/// A way of passing records on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// A loop written by hand with rdkafka.
    Raw,
    /// PipeDoc, records piped on undecoded.
    Records,
    /// PipeDoc, documents through an echo module.
    Module,
    /// Kafka Streams as it comes.
    Streams,
    /// Kafka Streams with settings for throughput.
    StreamsTuned,
    /// PipeDoc, records piped on undecoded, exactly once.
    RecordsExactlyOnce,
    /// PipeDoc, documents through an echo module, exactly once.
    ModuleExactlyOnce,
    /// Kafka Streams, exactly once.
    StreamsExactlyOnce,
}

impl Way {
    const COMPARED: [Self; 4] = [Self::Records, Self::Module, Self::Streams, Self::StreamsTuned];

    /// Its name in the table.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw rdkafka loop",
            Self::Records => "PipeDoc records",
            Self::Module => "PipeDoc module",
            Self::Streams => "Kafka Streams",
            Self::StreamsTuned => "Kafka Streams, tuned",
            Self::RecordsExactlyOnce => "PipeDoc records, exactly once",
            Self::ModuleExactlyOnce => "PipeDoc module, exactly once",
            Self::StreamsExactlyOnce => "Kafka Streams, exactly once",
        }
    }

    fn is_streams(self) -> bool {
        matches!(self, Self::Streams | Self::StreamsTuned | Self::StreamsExactlyOnce)
    }

    fn is_exactly_once(self) -> bool {
        matches!(self, Self::RecordsExactlyOnce | Self::ModuleExactlyOnce | Self::StreamsExactlyOnce)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// Settings of the tuned Kafka Streams: a thread for each core, larger batches and
/// fetches. The virtual machine collects garbage in parallel.
const TUNED: [&str; 6] = [
    "num.stream.threads=2",
    "producer.linger.ms=20",
    "producer.batch.size=524288",
    "consumer.max.poll.records=5000",
    "consumer.fetch.max.bytes=104857600",
    "consumer.max.partition.fetch.bytes=8388608",
];

/// Measures it.
///
/// # Errors
/// When something is missing on this machine, or an arm lost a record.
pub fn bench(args: &KafkaArgs, options: &Options) -> anyhow::Result<Report> {
    let counted = args.records.unwrap_or(options.size(1_000_000, 20_000));
    let warm_up = args.warm_up.unwrap_or(counted / 3);
    ensure!(counted > 0 && warm_up > 0, "--records and --warm-up must be above 0");
    let records = Records { count: counted + warm_up, keys: 10_000.min(counted) };

    let streams = args.arms.iter().any(|way| way.is_streams());
    let streams = streams.then(Peer::streams).transpose().context("Kafka Streams")?;
    let bed: Arc<dyn Bed> = Arc::new(Broker::start()?);
    let input = "bench.in".to_owned();
    bed.create_topic(&input)?;
    bed.write(&input, records)?;

    let bench = Bench { bed, input, records, warm_up };
    let program = std::env::current_exe().context("the path of this program")?;
    let arm = |way: Way| {
        let (streams, program) = (streams.as_ref(), &program);
        let passing = Passing::new(way.name(), &bench, move |task| match streams {
            Some(streams) if way.is_streams() => streams_command(streams, way, task),
            _ => own_command(program, way, task, &["--step", &args.step]),
        });
        if way.is_exactly_once() { passing.until_readable() } else { passing }
    };
    let mut raw = arm(Way::Raw);
    let mut others: Vec<Passing<'_>> = args.arms.iter().map(|way| arm(*way)).collect();
    // The broker is a virtual machine as well, and compiles what each arm asks of it: the
    // first run of each counts for nobody.
    if !options.quick {
        for arm in std::iter::once(&mut raw).chain(&mut others) {
            arm.run().context("warming the broker up")?;
        }
    }
    let mut arms: Vec<&mut dyn Arm> = others.iter_mut().map(|arm| arm as &mut dyn Arm).collect();
    let comparison = method::compare(&mut raw, &mut arms, options.pairs(), &mut crate::progress)?;
    let what = format!(
        "{counted} records of {VALUE_BYTES} bytes after {warm_up} to warm up, {} keys, {} partitions, topic to topic",
        records.keys,
        bed::PARTITIONS
    );
    let targets = targets(&comparison)?;
    Ok(Report { bench: "kafka", what, comparison: Some(comparison), figures: Vec::new(), targets })
}

/// What must hold, of the arms that ran.
fn targets(comparison: &Comparison) -> anyhow::Result<Vec<Target>> {
    let ratio = |way: Way| comparison.arm(way.name()).map(|arm| (arm.speed.median, arm.cpu.median));
    let mut targets = Vec::new();
    if let Some((speed, cpu)) = ratio(Way::Records) {
        targets.push(Target::at_least("records: speed × raw", speed, 1.0));
        targets.push(Target::at_most("records: CPU × raw", cpu, 1.2));
    }
    if let Some((speed, cpu)) = ratio(Way::Module) {
        targets.push(Target::at_least("module: speed × raw", speed, 0.7));
        targets.push(Target::at_most("module: CPU × raw", cpu, 2.0));
    }
    for (ours, peer) in [(Way::Records, Way::Streams), (Way::RecordsExactlyOnce, Way::StreamsExactlyOnce)] {
        if let (Some((speed, cpu)), Some((peer_speed, peer_cpu))) = (ratio(ours), ratio(peer)) {
            let (ours, peer) = (ours.name(), peer.name());
            targets.push(Target::at_least(&format!("{ours}: speed × {peer}"), speed / peer_speed, 1.8));
            targets.push(Target::at_most(&format!("{ours}: CPU × {peer}"), cpu / peer_cpu, 0.5));
        }
    }
    Ok(targets)
}

/// The command of an arm that is this program.
fn own_command(program: &Path, way: Way, task: &Task<'_>, further: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["kafka-arm", &way.to_string(), task.log, task.name, task.input, task.output]).args(further);
    command.env("TMPDIR", task.folder);
    command
}

fn streams_command(streams: &Peer, way: Way, task: &Task<'_>) -> Command {
    let tuned = way == Way::StreamsTuned;
    let machine: &[&str] = if tuned { &["-XX:+UseParallelGC", "-Xmx1g"] } else { &[] };
    let guarantee = if way.is_exactly_once() { "exactly_once_v2" } else { "at_least_once" };
    let mut command = streams.command(machine);
    command.args([addresses(task.log), task.name, task.input, task.output, guarantee]).arg(task.folder);
    if tuned {
        command.args(TUNED);
    }
    command
}

/// Where the brokers are, of a log's URL.
fn addresses(log: &str) -> &str {
    log.strip_prefix("kafka:").unwrap_or(log)
}

/// What the process of an arm is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ArmArgs {
    /// Which way.
    way: Way,
    /// The log.
    log: String,
    #[command(flatten)]
    step: PassStep,
}

/// Passes records on until the process is ended.
///
/// # Errors
/// When it cannot go on.
pub fn arm(args: &ArmArgs) -> anyhow::Result<()> {
    let ArmArgs { way, log, step } = args;
    let mut step = step.clone();
    if way.is_exactly_once() {
        let comma = if step.step.is_empty() { "" } else { ", " };
        step.step.push_str(&format!("{comma}delivery: EXACTLY_ONCE"));
    }
    match way {
        Way::Raw => raw::run(addresses(log), &step.pipeline, &step.input, &step.output),
        Way::Records | Way::RecordsExactlyOnce => piped::run(log, Road::Records, &step),
        Way::Module | Way::ModuleExactlyOnce => piped::run(log, Road::Documents, &step),
        Way::Streams | Way::StreamsTuned | Way::StreamsExactlyOnce => anyhow::bail!("{way} is a program of its own"),
    }
}
