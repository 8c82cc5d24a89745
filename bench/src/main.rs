//! `pipedoc-bench`: measures PipeDoc side by side with what it stands on.
//!
//! ```text
//! method    arms in turn, a control, ratios
//! cpu       what processes use
//! report    tables and JSON
//! documents, echo    what is moved, and the step that moves it
//! program, installation    the `pipedoc` command as processes
//! sqlite, kafka, pipeline, latency, idle, control    the benches
//! ```
//!
//! README.md beside it says what is counted and why.

mod control;
mod cpu;
mod documents;
mod echo;
mod idle;
mod installation;
mod kafka;
mod latency;
mod method;
mod options;
mod pipeline;
mod program;
mod report;
mod sqlite;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use pipedoc_telemetry::TelemetryConfig;

use crate::options::Options;
use crate::report::Report;

/// Measures PipeDoc side by side with what it stands on.
#[derive(Debug, Parser)]
#[command(name = "pipedoc-bench", version)]
struct Arguments {
    /// How results are shown.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    /// How much is measured.
    #[command(flatten)]
    options: Options,
    /// What is measured.
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutputFormat {
    /// Tables for people.
    Text,
    /// One JSON object a bench and line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Documents through an echo step on SQLite against raw rusqlite.
    Sqlite,
    /// A whole pipeline over small text files against a plain loop.
    Pipeline,
    /// One document alone: from submit to sink through three processes.
    Latency,
    /// What an installation costs while nothing happens.
    Idle,
    /// Everything that needs no server: sqlite, pipeline, latency, idle.
    All,
    /// Records from topic to topic on Kafka: PipeDoc against a loop by hand with
    /// rdkafka and against Kafka Streams.
    Kafka(kafka::KafkaArgs),
    /// A step that waits for each record, many keys side by side, against
    /// Confluent's Parallel Consumer.
    KafkaKeys,
    /// What an instance of 50 steps on Kafka holds and uses while nothing comes.
    KafkaIdle,
    /// Changes with 10,000 steps and 1,000 simulated instances on two engines over a
    /// real Consul agent.
    Control(control::ControlArgs),
    /// The process of an arm; the Kafka benches start it.
    #[command(hide = true)]
    KafkaArm(kafka::ArmArgs),
    /// The process of idle steps; the Kafka benches start it.
    #[command(hide = true)]
    KafkaSteps(kafka::StepsArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for and shows it; tells whether all targets were met. A
/// trial has none.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let options = &arguments.options;
    // As a module's process does it: spans cost something.
    let _telemetry = pipedoc_telemetry::init(&TelemetryConfig::new("bench"))?;
    let everything: [Measure; 4] = [sqlite::bench, pipeline::bench, latency::bench, idle::bench];
    let mut met = true;
    let mut tell = |report: Report| {
        met &= report.targets.iter().all(|target| target.met);
        show(&report, arguments.output)
    };
    match &arguments.bench {
        Bench::Sqlite => tell(sqlite::bench(options)?)?,
        Bench::Pipeline => tell(pipeline::bench(options)?)?,
        Bench::Latency => tell(latency::bench(options)?)?,
        Bench::Idle => tell(idle::bench(options)?)?,
        Bench::Kafka(args) => tell(kafka::bench(args, options)?)?,
        Bench::KafkaKeys => tell(kafka::keys(options)?)?,
        Bench::KafkaIdle => tell(kafka::idle(options)?)?,
        Bench::Control(args) => tell(control::bench(args, options)?)?,
        Bench::KafkaArm(args) => kafka::arm(args)?,
        Bench::KafkaSteps(args) => kafka::steps(args)?,
        Bench::All => everything.into_iter().try_for_each(|measure| tell(measure(options)?))?,
    }
    Ok(options.quick || met)
}

/// A bench.
type Measure = fn(&Options) -> anyhow::Result<Report>;

fn show(report: &Report, output: OutputFormat) -> anyhow::Result<()> {
    use std::io::Write;
    let text = match output {
        OutputFormat::Text => report.text(),
        OutputFormat::Json => serde_json::to_string(report)?,
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Tells how a comparison comes along.
fn progress(arm: &str, run: &method::Run) {
    eprintln!(
        "  {arm}: {} records in {:.2} s, {:.2} µs CPU each",
        run.records,
        run.wall.as_secs_f64(),
        run.cpu_per_record()
    );
}
