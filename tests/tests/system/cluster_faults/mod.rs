//! What happens to engines, instances and Consul, done to a cluster of real processes
//! on Kafka under load.
//!
//! After each fault the same must hold: no acknowledged document is missing, the
//! order of each key is kept apart from redeliveries, the head's generation has only
//! grown, no revision was written twice, and no engine has written as a leader once
//! another led. Each scenario runs `PIPEDOC_TEST_ROUNDS` times (1), and prints how long
//! the recovery took. `PIPEDOC_TEST_AWAY` says for how many seconds Consul is away (5).

mod witness;

use std::time::{Duration, Instant};

use pipedoc_tests::bed::consul::{self, Consul};
use pipedoc_tests::bed::kafka;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::proxy::{Proxy, Weather};
use pipedoc_tests::bed::wait_for;
use serde_json::Value;

use self::witness::Witness;
use super::kafka_place::Place;
use super::work::{PATIENCE, Work, number, pipeline, rounds};

/// A pipeline that is edited again and again, without anybody who runs it.
const SIDE: &str = "
pipeline: side
defaults: {partitions: 1}
steps:
  - {name: idle, type: PIPELINE, module: nobody, concurrency: EDIT}
";

/// Another one leads within this after the end of one that led.
const LEADS_WITHIN: f64 = 30.0;

fn away() -> Duration {
    Duration::from_secs(number("PIPEDOC_TEST_AWAY", 5))
}

/// Two engines and three instances at work.
struct Cluster {
    engines: Vec<Process>,
    instances: Vec<Process>,
    witness: Witness,
    work: Work,
}

impl Cluster {
    /// Starts it, with a way to Consul for each engine.
    async fn start(bootstrap: &str, consul: &Consul, ways: &[String]) -> Self {
        let place = Place::on_consul(bootstrap, ways);
        let witness = Witness::start(consul, place.cluster());
        let engines: Vec<_> = (0..ways.len()).map(|n| place.engine_at(n)).collect();
        for engine in 0..engines.len() {
            wait_for("every engine answers", PATIENCE, || place.status_of(engine));
        }
        place.apply(0, &pipeline(), &[]).unwrap();
        let instances = (0..3).map(|n| place.module("echo", &format!("echo-{n}"))).collect();
        let work = Work::begin(bootstrap, place).await;
        let cluster = Self { engines, instances, witness, work };
        cluster.wait_until_whole();
        cluster
    }

    fn place(&self) -> &Place {
        &self.work.place
    }

    /// Waits until all instances are attached to all engines, run what they say, and
    /// share the partitions.
    fn wait_until_whole(&self) {
        for engine in 0..self.engines.len() {
            wait_for("every instance runs what every engine says", PATIENCE, || {
                let status = self.place().status_of(engine)?;
                let instances = status["instances"].as_array()?;
                let current = |instance: &&Value| instance["generation"] == status["generation"];
                (instances.iter().filter(current).count() == self.instances.len()).then_some(())
            });
        }
        self.place().wait_for_owners("echo", self.instances.len(), 4, PATIENCE);
    }

    /// Which engine leads.
    fn leader(&self) -> usize {
        wait_for("somebody leads", PATIENCE, || self.engine_named(self.witness.leader()?.as_str()))
    }

    fn engine_named(&self, address: &str) -> Option<usize> {
        (0..self.engines.len()).find(|engine| self.place().advertised(*engine) == address)
    }

    /// Seconds from `moment` until an engine leads that is not the one that did.
    fn led_by_another(&self, than: usize, moment: Instant) -> f64 {
        wait_for("another one leads", PATIENCE, || {
            let leader = self.engine_named(self.witness.leader()?.as_str())?;
            (leader != than).then(|| moment.elapsed().as_secs_f64())
        })
    }

    /// Checks all, and goes on. Says how it went.
    async fn check(self, consul: &Consul, fault: &str, round: u64, seconds: &[f64]) -> Self {
        let Self { engines, instances, witness, work } = self;
        let work = work.check(fault, round, seconds).await;
        witness.check(consul);
        Self { engines, instances, witness, work }
    }
}

fn seconds_since(moment: Instant) -> f64 {
    moment.elapsed().as_secs_f64()
}

fn side(edit: usize) -> String {
    SIDE.replace("EDIT", &(edit + 1).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_or_is_cut_off_is_replaced_and_writes_no_more() {
    const TEST: &str = "a_leader_that_dies_or_is_cut_off_is_replaced_and_writes_no_more";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    for round in 0..rounds() {
        let proxies = [(); 2].map(|()| Proxy::start(([127, 0, 0, 1], consul.port()).into()));
        let ways = proxies.each_ref().map(|proxy| format!("http://{}", proxy.address()));
        let mut cluster = Cluster::start(&kafka.bootstrap(), consul, &ways).await;
        cluster.place().apply(1, &side(0), &[]).unwrap();

        // The leader is killed. An apply needs none; what people put waits for the next.
        let first = cluster.leader();
        cluster.engines[first].kill();
        let killed = Instant::now();
        let other = 1 - first;
        let changed = pipeline().replace("delay: 5ms", "delay: 4ms");
        cluster.place().apply(other, &changed, &[]).expect("an apply needs no leader");
        let applied = seconds_since(killed);
        cluster.place().put(consul, "side", &side(1));
        let led = cluster.led_by_another(first, killed);
        wait_for("the new leader takes what was put", PATIENCE, || {
            (cluster.place().revision(other, "side")? == 2).then_some(())
        });
        let taken = seconds_since(killed);
        assert!(rounds() == 1 || led <= LEADS_WITHIN, "{led} s");
        let flows = cluster.work.recovered(Instant::now()).await;
        cluster.engines[first] = cluster.place().engine_at(first);
        cluster.wait_until_whole();
        let words = "leader killed (applied, led, edit taken, flows)";
        let mut cluster = cluster.check(consul, words, round, &[applied, led, taken, flows]).await;

        // The one that leads now is cut off in the middle of its writes, and what it said last comes late.
        let second = cluster.leader();
        let mut edit = 2;
        for _ in 0..3 {
            cluster.place().put(consul, "side", &side(edit));
            edit += 1;
        }
        proxies[second].set(Weather::Stalled);
        let cut = Instant::now();
        cluster.place().put(consul, "side", &side(edit));
        let led = cluster.led_by_another(second, cut);
        let next = 1 - second;
        let before = cluster.place().revision(next, "side").expect("its revision");
        cluster.place().put(consul, "side", &side(edit + 1));
        wait_for("the new leader takes what was put", PATIENCE, || {
            (cluster.place().revision(next, "side")? > before).then_some(())
        });
        let taken = seconds_since(cut);
        assert!(rounds() == 1 || led <= LEADS_WITHIN, "{led} s");
        // In turn: what hung comes through late, or the connections are dead for good.
        if round % 2 == 1 {
            proxies[second].lose_connections();
        }
        proxies[second].set(Weather::Fair);
        let healed = Instant::now();
        cluster.place().put(consul, "side", &side(edit + 2));
        wait_for("both say the same", PATIENCE, || {
            let [one, two] = [0, 1].map(|engine| cluster.place().revision(engine, "side"));
            (one? == two? && one? > before + 1).then_some(())
        });
        let agreed = seconds_since(healed);
        cluster.wait_until_whole();
        let words = "leader cut off (led, edit taken, agreed after it was over)";
        cluster = cluster.check(consul, words, round, &[led, taken, agreed]).await;
        cluster.witness.check_leaders(&cluster.engines);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_die_and_a_consul_that_is_away_or_lost_cost_no_document() {
    const TEST: &str = "instances_that_die_and_a_consul_that_is_away_or_lost_cost_no_document";
    let (Some(kafka), Some(mut consul)) = (kafka::shared(TEST), consul::own(TEST, Consul::start_lasting)) else {
        return;
    };
    for round in 0..rounds() {
        let ways = [consul.address(), consul.address()];
        let cluster = Cluster::start(&kafka.bootstrap(), &consul, &ways).await;
        let cluster = an_instance_dies(cluster, &consul, round).await;
        let cluster = consul_is_away(cluster, &mut consul, round).await;
        let cluster = engines_are_away(cluster, &consul, round).await;
        consul_is_lost(cluster, &mut consul, round).await;
    }
}

async fn an_instance_dies(mut cluster: Cluster, consul: &Consul, round: u64) -> Cluster {
    cluster.instances[0].kill();
    let killed = Instant::now();
    let flows = cluster.work.recovered_everywhere(killed).await;
    cluster.instances[0] = cluster.place().module("echo", "echo-0");
    cluster.wait_until_whole();
    cluster.check(consul, "instance killed (all partitions flow)", round, &[flows]).await
}

async fn consul_is_away(cluster: Cluster, consul: &mut Consul, round: u64) -> Cluster {
    // In turn: it is gone, or it takes connections and says nothing.
    let frozen = round % 2 == 1;
    if frozen {
        consul.process().stop();
    } else {
        consul.kill();
    }
    let gone = Instant::now();
    let while_away = cluster.work.recovered_everywhere(gone).await;
    wait_for("status tells of it", PATIENCE, || {
        let said = cluster.place().status()?["problems"].to_string();
        said.contains(&consul.address()).then_some(())
    });
    std::thread::sleep(away().saturating_sub(gone.elapsed()));
    if frozen {
        consul.process().signal("CONT");
    } else {
        consul.restart();
    }
    let back = Instant::now();
    let changed = pipeline().replace("delay: 5ms", "delay: 3ms");
    wait_for("an apply works again", PATIENCE, || cluster.place().apply(0, &changed, &[]).ok());
    let applied = seconds_since(back);
    cluster.place().put(consul, "side", &side(0));
    wait_for("what is put is taken again", PATIENCE, || cluster.place().revision(1, "side"));
    let taken = seconds_since(back);
    cluster.wait_until_whole();
    let words = format!("Consul away for {:?} (flows meanwhile; applied, edit taken after it is back)", away());
    cluster.check(consul, &words, round, &[while_away, applied, taken]).await
}

/// The instance that restarts is the only one, so that whatever flows goes through it.
async fn engines_are_away(mut cluster: Cluster, consul: &Consul, round: u64) -> Cluster {
    for process in cluster.engines.iter_mut().chain(&mut cluster.instances) {
        process.kill();
    }
    let killed = Instant::now();
    cluster.instances[0] = cluster.place().module("echo", "echo-0");
    let flows = cluster.work.recovered_everywhere(killed).await;
    cluster.instances[0].wait_for_output("running the kept assignment", PATIENCE);
    for n in 1..3 {
        cluster.instances[n] = cluster.place().module("echo", &format!("echo-{n}"));
    }
    for n in 0..2 {
        cluster.engines[n] = cluster.place().engine_at(n);
    }
    let started = Instant::now();
    cluster.wait_until_whole();
    let whole = seconds_since(started);
    let words = "all engines and instances killed (flows from disk; whole after the engines start)";
    cluster.check(consul, words, round, &[flows, whole]).await
}

async fn consul_is_lost(mut cluster: Cluster, consul: &mut Consul, round: u64) {
    let snapshot = cluster.place().path().join("consul.snapshot").to_string_lossy().into_owned();
    consul.run(&["snapshot", "save", &snapshot]);
    // What is restored is older than what instances remember.
    cluster.place().apply(0, &pipeline().replace("delay: 5ms", "delay: 2ms"), &[]).unwrap();
    cluster.wait_until_whole();
    let generation = cluster.witness.generation();
    consul.lose();
    consul.restart();
    cluster.witness.begins_anew();
    let lost = Instant::now();
    let flows = cluster.work.recovered_everywhere(lost).await;
    // Engines and an instance that start now know nothing but what the instance kept.
    for n in 0..2 {
        cluster.engines[n].kill();
        cluster.engines[n] = cluster.place().engine_at(n);
    }
    cluster.instances[0].kill();
    cluster.instances[0] = cluster.place().module("echo", "echo-0");
    wait_for("status shows what runs, from disk, and what is wrong", PATIENCE, || {
        let status = cluster.place().status()?;
        let instances = status["instances"].as_array()?;
        let runs = |one: &&Value| one["generation"].as_str().is_some_and(|found| found.parse() == Ok(generation));
        let from_disk = instances.iter().filter(|one| one["fromDisk"] == true).count();
        let told = status["problems"].to_string().contains("has no head");
        (instances.iter().filter(runs).count() == 3 && from_disk >= 1 && told).then_some(())
    });
    let flows_still = cluster.work.recovered_everywhere(Instant::now()).await;
    // In turn: as the documentation says, by an apply of what ran, or from a snapshot.
    let restored = Instant::now();
    if round.is_multiple_of(2) {
        cluster.place().apply(0, &pipeline(), &[]).unwrap();
    } else {
        consul.run(&["snapshot", "restore", &snapshot]);
    }
    wait_for("the head is above what instances remember", PATIENCE, || {
        (cluster.witness.generation() > generation).then_some(())
    });
    cluster.wait_until_whole();
    let whole = seconds_since(restored);
    let words = "Consul lost (flows; flows with engines that know nothing; whole after it is restored)";
    cluster.check(consul, words, round, &[flows, flows_still, whole]).await;
}
