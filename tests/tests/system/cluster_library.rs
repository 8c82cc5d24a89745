//! The library example as processes of their own, on one machine's parts and on those
//! of many machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{consul, kafka, wait_for};
use serde_json::Value;

use super::kafka_place::Place;
use super::kafka_tools::results;
use super::work::PATIENCE;

/// The example's processes, each told by the engine what to do.
fn start(place: &Place) -> Vec<Process> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/library");
    let engine = place.engine();
    wait_for("the engine answers", PATIENCE, || place.status());
    let text = fs::read_to_string(library.join("pipeline.yaml")).unwrap();
    let (input, out) = (library.join("in"), place.path().join("out"));
    fs::create_dir(&out).unwrap();
    let variables = [("in", input.to_str().unwrap()), ("out", out.to_str().unwrap())];
    place.apply(0, &text, &variables).unwrap();
    let modules = ["filesystem-connector", "parser", "chunker", "object-sink"];
    std::iter::once(engine).chain(modules.iter().map(|module| place.module(module, module))).collect()
}

/// What it has stored when nothing is left to do: everything but two broken files.
fn stored(place: &Place) -> BTreeMap<String, Value> {
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/library/in");
    let whole = fs::read_dir(input).unwrap().count() - 2;
    wait_for("all is stored or a dead letter", PATIENCE * 2, || {
        let step = |name: &str| place.step("library", name);
        let dead = step("parse")?["deadLetters"] == "2";
        let idle = ["parse", "chunk", "store"]
            .iter()
            .all(|name| step(name).is_some_and(|step| step["lag"].as_str().is_none_or(|lag| lag == "0")));
        let mut stored = BTreeMap::new();
        results(&place.path().join("out"), &mut stored);
        (dead && idle && stored.len() >= whole).then_some(())
    });
    let mut found = BTreeMap::new();
    results(&place.path().join("out"), &mut found);
    assert_eq!(found.len(), whole);
    found
}

#[test]
fn the_library_gives_the_same_on_a_folder_and_sqlite_as_on_consul_and_kafka() {
    const TEST: &str = "the_library_gives_the_same_on_a_folder_and_sqlite_as_on_consul_and_kafka";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    let one_machine = Place::on_folder(None);
    let many_machines = Place::on_consul(&kafka.bootstrap(), &[consul.address()]);
    let (_one, _many) = (start(&one_machine), start(&many_machines));
    let (one, many) = (stored(&one_machine), stored(&many_machines));
    for (id, doc) in &one {
        assert_eq!(Some(doc), many.get(id), "{id} differs");
    }
    assert_eq!(one.len(), many.len());
}
