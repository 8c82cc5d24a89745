//! SQLite: 1 KiB documents through an `echo` step on the log in a file, against
//! raw batched rusqlite that reads and writes the same records.
//!
//! ```text
//! raw          rusqlite, one table to another, as many bytes a transaction as the log's reads
//! raw 8 MiB    the same with transactions as large as the log's writer makes them
//! bare log     consumer to producer, no SDK: where the time goes
//! echo         the real step
//! echo, exactly once   the same with `delivery: EXACTLY_ONCE`
//! ```

mod bare;
mod raw;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use pipedoc_transport::log::Log;
use pipedoc_transport::sqlite::{Options as LogOptions, SqliteLog};
use tempfile::TempDir;

use crate::echo::{self, EchoStep, Took};
use crate::method::{Arm, Run, compare};
use crate::options::Options;
use crate::report::{Report, Target};

/// Bytes of an encoded document.
const SIZE: usize = 1024;

/// Measures it.
///
/// # Errors
/// When an arm fails or loses a record.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let records = options.size(100_000, 2_000);
    let input = Input::make(records)?;
    // One batch as the consumer hands it out, and one transaction as the writer gathers it.
    let mut raw = raw::Raw::new("raw", &input, raw::Bound { records: 500, bytes: 1 << 20 })?;
    let mut gathered = raw::Raw::new("raw 8 MiB", &input, raw::Bound { records: usize::MAX, bytes: 8 << 20 })?;
    let once = EchoStep::plan("delivery: EXACTLY_ONCE")?;
    let mut bare = LogArm { name: "bare log", input: &input, step: &input.step, moves: Moves::Bare };
    let mut echo = LogArm { name: "echo", input: &input, step: &input.step, moves: Moves::Echo };
    let mut once = LogArm { name: "echo, exactly once", input: &input, step: &once, moves: Moves::Echo };
    let others: &mut [&mut dyn Arm] = &mut [&mut gathered, &mut bare, &mut echo, &mut once];
    let comparison = compare(&mut raw, others, options.pairs(), &mut crate::progress)?;
    let speed = |name: &str| comparison.arm(name).map_or(0.0, |arm| arm.speed.median);
    let (speed, once) = (speed("echo"), speed("echo, exactly once"));
    Ok(Report {
        bench: "sqlite",
        what: format!(
            "{records} documents of {SIZE} bytes from one topic to another, {} partitions",
            input.step.partitions()
        ),
        targets: vec![
            Target::at_least("speed of echo, as a multiple of raw,", speed, 0.5),
            Target::at_least("speed of echo exactly once, as a multiple of echo,", once / speed, 0.7),
        ],
        comparison: Some(comparison),
        figures: Vec::new(),
    })
}

/// The records that every run begins with, in a log file that no run touches.
struct Input {
    folder: TempDir,
    step: EchoStep,
    records: u64,
    runtime: tokio::runtime::Runtime,
}

impl Input {
    fn make(records: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let folder = tempfile::Builder::new().prefix("pipedoc-bench-").tempdir()?;
        let step = EchoStep::plan("")?;
        let path = folder.path().join("input.db");
        runtime.block_on(async {
            let log = SqliteLog::open(&path, LogOptions::default()).await?;
            step.make_topics(&log).await?;
            step.fill(&log, records, SIZE).await
        })?;
        let input = Self { folder, step, records: records as u64, runtime };
        input.settle(&path)?;
        Ok(input)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("input.db")
    }

    /// Waits until nothing holds the file and all of it is in one piece.
    fn settle(&self, path: &Path) -> anyhow::Result<()> {
        let connection = rusqlite::Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(20))?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// A copy of a file in a folder of its own, on the disk before the clock starts.
    fn copy(&self, file: &Path) -> anyhow::Result<(TempDir, PathBuf)> {
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(self.folder.path())?;
        let copy = folder.path().join("log.db");
        fs::copy(file, &copy)?;
        File::open(&copy)?.sync_all()?;
        Ok((folder, copy))
    }
}

enum Moves {
    Bare,
    Echo,
}

/// Arms on our log.
struct LogArm<'a> {
    name: &'static str,
    input: &'a Input,
    step: &'a EchoStep,
    moves: Moves,
}

impl Arm for LogArm<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let (folder, file) = self.input.copy(&self.input.file())?;
        let step = self.step;
        self.input.runtime.block_on(async {
            let log: Arc<dyn Log> = Arc::new(SqliteLog::open(&file, LogOptions::default()).await?);
            let Took { wall, cpu } = match self.moves {
                Moves::Bare => bare::run(step, log.as_ref()).await?,
                Moves::Echo => step.run(Arc::clone(&log), &folder.path().join("data")).await?,
            };
            let arrived = echo::count(log.as_ref(), &step.output).await?;
            ensure!(arrived == self.input.records, "{arrived} of {} records arrived", self.input.records);
            Ok(Run { wall, cpu, records: arrived, figures: BTreeMap::new() })
        })
    }
}
