//! `pipedoc run` as a stranger uses it: real files in, JSON out, on the embedded log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::{missing, pipedoc, wait_for};
use pipedoc_transport::log::{Log, OutgoingRecord, ProducerConfig, TopicSettings, TopicSpec};
use pipedoc_transport::sqlite::{Options, SqliteLog};
use serde_json::Value;

/// A folder with a pipeline over text files and a folder of them.
struct Desk {
    folder: tempfile::TempDir,
}

const PIPELINE: &str = r#"
pipeline: desk
steps:
  - {name: files, type: CONNECTOR, module: filesystem-connector, config: {folder: "${in}"}, outputs: [{to: parse}]}
  - {name: parse, type: PIPELINE, module: parser, outputs: [{to: chunk, when: "doc.body != ''"}]}
  - {name: chunk, type: PIPELINE, module: chunker, config: {size: 200}, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink, config: {url: "${out}"}}
"#;

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        fs::write(folder.path().join("pipeline.yaml"), PIPELINE).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path("in").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, more: &[&str]) -> std::process::Command {
        let mut command = self.text_command();
        command.args(["--output", "json"]).args(more);
        command
    }

    /// The same, speaking to people.
    fn text_command(&self) -> std::process::Command {
        let mut command = pipedoc::command(["run", "."]);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs to the end and gives the summary.
    fn run(&self, more: &[&str]) -> Value {
        let output = self.command(more).output().unwrap();
        summary(&output)
    }

    /// Results by document id.
    fn results(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        read_results(&self.path("out"), &mut found);
        found
    }
}

fn read_results(folder: &Path, found: &mut BTreeMap<String, Value>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            read_results(&path, found);
        } else {
            let doc: Value = serde_json::from_slice(&fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()));
            let id = doc["id"].as_str().unwrap().to_owned();
            assert!(found.insert(id.clone(), doc).is_none(), "{id} is there twice");
        }
    }
}

fn summary(output: &Output) -> Value {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("no summary ({error}):\n{stdout}\n{stderr}"))
}

fn count(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("{name} is missing in {summary}"))
}

fn assert_adds_up(summary: &Value) {
    let sum: u64 = ["delivered", "unchanged", "filtered", "dead_letters"].iter().map(|name| count(summary, name)).sum();
    assert_eq!(count(summary, "found"), sum, "{summary}");
}

#[test]
fn the_library_example_delivers_all_but_the_two_broken_files() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/library");
    let files = fs::read_dir(example.join("in")).unwrap().count() as u64;
    assert!(files >= 12, "{files} example documents");
    let mut command = pipedoc::command(["run", example.to_str().unwrap(), "--output", "json"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    let summary = summary(&output);
    assert_eq!(count(&summary, "found"), files, "{summary}");
    assert_eq!(count(&summary, "delivered"), files - 2, "{summary}");
    assert_eq!(count(&summary, "dead_letters"), 2, "{summary}");

    let mut results = BTreeMap::new();
    read_results(&folder.path().join("out"), &mut results);
    assert_eq!(results.len() as u64, files - 2);
    for (id, doc) in &results {
        let body = doc["body"].as_str().unwrap_or_default();
        assert!(!body.is_empty(), "{id} has no body");
        for chunk in doc["chunks"].as_array().unwrap_or_else(|| panic!("{id} has no chunks")) {
            let offset = |name: &str| chunk["span"][name].as_str().map_or(0, |number| number.parse::<usize>().unwrap());
            assert_eq!(chunk["text"].as_str().unwrap(), &body[offset("start")..offset("end")], "{id}");
        }
    }

    let list = pipedoc::command(["dlq", "list", "--data", "out/.pipedoc", "--output", "json"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let letters: Value = serde_json::from_slice(&list.stdout).unwrap();
    let letters = letters.as_array().unwrap();
    assert_eq!(letters.len(), 2, "{letters:?}");
    for letter in letters {
        assert_eq!(letter["step"], "library/parse");
        assert!(letter["error"].as_str().unwrap().len() > 10, "{letter}");
    }
}

#[test]
fn a_second_run_sends_only_what_changed() {
    let desk = Desk::new();
    for n in 0..20 {
        desk.write(&format!("sub{}/note{n}.txt", n % 3), &format!("note number {n}"));
    }
    let first = desk.run(&[]);
    assert_eq!((count(&first, "found"), count(&first, "delivered")), (20, 20));
    assert_eq!(desk.results().len(), 20);

    let second = desk.run(&[]);
    assert_eq!((count(&second, "unchanged"), count(&second, "delivered")), (20, 0), "{second}");

    desk.write("sub0/note3.txt", "note number three, at length");
    fs::remove_file(desk.path("in/sub1/note4.txt")).unwrap();
    desk.write("new.txt", "a new note");
    let third = desk.run(&[]);
    assert_eq!(count(&third, "found"), 20, "{third}");
    assert_eq!((count(&third, "delivered"), count(&third, "unchanged")), (2, 18), "{third}");
    assert_eq!(count(&third, "deleted"), 1, "{third}");
    let results = desk.results();
    assert_eq!(results.len(), 20);
    assert!(!results.contains_key("sub1/note4.txt"));
    assert_eq!(results["sub0/note3.txt"]["body"], "note number three, at length");
}

#[test]
fn a_bad_document_is_one_dead_letter_and_is_tried_again_only_when_asked() {
    let desk = Desk::new();
    desk.write("good.txt", "all is well");
    desk.write("empty.pdf", "");
    desk.write("cut.pdf", "%PDF-1.7\n1 0 obj\n<< /Type /Catalog");
    // A PDF by name, a text by content: parsed as what it is.
    desk.write("lying.pdf", "plain words under a wrong name");
    let first = desk.run(&[]);
    assert_adds_up(&first);
    assert_eq!((count(&first, "delivered"), count(&first, "dead_letters")), (2, 2), "{first}");
    assert_eq!(desk.results()["lying.pdf"]["body"], "plain words under a wrong name");

    let second = desk.run(&[]);
    assert_eq!((count(&second, "unchanged"), count(&second, "dead_letters")), (4, 0), "{second}");
    let third = desk.run(&["--retry-failed"]);
    assert_eq!((count(&third, "unchanged"), count(&third, "dead_letters")), (2, 2), "{third}");
    desk.write("cut.pdf", "mended: now a text");
    let fourth = desk.run(&[]);
    assert_eq!((count(&fourth, "unchanged"), count(&fourth, "delivered")), (3, 1), "{fourth}");
}

#[test]
fn what_leaves_into_a_topic_is_delivered_and_what_no_output_takes_is_filtered() {
    let desk = Desk::new();
    let text = r#"
pipeline: desk
steps:
  - {name: files, type: CONNECTOR, module: filesystem-connector, config: {folder: "${in}"}, outputs: [{to: sort}]}
  - {name: sort, type: PIPELINE, module: echo, outputs: [{topic: only.out, when: "doc.id != 'b.txt'"}]}
"#;
    fs::write(desk.path("pipeline.yaml"), text).unwrap();
    for name in ["a.txt", "b.txt", "c.txt"] {
        desk.write(name, name);
    }
    let summary = desk.run(&[]);
    assert_adds_up(&summary);
    assert_eq!((count(&summary, "delivered"), count(&summary, "filtered")), (2, 1), "{summary}");
}

#[tokio::test]
async fn documents_that_come_through_a_topic_are_counted_where_they_end() {
    let desk = Desk::new();
    let text = r#"
pipeline: desk
steps:
  - name: sort
    type: PIPELINE
    module: echo
    input_kafka_topic: {topic: papers, format: JSON}
    outputs: [{to: store, when: "doc.data.kind == 'kept'"}, {topic: only.out, when: "doc.data.kind == 'sold'"}]
  - {name: store, type: SINK, module: object-sink, config: {url: "${out}"}}
"#;
    fs::write(desk.path("pipeline.yaml"), text).unwrap();
    let data = desk.path("out/.pipedoc");
    fs::create_dir_all(&data).unwrap();
    let topic = Topic::new("papers").unwrap();
    let log = SqliteLog::open(data.join("log.db"), Options::default()).await.unwrap();
    let spec = TopicSpec { topic: topic.clone(), partitions: 1, replication: None, settings: TopicSettings::default() };
    log.ensure_topic(&spec).await.unwrap();
    let kind = |kind: &str| format!("{{\"kind\": \"{kind}\"}}");
    let papers =
        [("a", kind("kept")), ("b", kind("sold")), ("c", kind("sold")), ("d", kind("lost")), ("torn", "{\"ki".into())];
    let record = |(key, value): (&str, String)| {
        OutgoingRecord::new(topic.clone(), Some(key.to_owned().into()), Some(value.into()))
    };
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for report in producer.send(papers.into_iter().map(record).collect()).await.unwrap().await {
        report.unwrap();
    }
    drop((producer, log));

    let summary = desk.run(&[]);
    let ends = ["found", "delivered", "filtered", "dead_letters"].map(|name| count(&summary, name));
    assert_eq!(ends, [0, 3, 0, 1], "{summary}");
    let list = pipedoc::command(["dlq", "list", "--data", "out/.pipedoc", "--output", "json"])
        .current_dir(desk.folder.path())
        .output()
        .unwrap();
    let letters: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((letters.as_array().unwrap().len(), &letters[0]["document"]), (1, &"torn".into()), "{letters}");
}

#[test]
fn killed_at_any_moment_it_goes_on_and_nothing_is_missing_or_double() {
    let desk = Desk::new();
    for n in 0..300 {
        desk.write(
            &format!("d{}/f{n}.md", n % 7),
            &format!("# Title {n}\n\n{}", "words and more words. ".repeat(n % 40)),
        );
    }
    for round in 0..10_u64 {
        let mut child =
            desk.command(&[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Spread over the start, the middle and the end of a run.
        std::thread::sleep(Duration::from_millis(60 + round * 170));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let last = desk.run(&[]);
    assert_adds_up(&last);
    assert_eq!(count(&last, "found"), 300);
    assert_eq!(count(&last, "dead_letters"), 0, "{last}");
    let results = desk.results();
    assert_eq!(results.len(), 300);
    for n in 0..300 {
        let doc = &results[&format!("d{}/f{n}.md", n % 7)];
        assert!(doc["body"].as_str().unwrap().contains(&format!("Title {n}")), "{doc}");
    }
}

/// Each bad setup is refused with exit code 2 and the words given, and leaves no `out`.
#[test]
fn bad_setups_are_refused_with_a_clear_error_and_nothing_half_done() {
    let good = PIPELINE;
    let cases: [(&str, String, &[&str]); 9] = [
        ("unknown module", good.replace("module: chunker", "module: chunkr"), &["chunkr", "chunker"]),
        ("unknown field", good.replace("outputs: [{to: parse}]", "outputz: [{to: parse}]"), &["outputz", "outputs"]),
        ("wrong type", good.replace("{size: 200}", "{size: many}"), &["size"]),
        ("duplicate key", format!("{good}pipeline: again\n"), &["pipeline", "given twice"]),
        (
            "cycle without max_hops",
            good.replace(
                "config: {size: 200}, outputs: [{to: store}]",
                "config: {size: 200}, outputs: [{to: store}, {to: parse}]",
            ),
            &["cycle", "max_hops"],
        ),
        ("two steps of one name", good.replace("name: chunk,", "name: parse,"), &["parse"]),
        ("an output to a missing step", good.replace("{to: store}", "{to: stoer}"), &["stoer", "store"]),
        ("missing folder", good.replace("${in}", "/does/not/exist"), &["/does/not/exist"]),
        ("no steps", "pipeline: desk\nsteps: []\n".into(), &["steps"]),
    ];
    for (name, text, words) in cases {
        let desk = Desk::new();
        fs::write(desk.path("pipeline.yaml"), &text).unwrap();
        let output = desk.text_command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name} does not say {word:?}:\n{said}");
        }
        assert!(!desk.path("out").exists(), "{name} left something behind");
    }
}

#[test]
fn a_message_that_nobody_reads_does_not_end_the_run() {
    let desk = Desk::new();
    desk.write("a.txt", "a");
    // Gives a warning, so there is something to tell.
    let mut command = desk.command(&["--var", "unused=1"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(count(&summary(&output), "delivered"), 1);
}

#[test]
fn one_folder_for_both_ends_is_refused() {
    let desk = Desk::new();
    desk.write("a.txt", "a");
    std::os::unix::fs::symlink(desk.path("in"), desk.path("other-name")).unwrap();
    for out in ["in", "other-name"] {
        let output = desk.text_command().args(["--out", out]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--in and --out are both"), "{said}");
        assert_eq!(fs::read_dir(desk.path("in")).unwrap().count(), 1, "something was left behind");
    }
    // A folder inside is fine: the connector leaves it out.
    assert_eq!(count(&desk.run(&["--out", "in/out"]), "found"), 1);
    assert_eq!(count(&desk.run(&["--out", "in/out"]), "found"), 1);
}

#[test]
fn a_file_with_five_mistakes_is_told_all_five_with_their_lines() {
    let desk = Desk::new();
    let text = r#"pipeline: Desk
steps:
  - {name: files, type: CONNECTOR, module: filesystem-connector, config: {folder: "${in}"}, outputs: [{to: pars}]}
  - {name: parse, type: PIPELINE, module: parser, timeot: 60s, outputs: [{to: chunk, when: "doc.bodi != ''"}]}
  - {name: chunk, type: PIPELINE, module: chunker, config: {size: -4}, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink, config: {url: "${out}"}}
"#;
    fs::write(desk.path("pipeline.yaml"), text).unwrap();
    let output = desk.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = value["problems"].as_array().unwrap();
    let lines: Vec<_> = problems.iter().map(|problem| problem["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [1, 3, 4, 4, 5], "{problems:#?}");
}

#[test]
fn a_log_file_that_is_something_else_is_not_touched() {
    let desk = Desk::new();
    desk.write("a.txt", "a");
    fs::create_dir_all(desk.path("out/.pipedoc")).unwrap();
    let other = desk.path("out/.pipedoc/log.db");
    fs::write(&other, "the only copy of my novel, which is long enough to be a page of text\n".repeat(99)).unwrap();
    let before = fs::read(&other).unwrap();
    let output = desk.text_command().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("log.db") && said.contains("not a PipeDoc log"), "{said}");
    assert_eq!(fs::read(&other).unwrap(), before);
}

#[test]
fn a_damaged_log_ends_the_run_with_an_error_that_names_it() {
    let desk = Desk::new();
    for n in 0..40 {
        desk.write(&format!("f{n}.txt"), &format!("text {n}"));
    }
    desk.run(&[]);
    // The first pages tell what the file is; the state and the records lie in the others.
    let file = desk.path("out/.pipedoc/log.db");
    let mut content = fs::read(&file).unwrap();
    let kept = content.len() / 2;
    content[kept..].fill(0xA5);
    fs::write(&file, &content).unwrap();
    for name in ["log.db-wal", "log.db-shm"] {
        let _ = fs::remove_file(desk.path("out/.pipedoc").join(name));
    }
    desk.write("new.txt", "one more");
    let mut child = desk.text_command().stderr(std::process::Stdio::piped()).spawn().unwrap();
    let ended = wait_for("the run ends", Duration::from_secs(60), || child.try_wait().unwrap());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("log.db") && said.contains("damaged"), "{said}");
}

/// In a mount namespace of its own, where a small tmpfs can be mounted and grown.
#[test]
fn a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room() {
    let namespace = ["--map-root-user", "--mount"];
    let can = std::process::Command::new("unshare").args(namespace).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        missing("a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room", "no mount namespaces (unshare)");
        return;
    }
    let desk = Desk::new();
    for n in 0..120 {
        desk.write(&format!("f{n}.txt"), &format!("line {n} of words\n").repeat(4_000));
    }
    let small = desk.path("small");
    fs::create_dir(&small).unwrap();
    let script = r#"
        mount -t tmpfs -o size=4m tmpfs "$1" || exit 99
        "$2" run . --out "$1/out"; echo "first: $?"
        mount -o remount,size=500m "$1" || exit 99
        "$2" run . --out "$1/out" --output json; echo "second: $?"
        cd "$1/out" && find . -name '*.json' -not -path './.*' | wc -l
    "#;
    let output = std::process::Command::new("unshare")
        .args(namespace)
        .args(["sh", "-c", script, "sh"])
        .arg(&small)
        .arg(pipedoc::binary())
        .current_dir(desk.folder.path())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("first: 1") && said.contains("second: 0"), "{said}");
    // Whether the log or the sink meets the end of the disk first, its file is named.
    let why = ["disk is full", "No space left on device"];
    assert!(why.iter().any(|why| said.contains(why)) && said.contains(small.to_str().unwrap()), "{said}");
    assert!(said.contains("\n120\n"), "not every document is stored:\n{said}");
}

#[test]
fn only_one_run_works_in_a_data_folder() {
    let desk = Desk::new();
    for n in 0..200 {
        desk.write(&format!("f{n}.txt"), "text");
    }
    let mut first =
        desk.command(&[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    // Made by whom the folder is.
    let log = desk.path("out/.pipedoc/log.db");
    wait_for("the first run has begun", Duration::from_secs(60), || log.exists().then_some(()));
    let second = desk.text_command().output().unwrap();
    let still_at_work = first.try_wait().unwrap().is_none();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!still_at_work || said.contains("another `pipedoc run` is at work"), "{said}");
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_new_module_passes_its_test_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let made = pipedoc::command(["new", "module", "shout"]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tested = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // Its dependencies are those of the workspace, built already in this profile.
        .args(["test", "--offline", "--config", "profile.dev.debug='line-tables-only'"])
        .args(["--config", "profile.dev.package.'*'.debug=false", "--target-dir"])
        .arg(checkout.join("target"))
        .current_dir(folder.path().join("shout"))
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&tested.stdout), String::from_utf8_lossy(&tested.stderr));
    assert!(tested.status.success(), "{said}");
    assert!(said.contains("the_prefix_comes_before_the_title ... ok"), "{said}");
}
