//! Submitting documents.

use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{self, SubmitRequest};
use prost::Message;
use tonic::Code;

use crate::bed::{Bed, Running, SHELF};

async fn shelf(bed: &Bed) -> Running {
    let engine = bed.engine().await;
    assert!(engine.apply(SHELF).await.accepted);
    engine
}

fn document(id: &str) -> PipeDoc {
    PipeDoc { id: id.into(), title: "A title".into(), ..PipeDoc::default() }
}

async fn submit(engine: &Running, request: SubmitRequest) -> Result<Vec<v1::DeliveryReport>, tonic::Status> {
    engine.intake().submit(request).await.map(|answer| answer.into_inner().reports)
}

#[tokio::test]
async fn a_submitted_document_lies_in_the_topic_with_its_headers() {
    let bed = Bed::new();
    let engine = shelf(&bed).await;
    let part = PipeDoc { parent_id: "whole".into(), part: 1, parts: 2, version: 7, ..document("whole#1") };
    let request = SubmitRequest {
        pipeline: "shelf".into(),
        documents: vec![document("a/b.txt"), part],
        deleted_ids: vec!["old".into()],
        ..Default::default()
    };
    let reports = submit(&engine, request).await.unwrap();
    assert_eq!(reports.len(), 3);
    let records = bed.records("local.shelf.parse").await;
    assert_eq!(records.len(), 3);
    for report in &reports {
        assert_eq!((report.error.as_str(), report.topic.as_str()), ("", "local.shelf.parse"));
        assert!(report.timestamp.is_some() && report.version > 0);
        let (_, record) = records
            .iter()
            .find(|(partition, record)| (*partition, record.offset) == (report.partition, report.offset))
            .expect("a record where the report says");
        let header = |name| record.headers.get_str(name).unwrap_or_default().to_owned();
        assert_eq!(header(headers::DOCUMENT_ID), report.document_id);
        assert_eq!(header(headers::VERSION), report.version.to_string());
        assert_eq!(header(headers::STREAM_ID), report.stream_id);
        assert_eq!(header(headers::HOP), "0");
        assert!(headers::parse_time(&header(headers::EVENT_TIME)).is_some());
        let key = if report.document_id == "whole#1" { "whole" } else { &report.document_id };
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        match &record.value {
            None => assert_eq!(report.document_id, "old"),
            Some(value) => {
                let doc = PipeDoc::decode(value.clone()).unwrap();
                assert_eq!((doc.id, doc.version), (report.document_id.clone(), report.version));
            }
        }
    }
    assert_eq!(reports[1].version, 7, "a version that was given stays");
    let streams: std::collections::BTreeSet<_> = reports.iter().map(|report| &report.stream_id).collect();
    assert_eq!(streams.len(), 3, "every journey has its own id");
}

#[tokio::test]
async fn large_blobs_and_documents_become_claims() {
    let bed = Bed::new();
    let engine = shelf(&bed).await;
    let content = Bytes::from(vec![7; 3 << 20]);
    let blob = v1::Blob {
        name: "big".into(),
        content: Some(v1::blob::Content::Inline(content.clone())),
        ..Default::default()
    };
    let documents = vec![
        PipeDoc { blobs: vec![blob], ..document("blob") },
        PipeDoc { body: "words ".repeat(500_000), ..document("body") },
    ];
    let request = SubmitRequest { pipeline: "shelf".into(), documents, ..Default::default() };
    let reports = submit(&engine, request).await.unwrap();
    assert!(reports.iter().all(|report| report.error.is_empty()), "{reports:?}");
    for (_, record) in bed.records("local.shelf.parse").await {
        let value = record.value.unwrap();
        assert!(value.len() < 4096, "{} bytes in the record", value.len());
        let doc = PipeDoc::decode(value).unwrap();
        let key = record.headers.get_str(headers::CLAIM).unwrap().strip_prefix("default/").unwrap();
        let stored = std::fs::read(bed.data().join("objects").join(key)).unwrap();
        match doc.blobs.first() {
            Some(blob) => {
                assert!(matches!(&blob.content, Some(v1::blob::Content::Claim(claim)) if claim.key == key));
                assert_eq!(stored, content);
            }
            None => assert_eq!(PipeDoc::decode(&*stored).unwrap().body.len(), 3_000_000),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_right_is_refused_whole_with_every_reason() {
    let bed = Bed::new();
    let engine = shelf(&bed).await;
    let documents = vec![document("good"), document(""), document("a#1"), PipeDoc { version: -1, ..document("b") }];
    let request =
        SubmitRequest { pipeline: "shelf".into(), documents, deleted_ids: vec![String::new()], ..Default::default() };
    let status = submit(&engine, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for reason in ["documents[1].id", "documents[2].id", "documents[3].version", "deleted_ids[0]"] {
        assert!(status.message().contains(reason), "{reason} in {}", status.message());
    }
    assert!(bed.records("local.shelf.parse").await.is_empty(), "the good one was sent");
    let request = SubmitRequest { pipeline: "shelf".into(), wait_for_results: true, ..Default::default() };
    assert_eq!(submit(&engine, request).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn steps_are_found_or_the_known_ones_are_named() {
    let bed = Bed::new();
    let engine = shelf(&bed).await;
    let two = "pipeline: two
steps:
  - {name: source, type: CONNECTOR, module: files, outputs: [{to: a}]}
  - {name: a, type: PIPELINE, module: parser, outputs: [{to: c}]}
  - {name: b, type: PIPELINE, module: parser, outputs: [{to: c}]}
  - {name: b2, type: PIPELINE, module: parser, outputs: [{to: c}]}
  - {name: c, type: SINK, module: object-sink}
";
    assert!(engine.apply(two).await.accepted);
    let to = async |pipeline: &str, step: &str| {
        let documents = vec![document("x")];
        let request = SubmitRequest { pipeline: pipeline.into(), step: step.into(), documents, ..Default::default() };
        submit(&engine, request).await.map(|reports| reports[0].topic.clone())
    };
    assert_eq!(to("two", "c").await.unwrap(), "local.two.c", "sinks take documents");
    let status = to("twoo", "").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "no pipeline is named \"twoo\"; there are: shelf, two")
    );
    let status = to("two", "source").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("there are: a, b, b2, c"), "{}", status.message());
    let status = to("two", "").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("(b, b2)"), "{}", status.message());
}

#[tokio::test]
async fn a_record_that_the_log_does_not_take_is_reported_by_itself() {
    let bed = Bed::new();
    let engine = shelf(&bed).await;
    bed.log.faults().fail_acks(1, true);
    let documents = vec![document("a")];
    let request = SubmitRequest { pipeline: "shelf".into(), documents, ..Default::default() };
    let reports = submit(&engine, request).await.unwrap();
    assert!(!reports[0].error.is_empty() && reports[0].retryable, "{:?}", reports[0]);
}
