//! Applying, getting and listing pipelines.

use pipedoc_proto::v1;
use pipedoc_transport::log::Log;
use tonic::Code;

use crate::bed::{Bed, SHELF};

#[tokio::test]
async fn an_applied_pipeline_is_there_with_its_topics_and_its_file() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let answer = engine.apply(SHELF).await;
    assert!(answer.accepted, "{answer:?}");
    assert_eq!((answer.pipeline.as_str(), answer.revision), ("shelf", 1));
    assert!(answer.generation > 0);
    // Both modules are unknown yet: taken, with a warning each.
    assert_eq!(answer.warnings.len(), 2, "{:?}", answer.warnings);

    let got = engine.get("shelf").await.unwrap();
    assert_eq!((got.text.as_str(), got.revision), (SHELF, 1));
    let list = engine.control().list(v1::ListRequest {}).await.unwrap().into_inner().pipelines;
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].pipeline.as_str(), list[0].steps), ("shelf", 2));
    assert!(list[0].applied_at.is_some());

    let topics: Vec<_> = bed.log.topics().await.unwrap().iter().map(ToString::to_string).collect();
    let wanted = ["local.shelf.parse", "local.shelf.parse.dlq", "local.shelf.store", "local.shelf.store.dlq"];
    assert_eq!(topics, wanted);
    engine.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    assert_eq!(std::fs::read_to_string(bed.file("shelf.yaml")).unwrap(), SHELF);

    let again = engine.apply(SHELF).await;
    assert!(again.accepted);
    assert_eq!((again.revision, again.generation), (1, answer.generation), "nothing changed");
}

#[tokio::test]
async fn a_bad_text_is_refused_with_every_reason_and_changes_nothing() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let good = engine.apply(SHELF).await;
    let bad = SHELF
        .replace("partitions: 3", "partitions: many")
        .replace("to: store", "to: stoer")
        .replace("type: SINK", "type: SINK, colour: red");
    let answer = engine.apply(&bad).await;
    assert!(!answer.accepted);
    assert_eq!(answer.errors.len(), 3, "{:#?}", answer.errors);
    for error in &answer.errors {
        assert!(error.line > 0 && error.file == "test.yaml" && !error.message.is_empty(), "{error:?}");
    }
    assert_eq!(engine.get("shelf").await.unwrap().revision, 1);
    assert_eq!(engine.status().await.generation, good.generation);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let request = v1::ApplyRequest { text: SHELF.into(), dry_run: true, ..Default::default() };
    let answer = engine.control().apply(request).await.unwrap().into_inner();
    assert!(answer.accepted && answer.pipeline == "shelf" && answer.revision == 0, "{answer:?}");
    assert_eq!(engine.get("shelf").await.unwrap_err().code(), Code::NotFound);
    assert!(bed.log.topics().await.unwrap().is_empty());
}

#[tokio::test]
async fn variables_belong_to_the_revision() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let text = SHELF.replace("module: object-sink", "module: object-sink, config: {url: \"${out}\"}");
    assert!(!engine.apply(&text).await.accepted, "a variable without value was taken");
    let apply = async |out: &str| {
        let variables = [("out".to_owned(), out.to_owned())].into();
        let request = v1::ApplyRequest { text: text.clone(), variables, ..Default::default() };
        engine.control().apply(request).await.unwrap().into_inner()
    };
    assert_eq!(apply("one").await.revision, 1);
    assert_eq!(apply("two").await.revision, 2, "another value is another revision");
    assert_eq!(engine.get("shelf").await.unwrap().variables["out"], "two");

    // An edit in the folder keeps the values.
    engine.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    bed.write("shelf.yaml", &text.replace("partitions: 3", "partitions: 4"));
    engine.wait_for_status("the edit runs", |status| status.pipelines[0].revision == 3).await;
    assert_eq!(engine.get("shelf").await.unwrap().variables["out"], "two");
}

#[tokio::test]
async fn topics_that_must_exist_are_demanded_before_anything_changes() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let answer = engine.apply(&SHELF.replace("type: SINK", "type: SINK, topics: VERIFY")).await;
    assert!(!answer.accepted);
    assert!(answer.errors.iter().any(|error| error.message.contains("local.shelf.store ")), "{:?}", answer.errors);
    assert!(bed.log.topics().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    let status = engine.get("shelve").await.unwrap_err();
    assert_eq!(status.message(), "no pipeline is named \"shelve\"; there are: shelf");
    let request = v1::StatusRequest { pipeline: "shelve".into() };
    assert_eq!(engine.control().status(request).await.unwrap_err().code(), Code::NotFound);
}
