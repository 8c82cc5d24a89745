//! The control plane at scale: many pipelines in Consul, two engines, many
//! simulated instances.
//!
//! Measured: how long a change takes until all whom it concerns have confirmed it,
//! what an engine holds and uses, what it asks Consul for while nothing changes,
//! how soon one that was killed serves again.

mod bed;
mod counting;
mod instance;
mod lists;
mod pipelines;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use pipedoc_proto::v1;

use self::bed::{Bed, eventually};
use self::instance::Confirmed;
use self::pipelines::Size;
use crate::cpu;
use crate::options::Options;
use crate::report::{Figure, Report, Target};

/// What the bench can be told.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// How many pipelines of 20 steps there are. Default: 500, and 5 with --quick.
    #[arg(long, value_name = "N")]
    pipelines: Option<usize>,
    /// How many modules run the steps; all steps on one: 1. Default: 20, and 4 with
    /// --quick.
    #[arg(long, value_name = "N")]
    modules: Option<usize>,
    /// How many instances are attached, one number after the other. Default: 200 and
    /// 1000, and 8 with --quick.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    instances: Vec<usize>,
    /// How many changes are made with each number of instances. Default: 24, and 4
    /// with --quick.
    #[arg(long, value_name = "N")]
    changes: Option<usize>,
}

/// Measures it.
///
/// # Errors
/// When something is missing on this machine, or the engines do not do their work.
pub fn bench(args: &ControlArgs, options: &Options) -> anyhow::Result<Report> {
    // A connection for each instance and engine.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(args, options))
}

async fn measure(args: &ControlArgs, options: &Options) -> anyhow::Result<Report> {
    let pipelines = args.pipelines.unwrap_or(options.size(500, 5));
    let modules = args.modules.unwrap_or(options.size(20, 4));
    let changes = args.changes.unwrap_or(options.size(24, 4));
    let rounds =
        if args.instances.is_empty() { options.size(vec![200, 1000], vec![8]) } else { args.instances.clone() };
    ensure!(pipelines > 0 && changes > 0 && rounds.windows(2).all(|pair| pair[0] <= pair[1]), "numbers must grow");
    ensure!(
        (1..=20).contains(&modules) && rounds.iter().all(|&count| count >= modules),
        "fewer instances than modules"
    );
    let size = Size { pipelines, steps: 20, modules };
    let rest = Duration::from_secs(options.size(60, 3));
    let mut sheet = Sheet::default();

    // A tenth of the pipelines and a few instances: whether rest costs depend on how much there is.
    let few = Size { pipelines: (pipelines / 10).max(1), ..size };
    let mut bed = Bed::start(few).await?;
    for number in 0..2 {
        bed.start_engine().await?;
        bed.planned(number).await?;
    }
    bed.attach(modules);
    bed.all_run().await?;
    let small = at_rest(&bed, rest, &mut sheet, &format!("{} steps, {modules} instances", few.all())).await?;
    drop(bed);

    let mut bed = Bed::start(size).await?;
    let begun = Instant::now();
    bed.start_engine().await?;
    bed.planned(0).await?;
    sheet.figure(
        "first start, all pipelines taken from the inbox and their topics made",
        begun.elapsed().as_secs_f64(),
        "s",
    );
    let begun = Instant::now();
    bed.start_engine().await?;
    bed.planned(1).await?;
    sheet.figure("start of a second engine", begun.elapsed().as_secs_f64(), "s");
    let (mut slowest, mut asked) = (0.0_f64, small);
    for &instances in &rounds {
        let all = format!("{} steps, {instances} instances", size.all());
        let begun = Instant::now();
        bed.attach(instances);
        bed.all_run().await?;
        // The last second makes sure that nothing follows.
        sheet.figure(
            format!("{all}: all attached to both engines and at work"),
            begun.elapsed().as_secs_f64() - 1.0,
            "s",
        );
        let before = cpu_of(&bed)?;
        let begun = Instant::now();
        let mut times = Times::default();
        for number in 0..changes {
            times.add(change(&bed, number).await?);
            eprintln!("  {all}, change {}: {:.0} ms", number + 1, times.affected.last().copied().unwrap_or(0.0) * 1e3);
        }
        let (changing, lasted) = (cpu_of(&bed)? - before, begun.elapsed());
        slowest = slowest.max(times.tell(&all, &mut sheet));
        asked = asked.max(at_rest(&bed, rest, &mut sheet, &all).await?);
        let resting = sheet.rest_cores * lasted.as_secs_f64();
        let each = (changing.as_secs_f64() - resting) / changes as f64 / bed.engines.len() as f64;
        sheet.figure(format!("{all}: CPU of a change, each engine"), each * 1e3, "ms");
    }
    let begun = Instant::now();
    bed.restart_engine(1, "engine-1-again")?;
    bed.planned(1).await?;
    sheet.figure("restart of an engine: planned", begun.elapsed().as_secs_f64(), "s");
    bed.all_run().await?;
    sheet.figure("restart of an engine: all instances attached to it again", begun.elapsed().as_secs_f64() - 1.0, "s");
    let peak = peaks(&bed, &mut sheet)?;
    let lacked: u64 = bed.instances().iter().map(|instance| instance.lacked()).sum();
    sheet.figure("assignments that came without a body", lacked as f64, "");
    let targets = vec![
        Target::below("95 % of changes confirmed by all affected within s", slowest, 2.0),
        Target::below("engine's peak of resident MB", peak, 500.0),
        Target::below("requests/s to Consul of an engine at rest", asked, 2.0),
    ];
    let what = format!(
        "{} steps in {pipelines} pipelines for {modules} modules, {changes} changes each, {} s of rest, two engines",
        size.all(),
        rest.as_secs()
    );
    Ok(Report { bench: "control", what, comparison: None, figures: sheet.figures, targets })
}

/// The figures.
#[derive(Default)]
struct Sheet {
    figures: Vec<Figure>,
    /// Cores that both engines together used while nothing happened, last.
    rest_cores: f64,
}

impl Sheet {
    fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure::new(name, value, unit));
    }
}

/// How long changes took, in seconds.
#[derive(Default)]
struct Times {
    affected: Vec<f64>,
    all: Vec<f64>,
}

impl Times {
    fn add(&mut self, (affected, all): (Duration, Duration)) {
        self.affected.push(affected.as_secs_f64());
        self.all.push(all.as_secs_f64());
    }

    /// Notes the figures; gives the 95th percentile of those affected.
    fn tell(&self, what: &str, sheet: &mut Sheet) -> f64 {
        for (whom, times) in [("all affected", &self.affected), ("all instances", &self.all)] {
            for (name, share) in [("median", 0.5), ("95 %", 0.95), ("longest", 1.0)] {
                let name = format!("{what}: change confirmed by {whom}, {name}");
                sheet.figure(name, quantile(times, share) * 1e3, "ms");
            }
        }
        quantile(&self.affected, 0.95)
    }
}

/// The smallest of the values that is not below a share of them.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// Makes one change and waits until it is confirmed: by all instances that run the
/// step, and by all there are. Every other one is an apply, by either engine in turn;
/// the rest are written into Consul.
async fn change(bed: &Bed, number: usize) -> anyhow::Result<(Duration, Duration)> {
    let size = bed.size();
    let (pipeline, step) = ((number * 37 + 11) % size.pipelines, (number * 7 + 3) % size.steps);
    let key = (pipelines::name(pipeline), pipelines::step(step));
    let affected: Vec<_> =
        bed.instances().iter().filter(|instance| instance.confirmed().list.steps.contains_key(&key)).collect();
    let before = affected.first().context("nobody runs the step")?.confirmed().list.steps[&key].clone();
    let mark = u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?;
    let text = size.text(pipeline, step, mark);
    let applies = number.is_multiple_of(2);
    let mut control = bed.control(number / 2 % 2).await?;
    // Reports go out each second: changes must not keep step with them.
    tokio::time::sleep(Duration::from_millis(300 + (number as u64 * 137) % 700)).await;
    let begun = Instant::now();
    if applies {
        let request = v1::ApplyRequest { text, file: "bench.yaml".into(), ..Default::default() };
        let answer = control.apply(request).await?.into_inner();
        ensure!(answer.accepted, "a change was refused: {:?}", answer.errors);
    } else {
        bed.put(pipeline, &text).await?;
    }
    let runs = |confirmed: &Confirmed| confirmed.list.steps.get(&key).is_some_and(|hash| *hash != before);
    eventually("a change is confirmed", || affected.iter().all(|instance| runs(&instance.confirmed()))).await?;
    let confirmed: Vec<_> = affected.iter().map(|instance| instance.confirmed()).collect();
    let last = confirmed.iter().map(|confirmed| confirmed.list_at).max().unwrap_or(begun);
    let generation = confirmed.iter().map(|confirmed| confirmed.generation).min().unwrap_or(0);
    let at_it = |confirmed: Confirmed| confirmed.generation >= generation;
    eventually("all run the generation", || bed.instances().iter().all(|one| at_it(one.confirmed()))).await?;
    let all = bed.instances().iter().map(|instance| instance.confirmed().generation_at).max().unwrap_or(begun);
    bed.settle().await?;
    Ok((last.saturating_duration_since(begun), all.saturating_duration_since(begun)))
}

/// CPU time that the engines have used.
fn cpu_of(bed: &Bed) -> anyhow::Result<Duration> {
    bed.engines.iter().map(|engine| cpu::of_process(engine.id())).sum()
}

/// Watches the engines for a while in which nothing happens; gives the requests a
/// second of the one that asks Consul more.
async fn at_rest(bed: &Bed, rest: Duration, sheet: &mut Sheet, what: &str) -> anyhow::Result<f64> {
    let requests = || bed.engines.iter().map(|engine| engine.requests()).collect::<Vec<_>>();
    let (before, used, begun) = (requests(), cpu_of(bed)?, Instant::now());
    tokio::time::sleep(rest).await;
    let seconds = begun.elapsed().as_secs_f64();
    let used = (cpu_of(bed)? - used).as_secs_f64() / seconds;
    let mut most = 0.0_f64;
    for (number, (before, after)) in before.into_iter().zip(requests()).enumerate() {
        let rate = (after - before) as f64 / seconds;
        sheet.figure(format!("{what}: requests to Consul at rest, engine {number}"), rate, "/s");
        most = most.max(rate);
    }
    sheet.rest_cores = used;
    sheet.figure(format!("{what}: CPU at rest, each engine"), used / bed.engines.len() as f64 * 100.0, "% of a core");
    for (number, engine) in bed.engines.iter().enumerate() {
        sheet.figure(format!("{what}: resident, engine {number}"), megabytes(cpu::memory(engine.id())?.rss), "MB");
    }
    Ok(most)
}

/// The most that engines ever held; gives the most of all.
fn peaks(bed: &Bed, sheet: &mut Sheet) -> anyhow::Result<f64> {
    let mut most = 0.0_f64;
    for (number, engine) in bed.engines.iter().enumerate() {
        let peak = megabytes(cpu::peak(engine.id())?);
        sheet.figure(format!("peak of resident memory, engine {number}"), peak, "MB");
        most = most.max(peak);
    }
    Ok(most)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn a_quantile_is_a_value_that_was_found() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.5, 0.95, 1.0].map(|share| quantile(&values, share)), [3.0, 5.0, 5.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
