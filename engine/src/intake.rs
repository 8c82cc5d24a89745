//! Puts documents into a step's input topic.
//!
//! The one road on which documents pass an engine: from a caller into the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_model::step::{InputSource, StepPlan, StepType};
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{DeliveryReport, SubmitRequest};
use pipedoc_transport::log::{Delivered, Log, OutgoingRecord, Producer, ProducerConfig};
use pipedoc_transport::objects::{self, Objects};
use tokio::sync::Mutex;

use crate::clock;
use crate::error::Error;
use crate::offload::{Offloaded, offload};
use crate::view::{PipelineView, View};
use pipedoc_model::problem::chain;

/// Sends documents.
pub(crate) struct Intake {
    cluster: ClusterName,
    log: Arc<dyn Log>,
    objects: Arc<Objects>,
    /// Made when the first document comes.
    producer: Mutex<Option<Arc<dyn Producer>>>,
}

impl Intake {
    pub(crate) fn new(cluster: ClusterName, log: Arc<dyn Log>, objects: Arc<Objects>) -> Self {
        Self { cluster, log, objects, producer: Mutex::new(None) }
    }

    /// Sends what a request holds; answers when the log has acknowledged it or
    /// given up on it, each record by itself.
    pub(crate) async fn submit(&self, view: &View, request: SubmitRequest) -> Result<Vec<DeliveryReport>, Error> {
        if request.wait_for_results {
            return Err(Error::NotSupported { field: "wait_for_results" });
        }
        let step = target(view, &request.pipeline, &request.step)?;
        check(&request)?;
        let topic = step.id.input_topic(&self.cluster);
        let mut reports = Vec::with_capacity(request.documents.len() + request.deleted_ids.len());
        let mut records = Vec::with_capacity(reports.capacity());
        // Which report each record belongs to: what could not be stored is not sent.
        let mut sent = Vec::with_capacity(reports.capacity());
        for document in request.documents {
            let (mut report, prepared) = self.of_document(&topic, document, step.claim_threshold).await;
            match prepared {
                Ok(record) => {
                    sent.push(reports.len());
                    records.push(record);
                }
                Err(error) => (report.retryable, report.error) = (error.is_retryable(), chain(&error)),
            }
            reports.push(report);
        }
        for id in request.deleted_ids {
            let key = Bytes::copy_from_slice(id.as_bytes());
            let (report, record) = submission(&topic, id, clock::now_micros(), key, None, &[]);
            sent.push(reports.len());
            records.push(record);
            reports.push(report);
        }
        if records.is_empty() {
            return Ok(reports);
        }
        let producer = self.producer().await?;
        let outcomes = producer.send(records).await?.await;
        for (index, outcome) in sent.into_iter().zip(outcomes) {
            let report = &mut reports[index];
            match outcome {
                Ok(delivered) => fill(report, delivered),
                Err(error) => (report.retryable, report.error) = (error.is_retryable(), chain(&error)),
            }
        }
        Ok(reports)
    }

    async fn of_document(
        &self,
        topic: &Topic,
        mut document: PipeDoc,
        threshold: u64,
    ) -> (DeliveryReport, Result<OutgoingRecord, objects::Error>) {
        if document.version == 0 {
            document.version = clock::now_micros();
        }
        let (id, version) = (document.id.clone(), document.version);
        // Parts stay with their parent.
        let key = if document.parent_id.is_empty() { &document.id } else { &document.parent_id };
        let key = Bytes::copy_from_slice(key.as_bytes());
        match offload(&self.objects, document, threshold).await {
            Ok(Offloaded { value, claims }) => {
                let (report, record) = submission(topic, id, version, key, Some(value), &claims);
                (report, Ok(record))
            }
            Err(error) => (submission(topic, id, version, key, None, &[]).0, Err(error)),
        }
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, Error> {
        let mut producer = self.producer.lock().await;
        if let Some(producer) = &*producer {
            return Ok(Arc::clone(producer));
        }
        let config = ProducerConfig { client_id: "pipedoc-intake".into(), settings: BTreeMap::new() };
        let made = self.log.producer(config).await?;
        Ok(Arc::clone(producer.insert(made)))
    }
}

fn fill(report: &mut DeliveryReport, delivered: Delivered) {
    report.partition = delivered.partition;
    report.offset = delivered.offset;
    report.timestamp = Some(prost_types::Timestamp {
        seconds: delivered.timestamp.div_euclid(1000),
        // Below a thousand million, so it always fits.
        nanos: i32::try_from(delivered.timestamp.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    });
}

/// The step that documents go to.
fn target<'a>(view: &'a View, pipeline: &str, step: &str) -> Result<&'a StepPlan, Error> {
    let found = view.pipeline(pipeline).ok_or_else(|| Error::UnknownPipeline {
        found: pipeline.to_owned(),
        known: view.pipelines.iter().map(|pipeline| pipeline.name.to_string()).collect(),
    })?;
    let takers: Vec<_> = takers(found).collect();
    let names = |steps: &[&StepPlan]| steps.iter().map(|step| step.id.step.to_string()).collect::<Vec<_>>();
    if !step.is_empty() {
        let named = takers.iter().find(|taker| taker.id.step.as_str() == step);
        return named.copied().ok_or_else(|| Error::UnknownStep {
            pipeline: found.name.clone(),
            found: step.to_owned(),
            known: names(&takers),
        });
    }
    let entrances: Vec<_> = takers.iter().copied().filter(|taker| !has_predecessor(found, taker)).collect();
    match entrances.as_slice() {
        [only] => Ok(only),
        _ => Err(Error::AmbiguousStep {
            pipeline: found.name.clone(),
            entrances: names(&entrances),
            known: names(&takers),
        }),
    }
}

/// The steps that take documents.
fn takers(pipeline: &PipelineView) -> impl Iterator<Item = &StepPlan> {
    let steps = pipeline.steps.iter().map(|step| &step.plan);
    steps.filter(|step| matches!(step.step_type, StepType::Pipeline | StepType::Sink))
}

fn has_predecessor(pipeline: &PipelineView, step: &StepPlan) -> bool {
    let reads = |topic: &Topic| {
        step.inputs.iter().any(|input| matches!(&input.source, InputSource::Topic(source) if source == topic))
    };
    let others = pipeline.steps.iter().filter(|other| other.plan.id != step.id);
    others.flat_map(|other| &other.plan.outputs).any(|output| reads(&output.topic))
}

/// Refuses what can never be right, with every reason.
fn check(request: &SubmitRequest) -> Result<(), Error> {
    let mut reasons = Vec::new();
    for (n, document) in request.documents.iter().enumerate() {
        let part = !document.parent_id.is_empty();
        if document.id.is_empty() {
            reasons.push(format!("documents[{n}].id is empty; every document needs one"));
        } else if !part && document.id.contains('#') {
            reasons.push(format!(
                "documents[{n}].id {:?} holds `#`, which separates a part's number; write it as %23",
                document.id
            ));
        }
        if document.version < 0 {
            reasons.push(format!("documents[{n}].version is {}; it must be 0 (now) or more", document.version));
        }
    }
    for (n, id) in request.deleted_ids.iter().enumerate() {
        if id.is_empty() {
            reasons.push(format!("deleted_ids[{n}] is empty; name a document"));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Error::Invalid(reasons)) }
}

/// A record to send, and what its report says in any case.
fn submission(
    topic: &Topic,
    id: String,
    version: i64,
    key: Bytes,
    value: Option<Bytes>,
    claims: &[String],
) -> (DeliveryReport, OutgoingRecord) {
    let stream_id = uuid::Uuid::now_v7().simple().to_string();
    let mut headers = Headers::with_capacity(7);
    pipedoc_telemetry::propagation::write_current_trace(&mut headers);
    headers.set(headers::STREAM_ID, stream_id.clone());
    // No step has been made yet.
    headers.set(headers::HOP, "0");
    headers.set(headers::EVENT_TIME, headers::format_time(clock::now_millis()));
    headers.set(headers::DOCUMENT_ID, id.clone());
    headers.set(headers::VERSION, version);
    for claim in claims {
        headers.append(headers::CLAIM, Some(Bytes::copy_from_slice(claim.as_bytes())));
    }
    let mut record = OutgoingRecord::new(topic.clone(), Some(key), value);
    record.headers = headers;
    let topic = topic.to_string();
    (DeliveryReport { document_id: id, version, stream_id, topic, ..DeliveryReport::default() }, record)
}
