//! What brokers, networks and neighbours do to a pipeline on Kafka, done to real
//! processes under load.
//!
//! After each fault the same must hold: no acknowledged document is missing, the
//! order of each key is kept apart from redeliveries, and nobody had to lend a hand.
//! Each scenario runs `PIPEDOC_TEST_ROUNDS` times (1), and prints how long the
//! recovery took; more than once, members have the session of production.
//! `PIPEDOC_TEST_AWAY` says for how many seconds a broker is away (15).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::kafka::setup::Setup;
use pipedoc_tests::bed::proxy::Weather;
use pipedoc_tests::bed::{missing, wait_for};
use pipedoc_transport::log::{Log, TopicSettings, TopicSpec};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::kafka_place::Place;
use super::load::{self, Load, Watch, in_order};
use super::work::{PATIENCE, Work, number, pipeline, rounds};

fn away() -> Duration {
    Duration::from_secs(number("PIPEDOC_TEST_AWAY", 15))
}

/// The broker that faults are done to; `None` when the test is skipped, which was
/// said aloud then. Those who harm the broker itself take it alone, with `write`.
fn broker(test: &str) -> Option<&'static RwLock<Kafka>> {
    static BROKER: OnceLock<Result<RwLock<Kafka>, String>> = OnceLock::new();
    match BROKER.get_or_init(|| Kafka::start_as(Setup::new().proxied()).map(RwLock::new)) {
        Ok(broker) => Some(broker),
        Err(reason) => {
            missing(test, reason);
            None
        }
    }
}

async fn for_all(test: &str) -> Option<RwLockReadGuard<'static, Kafka>> {
    Some(alone(test).await?.downgrade())
}

/// The broker for one test alone, running, whatever a failed test did to it.
pub async fn alone(test: &str) -> Option<RwLockWriteGuard<'static, Kafka>> {
    let mut kafka = broker(test)?.write().await;
    if !kafka.is_running() {
        kafka.restart();
    }
    kafka.proxy().set(Weather::Fair);
    Some(kafka)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_under_load_costs_no_document() {
    const TEST: &str = "a_broker_that_restarts_under_load_costs_no_document";
    let Some(mut kafka) = alone(TEST).await else { return };
    for round in 0..rounds() {
        let place = Place::new(&kafka.bootstrap(), &[&pipeline()]);
        let (_engine, _one, _two) = (place.engine(), place.module("echo", "one"), place.module("echo", "two"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        kafka.stop();
        kafka.restart();
        let mut seconds = vec![work.recovered(Instant::now()).await];
        // A single run leaves the kill to the broker that is away.
        if rounds() > 1 {
            kafka.kill();
            kafka.restart();
            seconds.push(work.recovered(Instant::now()).await);
        }
        work.end("broker stopped, then killed", round, &seconds).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_a_while_costs_no_document() {
    const TEST: &str = "a_broker_that_is_away_for_a_while_costs_no_document";
    let Some(mut kafka) = alone(TEST).await else { return };
    for round in 0..rounds() {
        kafka.kill();
        let place = Place::new(&kafka.bootstrap(), &[&pipeline()]);
        let (mut engine, mut echo) = (place.engine(), place.module("echo", "echo"));
        std::thread::sleep(away());
        for process in [&mut engine, &mut echo] {
            assert!(process.is_running(), "it does not wait for the broker:\n{}", process.output());
        }
        kafka.restart();
        let back = Instant::now();
        let work = Work::begin(&kafka.bootstrap(), place).await;
        let at_start = back.elapsed().as_secs_f64();
        kafka.kill();
        std::thread::sleep(away());
        kafka.restart();
        let in_the_middle = work.recovered(Instant::now()).await;
        work.end(&format!("broker away {:?} at start, then in the middle", away()), round, &[at_start, in_the_middle])
            .await;
        drop((engine, echo));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_stalled_and_slow_connections_cost_no_document() {
    let Some(kafka) = for_all("cut_stalled_and_slow_connections_cost_no_document").await else { return };
    for round in 0..rounds() {
        let place = Place::new(&kafka.proxy().address(), &[&pipeline()]);
        let (_engine, _one, _two) = (place.engine(), place.module("echo", "one"), place.module("echo", "two"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        let mut seconds = Vec::new();
        for _ in 0..3 {
            kafka.proxy().drop_connections();
            seconds.push(work.recovered(Instant::now()).await);
        }
        for (weather, while_it_lasts) in [(Weather::Cut, 6), (Weather::Stalled, 8)] {
            kafka.proxy().set(weather);
            std::thread::sleep(Duration::from_secs(while_it_lasts));
            kafka.proxy().set(Weather::Fair);
            seconds.push(work.recovered(Instant::now()).await);
        }
        // Slow is not away: documents go on coming out.
        kafka.proxy().set(Weather::Slow { delay: Duration::from_millis(100), bytes_per_second: 200_000 });
        seconds.push(work.recovered(Instant::now()).await);
        seconds.push(work.recovered(Instant::now()).await);
        kafka.proxy().set(Weather::Fair);
        work.end("connections dropped 3×, cut 6 s, stalled 8 s, slow", round, &seconds).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_under_load_cost_no_document() {
    let Some(kafka) = for_all("partitions_added_under_load_cost_no_document").await else { return };
    for round in 0..rounds() {
        let place = Place::new(&kafka.bootstrap(), &[&pipeline()]);
        let (_engine, _one, _two) = (place.engine(), place.module("echo", "one"), place.module("echo", "two"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        work.place.wait_for_owners("echo", 2, 4, PATIENCE);
        let said = work.place.dry_run(&pipeline().replace("partitions: 4", "partitions: 8"));
        let topic = work.place.topic(".load.echo");
        for word in [topic.as_str(), "8 partitions instead of 4", "overtake"] {
            assert!(said.contains(word), "it does not warn of {word:?}:\n{said}");
        }
        // The input alone: outputs of one document stay in one partition, whose order is looked at.
        let log = load::log(&kafka.bootstrap()).await;
        let spec = TopicSpec { topic, partitions: 8, replication: None, settings: TopicSettings::default() };
        log.ensure_topic(&spec).await.unwrap();
        let grown = Instant::now();
        work.place.wait_for_owners("echo", 2, 8, PATIENCE);
        let owned = grown.elapsed().as_secs_f64();
        wait_for("documents come from the new partitions", PATIENCE, || {
            let new = work.watch.seen().iter().filter(|seen| seen.source.0 >= 4).map(|seen| seen.source.0).max();
            (new == Some(7)).then_some(())
        });
        work.end("partitions added", round, &[owned, grown.elapsed().as_secs_f64()]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_come_and_go_cost_no_document() {
    let Some(kafka) = for_all("instances_that_come_and_go_cost_no_document").await else { return };
    for round in 0..rounds() {
        let place = Place::new(&kafka.bootstrap(), &[&pipeline()]);
        let (_engine, _stays) = (place.engine(), place.module("echo", "stays"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        let begun = Instant::now();
        let mut guests = Vec::new();
        let mut leavers = Vec::new();
        for n in 0..6 {
            guests.push(work.place.module("echo", &format!("guest-{n}")));
            std::thread::sleep(Duration::from_millis(700));
            if n % 2 == 1 {
                let mut first = guests.remove(0);
                // In turn: one leaves as it should, the next is killed.
                if n % 4 == 1 {
                    first.signal("TERM");
                } else {
                    first.kill();
                }
                leavers.push(first);
            }
        }
        for guest in &guests {
            guest.signal("TERM");
        }
        let storm = begun.elapsed();
        let seconds = work.recovered(Instant::now()).await;
        work.end(&format!("12 rebalances asked for in {storm:.0?}"), round, &[seconds]).await;
        drop((guests, leavers));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_stopped_beyond_its_session_wakes_up_as_a_guest() {
    let Some(kafka) = for_all("an_instance_stopped_beyond_its_session_wakes_up_as_a_guest").await else { return };
    for round in 0..rounds() {
        let place = Place::new(&kafka.bootstrap(), &[&pipeline()]);
        let (_engine, _one, zombie) = (place.engine(), place.module("echo", "one"), place.module("echo", "zombie"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        work.place.wait_for_owners("echo", 2, 4, PATIENCE);
        zombie.stop();
        let stopped = Instant::now();
        // Its partitions move to the other one.
        let sources = |since: Instant| {
            let seen = work.watch.seen();
            let sources: std::collections::BTreeSet<_> =
                seen.iter().filter(|seen| seen.at > since).map(|seen| seen.source.0).collect();
            sources.len()
        };
        let settled = stopped + Duration::from_millis(500);
        wait_for("the other one has all partitions", PATIENCE, || (sources(settled) == 4).then_some(()));
        let moved = stopped.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(2));
        zombie.signal("CONT");
        let woken = Instant::now();
        work.place.wait_for_owners("echo", 2, 4, PATIENCE);
        work.end("instance stopped beyond its session", round, &[moved, woken.elapsed().as_secs_f64()]).await;
    }
}

/// Two pipelines of one module: the topic of one goes away, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_named_and_only_its_step_waits_for_it() {
    let Some(kafka) = for_all("a_deleted_topic_is_named_and_only_its_step_waits_for_it").await else { return };
    for round in 0..rounds() {
        let side = "
pipeline: side
defaults: {partitions: 2}
steps:
  - name: lost
    type: PIPELINE
    module: echo
    topics: IGNORE
    input_kafka_topic: CLUSTER-side-in
    outputs: [{topic: CLUSTER-side-out}]
";
        let place = Place::new(&kafka.bootstrap(), &[&pipeline(), side]);
        let log = load::log(&kafka.bootstrap()).await;
        let make = async |topic| {
            let spec = TopicSpec { topic, partitions: 2, replication: None, settings: TopicSettings::default() };
            log.ensure_topic(&spec).await.unwrap().topic
        };
        let (gone, out) = (make(place.topic("-side-in")).await, make(place.topic("-side-out")).await);
        for rest in ["", ".dlq"] {
            make(place.topic(&format!(".side.lost{rest}"))).await;
        }
        let (_engine, _echo) = (place.engine(), place.module("echo", "echo"));
        let work = Work::begin(&kafka.bootstrap(), place).await;
        let watch = Watch::start(&log, &out).await;
        let first = Load::start(&log, &gone).await;
        watch.recovered(&first, Instant::now(), PATIENCE).await;
        let (_, acknowledged) = first.stop().await;
        watch.complete(&acknowledged, PATIENCE).await;

        log.delete_topic(&gone).await.unwrap();
        let deleted = Instant::now();
        wait_for("status names the deleted topic", PATIENCE, || {
            let step = work.place.step("side", "lost")?;
            step["lastError"].as_str()?.contains(gone.as_str()).then_some(())
        });
        let named = deleted.elapsed();
        // Ten seconds are promised; a machine that runs all tests at once may take longer.
        assert!(named < Duration::from_secs(30), "named after {named:?}");
        work.recovered(deleted).await;

        make(gone.clone()).await;
        let back = Instant::now();
        let before = watch.seen().len();
        let second = Load::start(&log, &gone).await;
        let resumed = watch.recovered(&second, back, PATIENCE).await;
        let (_, acknowledged) = second.stop().await;
        watch.complete(&acknowledged, PATIENCE).await;
        in_order(&watch.seen()[before..]);
        work.end("topic deleted (named, then back)", round, &[named.as_secs_f64(), resumed.as_secs_f64()]).await;
    }
}
