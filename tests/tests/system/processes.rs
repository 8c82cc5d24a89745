//! Engine and modules as separate processes on one SQLite file.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(90);
const PIPELINE: &str = r#"
pipeline: shelf
defaults: {partitions: 8}
steps:
  - {name: parse, type: PIPELINE, module: parser, outputs: [{to: chunk, when: "doc.body != ''"}]}
  - {name: chunk, type: PIPELINE, module: chunker, config: {size: 100}, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink, config: {url: "OUT"}}
"#;

/// An engine and its address, with the pipeline in its folder.
struct Installation {
    folder: tempfile::TempDir,
    port: u16,
}

impl Installation {
    fn new() -> Self {
        // Built before anything is timed.
        pipedoc::binary();
        let folder = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let installation = Self { folder, port };
        fs::create_dir(installation.path().join("pipelines")).unwrap();
        let text = PIPELINE.replace("OUT", installation.path().join("out").to_str().unwrap());
        fs::write(installation.path().join("pipelines/shelf.yaml"), text).unwrap();
        installation
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn engine(&self) -> Process {
        let listen = format!("127.0.0.1:{}", self.port);
        pipedoc::start("engine", self.path(), ["engine", "--listen", &listen])
    }

    fn module(&self, name: &str, log: &str) -> Process {
        pipedoc::start(log, self.path(), ["module", name, "--engines", &self.address()])
    }

    fn status(&self) -> Option<Value> {
        let output = pipedoc::command(["status", "--output", "json", "--engine", &self.address()]).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until the instances of a module own all eight partitions, divided as `shares` says.
    fn wait_for_shares(&self, module: &str, shares: &[usize], limit: Duration) {
        let mut seen = String::from("no status");
        let waited = catch_unwind(AssertUnwindSafe(|| {
            wait_for(&format!("{module}s share {shares:?}"), limit, || {
                let status = self.status()?;
                seen = format!("{status:#}");
                let mut owned: Vec<usize> = status["instances"]
                    .as_array()?
                    .iter()
                    .filter(|instance| instance["module"] == module)
                    .map(|instance| instance["steps"][0]["partitions"].as_array().map_or(0, Vec::len))
                    .collect();
                owned.sort_unstable();
                (owned == shares).then_some(())
            });
        }));
        if let Err(failure) = waited {
            eprintln!("the last status: {seen}");
            resume_unwind(failure);
        }
    }

    fn submit(&self, name: &str, text: &str, more: &[&str]) -> std::process::Output {
        let file = self.path().join(name);
        fs::write(&file, text).unwrap();
        let address = self.address();
        let mut arguments =
            vec!["submit", "--pipeline", "shelf", "--engine", &address, file.to_str().unwrap(), "--output", "json"];
        arguments.extend(more);
        pipedoc::command(arguments).current_dir(self.path()).output().unwrap()
    }

    fn wait_for_result(&self, name: &str, limit: Duration) -> Value {
        let file = self.path().join("out").join(format!("{name}.json"));
        wait_for(&format!("{} is stored", file.display()), limit, || {
            serde_json::from_slice(&fs::read(&file).ok()?).ok()
        })
    }
}

#[test]
fn two_parsers_share_the_work_and_outlive_each_other_and_the_engine() {
    let place = Installation::new();
    let mut engine = place.engine();
    let _first = place.module("parser", "parser-1");
    let mut second = place.module("parser", "parser-2");
    let _chunker = place.module("chunker", "chunker");
    let _sink = place.module("object-sink", "sink");
    place.wait_for_shares("parser", &[4, 4], LONG);

    let output = place.submit("one.txt", "first words", &["--follow"]);
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(said["arrived"], true, "{said}");
    let steps: Vec<_> = said["hops"].as_array().unwrap().iter().map(|hop| hop["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["parse", "chunk", "store"], "{said}");
    assert_eq!(place.wait_for_result("one.txt", LONG)["body"], "first words");

    // A killed parser's share moves within ten seconds where nothing else is at work.
    second.kill();
    place.wait_for_shares("parser", &[8], Duration::from_secs(30));
    for n in 0..16 {
        let output = place.submit(&format!("after-{n}.txt"), &format!("text {n}"), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for n in 0..16 {
        place.wait_for_result(&format!("after-{n}.txt"), LONG);
    }

    // Killing the engine stops nothing: what was submitted before is worked off, and a
    // parser that starts without an engine goes on from what it kept.
    drop(_first);
    let output = place.submit("waiting.txt", "patient words", &[]);
    assert!(output.status.success());
    engine.kill();
    assert!(place.status().is_none(), "the engine is gone");
    let _again = place.module("parser", "parser-1");
    assert_eq!(place.wait_for_result("waiting.txt", LONG)["body"], "patient words");
}

#[test]
fn an_edited_file_changes_what_runs_and_a_broken_one_does_not() {
    let place = Installation::new();
    let _engine = place.engine();
    let _parser = place.module("parser", "parser");
    place.wait_for_shares("parser", &[8], LONG);
    let generation = |status: &Value| status["generation"].as_str().unwrap().parse::<u64>().unwrap();
    let before = generation(&place.status().unwrap());

    let file = place.path().join("pipelines/shelf.yaml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("module: chunker", "modul: chunker")).unwrap();
    wait_for("the mistake is shown", LONG, || {
        let status = place.status()?;
        status["problems"].to_string().contains("modul").then_some(())
    });
    assert_eq!(generation(&place.status().unwrap()), before, "a broken file changed what runs");

    fs::write(&file, good.replace("size: 100", "size: 50")).unwrap();
    wait_for("the edit runs", LONG, || {
        let status = place.status()?;
        let clean = status["problems"].as_array().is_none_or(Vec::is_empty);
        (generation(&status) > before && clean).then_some(())
    });
}
