//! Chaos: pipelines of three steps, one slow, one failing at random, whose processes are
//! killed, frozen and joined by others, and whose log is restarted under them; a checker
//! reads what came out and proves that nothing is lost, that keys keep their order, and
//! that exactly once means once.
//!
//! [`order`] says what may be asked of a run; `just chaos 30m` is the long form.

mod account;
mod chain;
mod crew;
mod generator;
mod order;
mod reader;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_tests::bed::eventually;
use pipedoc_transport::log::Log;

use self::account::{Account, Generated, Mark};
pub use self::chain::work;
use self::chain::{Chain, promises};
use self::crew::{Counts, Crew, Ground};
use self::generator::Generator;
use self::order::{Length, Order};
use self::reader::{Reader, put_stones};
use super::kafka_faults::alone;
use super::worker;

/// How long nothing may come out at the end before the processes are asked how they do.
const SILENCE: Duration = Duration::from_secs(60);
/// How long before what is missing counts as lost: longer than any time limit in the
/// clients and the broker, whose rebalances and sends end after five minutes.
const LOST_AFTER: Duration = Duration::from_secs(330);
/// How long anything else may take that ought to be quick.
const PATIENCE: Duration = Duration::from_secs(180);

/// A pipeline at work.
struct Stream {
    chain: Chain,
    generator: Generator,
    reader: Reader,
}

impl Stream {
    /// One line on how it does.
    async fn progress(&self, log: &dyn Log) -> String {
        let found: usize = self.reader.look(|piles| piles.values().map(Vec::len).sum());
        let behind = tokio::time::timeout(Duration::from_secs(1), self.chain.behind(log)).await.ok().flatten();
        let behind = behind.map_or("?".to_owned(), |behind| behind.to_string());
        format!("{}: {} sent, {found} out, {behind} behind", self.chain.promise.text, self.generator.sent())
    }
}

/// Torments the pipelines on a log, then judges what came out.
async fn storm(folder: &Path, url: &str, mut ground: Ground<'_>, order: Order) -> Vec<String> {
    let name = url.split(':').next().unwrap_or_default();
    let Order { length, seed } = order;
    eprintln!("chaos on {name}: PIPEDOC_TEST_SEED={seed}, {length:?}");
    let log = pipedoc_transport::open::open(url).await.unwrap();
    let plan = chain::planned(folder);
    let chains: Vec<Chain> = promises().into_iter().map(|promise| Chain::of(&plan, promise)).collect();
    chain::make_topics(&*log, &plan, &chains).await;

    let mut crew = Crew::start(folder, url, &ground, seed, order.is_long());
    let start = |chain: Chain| Stream {
        generator: Generator::start(&log, &chain.input),
        reader: Reader::start(&log, &chain.outlets()),
        chain,
    };
    let streams: Vec<Stream> = chains.into_iter().map(start).collect();
    for stream in &streams {
        let what = format!("the first records come out under {}", stream.chain.promise.text);
        eventually(&what, PATIENCE, async || {
            stream.reader.look(|piles| piles.values().any(|found| !found.is_empty())).then_some(())
        })
        .await;
    }

    let began = Instant::now();
    let mut faults = 0;
    let mut next = crew.draw();
    let mut due = began + next.pause;
    let goes_on = |faults| match length {
        Length::Faults(most) => faults < most,
        Length::Time(time) => began.elapsed() < time,
    };
    while goes_on(faults) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        crew.tick();
        if Instant::now() < due {
            continue;
        }
        let Some(done) = crew.strike(next, &mut ground) else { continue };
        faults += 1;
        next = crew.draw();
        due = Instant::now() + next.pause;
        if order.is_long() {
            let mut progress = Vec::new();
            for stream in &streams {
                progress.push(stream.progress(&*log).await);
            }
            let seconds = began.elapsed().as_secs();
            eprintln!("{name} {:02}:{:02} {done}; {}", seconds / 60, seconds % 60, progress.join("; "));
        }
    }
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    // Those who are frozen wake up in their own time, beyond their session.
    let until = Instant::now() + PATIENCE;
    while crew.is_disturbed() {
        assert!(Instant::now() < until, "somebody does not leave");
        tokio::time::sleep(Duration::from_millis(20)).await;
        crew.tick();
    }

    let mut ended = Vec::new();
    for Stream { chain, generator, reader } in streams {
        ended.push((chain, generator.stop().await, reader));
    }
    for (chain, generated, reader) in &ended {
        settle(&*log, folder, chain, generated, reader).await;
    }
    std::fs::write(folder.join("done"), "").unwrap();
    tokio::task::block_in_place(|| crew.wait(PATIENCE));

    let mut rows = Vec::new();
    let mut complaints = Vec::new();
    for (chain, generated, _) in ended {
        let account = judge(&log, &chain, &generated).await;
        let text = chain.promise.text;
        complaints.extend(account.complaints(chain.is_exactly_once()).into_iter().map(|one| format!("{text}: {one}")));
        rows.push(row(name, text, seed, minutes, &crew.counts, &account));
    }
    eprintln!("{HEAD}\n{}", rows.join("\n"));
    complaints
}

/// Waits until everything has come out and is committed, or until nothing comes any more.
async fn settle(log: &dyn Log, folder: &Path, chain: &Chain, generated: &Generated, reader: &Reader) {
    let (mut missing, mut since, mut longest) = (usize::MAX, Instant::now(), Duration::ZERO);
    while missing > 0 && since.elapsed() < LOST_AFTER {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let there: HashSet<Mark> = reader.look(|piles| piles.values().flatten().map(|found| found.mark).collect());
        let left = generated.acknowledged.difference(&there).count();
        longest = longest.max(since.elapsed());
        if left < missing {
            (missing, since) = (left, Instant::now());
        }
        if since.elapsed() > SILENCE {
            std::fs::write(folder.join(chain::REPORT), "").unwrap();
        }
    }
    let text = chain.promise.text;
    if longest > SILENCE {
        eprintln!("{text}: nothing came out for {longest:.0?} at the end; the processes' logs say how they did");
    }
    if missing > 0 {
        eprintln!("{text}: {missing} records do not come; {:?} behind", chain.behind(log).await);
        return;
    }
    eventually("all is committed", PATIENCE, async || chain.behind(log).await.filter(|behind| *behind <= 0)).await;
}

/// Reads all that lies at the pipeline's ends from the start, and takes stock.
async fn judge(log: &Arc<dyn Log>, chain: &Chain, generated: &Generated) -> Account {
    let outlets = chain.outlets();
    put_stones(&**log, &outlets).await;
    let mut piles = Reader::start(log, &outlets).finish(PATIENCE).await;
    let at = piles.iter().position(|pile| pile.name == chain.end.as_str()).unwrap();
    let end = piles.swap_remove(at);
    Account::of(generated, &end, &piles)
}

const HEAD: &str = "\
| log | guarantee | seed | minutes | kills (in a write) | stops | rebalances | broker restarts | generated | delivered | dead letters | duplicates | lost | order violations |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

fn row(log: &str, guarantee: &str, seed: u64, minutes: f64, counts: &Counts, account: &Account) -> String {
    let Counts { kills, writing, stops, rebalances, restarts } = counts;
    let Account { generated, delivered, dead_letters, duplicates, lost, disorder, .. } = account;
    format!(
        "| {log} | {guarantee} | {seed} | {minutes:.1} | {kills} ({writing}) | {stops} | {rebalances} | {restarts} | \
         {generated} | {delivered} | {dead_letters} | {} | {} | {} |",
        duplicates.len(),
        lost.len(),
        disorder.len(),
    )
}

/// A folder whose name is one for a cluster.
fn folder() -> tempfile::TempDir {
    let name = format!("chaos{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
    tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap()
}

/// Fails with what must not be; the run's files stay for whoever looks for the cause.
fn answer(folder: tempfile::TempDir, complaints: &[String]) {
    if !complaints.is_empty() {
        panic!("{}\nall files of the run: {}", complaints.join("\n"), folder.keep().display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_nothing_is_lost_and_exactly_once_means_once() {
    let Some(order) = Order::on("sqlite") else { return };
    let folder = folder();
    let url = format!("sqlite:{}", worker::log_file(folder.path()).display());
    let complaints = storm(folder.path(), &url, Ground::Sqlite, order).await;
    worker::assert_intact(folder.path());
    answer(folder, &complaints);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_nothing_is_lost_and_exactly_once_means_once() {
    let Some(order) = Order::on("kafka") else { return };
    let Some(mut kafka) = alone("on_kafka_nothing_is_lost_and_exactly_once_means_once").await else { return };
    let folder = folder();
    let url = format!("kafka:{}", kafka.bootstrap());
    let complaints = storm(folder.path(), &url, Ground::Kafka(&mut kafka), order).await;
    answer(folder, &complaints);
}
