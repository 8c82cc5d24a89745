//! Concurrency by key: a step that waits for each record, many keys side by side,
//! one key in order. Its bound is what so many waits at once allow.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::bed::{Bed, Embedded, PARTITIONS};
use super::broker::Broker;
use super::documents::{Records, VALUE_BYTES};
use super::pass::{Bench, Passing};
use super::peer::Peer;
use super::{Way, addresses, own_command};
use crate::method::{self, Arm, Comparison};
use crate::options::Options;
use crate::report::{Figure, Report, Target};

/// Records at work at once.
const CONCURRENCY: u32 = 256;
/// Milliseconds that the step waits for each.
const WAIT: u32 = 20;

const ON_KAFKA: &str = "PipeDoc on Kafka";
const ON_SQLITE: &str = "PipeDoc on SQLite";
const PARALLEL: &str = "Parallel Consumer";

/// Measures it.
///
/// # Errors
/// When something is missing on this machine, or an arm lost a record or an order.
pub fn bench(options: &Options) -> anyhow::Result<Report> {
    let counted = options.size(50_000, 4_000);
    let warm_up = counted / 4;
    let records = Records { count: counted + warm_up, keys: 10_000.min(counted) };
    let program = std::env::current_exe().context("the path of this program")?;
    let parallel = Peer::parallel_consumer().context("the Parallel Consumer")?;
    let kafka = full(Arc::new(Broker::start()?), records, warm_up)?;
    let sqlite = full(Arc::new(Embedded::new()?), records, warm_up)?;

    let mut on_kafka = pipedoc(ON_KAFKA, &kafka, &program);
    let mut on_sqlite = pipedoc(ON_SQLITE, &sqlite, &program);
    let mut peer = Passing::new(PARALLEL, &kafka, |task| {
        let mut command = parallel.command(&[]);
        command.args([addresses(task.log), task.name, task.input, task.output]);
        command.args([CONCURRENCY.to_string(), WAIT.to_string()]);
        command
    });
    let others: &mut [&mut dyn Arm] = &mut [&mut on_sqlite, &mut peer];
    let comparison = method::compare(&mut on_kafka, others, options.pairs(), &mut crate::progress)?;
    let bound = f64::from(CONCURRENCY) * 1000.0 / f64::from(WAIT);
    let what = format!(
        "{counted} records of {VALUE_BYTES} bytes after {warm_up} to warm up, {} keys, {PARTITIONS} partitions; \
         a step that waits {WAIT} ms for each, concurrency {CONCURRENCY}",
        records.keys
    );
    let targets = targets(&comparison, bound);
    let figures = vec![Figure::new("bound of such a step", bound, "records/s")];
    Ok(Report { bench: "kafka-keys", what, comparison: Some(comparison), figures, targets })
}

/// A log whose input is full.
fn full(bed: Arc<dyn Bed>, records: Records, warm_up: u64) -> anyhow::Result<Bench> {
    let input = "bench.in".to_owned();
    bed.create_topic(&input)?;
    bed.write(&input, records)?;
    Ok(Bench { bed, input, records, warm_up })
}

fn pipedoc<'a>(name: &'static str, bench: &Bench, program: &'a Path) -> Passing<'a> {
    let (step, delay) = (format!("concurrency: {CONCURRENCY}"), format!("{WAIT}ms"));
    Passing::new(name, bench, move |task| {
        own_command(program, Way::Module, task, &["--step", &step, "--delay", &delay])
    })
}

fn targets(comparison: &Comparison, bound: f64) -> Vec<Target> {
    let share = |per_second: f64| per_second / bound;
    let mut targets =
        vec![Target::at_least("on Kafka: share of the bound", share(comparison.baseline.per_second.median), 0.9)];
    if let Some(sqlite) = comparison.arm(ON_SQLITE) {
        targets.push(Target::at_least("on SQLite: share of the bound", share(sqlite.per_second.median), 0.9));
    }
    if let Some(peer) = comparison.arm(PARALLEL) {
        targets.push(Target::at_least("on Kafka: speed × Parallel Consumer", 1.0 / peer.speed.median, 1.0));
    }
    targets
}
