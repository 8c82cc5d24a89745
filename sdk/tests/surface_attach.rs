//! The instance and its engines: slots, sessions with a fake engine, the
//! assignment on disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod surface;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::assignment::list_hash;
use pipedoc_model::names::{ClusterName, Generation, ModuleName, StepId};
use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;
use pipedoc_sdk::attach::{AttachConfig, KeptFile, Runs, Slot, attach};
use surface::engine::{FakeEngine, Silent, serve};
use surface::plans::{assignment, body, module, step};
use tokio_util::sync::CancellationToken;

#[test]
fn surface_two_instances_never_share_a_slot_and_a_restarted_one_finds_its_own() {
    let data = tempfile::tempdir().unwrap();
    let first = Slot::take(data.path(), &module()).unwrap();
    let second = Slot::take(data.path(), &module()).unwrap();
    assert_eq!((first.number(), second.number()), (0, 1));
    assert_ne!(first.id(), second.id());
    assert_ne!(first.folder(), second.folder());
    let other = Slot::take(data.path(), &ModuleName::new("chunker").unwrap()).unwrap();
    assert_eq!(other.number(), 0, "another module has slots of its own");

    let (number, id) = (first.number(), first.id());
    drop(first);
    let again = Slot::take(data.path(), &module()).unwrap();
    assert_eq!((again.number(), again.id()), (number, id));
    assert_eq!(Slot::take(data.path(), &module()).unwrap().number(), 2);
}

#[test]
fn surface_a_data_folder_that_cannot_be_made_is_named() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Slot::take(&file, &module()).unwrap_err().to_string();
    assert!(error.contains("file/instances/parser/0") && error.contains("--data"), "{error}");
}

/// Remembers what it was told to run, and to resume.
#[derive(Default)]
struct FakeRuntime(Mutex<Vec<(Generation, Vec<String>)>>, Mutex<Vec<String>>);

impl Runs for FakeRuntime {
    fn apply(&self, generation: Generation, steps: Vec<StepPlan>) {
        self.0.lock().push((generation, steps.iter().map(|step| step.id.to_string()).collect()));
    }

    fn reports(&self) -> Vec<v1::StepReport> {
        let applied = self.0.lock();
        let steps = applied.last().map(|(_, steps)| steps.clone()).unwrap_or_default();
        steps.into_iter().map(|step| v1::StepReport { step, ..Default::default() }).collect()
    }

    fn resume(&self, step: &StepId) {
        self.1.lock().push(step.to_string());
    }
}

impl FakeRuntime {
    fn generations(&self) -> Vec<u64> {
        self.0.lock().iter().map(|(generation, _)| generation.0).collect()
    }
}

struct Instance {
    runtime: Arc<FakeRuntime>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    fn start(folder: &Path, engine: &str, adjust: impl FnOnce(&mut AttachConfig)) -> Self {
        let runtime = Arc::new(FakeRuntime::default());
        let stop = CancellationToken::new();
        let registration = v1::ServiceRegistration { module: "parser".into(), ..Default::default() };
        let mut config = AttachConfig::new(ClusterName::new("local").unwrap(), module(), registration, "me");
        config.engines = vec![format!("http://{engine}")];
        config.report_every = Duration::from_millis(20);
        config.disk_after = Duration::from_secs(60);
        adjust(&mut config);
        let work = attach(config, KeptFile::in_folder(folder), Arc::<FakeRuntime>::clone(&runtime), stop.clone());
        Self { runtime, stop, task: tokio::spawn(work) }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn surface_an_assignment_is_taken_when_all_its_bodies_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let instance = Instance::start(folder.path(), &address, |config| config.endpoint = "http://here:1".into());
    surface::eventually("attached", || engine.attached() == 1).await;
    let first = engine.last_report();
    assert_eq!((first.instance_id.as_str(), first.generation, first.endpoint.as_str()), ("me", 0, "http://here:1"));
    assert_eq!(first.registration.unwrap().module, "parser");

    engine.send(assignment(3, &["parse", "scan"], &["parse"]));
    let lacking = [body("scan").hash];
    surface::eventually("the body that did not come is reported", || engine.last_report().lacking_hashes == lacking)
        .await;
    assert_eq!(instance.runtime.generations(), [] as [u64; 0], "nothing runs by halves");

    engine.send(assignment(3, &["parse", "scan"], &["scan"]));
    surface::eventually("it runs", || instance.runtime.generations() == [3]).await;
    assert_eq!(instance.runtime.0.lock()[0].1, ["library/parse", "library/scan"]);
    surface::eventually("it is reported", || engine.last_report().generation == 3).await;
    let report = engine.last_report();
    assert_eq!((report.lacking_hashes.len(), report.steps.len(), report.from_disk), (0, 2, false));

    // Bodies that the instance holds need not come again.
    engine.send(assignment(4, &["scan"], &[]));
    surface::eventually("the newer runs", || instance.runtime.generations() == [3, 4]).await;
    let kept = std::fs::read_to_string(KeptFile::in_folder(folder.path()).path()).unwrap();
    assert!(kept.contains("${env:KEY}"), "secrets are kept unexpanded: {kept}");
    instance.stop().await;
}

#[tokio::test]
async fn surface_what_is_to_be_resumed_is_passed_on_and_what_is_no_step_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let instance = Instance::start(folder.path(), &address, |_| {});
    surface::eventually("attached", || engine.attached() == 1).await;
    engine.resume(&["library/parse", "library/NO"]);
    engine.resume(&["library/scan"]);
    surface::eventually("it is told", || *instance.runtime.1.lock() == ["library/parse", "library/scan"]).await;
    assert_eq!(engine.attached(), 1, "the session goes on");
    instance.stop().await;
}

#[tokio::test]
async fn surface_older_generations_other_clusters_and_wrong_bodies_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let instance = Instance::start(folder.path(), &address, |_| {});
    surface::eventually("attached", || engine.attached() == 1).await;
    engine.send(assignment(5, &["parse"], &["parse"]));
    surface::eventually("it runs", || instance.runtime.generations() == [5]).await;

    let older = assignment(4, &[], &[]);
    let foreign = v1::Assignment { cluster: "other".into(), ..assignment(6, &[], &[]) };
    let mut forged = assignment(6, &["scan"], &["scan"]);
    forged.bodies[0].json.push(' ');
    let swapped = v1::Assignment { bodies: vec![body("scan")], ..assignment(6, &["parse"], &[]) };
    let swapped = v1::Assignment {
        steps: vec![v1::AssignedStep { hash: body("scan").hash, ..swapped.steps[0].clone() }],
        ..swapped
    };
    let cases = [
        (older, "generation 4 is older than 5"),
        (foreign, "for cluster \"other\""),
        (forged, "does not have the hash"),
        (swapped, "the body of step library/parse is that of library/scan"),
    ];
    for (assignment, reason) in cases {
        engine.send(assignment);
        surface::eventually(reason, || engine.last_report().refusals.iter().any(|said| said.contains(reason))).await;
    }
    assert_eq!(instance.runtime.generations(), [5], "what ran goes on");
    engine.send(assignment(6, &["parse"], &[]));
    surface::eventually("a good one is taken", || instance.runtime.generations() == [5, 6]).await;
    surface::eventually("and nothing is refused any more", || engine.last_report().refusals.is_empty()).await;
    instance.stop().await;
}

#[tokio::test]
async fn surface_the_kept_assignment_runs_when_no_engine_answers_until_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let stop = CancellationToken::new();
    let address = serve(&engine, stop.clone()).await;
    let instance = Instance::start(folder.path(), &address, |_| {});
    surface::eventually("attached", || engine.attached() == 1).await;
    engine.send(assignment(7, &["parse", "scan"], &["parse", "scan"]));
    surface::eventually("it runs", || instance.runtime.generations() == [7]).await;
    instance.stop().await;
    stop.cancel();

    // Nobody listens there now.
    let silent = Silent::at(&address).await;
    let restarted = Instance::start(folder.path(), &address, |config| {
        config.disk_after = Duration::from_millis(50);
        config.serve = BTreeSet::from([step("scan")]);
    });
    surface::eventually("what was kept runs", || restarted.runtime.generations() == [7]).await;
    assert_eq!(restarted.runtime.0.lock()[0].1, ["library/scan"], "narrowed to what it serves");

    let engine = FakeEngine::default();
    let stop = CancellationToken::new();
    silent.serve(&engine, stop.clone());
    surface::eventually("it attaches again", || engine.attached() == 1).await;
    let report = engine.last_report();
    let held = ["parse", "scan"].map(|step| ("library", step, body(step).hash));
    let held = list_hash(held.iter().map(|(pipeline, step, hash)| (*pipeline, *step, hash.as_str())));
    assert_eq!((report.generation, report.from_disk, report.list_hash), (7, true, held));
    assert_eq!(report.serve, ["library/scan"]);
    engine.send(assignment(6, &[], &[]));
    surface::eventually("older than what is on disk", || engine.last_report().refusals.len() == 1).await;
    engine.send(assignment(8, &["scan"], &[]));
    surface::eventually("the newer takes over", || restarted.runtime.generations() == [7, 8]).await;
    surface::eventually("and is not from disk", || !engine.last_report().from_disk).await;
    restarted.stop().await;
    stop.cancel();
}

#[tokio::test]
async fn surface_a_spoiled_kept_assignment_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeptFile::in_folder(folder.path());
    std::fs::write(file.path(), "{\"generation\": 1,").unwrap();
    assert!(file.load().is_err());
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let instance = Instance::start(folder.path(), &address, |config| config.disk_after = Duration::ZERO);
    surface::eventually("attached", || engine.attached() == 1).await;
    engine.send(assignment(1, &["parse"], &["parse"]));
    surface::eventually("the engine's runs", || instance.runtime.generations() == [1]).await;
    assert_eq!(file.load().unwrap().unwrap().generation, Generation(1), "and is kept in its place");
    instance.stop().await;
}

/// Runs a great many steps, and says so.
struct ManySteps(Mutex<usize>);

impl Runs for ManySteps {
    fn apply(&self, _: Generation, _: Vec<StepPlan>) {}

    fn reports(&self) -> Vec<v1::StepReport> {
        let step = |n: usize| v1::StepReport {
            pipeline: "library".into(),
            step: format!("step-{n}"),
            hash: "0".repeat(64),
            partitions: vec![format!("local.library.step-{n}[0]")],
            ..Default::default()
        };
        (0..*self.0.lock()).map(step).collect()
    }

    fn resume(&self, _: &StepId) {}
}

#[tokio::test]
async fn surface_no_report_is_long_however_many_steps_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let registration = v1::ServiceRegistration { module: "parser".into(), ..Default::default() };
    let mut config = AttachConfig::new(ClusterName::new("local").unwrap(), module(), registration, "me");
    config.engines = vec![format!("http://{address}")];
    config.report_every = Duration::from_millis(20);
    let (runs, stop) = (Arc::new(ManySteps(Mutex::new(2000))), CancellationToken::new());
    let work = attach(config, KeptFile::in_folder(folder.path()), Arc::<ManySteps>::clone(&runs), stop.clone());
    let attached = tokio::spawn(work);
    surface::eventually("all steps are reported", || engine.last_report().steps.len() == 2000).await;
    // An engine that has just started hears this from all instances at once.
    let first = &engine.reports()[0];
    assert!(first.steps.is_empty() && first.registration.is_some() && !first.partial, "{first:?}");
    *runs.0.lock() = 500;
    surface::eventually("what is gone is told", || engine.last_report().steps.len() == 500).await;
    let longest = engine.reports().iter().map(prost::Message::encoded_len).max();
    assert!(longest < Some(10 << 10), "{longest:?}");
    stop.cancel();
    attached.await.unwrap();
}

#[tokio::test]
async fn surface_an_assignment_is_written_again_only_when_it_changed() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("kept");
    let file = KeptFile::in_folder(&place);
    let engine = FakeEngine::default();
    let address = serve(&engine, CancellationToken::new()).await;
    let instance = Instance::start(&place, &address, |_| {});
    surface::eventually("attached", || engine.attached() == 1).await;
    // The folder is not there: what cannot be kept runs all the same.
    engine.send(assignment(1, &["parse"], &["parse"]));
    surface::eventually("it runs", || instance.runtime.generations() == [1]).await;
    std::fs::create_dir(&place).unwrap();
    engine.send(assignment(2, &["parse"], &[]));
    surface::eventually("the next runs", || instance.runtime.generations() == [1, 2]).await;
    assert_eq!(file.load().unwrap().unwrap().generation, Generation(2), "it is kept as soon as it can be");

    // A change elsewhere: a generation that does the same.
    let before = std::fs::metadata(file.path()).unwrap();
    for generation in 3..6 {
        engine.send(assignment(generation, &["parse"], &[]));
    }
    surface::eventually("they run", || instance.runtime.generations() == [1, 2, 3, 4, 5]).await;
    let after = std::fs::metadata(file.path()).unwrap();
    assert_eq!((after.ino(), after.modified().unwrap()), (before.ino(), before.modified().unwrap()));
    engine.send(assignment(6, &["scan"], &["scan"]));
    surface::eventually("a change runs", || instance.runtime.generations().last() == Some(&6)).await;
    assert_eq!(file.load().unwrap().unwrap().generation, Generation(6));
    engine.send(assignment(7, &["scan"], &[]));
    surface::eventually("the same runs on", || instance.runtime.generations().last() == Some(&7)).await;
    instance.stop().await;

    let restarted = Instance::start(&place, &address, |config| config.disk_after = Duration::ZERO);
    surface::eventually("what was kept runs", || restarted.runtime.generations() == [6]).await;
    surface::eventually("attached again", || engine.attached() == 2).await;
    engine.send(assignment(7, &["scan"], &[]));
    surface::eventually("the newest is taken", || restarted.runtime.generations() == [6, 7]).await;
    restarted.stop().await;
}
