//! `pipedoc submit`: sends documents in through an engine, and follows them.
//!
//! Following reads the log: every hop of a document carries its stream id, so the
//! records of a journey are found in the topics of the pipeline's steps. A step is
//! done with a record when its group has committed past it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_model::step::{InputSource, StepPlan, StepType};
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::intake_client::IntakeClient;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_proto::v1::{self, DeliveryReport, GetRequest, StatusRequest, SubmitRequest};
use pipedoc_transport::log::{ConsumerConfig, Event, Log, Start, Subscription, TopicPartition};
use serde::Serialize;
use tonic::transport::Channel;

use crate::args::{OutputFormat, SubmitArgs};
use crate::exit::Refused;
use crate::show::{say, tell};
use crate::{connect, modules};

/// Runs the command.
pub async fn main(args: SubmitArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    if args.id.is_some() && args.files.len() > 1 {
        return Err(Refused("--id names one document; give one file with it".into()).into());
    }
    let documents = args.files.iter().map(|file| document(file, args.id.as_deref())).collect::<Result<Vec<_>, _>>()?;
    let channel = connect::engine(&args.engine.engine).await?;
    let follower = if args.follow { Some(Follower::start(&args, channel.clone()).await?) } else { None };

    let request = SubmitRequest {
        pipeline: args.pipeline.clone(),
        step: args.step.clone().unwrap_or_default(),
        documents,
        deleted_ids: Vec::new(),
        wait_for_results: false,
    };
    let sent = Instant::now();
    let mut client =
        IntakeClient::new(channel).max_encoding_message_size(MAX_MESSAGE).max_decoding_message_size(MAX_MESSAGE);
    let reports = client.submit(request).await.map_err(connect::said)?.into_inner().reports;
    let failed = reports.iter().any(|report| !report.error.is_empty());
    if output == OutputFormat::Text {
        for report in &reports {
            say(report, sent.elapsed());
        }
    }
    let mut hops = Vec::new();
    let mut arrived = true;
    if let Some(follower) = follower {
        let streams = reports.iter().filter(|report| report.error.is_empty()).map(|report| report.stream_id.clone());
        (hops, arrived) = follower.follow(streams.collect(), Duration::from_secs(args.timeout), output).await?;
    }
    // Topics are read side by side: what was written later may be read first.
    hops.sort_by_key(|hop| (hop.written_ms, hop.hop));
    if output == OutputFormat::Json {
        let reports: Vec<_> = reports.iter().map(report_json).collect();
        say!("{}", serde_json::json!({"reports": reports, "hops": hops, "arrived": arrived}));
    }
    if !arrived {
        tell!("not everything arrived within {} s; `pipedoc status` tells which step waits", args.timeout);
    }
    Ok(if failed || !arrived { ExitCode::from(crate::exit::FAILED) } else { ExitCode::SUCCESS })
}

/// Largest gRPC message: a document with its file inline.
const MAX_MESSAGE: usize = 512 << 20;

/// Makes a document of a file.
fn document(file: &Path, id: Option<&str>) -> anyhow::Result<PipeDoc> {
    let bytes = std::fs::read(file).map_err(|error| Refused(format!("{} cannot be read: {error}", file.display())))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with(".pipedoc.json") {
        let text = String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8", file.display()))?;
        let mut doc = pipedoc_proto::json::from_json(&text)
            .map_err(|error| Refused(format!("{} is no PipeDoc in JSON: {error}", file.display())))?;
        if let Some(id) = id {
            doc.id = id.to_owned();
        }
        return Ok(doc);
    }
    let id = id.map_or_else(|| name.replace('%', "%25").replace('#', "%23"), str::to_owned);
    let source_uri = format!("file://{}", std::path::absolute(file)?.display());
    let blob = v1::Blob {
        name,
        size: bytes.len() as u64,
        content: Some(v1::blob::Content::Inline(Bytes::from(bytes))),
        ..v1::Blob::default()
    };
    Ok(PipeDoc { id, source_uri, blobs: vec![blob], ..PipeDoc::default() })
}

fn say(report: &DeliveryReport, took: Duration) {
    if report.error.is_empty() {
        say!(
            "{}: accepted as {}[{}]@{} after {:.1} ms (stream {})",
            report.document_id,
            report.topic,
            report.partition,
            report.offset,
            took.as_secs_f64() * 1e3,
            report.stream_id
        );
    } else {
        say!("{}: refused: {}", report.document_id, report.error);
    }
}

fn report_json(report: &DeliveryReport) -> serde_json::Value {
    serde_json::json!({
        "document_id": report.document_id, "version": report.version, "stream_id": report.stream_id,
        "topic": report.topic, "partition": report.partition, "offset": report.offset,
        "error": report.error, "retryable": report.retryable,
    })
}

/// One stop of a document's journey.
#[derive(Debug, Serialize)]
struct Hop {
    stream_id: String,
    document: String,
    /// How many steps the journey had made.
    hop: i64,
    /// The step that reads the record, or whose dead letter it is.
    step: String,
    topic: String,
    partition: i32,
    offset: i64,
    /// When the record was written, milliseconds since the document was sent.
    written_ms: i64,
    dead_letter: bool,
}

/// Reads along in a pipeline's topics.
struct Follower {
    log: std::sync::Arc<dyn Log>,
    steps: Vec<StepPlan>,
    topics: BTreeSet<Topic>,
    consumer: std::sync::Arc<dyn pipedoc_transport::log::Consumer>,
    began: i64,
}

impl Follower {
    /// Takes its place at the end of every topic of the pipeline.
    async fn start(args: &SubmitArgs, channel: Channel) -> anyhow::Result<Self> {
        let mut client = PipelineControlClient::new(channel);
        let get = GetRequest { pipeline: args.pipeline.clone(), revision: None };
        let pipeline = client.get(get).await.map_err(connect::said)?.into_inner();
        let status = client.status(StatusRequest::default()).await.map_err(connect::said)?.into_inner();
        let variables: BTreeMap<_, _> = pipeline.variables.into_iter().collect();
        let parsed =
            pipedoc_model::pipeline::parse(&pipeline.text, &args.pipeline, &variables, &modules::known(), false)?;
        let steps =
            pipedoc_model::plan::plan(&ClusterName::new(&status.cluster)?, &[parsed.config], &Default::default()).steps;

        let log = connect::existing_log(&args.log, &args.data).await?;
        let mut read = BTreeSet::new();
        for topic in steps.iter().flat_map(topics) {
            if log.topic(&topic).await?.is_some() {
                read.insert(topic);
            }
        }
        // Offsets, not `Latest`: some logs look that up only when reading begins, and
        // then the document may have passed already.
        let assigned = ends(&*log, &read).await?.into_iter().map(|(source, end)| (source, Start::At(end))).collect();
        let consumer = log.consumer(ConsumerConfig::new("pipedoc-submit", Subscription::Assigned(assigned))).await?;
        let began = time_now();
        Ok(Self { log, steps, topics: read, consumer, began })
    }

    /// Follows until every journey has ended in a sink or in dead letters.
    async fn follow(
        self,
        streams: BTreeSet<String>,
        patience: Duration,
        output: OutputFormat,
    ) -> anyhow::Result<(Vec<Hop>, bool)> {
        let deadline = Instant::now() + patience;
        let mut hops: Vec<Hop> = Vec::new();
        let mut open: BTreeMap<(String, TopicPartition), i64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        // Ends as they were when nothing was open any more.
        let mut goal: Option<BTreeMap<TopicPartition, i64>> = None;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while Instant::now() < deadline {
            tokio::select! {
                event = self.consumer.next() => {
                    let Event::Records(batch) = event? else { continue };
                    for record in &batch.records {
                        let Some(stream) = record.headers.get_str(headers::STREAM_ID) else { continue };
                        if !streams.contains(stream) {
                            continue;
                        }
                        seen.insert(stream.to_owned());
                        goal = None;
                        let hop = Hop {
                            stream_id: stream.to_owned(),
                            document: record.headers.get_str(headers::DOCUMENT_ID).unwrap_or_default().to_owned(),
                            hop: record.headers.get_i64(headers::HOP).unwrap_or(0),
                            step: self.reader(&batch.source.topic),
                            topic: batch.source.topic.to_string(),
                            partition: batch.source.partition,
                            offset: record.offset,
                            written_ms: record.timestamp - self.began,
                            dead_letter: batch.source.topic.as_str().ends_with(".dlq"),
                        };
                        if output == OutputFormat::Text {
                            let what = if hop.dead_letter { "dead letter of" } else { "waits for" };
                            say!("{:>6} ms  {} {what} {} in {}[{}]@{}", hop.written_ms, hop.document, hop.step, hop.topic, hop.partition, hop.offset);
                        }
                        if !hop.dead_letter {
                            for step in self.steps.iter().filter(|step| topics(step).contains(&batch.source.topic)) {
                                let place = open.entry((step.group.clone(), batch.source.clone())).or_default();
                                *place = (*place).max(record.offset + 1);
                            }
                        }
                        hops.push(hop);
                    }
                }
                _ = look.tick() => {
                    self.settle(&mut open, output).await?;
                    if !open.is_empty() || seen.len() < streams.len() {
                        continue;
                    }
                    // A step writes its results before it commits: when all up to these
                    // ends was read and nothing came, there is nothing more to come.
                    let goal = match &mut goal {
                        Some(goal) => goal,
                        none => none.insert(ends(&*self.log, &self.topics).await?),
                    };
                    let positions = self.consumer.positions();
                    if goal.iter().all(|(source, end)| positions.get(source).is_some_and(|at| at >= end)) {
                        return Ok((hops, true));
                    }
                }
            }
        }
        Ok((hops, false))
    }

    /// Removes what was committed meanwhile.
    async fn settle(
        &self,
        open: &mut BTreeMap<(String, TopicPartition), i64>,
        output: OutputFormat,
    ) -> anyhow::Result<()> {
        let groups: BTreeSet<String> = open.keys().map(|(group, _)| group.clone()).collect();
        for group in groups {
            let committed = self.log.group_offsets(&group).await?;
            let done: Vec<_> = open
                .iter()
                .filter(|((of, partition), place)| {
                    *of == group && committed.get(partition).is_some_and(|committed| committed.offset >= **place)
                })
                .map(|(key, _)| key.clone())
                .collect();
            for key in done {
                open.remove(&key);
                let step = self.steps.iter().find(|step| step.group == group);
                if let (Some(step), OutputFormat::Text) = (step, output) {
                    let what = if step.step_type == StepType::Sink { "stored by" } else { "done in" };
                    say!("{:>6} ms  {what} {}", time_now() - self.began, step.id.step);
                }
            }
        }
        Ok(())
    }

    fn reader(&self, topic: &Topic) -> String {
        let of = |step: &&StepPlan| step.dead_letters == *topic || topics(step).contains(topic);
        let names: Vec<_> = self.steps.iter().filter(of).map(|step| step.id.step.to_string()).collect();
        names.join(", ")
    }
}

/// The ends of all partitions of some topics.
async fn ends(log: &dyn Log, topics: &BTreeSet<Topic>) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
    let mut all = BTreeMap::new();
    for topic in topics {
        let partitions = (0..).zip(log.ends(topic).await?);
        all.extend(partitions.map(|(n, ends)| (TopicPartition::new(topic.clone(), n), ends.end)));
    }
    Ok(all)
}

/// Topics by name in which a step's records lie: its inputs and its dead letters.
fn topics(step: &StepPlan) -> Vec<Topic> {
    let named = step.inputs.iter().filter_map(|input| match &input.source {
        InputSource::Topic(topic) => Some(topic.clone()),
        InputSource::Pattern(_) => None,
    });
    named.chain([step.dead_letters.clone()]).collect()
}

fn time_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
