//! A pipeline under load, whatever is done to its processes meanwhile, and what must
//! hold afterwards.
//!
//! Scenarios do it `PIPEDOC_TEST_ROUNDS` times (1); more than once, members have the
//! session of production. Knows the pipeline; knows no faults.

use std::time::{Duration, Instant};

use pipedoc_tests::bed::{eventually, wait_for};
use pipedoc_transport::kafka::KafkaLog;
use pipedoc_transport::log::Log;

use super::kafka_place::Place;
use super::load::{self, Load, Watch, in_order};

/// One step that takes its time, so that documents are always at work.
const PIPELINE: &str = "
pipeline: load
defaults: {partitions: 4}
steps:
  - name: echo
    type: PIPELINE
    module: echo
    concurrency: 16
    config: {delay: 5ms}
    outputs: [{topic: CLUSTER-out}]
    kafka: {consumer: {session.timeout.ms: SESSION}}
";

/// How long anything may take that ought to be quick.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A number that says how long a test is.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How often scenarios are run.
pub fn rounds() -> u64 {
    number("PIPEDOC_TEST_ROUNDS", 1)
}

/// The pipeline, with the session that members have by default; shorter where the
/// scenarios run just once.
pub fn pipeline() -> String {
    PIPELINE.replace("SESSION", if rounds() > 1 { "15000" } else { "6000" })
}

/// A pipeline at work: documents go in and come out.
pub struct Work {
    pub place: Place,
    pub load: Load,
    pub watch: Watch,
    log: KafkaLog,
}

impl Work {
    /// Waits for the first documents to come out. The processes run already.
    pub async fn begin(bootstrap: &str, place: Place) -> Self {
        let log = load::log(bootstrap).await;
        let (input, output) = (place.topic(".load.echo"), place.topic("-out"));
        for topic in [&input, &output] {
            eventually("the topics are made", PATIENCE, async || log.topic(topic).await.ok().flatten()).await;
        }
        let watch = Watch::start(&log, &output).await;
        let load = Load::start(&log, &input).await;
        let work = Self { place, load, watch, log };
        work.watch.recovered(&work.load, Instant::now(), PATIENCE).await;
        work
    }

    /// Seconds from `moment` until a document came out that was sent after it.
    pub async fn recovered(&self, moment: Instant) -> f64 {
        self.watch.recovered(&self.load, moment, PATIENCE).await.as_secs_f64()
    }

    /// Seconds from `moment` until such documents came out of every partition.
    pub async fn recovered_everywhere(&self, moment: Instant) -> f64 {
        self.watch.recovered_in(&self.load, moment, 4, PATIENCE).await.as_secs_f64()
    }

    /// Ends the load and checks all that came out. Says how it went.
    pub async fn end(self, fault: &str, round: u64, seconds: &[f64]) {
        let Self { place, load, watch, .. } = self;
        check(&place, load, &watch, fault, round, seconds).await;
    }

    /// As [`Self::end`], and goes on with another load.
    pub async fn check(self, fault: &str, round: u64, seconds: &[f64]) -> Self {
        let Self { place, load, watch, log } = self;
        let sent = check(&place, load, &watch, fault, round, seconds).await;
        let load = Load::go_on(&log, &place.topic(".load.echo"), sent).await;
        Self { place, load, watch, log }
    }
}

/// Gives how many documents were sent so far.
async fn check(place: &Place, load: Load, watch: &Watch, fault: &str, round: u64, seconds: &[f64]) -> u32 {
    let (sent, acknowledged) = load.stop().await;
    watch.complete(&acknowledged, PATIENCE).await;
    let seen = watch.seen();
    let again = in_order(&seen);
    let step = wait_for("status shows a step at work without lag", PATIENCE, || {
        let step = place.step("load", "echo")?;
        (step["state"] == "STEP_STATE_RUNNING" && step["lag"].as_str().is_none_or(|lag| lag == "0")).then_some(step)
    });
    let deads = step["deadLetters"].as_str().unwrap_or("0");
    assert_eq!(deads, "0", "{step}");
    let seconds: Vec<_> = seconds.iter().map(|seconds| format!("{seconds:.1}")).collect();
    eprintln!(
        "{fault}, round {}: recovered in {} s; {sent} sent, {} acknowledged, 0 missing, {again} came again",
        round + 1,
        seconds.join(", "),
        acknowledged.len()
    );
    sent
}
