//! A whole pipeline: `pipedoc run examples/library` over many small text files,
//! against a plain loop that makes the same calls of the same libraries.
//!
//! The loop reads, parses in the same children, cuts into the same chunks and
//! writes files as the sink does. It keeps no state and no log: what it costs less
//! is what those cost.

mod plain;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::method::{Arm, Run, compare};
use crate::options::Options;
use crate::report::{Report, Target};
use crate::{cpu, program};

/// Measures it.
///
/// # Errors
/// When an arm fails or loses a document.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let files = options.size(10_000, 40);
    let input = Input::make(files)?;
    let mut plain = Plain { input: &input };
    let mut whole = Whole { input: &input };
    let comparison = compare(&mut plain, &mut [&mut whole], options.pairs(), &mut crate::progress)?;
    let speed = comparison.arm("pipedoc run").map_or(0.0, |arm| arm.speed.median);
    Ok(Report {
        bench: "pipeline",
        what: format!("{files} text files of {} bytes on average, {} chunks", input.bytes / files, input.chunks),
        targets: vec![Target::at_most("time of the pipeline, as a multiple of the plain loop's,", 1.0 / speed, 1.5)],
        comparison: Some(comparison),
        figures: Vec::new(),
    })
}

/// The files that every run begins with, and what must come of them.
struct Input {
    folder: TempDir,
    program: PathBuf,
    files: u64,
    bytes: usize,
    chunks: usize,
}

impl Input {
    fn make(files: usize) -> anyhow::Result<Self> {
        let program = program::pipedoc()?;
        let folder = tempfile::Builder::new().prefix("pipedoc-bench-").tempdir()?;
        let (mut bytes, mut chunks) = (0, 0);
        for n in 0..files {
            let shelf = folder.path().join(format!("in/shelf-{:03}", n / 100));
            fs::create_dir_all(&shelf)?;
            let body = crate::documents::document(n, 2_048 + 512 * (n % 9)).body;
            chunks += plain::chunks(&body)?.len();
            bytes += body.len();
            fs::write(shelf.join(format!("page-{n:05}.txt")), body)?;
        }
        Ok(Self { folder, program, files: files as u64, bytes, chunks })
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("in")
    }

    fn out(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("out-").tempdir_in(self.folder.path())?)
    }

    /// Looks whether all arrived, whole.
    fn check(&self, out: &Path) -> anyhow::Result<()> {
        let (mut files, mut chunks) = (0, 0);
        for file in walk(out)?.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "json")) {
            let doc: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
            chunks += doc["chunks"].as_array().with_context(|| format!("no chunks in {}", file.display()))?.len();
            files += 1;
        }
        ensure!(files == self.files && chunks == self.chunks, "{files} files with {chunks} chunks arrived");
        Ok(())
    }
}

/// All files below a folder, but in folders of the command's own.
fn walk(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.push(entry.path());
        } else if !entry.file_name().to_string_lossy().starts_with(".pipedoc") {
            found.extend(walk(&entry.path())?);
        }
    }
    Ok(found)
}

/// The plain loop.
struct Plain<'a> {
    input: &'a Input,
}

impl Arm for Plain<'_> {
    fn name(&self) -> &str {
        "plain loop"
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let out = self.input.out()?;
        let (cpu, start) = (cpu::of_this_process()?, Instant::now());
        let used = plain::run(&self.input.program, &self.input.files(), out.path())?;
        let (wall, cpu) = (start.elapsed(), used.saturating_sub(cpu));
        self.input.check(out.path())?;
        Ok(Run { wall, cpu, records: self.input.files, figures: BTreeMap::new() })
    }
}

/// The command.
struct Whole<'a> {
    input: &'a Input,
}

impl Arm for Whole<'_> {
    fn name(&self) -> &str {
        "pipedoc run"
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let out = self.input.out()?;
        let mut command = program::command(&self.input.program);
        let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/library");
        command.args(["--output", "json", "run", pipeline]);
        command.arg("--in").arg(self.input.files()).arg("--out").arg(out.path());
        let printed = out.path().join("printed");
        command.stdout(fs::File::create(&printed)?).stderr(fs::File::create(out.path().join("errors"))?);
        let start = Instant::now();
        let mut child = command.spawn()?;
        // Children that the command leaves to the system when it ends are seen as
        // long as it runs.
        let mut seen = Duration::ZERO;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            seen = seen.max(cpu::of_tree(child.id()).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(20));
        };
        let wall = start.elapsed();
        let errors = || fs::read_to_string(out.path().join("errors")).unwrap_or_default();
        ensure!(status.success(), "it ended with {status}: {}", errors());
        let summary: serde_json::Value = serde_json::from_str(&fs::read_to_string(&printed)?)?;
        ensure!(summary["delivered"] == self.input.files, "it said {summary}");
        self.input.check(out.path())?;
        Ok(Run { wall, cpu: seen, records: self.input.files, figures: BTreeMap::new() })
    }
}
