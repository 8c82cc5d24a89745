//! What `modules/SPEC.md` asks of every module, asked of every module of the tree.
//!
//! The rules carry the numbers of the page. What one module promises beyond them
//! stands in its own tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use pipedoc_model::step::StepType;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, ByteSpan, Chunk, Claim, Data, blob, data};
use pipedoc_sdk::error::{Error, Result};
use pipedoc_sdk::factory::{Documents, Factory, Program};
use pipedoc_sdk::module::{Deletion, Step};
use pipedoc_sdk::output::Content;
use pipedoc_sdk::testing;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// One module, and the least that it must be configured with.
struct Case {
    factory: Factory,
    config: Value,
    folder: TempDir,
}

impl Case {
    fn name(&self) -> String {
        self.factory.info().module.to_string()
    }

    fn step(&self) -> Step {
        testing::step(self.factory.info().step_types[0], &self.folder.path().join("data")).0
    }

    async fn open(&self) -> Program {
        let opened = self.factory.open(self.config.clone(), &self.step()).await;
        opened.unwrap_or_else(|error| panic!("{} does not open with {}: {error}", self.name(), self.config))
    }

    /// Opens with a configuration that must be refused for good.
    async fn refusal(&self, config: &Value) -> Error {
        match self.factory.open(config.clone(), &self.step()).await {
            Ok(_) => panic!("{} takes {config}", self.name()),
            Err(error) => {
                assert!(!error.is_retryable(), "{}: {error} would be tried again", self.name());
                error
            }
        }
    }

    fn properties(&self) -> Map<String, Value> {
        self.factory.info().config_schema["properties"].as_object().cloned().unwrap_or_default()
    }

    fn with(&self, field: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[field] = value;
        config
    }
}

fn cases() -> Vec<Case> {
    let case = |factory, config: fn(&Path) -> Value| {
        let folder = tempfile::tempdir().unwrap();
        Case { factory, config: config(folder.path()), folder }
    };
    let cases = vec![
        case(Factory::connector::<pipedoc_filesystem_connector::FilesystemConnector>(), |path| json!({"folder": path})),
        case(Factory::module::<pipedoc_parser::Parser>(), |_| json!({})),
        case(Factory::module::<pipedoc_chunker::Chunker>(), |_| json!({})),
        case(
            Factory::module::<pipedoc_splitter::Splitter>(),
            |_| json!({"rules": [{"by": "PAGES"}, {"by": "ATTACHMENTS"}, {"by": "ARRAY"}, {"by": "CHUNKS"}, {"by": "MAIL"}], "whole": "whole"}),
        ),
        case(Factory::module::<pipedoc_object_sink::ObjectSink>(), |path| json!({"url": path.join("out")})),
        case(Factory::module::<pipedoc_echo::Echo>(), |_| json!({})),
    ];
    let tested: BTreeSet<_> = cases.iter().map(Case::name).collect();
    let present: BTreeSet<_> = fs::read_dir(modules())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(tested, present, "every crate in modules/ is a case here, by its name");
    cases
}

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("modules")
}

/// Programs that take documents.
async fn takers() -> Vec<(Case, std::sync::Arc<dyn Documents>)> {
    let mut takers = Vec::new();
    for case in cases() {
        if let Program::Documents(program) = case.open().await {
            takers.push((case, program));
        }
    }
    assert!(takers.len() >= 4);
    takers
}

fn doc(id: &str) -> PipeDoc {
    PipeDoc { id: id.to_owned(), version: 1, body: "Some text.".to_owned(), ..PipeDoc::default() }
}

/// Documents that nobody should send, and somebody will.
fn hostile() -> Vec<PipeDoc> {
    let span = |start, end| Chunk { span: Some(ByteSpan { start, end }), ..Chunk::default() };
    let blob = |content, size| Blob { size, content, ..Blob::default() };
    let claim = Claim { store: "none".into(), key: "../../etc/passwd".into(), size: u64::MAX, sha256: "x".into() };
    let with_blob = |blob| PipeDoc { body: String::new(), blobs: vec![blob], ..doc("blob") };
    vec![
        PipeDoc::default(),
        PipeDoc { id: "only-an-id".into(), ..PipeDoc::default() },
        PipeDoc { version: i64::MIN, ..doc("version") },
        doc("../../etc/passwd"),
        doc("/"),
        doc("a\0b\n\u{202e}"),
        doc(&"x".repeat(100_000)),
        PipeDoc { body: "\0\u{feff}\u{10ffff}".repeat(1000), ..doc("odd text") },
        PipeDoc { body: "x".repeat(256 << 10), ..doc("one word") },
        PipeDoc { chunks: vec![span(u64::MAX, 0), span(3, 1_000_000), Chunk::default()], ..doc("spans") },
        with_blob(blob(None, 0)),
        with_blob(blob(None, u64::MAX)),
        with_blob(blob(Some(blob::Content::Inline("".into())), 7)),
        with_blob(blob(Some(blob::Content::Claim(claim)), 1)),
        PipeDoc { data: Some(Data { kind: Some(data::Kind::Json("{not json".into())) }), ..doc("data") },
        PipeDoc { data: Some(Data { kind: None }), ..doc("no data") },
        PipeDoc { parent_id: "a".into(), part: -1, parts: i32::MIN, ..doc("part") },
        PipeDoc { parent_id: "a".into(), part: i32::MAX, parts: 0, ..doc("a#2147483647") },
    ]
}

/// Whoever hangs fails by name, not by a test that never ends.
async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap_or_else(|_| panic!("{what} takes over a minute"))
}

fn is_clear(result: &Result<pipedoc_sdk::output::Output>) -> bool {
    result.as_ref().err().is_none_or(|error| {
        let text = error.to_string();
        !text.trim().is_empty() && !text.ends_with('.') && !error.kind().is_empty()
    })
}

#[test]
fn m1_says_who_it_is() {
    for case in cases() {
        let (name, info) = (case.name(), case.factory.info());
        assert_ne!(info.version, "0.0.0", "{name} has no VERSION");
        assert_eq!(info.version.split('.').count(), 3, "{name}: {} is not semver", info.version);
        assert!(info.description.len() > 20 && info.description.ends_with('.'), "{name}: {:?}", info.description);
        assert!(!info.step_types.is_empty(), "{name} is no type of step");
    }
}

#[test]
fn m2_describes_every_field() {
    fn check(name: &str, path: &str, schema: &Value) {
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], json!(false), "{name}{path} takes unknown fields");
            for (field, schema) in properties {
                let described = schema["description"].as_str().is_some_and(|text| text.len() > 10);
                assert!(described, "{name}{path}.{field} has no doc comment");
                check(name, &format!("{path}.{field}"), schema);
            }
        }
        for key in ["$defs", "anyOf", "oneOf", "allOf"] {
            match &schema[key] {
                Value::Object(schemas) => schemas.iter().for_each(|(n, one)| check(name, &format!("{path}/{n}"), one)),
                Value::Array(schemas) => schemas.iter().for_each(|one| check(name, path, one)),
                _ => {}
            }
        }
    }
    for case in cases() {
        let schema = &case.factory.info().config_schema;
        assert_eq!(schema["type"], "object", "{}", case.name());
        check(&case.name(), "", schema);
    }
}

#[tokio::test]
async fn m3_refuses_a_wrong_configuration_naming_the_field() {
    for case in cases() {
        let error = case.refusal(&case.with("surely_unknown", json!(1))).await;
        assert!(error.to_string().contains("surely_unknown"), "{}: {error}", case.name());
        for field in case.properties().keys() {
            // No field is a list of lists of lists.
            let error = case.refusal(&case.with(field, json!([[[]]]))).await;
            assert!(error.to_string().contains(field.as_str()), "{}.{field}: {error}", case.name());
        }
    }
}

#[tokio::test]
async fn m3_names_every_field_that_is_missing() {
    for case in cases() {
        let required = case.factory.info().config_schema["required"].as_array().cloned().unwrap_or_default();
        if required.is_empty() {
            let opened = case.factory.open(Value::Null, &case.step()).await;
            assert!(opened.is_ok(), "{} needs no configuration, but does not open without", case.name());
            continue;
        }
        let error = case.refusal(&Value::Null).await.to_string();
        assert!(required.iter().all(|field| error.contains(field.as_str().unwrap())), "{}: {error}", case.name());
    }
}

#[tokio::test]
async fn m4_survives_every_document_with_a_result_or_a_clear_error() {
    for (case, program) in takers().await {
        let step = case.step();
        for doc in hostile() {
            let told = format!("{} with document {:.40?}", case.name(), doc.id);
            let result = in_time(&told, program.process(doc, &step)).await;
            assert!(is_clear(&result), "{told}: {result:?}");
        }
    }
}

#[tokio::test]
async fn m5_answers_for_each_document_of_a_batch() {
    for (case, program) in takers().await {
        let step = case.step();
        let docs = hostile();
        let count = docs.len();
        let results = in_time(&case.name(), program.process_batch(docs, &step)).await;
        assert_eq!(results.len(), count, "{}", case.name());
        assert!(results.iter().all(is_clear), "{}", case.name());
        assert!(program.process_batch(Vec::new(), &step).await.is_empty(), "{}", case.name());
    }
}

#[tokio::test]
async fn m6_keeps_id_and_version() {
    for (case, program) in takers().await {
        let chunk = Chunk { text: "Some".into(), span: Some(ByteSpan { start: 0, end: 4 }), ..Chunk::default() };
        let doc = PipeDoc { chunks: vec![chunk], ..doc("folder/a b.txt") };
        let Ok(output) = program.process(doc, &case.step()).await else { continue };
        for item in output.items {
            let sent = match item.content {
                Content::Document(sent) => sent,
                Content::Outdated(id) => {
                    assert_eq!(id, "folder/a b.txt", "{}", case.name());
                    continue;
                }
                Content::Deletion(_) => panic!("{} deletes", case.name()),
            };
            if !sent.parent_id.is_empty() {
                let part = (format!("{}#{}", sent.parent_id, sent.part), sent.part < sent.parts, sent.parent_version);
                assert_eq!(part, (sent.id.clone(), true, 1), "{}", case.name());
            }
            let whole = if sent.parent_id.is_empty() { &sent.id } else { &sent.parent_id };
            assert_eq!((whole.as_str(), sent.version), ("folder/a b.txt", 1), "{}", case.name());
        }
    }
}

#[tokio::test]
async fn m7_passes_deletions_on_or_carries_them_out_again_and_again() {
    for (case, program) in takers().await {
        let (name, step) = (case.name(), case.step());
        let is_sink = case.factory.info().step_types == [StepType::Sink];
        for (id, version) in [("a", 2), ("a", 2), ("a", 0), ("never seen", 5), ("folder/b#3", 1)] {
            let deletion = Deletion { id: id.to_owned(), version };
            let output = in_time(&name, program.deleted(deletion, &step)).await;
            let output = output.unwrap_or_else(|error| panic!("{name} fails at deleting {id}: {error}"));
            let passed: Vec<_> = output
                .items
                .iter()
                .filter_map(|item| match &item.content {
                    Content::Deletion(id) => Some(id.as_str()),
                    Content::Document(_) | Content::Outdated(_) => None,
                })
                .collect();
            assert_eq!(passed, if is_sink { vec![] } else { vec![id] }, "{name}");
        }
    }
}

#[tokio::test]
async fn m8_can_be_dropped_at_any_point_and_asked_again() {
    for (case, program) in takers().await {
        let (name, step) = (case.name(), case.step());
        for _ in 0..20 {
            let mut dropped = pin!(program.process(doc("dropped"), &step));
            // One poll, and no more.
            let _ = std::future::poll_fn(|context| Poll::Ready(dropped.as_mut().poll(context).is_ready())).await;
        }
        let again = in_time(&name, program.process(doc("dropped"), &step)).await;
        assert!(again.is_ok(), "{name}: {again:?}");
    }
}

#[tokio::test]
async fn m9_keeps_steps_apart() {
    for case in cases() {
        let (first, second) = (case.open().await, case.open().await);
        in_time(&case.name(), first.close()).await;
        if let Program::Documents(program) = &second {
            let result = program.process(doc("after"), &case.step()).await;
            assert!(result.is_ok(), "{} ends with another step: {result:?}", case.name());
        }
        in_time(&case.name(), second.close()).await;
    }
}

#[test]
fn m10_has_the_shape_of_all_modules() {
    for case in cases() {
        let folder = modules().join(case.name());
        for file in ["src/lib.rs", "src/config.rs", "src/main.rs", "tests"] {
            assert!(folder.join(file).exists(), "modules/{}/{file} is missing", case.name());
        }
        let main = fs::read_to_string(folder.join("src/main.rs")).unwrap();
        let code = main.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
        assert!(code.count() <= 10, "modules/{}/src/main.rs holds more than a start", case.name());
    }
}
