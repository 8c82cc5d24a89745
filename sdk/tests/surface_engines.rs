//! An instance and several engines: it attaches to all of them, and goes on with
//! those there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod surface;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::{ClusterName, Generation, StepId};
use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;
use pipedoc_sdk::attach::{AttachConfig, KeptFile, Runs, attach};
use surface::engine::{FakeEngine, Silent, serve};
use surface::plans::{assignment, module};
use tokio_util::sync::CancellationToken;

/// Remembers the generations that it was told to run.
#[derive(Default)]
struct Generations(Mutex<Vec<u64>>);

impl Runs for Generations {
    fn apply(&self, generation: Generation, _steps: Vec<StepPlan>) {
        self.0.lock().push(generation.0);
    }

    fn reports(&self) -> Vec<v1::StepReport> {
        Vec::new()
    }

    fn resume(&self, _step: &StepId) {}
}

#[tokio::test]
async fn surface_an_instance_attaches_to_every_engine_and_goes_on_with_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two, three) = (FakeEngine::default(), FakeEngine::default(), FakeEngine::default());
    let stops = [(); 2].map(|()| CancellationToken::new());
    let first = serve(&one, stops[0].clone()).await;
    let second = serve(&two, stops[1].clone()).await;
    // Where the third one will be, nobody listens yet.
    let third = Silent::at("127.0.0.1:0").await;

    let runs = Arc::new(Generations::default());
    let registration = v1::ServiceRegistration { module: "parser".into(), ..Default::default() };
    let mut config = AttachConfig::new(ClusterName::new("local").unwrap(), module(), registration, "me");
    config.engines = [first, second, third.address()].map(|address| format!("http://{address}")).to_vec();
    config.report_every = Duration::from_millis(20);
    config.disk_after = Duration::from_secs(60);
    let stop = CancellationToken::new();
    let attached = tokio::spawn(attach(
        config,
        KeptFile::in_folder(folder.path()),
        Arc::<Generations>::clone(&runs),
        stop.clone(),
    ));
    surface::eventually("attached to both", || one.attached() == 1 && two.attached() == 1).await;

    // The newest generation runs, whoever tells it, and once only.
    one.send(assignment(1, &["parse"], &["parse"]));
    surface::eventually("the first one's runs", || *runs.0.lock() == [1]).await;
    two.send(assignment(2, &["parse"], &[]));
    surface::eventually("the second one's runs", || *runs.0.lock() == [1, 2]).await;
    one.send(assignment(2, &["parse"], &[]));
    surface::eventually("the first hears of it", || one.last_report().generation == 2).await;

    // One goes, and another appears.
    stops[0].cancel();
    two.send(assignment(3, &["parse"], &[]));
    surface::eventually("it goes on with the second", || *runs.0.lock() == [1, 2, 3]).await;
    let back = CancellationToken::new();
    third.serve(&three, back.clone());
    surface::eventually("attached to the third", || three.attached() == 1).await;
    surface::eventually("it is told what runs", || three.last_report().generation == 3).await;
    stops[1].cancel();
    three.send(assignment(4, &["parse"], &[]));
    surface::eventually("it goes on with the third", || *runs.0.lock() == [1, 2, 3, 4]).await;
    stop.cancel();
    attached.await.unwrap();
}
