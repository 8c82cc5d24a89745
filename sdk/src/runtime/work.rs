//! From a record to the records that come of it: decode, hydrate, the module's
//! stack; what it gave becomes records in [`super::results`].
//!
//! Runs in a task of its own, many at once. Knows nothing of windows, lanes or
//! attempts; says only what became of this one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_model::step::{Format, Hydration, StepPlan};
use pipedoc_proto::PipeDoc;
use pipedoc_telemetry::propagation::continue_trace;
use pipedoc_transport::log::{OutgoingRecord, Record, TopicPartition};
use prost::Message;
use tracing::{Instrument, Span};

use super::claims::{Claims, Lent};
use super::format::{self, Formats, Identity, Told};
use super::hop::{self, root_id};
use super::lanes::LaneId;
use super::pace::Pace;
use super::process::Stack;
use super::results::Made;
use super::route::Router;
use super::topics::{Facts, Topics};
use crate::error::{Error, Result, ResultExt};
use crate::layers::Input;
use crate::module::{Deletion, Step};
use crate::output::Output;

/// A document of so many bytes is small.
const SMALL: usize = 4 << 10;

/// All that the work of a step needs.
pub(crate) struct Workshop {
    pub(crate) plan: Arc<StepPlan>,
    pub(crate) step: Step,
    pub(crate) router: Router,
    /// What the records of its inputs are.
    pub(crate) formats: Formats,
    pub(crate) claims: Arc<Claims>,
    pub(crate) topics: Topics,
    /// The module's stack; none for programs that are no `Module`.
    pub(crate) service: Option<Stack>,
    pub(crate) pace: Pace,
}

/// A record to be worked on.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) record: Arc<Record>,
    pub(crate) source: Arc<TopicPartition>,
    /// What it must stay in order with.
    pub(crate) lane: LaneId,
    /// How many times it was tried before.
    pub(crate) attempt: u32,
}

/// What came of a record.
#[derive(Debug)]
pub(crate) struct Worked {
    /// None where the record itself says it.
    pub(crate) about: Option<Box<About>>,
    pub(crate) records: Vec<OutgoingRecord>,
    /// What was lost although the rest is good.
    pub(crate) partial: Option<Error>,
    /// Names of the outputs that could not carry a deletion.
    pub(crate) unable: Vec<String>,
}

/// Nothing came of a record.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) about: About,
    pub(crate) error: Error,
    /// Not the document's fault: it is tried again for as long as it takes.
    pub(crate) patient: bool,
    /// The failure of a batch as a whole: it says nothing of this one.
    pub(crate) of_batch: bool,
}

impl Failed {
    /// A failure that is the document's own.
    pub(crate) fn new(about: About, error: Error) -> Self {
        Self { about, error, patient: false, of_batch: false }
    }
}

/// Which document a record is about, for events.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    /// Id of the whole document.
    pub(crate) document: String,
    pub(crate) version: i64,
    pub(crate) tombstone: bool,
}

impl About {
    /// What the record itself says, without its value.
    pub(crate) fn of(record: &Record) -> Self {
        let id = hop::document_id(record).unwrap_or_else(|| {
            record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default()
        });
        Self { document: root_id(&id).to_owned(), version: hop::version(record), tombstone: record.value.is_none() }
    }
}

/// A record decoded, with what hydrating it holds in memory until it is done.
struct Ready<'a> {
    input: Input,
    origin: Origin<'a>,
    hydrated: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// What results inherit.
pub(super) struct Origin<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) version: i64,
    /// The record is one of another system.
    pub(super) foreign: bool,
    /// Partition that the record comes from; results without key follow it.
    pub(super) partition: Option<i32>,
    /// The record brought a header that says its format.
    pub(super) told: bool,
}

impl<'a> Origin<'a> {
    pub(super) fn new(id: impl Into<Cow<'a, str>>, version: i64, partition: Option<i32>) -> Self {
        Self { id: id.into(), version, foreign: false, partition, told: false }
    }
}

pub(super) enum Fault {
    /// The document's.
    Own(Error),
    /// The surroundings'.
    Passing(Error),
    /// A batch's, as a whole.
    OfBatch(Error),
    /// There is no memory for it now.
    NoRoom,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

impl Workshop {
    /// Works on one record.
    pub(crate) async fn one(&self, job: &Job, facts: &mut Facts) -> Result<Worked, Failed> {
        let mut about = None;
        let span = self.span(job);
        let result = {
            // Some kilobytes, which stay where they are: moved about, they cost as much as a small module.
            let work = pin!(self.work(job, &mut about, &span, facts));
            if span.is_disabled() { work.await } else { work.instrument(span.clone()).await }
        };
        told(result, about, job)
    }

    async fn work<'a>(
        &self,
        job: &Job,
        about: &mut Option<About>,
        span: &Span,
        facts: &'a mut Facts,
    ) -> Result<Made<'a>, Fault> {
        let mut work = pin!(async {
            let Ready { input, origin, hydrated } = self.ready(job, about, true).await?;
            let step = self.step_at_work();
            let output = self.stack()?.one(input, &step, job.attempt, span).await?;
            Ok::<_, Fault>((output, origin, hydrated, step))
        });
        let (output, origin, _hydrated, _step) = match futures::poll!(work.as_mut()) {
            Poll::Ready(done) => done?,
            Poll::Pending => {
                facts.forget();
                work.await?
            }
        };
        self.finish(job, &origin, output, span, facts).await
    }

    /// Works on records that share a batch; one result for each, in order.
    /// Tombstones among them are told to the module in their place. What the
    /// batch refers to may not fit into memory at once: then it is worked on in
    /// several pieces.
    pub(crate) async fn batch(&self, jobs: &[Job]) -> Vec<Result<Worked, Failed>> {
        let span = jobs.first().map_or_else(Span::none, |job| self.span(job));
        let work = async {
            let mut results = Vec::with_capacity(jobs.len());
            let mut failed_lanes = HashSet::new();
            while let Some(rest) = jobs.get(results.len()..).filter(|rest| !rest.is_empty()) {
                results.extend(self.piece(rest, &mut failed_lanes, &span).await);
            }
            results
        };
        work.instrument(span.clone()).await
    }

    /// Works on as many records of a batch as fit into memory, at least one. Those
    /// of lanes that have failed are left alone: they do not count as done.
    async fn piece(
        &self,
        jobs: &[Job],
        failed_lanes: &mut HashSet<LaneId>,
        span: &Span,
    ) -> Vec<Result<Worked, Failed>> {
        let (mut ready, mut abouts) = (Vec::new(), Vec::new());
        for job in jobs {
            let mut about = None;
            match self.ready(job, &mut about, ready.is_empty()).await {
                Err(Fault::NoRoom) => break,
                result => ready.push(result),
            }
            abouts.push(about);
        }
        let jobs = &jobs[..ready.len()];
        let step = self.step_at_work();
        let outputs = self.call_batch(jobs, &mut ready, failed_lanes, &step, span).await;
        let (mut results, mut facts) = (Vec::with_capacity(jobs.len()), Facts::default());
        for (((job, ready), output), about) in jobs.iter().zip(ready).zip(outputs).zip(abouts) {
            let made = match (ready, output) {
                (Err(fault), _) => Err(fault),
                (Ok(ready), Some(Ok(output))) => self.finish(job, &ready.origin, output, span, &mut facts).await,
                (Ok(_), Some(Err(fault))) => Err(fault),
                (Ok(_), None) => Err(Fault::Own(no_answer())),
            };
            if made.is_err() {
                failed_lanes.insert(job.lane);
            }
            results.push(told(made, about, job));
        }
        results
    }

    /// Hands what is ready to the module, documents together, deletions alone, in
    /// order. Takes the inputs out of `ready`.
    async fn call_batch(
        &self,
        jobs: &[Job],
        ready: &mut [Result<Ready<'_>, Fault>],
        failed_lanes: &mut HashSet<LaneId>,
        step: &Step,
        span: &Span,
    ) -> Vec<Option<Result<Output, Fault>>> {
        let attempt = jobs.iter().map(|job| job.attempt).max().unwrap_or(0);
        let mut outputs: Vec<Option<Result<Output, Fault>>> = jobs.iter().map(|_| None).collect();
        let mut docs: Vec<(usize, PipeDoc)> = Vec::new();
        for (at, (ready, job)) in ready.iter_mut().zip(jobs).enumerate() {
            let Ok(ready) = ready else {
                failed_lanes.insert(job.lane);
                continue;
            };
            if failed_lanes.contains(&job.lane) {
                continue;
            }
            match std::mem::replace(&mut ready.input, Input::Batch(Vec::new())) {
                Input::Document(doc) => docs.push((at, doc)),
                Input::Deletion(deletion) => {
                    self.call_documents(jobs, std::mem::take(&mut docs), attempt, step, span, &mut outputs).await;
                    let failed = |(job, output): (&Job, &Option<Result<_, _>>)| {
                        matches!(output, Some(Err(_))).then_some(job.lane)
                    };
                    failed_lanes.extend(jobs.iter().zip(&outputs).filter_map(failed));
                    if failed_lanes.contains(&job.lane) {
                        continue;
                    }
                    let input = Input::Deletion(deletion);
                    let answer = async { self.stack()?.one(input, step, attempt, span).await }.await;
                    outputs[at] = Some(answer.map_err(Fault::Own));
                }
                Input::Batch(_) => {}
            }
        }
        self.call_documents(jobs, docs, attempt, step, span, &mut outputs).await;
        outputs
    }

    async fn call_documents(
        &self,
        jobs: &[Job],
        docs: Vec<(usize, PipeDoc)>,
        attempt: u32,
        step: &Step,
        span: &Span,
        outputs: &mut [Option<Result<Output, Fault>>],
    ) {
        if docs.is_empty() {
            return;
        }
        let (places, docs): (Vec<usize>, Vec<PipeDoc>) = docs.into_iter().unzip();
        let step = step.for_batch(places.iter().filter_map(|place| Some(jobs.get(*place)?.lane)).collect());
        let answer = async { self.stack()?.batch(docs, &step, attempt, span).await }.await;
        let error = match answer {
            Ok(results) if results.len() == places.len() => {
                for (place, result) in places.into_iter().zip(results) {
                    outputs[place] = Some(result.map_err(Fault::Own));
                }
                return;
            }
            Ok(results) => {
                let found = results.len();
                Error::permanent(format!("process_batch gave {found} results for {} documents", places.len()))
                    .with_kind("wrong-answer")
            }
            Err(error) => error,
        };
        // One error for all: each gets its words. Which of several is to blame is
        // not known.
        let fault = if jobs.len() > 1 { Fault::OfBatch } else { Fault::Own };
        for place in places {
            outputs[place] = Some(Err(fault(error.duplicate())));
        }
    }

    /// Partitions of each topic that the step may write to, of those that exist.
    pub(crate) async fn partitions(&self) -> pipedoc_transport::log::Result<HashMap<Topic, i32>> {
        let mut partitions = HashMap::new();
        for topic in self.router.topics() {
            if let Some(info) = self.topics.get(topic).await? {
                partitions.insert(topic.clone(), info.partitions);
            }
        }
        Ok(partitions)
    }

    /// The step as the module sees it while it works: with LAZY it may ask for claims.
    /// To be held until what came of it is finished.
    fn step_at_work(&self) -> Cow<'_, Step> {
        match self.plan.hydration {
            Hydration::Lazy => Cow::Owned(self.step.with_claims(Lent::new(Arc::clone(&self.claims)))),
            Hydration::Eager | Hydration::Never => Cow::Borrowed(&self.step),
        }
    }

    fn stack(&self) -> Result<&Stack> {
        let missing = || Error::permanent("this module takes no documents").with_kind("wrong-module");
        self.service.as_ref().ok_or_else(missing)
    }

    /// A hop of the record's trace, where somebody takes spans of single records:
    /// they cost as much as a small module does. Elsewhere the trace passes through
    /// as it came, and lines are told within the step's span.
    fn span(&self, job: &Job) -> Span {
        let span =
            tracing::debug_span!("process", step = %self.plan.id, source = %job.source, offset = job.record.offset);
        continue_trace(&span, &job.record.headers);
        span
    }

    /// Decodes a record and reads its claims back.
    async fn ready<'a>(&self, job: &'a Job, about: &mut Option<About>, waits: bool) -> Result<Ready<'a>, Fault> {
        let record = &job.record;
        self.check_hops(record)?;
        let told = self.formats.of(&job.source.topic, record);
        if told.format != Format::Pipedoc {
            return self.foreign(job, told, about, waits).await;
        }
        let partition = Some(job.source.partition);
        let Some(value) = &record.value else {
            let id = hop::document_id(record).ok_or_else(nameless)?;
            let version = hop::version(record);
            let origin = Origin { told: told.by_header, ..Origin::new(id.clone(), version, partition) };
            let input = Input::Deletion(Deletion { id, version });
            return Ok(Ready { input, origin, hydrated: None });
        };
        let mut doc = decode(value)?;
        let mut hydrated = None;
        if self.plan.hydration == Hydration::Eager && super::claims::needs_hydration(&doc) {
            let whole = self.claims.hydrate(doc, waits).await.map_err(Fault::of_store)?;
            let (whole, permit) = whole.ok_or(Fault::NoRoom)?;
            (doc, hydrated) = (whole, Some(permit));
        }
        if doc.id.is_empty() {
            return Err(Error::permanent("the document has no id").with_kind("decode").into());
        }
        let said = record.headers.get_str(headers::DOCUMENT_ID).filter(|id| *id == doc.id);
        if said.is_none() || hop::version(record) != doc.version {
            let document = root_id(&doc.id).to_owned();
            *about = Some(About { document, version: doc.version, tombstone: false });
        }
        let id = said.map_or_else(|| Cow::Owned(doc.id.clone()), Cow::Borrowed);
        let origin = Origin { told: told.by_header, ..Origin::new(id, doc.version, partition) };
        Ok(Ready { input: Input::Document(doc), origin, hydrated })
    }

    /// Makes a document of a record of another system.
    async fn foreign<'a>(
        &self,
        job: &'a Job,
        told: Told,
        about: &mut Option<About>,
        waits: bool,
    ) -> Result<Ready<'a>, Fault> {
        let record = &job.record;
        let Identity { id, by_place } = format::identity(record, &job.source);
        let version = hop::version(record);
        let document = root_id(&id).to_owned();
        *about = Some(About { document, version, tombstone: record.value.is_none() });
        let place = Some(job.source.partition);
        let origin = Origin { foreign: true, told: told.by_header, ..Origin::new(id.clone(), version, place) };
        let Some(value) = &record.value else {
            if by_place {
                return Err(nameless().into());
            }
            return Ok(Ready { input: Input::Deletion(Deletion { id, version }), origin, hydrated: None });
        };
        let (mut value, mut hydrated) = (value.clone(), None);
        // A dead letter that was too large for its topic.
        if told.by_header && record.headers.contains(headers::CLAIM) {
            let shelved = self.claims.unshelve(&value, waits).await.map_err(Fault::of_store)?;
            let (whole, permit) = shelved.ok_or(Fault::NoRoom)?;
            (value, hydrated) = (whole, permit);
        }
        let doc = format::decode(told.format, &value, id, record)?;
        Ok(Ready { input: Input::Document(doc), origin, hydrated })
    }

    fn check_hops(&self, record: &Record) -> Result<()> {
        let Some(max) = self.plan.max_hops else { return Ok(()) };
        let hops = hop::hops(record);
        if hops > i64::from(max) {
            return Err(
                Error::permanent(format!("the record has made {hops} steps; max_hops is {max}")).with_kind("max-hops")
            );
        }
        Ok(())
    }
}

impl Fault {
    /// What a store that is away does to a document is not the document's fault.
    pub(super) fn of_store(error: Error) -> Self {
        if error.is_retryable() { Self::Passing(error) } else { Self::Own(error) }
    }

    pub(super) fn about(self, about: About) -> Failed {
        match self {
            Self::Own(error) => Failed::new(about, error),
            Self::OfBatch(error) => Failed { of_batch: true, ..Failed::new(about, error) },
            Self::Passing(error) => Failed { patient: true, ..Failed::new(about, error) },
            Self::NoRoom => {
                let error = Error::retryable("no memory for its claims now");
                Failed { patient: true, ..Failed::new(about, error) }
            }
        }
    }
}

fn decode(value: &Bytes) -> Result<PipeDoc> {
    if value.is_empty() {
        return Err(Error::permanent("the value is empty; a PipeDoc has at least an id").with_kind("decode"));
    }
    // Blobs of a small one are copied: an owner more of the memory that it lies in, which
    // tasks on all cores share with it, costs more.
    let decoded = if value.len() > SMALL { PipeDoc::decode(value.clone()) } else { PipeDoc::decode(&**value) };
    decoded.permanent().context("the value is no PipeDoc").map_err(|error| error.with_kind("decode"))
}

fn nameless() -> Error {
    Error::permanent("a tombstone without key and without pipedoc_document_id names no document").with_kind("decode")
}

/// What came of a record, and about which document: as was found, else as the record says.
fn told(result: Result<Made<'_>, Fault>, about: Option<About>, job: &Job) -> Result<Worked, Failed> {
    match result {
        Ok(made) => Ok(made.about(about.map(Box::new))),
        Err(fault) => Err(fault.about(about.unwrap_or_else(|| About::of(&job.record)))),
    }
}

fn no_answer() -> Error {
    Error::permanent("the module gave no result").with_kind("wrong-answer")
}
