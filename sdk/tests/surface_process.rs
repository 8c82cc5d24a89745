//! A module as a process: its command line, its life, its end.
//!
//! The processes are this test binary itself: [`child`] does nothing unless it is
//! told to be a module.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod surface;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output as Ended, Stdio};
use std::time::{Duration, Instant};

use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::process::ModuleProcess;
use pipedoc_sdk::serde_json::Value;
use surface::engine::{FakeEngine, Silent, serve};
use surface::plans::assignment;
use tokio_util::sync::CancellationToken;

/// Holds the command line of a child, one argument a line.
const CHILD: &str = "SURFACE_CHILD";

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is looked at")]
struct Config {
    /// How many pages are read.
    pages: u32,
    /// Language that is assumed
    /// when the document tells none.
    #[serde(default = "english")]
    language: String,
}

fn english() -> String {
    "en".into()
}

struct Parser;

impl Module for Parser {
    type Config = Config;
    const NAME: &'static str = "parser";
    const VERSION: &'static str = "4.5.6";
    const DESCRIPTION: &'static str = "reads documents";
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline, StepType::Sink];

    async fn open(_: Config, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        Ok(doc.into())
    }
}

#[test]
fn child() {
    let Ok(args) = std::env::var(CHILD) else { return };
    let code = ModuleProcess::new(Factory::module::<Parser>()).main_from(args.lines());
    let codes = [(ExitCode::SUCCESS, 0), (ExitCode::from(1), 1), (ExitCode::from(2), 2)];
    std::process::exit(codes.into_iter().find(|(known, _)| *known == code).map_or(99, |(_, number)| number));
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIPEDOC_")) {
        command.env_remove(name);
    }
    command.env(CHILD, format!("parser\n{}", args.join("\n")));
    command
}

fn run(args: &[&str]) -> Ended {
    command(args).output().unwrap()
}

#[test]
fn surface_describe_is_the_registration_as_json() {
    let ended = run(&["--describe"]);
    assert_eq!(ended.status.code(), Some(0));
    let text = String::from_utf8(ended.stdout).unwrap();
    // What comes before is said by the test runner.
    let described: Value = pipedoc_sdk::serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    assert_eq!(described["module"], "parser");
    assert_eq!(described["version"], "4.5.6");
    assert_eq!(described["step_types"], pipedoc_sdk::serde_json::json!(["PIPELINE", "SINK"]));
    assert_eq!(described["config_schema"]["properties"]["pages"]["description"], "How many pages are read.");
}

#[test]
fn surface_help_teaches() {
    let ended = run(&["--help"]);
    assert_eq!(ended.status.code(), Some(0));
    let text = String::from_utf8(ended.stdout).unwrap();
    let taught = [
        "parser: reads documents",
        "pages     How many pages are read. [required]",
        "language  Language that is assumed when the document tells none. [default: \"en\"]",
        "PIPEDOC_ENGINES",
        "PIPEDOC_LOG_URL",
        "PIPELINE, SINK",
        "Exit codes: 0 ended as asked",
    ];
    for words in taught {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn surface_wrong_arguments_are_refused() {
    let cases = [
        (["--engines", "localhost"], "http://127.0.0.1:7400"),
        (["--serve", "parse"], "PIPELINE/STEP"),
        (["--cluster", "A b"], "cluster name"),
        (["--log", "redis:x"], "names no log"),
        (["--grace", "soon"], "no duration"),
        (["--log-filter", "a=b=c"], "log filter"),
        (["--unknown", "x"], "--unknown"),
    ];
    for (args, reason) in cases {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("data");
        let ended = run(&[args[0], args[1], "--data", folder.to_str().unwrap()]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(reason), "{args:?}: {said}");
        assert!(!folder.exists(), "nothing is done");
    }
}

#[test]
fn surface_what_cannot_be_opened_is_named() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("log.db");
    std::fs::write(&log, "something else, and long enough to be read as a header of whatever it is\n".repeat(50))
        .unwrap();
    let ended = run(&["--data", data.path().to_str().unwrap()]);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("log.db") && said.contains("not a PipeDoc log"), "{said}");
}

/// A module's process, killed when the test ends before it.
struct Process {
    child: Child,
    said: std::sync::Arc<parking_lot::Mutex<String>>,
}

impl Process {
    fn start(data: &Path, engine: &str) -> Self {
        let engine = format!("http://{engine}");
        let args = ["--data", data.to_str().unwrap(), "--engines", &engine, "--log-format", "json"];
        let mut child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = std::sync::Arc::<parking_lot::Mutex<String>>::default();
        let (mut stderr, heard) = (child.stderr.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                heard.lock().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, said }
    }

    /// A field of the line with this message, once it was said.
    fn says(&self, message: &str, field: &str) -> Option<Value> {
        let said = self.said.lock();
        let lines = said.lines().filter_map(|line| pipedoc_sdk::serde_json::from_str::<Value>(line).ok());
        let line = lines
            .into_iter()
            .find(|line| line["fields"]["message"].as_str().is_some_and(|said| said.contains(message)))?;
        Some(line["fields"][field].clone())
    }

    async fn ready(&self) -> String {
        surface::eventually("the process is ready", || self.says("ready", "instance").is_some()).await;
        self.says("ready", "instance").unwrap().to_string()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("still there:\n{}", self.said.lock());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surface_a_process_attaches_serves_drains_and_goes_on_alone() {
    let data = tempfile::tempdir().unwrap();
    let engine = FakeEngine::default();
    let stop = CancellationToken::new();
    let address = serve(&engine, stop.clone()).await;

    let mut first = Process::start(data.path(), &address);
    let first_id = first.ready().await;
    let second = Process::start(data.path(), &address);
    assert_ne!(second.ready().await, first_id, "two processes never share an identity");
    surface::eventually("both attach", || engine.attached() == 2).await;
    drop(second);

    let endpoint = first.says("ready", "endpoint").unwrap().as_str().unwrap().to_owned();
    let channel = tonic::transport::Channel::from_shared(endpoint.clone()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    drop(health);
    surface::eventually("the endpoint is reported", || engine.last_report().endpoint == endpoint).await;

    // Whoever attached last may be the process that is gone.
    engine.send_all(&assignment(4, &[], &[]));
    let reported = || engine.last_report().generation == 4;
    surface::eventually("the assignment is taken", reported).await;
    first.signal("-TERM");
    assert_eq!(first.ended(), Some(0), "{}", first.said.lock());
    stop.cancel();

    let _silent = Silent::at(&address).await;
    let mut alone = Process::start(data.path(), &address);
    assert_eq!(alone.ready().await, first_id, "a restarted one finds its own");
    surface::eventually("what was kept runs", || alone.says("running the kept assignment", "generation").is_some())
        .await;
    alone.signal("-INT");
    assert_eq!(alone.ended(), Some(0), "{}", alone.said.lock());
}
