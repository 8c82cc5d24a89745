//! From what a module gave to records: route, offload, encode.
//!
//! Knows outputs, claims and what topics take; knows nothing of how records are sent.

use bytes::Bytes;
use pipedoc_model::claim;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::names::Topic;
use pipedoc_model::partition;
use pipedoc_model::step::Format;
use pipedoc_proto::PipeDoc;
use pipedoc_telemetry::propagation::write_trace;
use pipedoc_transport::log::OutgoingRecord;
use tracing::Span;

use super::format;
use super::hop::{self, root_id};
use super::route::{Destination, Incoming};
use super::topics::Facts;
use super::work::{About, Failed, Fault, Job, Origin, Worked, Workshop};
use crate::error::{Error, Result};
use crate::output::{Content, Item, Output};

/// What came of a record so far.
pub(super) struct Made<'a> {
    records: Vec<OutgoingRecord>,
    partial: Option<Error>,
    unable: Vec<String>,
    facts: &'a mut Facts,
}

impl<'a> Made<'a> {
    fn new(partial: Option<Error>, facts: &'a mut Facts) -> Self {
        Self { records: Vec::new(), partial, unable: Vec::new(), facts }
    }

    pub(super) fn about(self, about: Option<Box<About>>) -> Worked {
        Worked { about, records: self.records, partial: self.partial, unable: self.unable }
    }
}

/// A document as its outputs write it: each form at most once, none without need.
#[derive(Default)]
struct Values {
    pipedoc: Option<Bytes>,
    json: Option<Bytes>,
    raw: Option<Bytes>,
    /// Each claim that the values refer to, as headers carry it.
    claims: Vec<String>,
    is_part: bool,
}

impl Values {
    /// The form that one of the outputs wants; `more` of them are to come, and may want
    /// it as well.
    fn take(&mut self, format: Format, more: bool) -> Option<Bytes> {
        let form = match format {
            Format::Pipedoc => &mut self.pipedoc,
            Format::Json => &mut self.json,
            Format::Raw => &mut self.raw,
        };
        if more { form.clone() } else { form.take() }
    }
}

/// What a result goes out with.
struct Outgoing<'a> {
    headers: Headers,
    /// The incoming record's key.
    key: Option<&'a [u8]>,
    origin: &'a Origin<'a>,
}

impl Outgoing<'_> {
    fn incoming(&self) -> Incoming<'_> {
        let foreign = self.origin.foreign.then_some(self.origin.id.as_ref());
        Incoming { headers: &self.headers, key: self.key, foreign }
    }
}

impl Workshop {
    /// Makes records of what the module gave.
    pub(super) async fn finish<'a>(
        &self,
        job: &Job,
        origin: &Origin<'_>,
        output: Output,
        span: &Span,
        facts: &'a mut Facts,
    ) -> Result<Made<'a>, Fault> {
        let mut base = hop::next(&job.record, &hop::Source::new(&job.source, &self.plan.group));
        write_trace(span, &mut base);
        if origin.told {
            base.remove(headers::FORMAT);
        }
        let mut made = Made::new(output.partial, facts);
        let key = job.record.key.as_deref();
        let split = output.items.iter().any(|item| is_part_of(item, &origin.id)).then(|| base.clone());
        let mut items = output.items.into_iter().peekable();
        while let Some(item) = items.next() {
            // Copies cost something on every record; the last one, mostly the only one, needs none.
            let headers = if items.peek().is_some() { base.clone() } else { std::mem::take(&mut base) };
            self.send_on(item, Outgoing { headers, key, origin }, &mut made).await?;
        }
        if let Some(headers) = split {
            self.tell_the_rest(&headers, key, origin, &mut made).await?;
        }
        Ok(made)
    }

    /// Outputs that get nothing of a document that is made into parts may have had parts
    /// of an older version: what is older goes there. Without a version nothing can be
    /// said that would do no harm to parts that come another way.
    async fn tell_the_rest(
        &self,
        headers: &Headers,
        key: Option<&[u8]>,
        origin: &Origin<'_>,
        made: &mut Made<'_>,
    ) -> Result<(), Fault> {
        if origin.version <= 1 {
            return Ok(());
        }
        for (name, topic) in self.router.outputs() {
            let told = made.records.iter().any(|record| record.topic == *topic);
            let info = made.facts.of(&self.topics, topic).await;
            // Parts were never taken there.
            let compacted = info.is_some_and(|info| info.settings.compact == Some(true));
            if !told && !compacted {
                let outgoing = Outgoing { headers: headers.clone(), key, origin };
                self.send_deletion(&origin.id, origin.version - 1, Some(name), outgoing, made).await?;
            }
        }
        Ok(())
    }

    /// Makes records of what a connector brought in. `id` stands for the key that
    /// an incoming record would have.
    pub(crate) async fn bring_in(&self, content: Content, version: i64, span: &Span) -> Result<Worked, Failed> {
        let id = match &content {
            Content::Document(doc) => doc.id.clone(),
            Content::Deletion(id) | Content::Outdated(id) => id.clone(),
        };
        let tombstone = !matches!(content, Content::Document(_));
        let about = About { document: root_id(&id).to_owned(), version, tombstone };
        let mut headers = hop::first(hop::now_millis());
        write_trace(span, &mut headers);
        let mut facts = Facts::default();
        let mut made = Made::new(None, &mut facts);
        let origin = Origin::new(id.as_str(), version, None);
        let outgoing = Outgoing { headers, key: Some(id.as_bytes()), origin: &origin };
        match self.send_on(Item { content, to: None }, outgoing, &mut made).await {
            Ok(()) => Ok(made.about(Some(Box::new(about)))),
            Err(fault) => Err(fault.about(about)),
        }
    }

    async fn send_on(&self, item: Item, outgoing: Outgoing<'_>, made: &mut Made<'_>) -> Result<(), Fault> {
        let to = item.to.as_deref();
        let version = outgoing.origin.version;
        match item.content {
            Content::Document(doc) => self.send_document(doc, to, outgoing, made).await,
            Content::Deletion(id) => self.send_deletion(&id, version, to, outgoing, made).await,
            // Nothing with a version is older than the first.
            Content::Outdated(_) if version == 1 => Ok(()),
            Content::Outdated(id) => {
                let before = if version == 0 { 0 } else { version.saturating_sub(1) };
                self.send_deletion(&id, before, to, outgoing, made).await
            }
        }
    }

    async fn send_document(
        &self,
        mut doc: PipeDoc,
        to: Option<&str>,
        mut outgoing: Outgoing<'_>,
        made: &mut Made<'_>,
    ) -> Result<(), Fault> {
        if doc.id.is_empty() {
            return Err(Error::permanent("the module gave a document without id").with_kind("no-id").into());
        }
        inherit(&mut doc, outgoing.origin);
        let destinations = self.router.document(&doc, to, outgoing.incoming())?;
        if destinations.is_empty() {
            return Ok(());
        }
        hop::set_identity(&mut outgoing.headers, &doc.id, doc.version);
        outgoing.headers.remove(headers::CLAIM);
        let values = self.values(&mut doc, &destinations).await?;
        for claim in &values.claims {
            outgoing.headers.append(headers::CLAIM, Some(Bytes::copy_from_slice(claim.as_bytes())));
        }
        self.write(destinations, outgoing, values, made).await?;
        Ok(())
    }

    async fn send_deletion(
        &self,
        id: &str,
        version: i64,
        to: Option<&str>,
        mut outgoing: Outgoing<'_>,
        made: &mut Made<'_>,
    ) -> Result<(), Fault> {
        if id.is_empty() {
            return Err(Error::permanent("the module gave a deletion without id").with_kind("no-id").into());
        }
        let (destinations, unable) = self.router.deletion(id, to, outgoing.incoming())?;
        made.unable.extend(unable);
        hop::set_identity(&mut outgoing.headers, id, version);
        outgoing.headers.remove(headers::CLAIM);
        self.write(destinations, outgoing, Values::default(), made).await?;
        Ok(())
    }

    /// Encodes a document as its destinations want it.
    async fn values(&self, doc: &mut PipeDoc, destinations: &[Destination]) -> Result<Values, Fault> {
        let wanted = |format| destinations.iter().any(|destination| destination.format == format);
        let mut values = Values { is_part: !doc.parent_id.is_empty(), ..Values::default() };
        if wanted(Format::Raw) {
            values.raw = Some(format::raw(doc)?);
        }
        if wanted(Format::Json) {
            values.json = Some(format::json(doc)?);
            values.claims = doc.blobs.iter().filter_map(claim::of_blob).map(claim::text).collect();
        }
        if wanted(Format::Pipedoc) {
            let offloaded = self.claims.offload(doc).await.map_err(Fault::of_store)?;
            values.claims = offloaded.claims;
            values.pipedoc = Some(offloaded.value);
        }
        Ok(values)
    }

    /// Adds a record for each destination: of the document's values, or a tombstone where
    /// there are none.
    async fn write(
        &self,
        destinations: Vec<Destination>,
        outgoing: Outgoing<'_>,
        mut values: Values,
        made: &mut Made<'_>,
    ) -> Result<()> {
        let mut headers = outgoing.headers;
        let mut destinations = destinations.into_iter().peekable();
        while let Some(Destination { topic: name, format, compacted, key }) = destinations.next() {
            let more = destinations.peek().is_some();
            let value = values.take(format, more);
            let topic = made.facts.of(&self.topics, &name).await;
            if compacted || topic.is_some_and(|topic| topic.settings.compact == Some(true)) {
                takes_latest(&name, key.as_deref(), values.is_part, &headers)?;
            }
            self.topics.check_size(&name, topic, key.as_deref(), value.as_deref(), &headers)?;
            let partition = match (&key, outgoing.origin.partition, topic) {
                (None, Some(source), Some(topic)) => Some(partition::for_source(source, topic.partitions)),
                _ => None,
            };
            let headers = if more { headers.clone() } else { std::mem::take(&mut headers) };
            made.records.push(OutgoingRecord { topic: name, partition, timestamp: None, key, value, headers });
        }
        Ok(())
    }
}

fn is_part_of(item: &Item, id: &str) -> bool {
    matches!(&item.content, Content::Document(doc) if !doc.parent_id.is_empty() && doc.parent_id == id)
}

/// Whether a compacted topic would keep what is written, as the latest form.
fn takes_latest(topic: &Topic, key: Option<&[u8]>, is_part: bool, headers: &Headers) -> Result<()> {
    let id = headers.get_str(headers::DOCUMENT_ID).unwrap_or_default();
    if is_part {
        return Err(Error::permanent(format!(
            "{id} is a part, and {topic} is compacted: of all parts of a document only the last would remain"
        ))
        .with_kind("part-to-compacted"));
    }
    if key.is_none() {
        return Err(Error::permanent(format!("{id} has no key here, and {topic} is compacted, which needs one"))
            .with_kind("no-key-to-compacted"));
    }
    Ok(())
}

/// Steps keep the version: a document that says none has its origin's.
fn inherit(doc: &mut PipeDoc, origin: &Origin<'_>) {
    if doc.version == 0 {
        doc.version = origin.version;
    }
    if doc.parent_id == origin.id && doc.parent_version == 0 {
        doc.parent_version = origin.version;
    }
}
