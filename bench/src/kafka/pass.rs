//! One arm of the pass-through: a process that pipes one topic into another, and
//! what it cost.
//!
//! An arm reads a topic that is full beforehand: first some records to warm up
//! (connections, assignment, a virtual machine's compilers), then those that
//! count. The clock runs from when the last record of the warm-up has arrived in
//! the output to when the last of all has, by the broker's own times, with the
//! arm working all the while. What arrived is read afterwards, so that reading
//! takes nothing from the arm: every record must be there exactly once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pipedoc_tests::bed::process::Process;

use super::bed::{Bed, PARTITIONS};
use super::documents::Records;
use super::watch::Watch;
use crate::cpu;
use crate::method::{Arm, Run};

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What an arm's process is told.
pub struct Task<'a> {
    /// Where the log is.
    pub log: &'a str,
    /// Name of the run: group or application.
    pub name: &'a str,
    /// Topic to read.
    pub input: &'a str,
    /// Topic to write.
    pub output: &'a str,
    /// A folder of its own.
    pub folder: &'a Path,
}

/// What all arms share.
#[derive(Clone)]
pub struct Bench {
    /// The log.
    pub bed: Arc<dyn Bed>,
    /// The topic that is full beforehand.
    pub input: String,
    /// What is in it.
    pub records: Records,
    /// How many of them are there to warm up.
    pub warm_up: u64,
}

/// A process that passes records on.
pub struct Passing<'a> {
    name: &'static str,
    bench: Bench,
    command: Box<dyn Fn(&Task<'_>) -> Command + 'a>,
    /// Whether a record counts when it can be read, not when it is appended.
    until_readable: bool,
    /// Each run has names of its own.
    runs: u64,
}

impl<'a> Passing<'a> {
    /// Names an arm and the command of its process.
    pub fn new(name: &'static str, bench: &Bench, command: impl Fn(&Task<'_>) -> Command + 'a) -> Self {
        Self { name, bench: bench.clone(), command: Box::new(command), until_readable: false, runs: 0 }
    }

    /// For arms with transactions, whose records can be read after their commit
    /// only: the clock runs until the last can.
    pub fn until_readable(self) -> Self {
        Self { until_readable: true, ..self }
    }
}

impl Arm for Passing<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let Bench { bed, input, records, warm_up } = &self.bench;
        self.runs += 1;
        let words = self.name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let name = format!("{words}-{}", self.runs);
        let output = format!("bench.{name}.out");
        let folder = tempfile::tempdir().context("a folder for the arm")?;
        bed.create_topic(&output)?;

        let log = bed.url();
        let task = Task { log: &log, name: &name, input, output: &output, folder: folder.path() };
        let printed = folder.path().join("printed.txt");
        let mut process = Process::start(self.name, &mut (self.command)(&task), &printed, None);
        let watch = Watch::start(bed.clone(), process.id(), output.clone());
        let began = Instant::now();
        while watch.arrived() < records.count {
            if !process.is_running() {
                bail!("it ended before all had arrived; it printed:\n{}", process.output());
            }
            if !watch.is_on() {
                watch.end()?;
                bail!("the watch ended before all had arrived");
            }
            ensure!(
                began.elapsed() < LIMIT,
                "it stands: of {} records, partitions of the output hold {:?} and those of the input {:?} after {LIMIT:?}; \
                 it printed:\n{}",
                records.count,
                watch.ends(),
                bed.ends(input)?,
                process.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let memory = cpu::memory(process.id())?;
        let arrived = bed.count(&output, *records)?;
        let seen = watch.end()?;
        process.kill();
        bed.delete_topic(&output)?;

        let (from, before) = arrived.when(*warm_up).context("fewer records than the warm-up has")?;
        let ends: Vec<i64> =
            (0..PARTITIONS).map(|partition| arrived.ends.get(&partition).copied().unwrap_or(0)).collect();
        let readable = seen.readable(&ends).context("the output was not readable to its end")?;
        let appended = arrived.end().context("nothing arrived")? as f64;
        let (start, end) = (from as f64, if self.until_readable { readable.max(appended) } else { appended });
        let counted = records.count - before;
        let (half, until_half) = arrived.when(before + counted / 2).context("half of the records")?;
        let (client, server) = seen.used(start, end);
        let first_half = (until_half - before) as f64 / (half as f64 - start);
        let second_half = (records.count - until_half) as f64 / (appended - half as f64);
        let figures = BTreeMap::from([
            ("broker CPU µs/record", server * 1e6 / counted as f64),
            ("MiB resident", memory.rss as f64 / f64::from(1 << 20)),
            ("threads", memory.threads as f64),
            ("speed of 2nd half ÷ 1st", second_half / first_half),
        ]);
        Ok(Run {
            wall: Duration::from_secs_f64((end - start).max(1.0) / 1e3),
            cpu: Duration::from_secs_f64(client.max(0.0)),
            records: counted,
            figures,
        })
    }
}
