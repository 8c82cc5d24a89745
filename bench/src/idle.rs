//! What an installation costs while nothing happens: an engine, a module with one
//! step, and the same module with fifty.
//!
//! Each has moved a few documents through all of its steps before, so that
//! everything is open that work opens.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pipedoc_transport::log::Log;
use pipedoc_transport::sqlite::{Options as LogOptions, SqliteLog};

use crate::cpu::{self, Memory};
use crate::installation::Installation;
use crate::options::Options;
use crate::program;
use crate::report::{Figure, Report, Target};

/// Steps in one instance.
const MANY: usize = 50;
/// Documents that go through all steps first.
const DOCUMENTS: usize = 20;

/// Measures it.
///
/// # Errors
/// When a process does not start, or documents do not come through.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let program = program::pipedoc()?;
    let many = options.size(MANY, 5);
    let one = measure(program.clone(), 1, options)?;
    let all = measure(program, many, options)?;
    let steps = (many - 1) as f64;
    let memory = (mebibytes(all.module.memory.rss) - mebibytes(one.module.memory.rss)) / steps;
    let cores = (all.module.cores - one.module.cores) / steps;
    let mut figures = Vec::new();
    for (name, usage) in [
        ("engine".to_owned(), one.engine),
        ("module, 1 step".to_owned(), one.module),
        (format!("engine, {many} steps in the pipeline"), all.engine),
        (format!("module, {many} steps"), all.module),
    ] {
        figures.push(Figure::new(format!("{name}: CPU"), usage.cores * 100.0, "% of a core"));
        figures.push(Figure::new(format!("{name}: resident"), mebibytes(usage.memory.rss), "MiB"));
        figures.push(Figure::new(format!("{name}: share of shared pages counted"), mebibytes(usage.memory.pss), "MiB"));
        figures.push(Figure::new(format!("{name}: threads"), usage.memory.threads as f64, ""));
    }
    let cpu = "% of a core";
    let growth = (all.module.memory.threads as f64 - one.module.memory.threads as f64) / steps;
    figures.push(Figure::new("a further step: CPU", cores * 100.0, cpu));
    figures.push(Figure::new("a further step: resident", memory, "MiB"));
    figures.push(Figure::new("a further step: threads", growth, ""));
    Ok(Report {
        bench: "idle",
        what: format!("processes watched for {:?} after {DOCUMENTS} documents", window(options)),
        comparison: None,
        figures,
        targets: vec![
            Target::below("CPU of an idle engine, % of a core,", one.engine.cores * 100.0, 1.0),
            Target::below("CPU of an idle module, % of a core,", one.module.cores * 100.0, 1.0),
            Target::below("memory of an idle engine, MiB,", mebibytes(one.engine.memory.rss), 50.0),
            Target::below("memory of an idle module, MiB,", mebibytes(one.module.memory.rss), 50.0),
            Target::below("CPU of a further step, % of a core,", cores * 100.0, 0.02),
            Target::below("memory of a further step, MiB,", memory, 0.5),
        ],
    })
}

fn window(options: &Options) -> Duration {
    options.size(Duration::from_secs(30), Duration::from_secs(1))
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// Cores, on average.
    cores: f64,
    memory: Memory,
}

struct Measured {
    engine: Usage,
    module: Usage,
}

fn measure(program: std::path::PathBuf, steps: usize, options: &Options) -> anyhow::Result<Measured> {
    let mut installation = Installation::start(program, &pipeline(steps))?;
    installation.module("echo")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(warm(&installation, steps))?;
    drop(runtime);
    // What follows work, such as commits and timers that run out, is not idling.
    std::thread::sleep(options.size(Duration::from_secs(5), Duration::from_millis(500)));
    let ids: Vec<u32> = std::iter::once(installation.engine_id()).chain(installation.module_ids()).collect();
    let before = ids.iter().map(|id| cpu::of_process(*id)).collect::<anyhow::Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::sleep(window(options));
    let mut usages = Vec::new();
    for (id, before) in ids.iter().zip(before) {
        let used = cpu::of_process(*id)?.saturating_sub(before);
        usages.push(Usage { cores: used.as_secs_f64() / start.elapsed().as_secs_f64(), memory: cpu::memory(*id)? });
    }
    let [engine, module] = usages[..] else { anyhow::bail!("{} processes were watched", usages.len()) };
    Ok(Measured { engine, module })
}

/// A chain of so many echo steps.
fn pipeline(steps: usize) -> String {
    let mut text = String::from("pipeline: row\nsteps:\n");
    for n in 0..steps {
        let to = if n + 1 < steps { format!(", outputs: [{{to: step-{}}}]", n + 1) } else { String::new() };
        text.push_str(&format!("  - {{name: step-{n}, type: PIPELINE, module: echo{to}}}\n"));
    }
    text
}

/// Sends documents through all steps.
async fn warm(installation: &Installation, steps: usize) -> anyhow::Result<()> {
    let mut intake = installation.intake().await?;
    for n in 0..DOCUMENTS {
        intake.submit_first("row", "step-0", crate::documents::document(n, 1024)).await?;
    }
    let log = SqliteLog::open(installation.log(), LogOptions::default()).await?;
    let group = format!("local.row.step-{}", steps - 1);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let committed = log.group_offsets(&group).await?;
        let done: i64 = committed.values().map(|at| at.offset).sum();
        if done >= DOCUMENTS as i64 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "only {done} documents came through {steps} steps");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
