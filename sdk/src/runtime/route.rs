//! Which outputs take what a step made.
//!
//! Knows conditions, weights and keys; knows nothing of how records are sent.

use bytes::Bytes;
use pipedoc_model::condition::{Condition, KeyExpr, Scope, weighted};
use pipedoc_model::headers::Headers;
use pipedoc_model::names::{StepId, Topic};
use pipedoc_model::step::{Format, StepPlan};
use pipedoc_proto::PipeDoc;

use super::format::key_of_id;
use super::hop::root_id;
use crate::error::{Error, Result, ResultExt};

/// The ways out of a step.
#[derive(Debug)]
pub(crate) struct Router {
    step: StepId,
    ways: Vec<Way>,
    allowed: Vec<Topic>,
    /// What the names of the pipeline's own topics begin with.
    own: String,
}

#[derive(Debug)]
struct Way {
    name: String,
    topic: Topic,
    when: Option<Condition>,
    otherwise: bool,
    weight: Option<u32>,
    key: Option<KeyExpr>,
    format: Format,
    compacted: bool,
}

/// Where something goes, as what, and under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) topic: Topic,
    pub(crate) format: Format,
    /// The plan says that the topic is compacted.
    pub(crate) compacted: bool,
    pub(crate) key: Option<Bytes>,
}

impl Destination {
    /// A topic that code named.
    fn allowed(topic: &Topic, key: Bytes) -> Self {
        Self { topic: topic.clone(), format: Format::Pipedoc, compacted: false, key: Some(key) }
    }
}

/// What the record that a step works on tells its outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming<'a> {
    /// Headers of what is sent on.
    pub(crate) headers: &'a Headers,
    /// The incoming record's key.
    pub(crate) key: Option<&'a [u8]>,
    /// Id of the document that came from a topic of another system: under this id its
    /// key goes to others as it came.
    pub(crate) foreign: Option<&'a str>,
}

impl Router {
    /// Compiles a step's outputs.
    ///
    /// # Errors
    /// Permanent: an expression that does not compile, naming its output.
    pub(crate) fn new(plan: &StepPlan) -> Result<Self> {
        let ways = plan
            .outputs
            .iter()
            .map(|output| {
                let compile = || -> Result<_> {
                    let when = output.when.as_deref().map(Condition::compile).transpose()?;
                    let key = output.key.as_deref().map(KeyExpr::compile).transpose()?;
                    Ok((when, key))
                };
                let (when, key) = compile().permanent().context(format!("output {} is wrong", output.name))?;
                Ok(Way {
                    name: output.name.clone(),
                    topic: output.topic.clone(),
                    when,
                    otherwise: output.otherwise,
                    weight: output.weight,
                    key,
                    format: output.format,
                    compacted: output.compacted,
                })
            })
            .collect::<Result<_>>()?;
        let own = format!("{}.{}.", plan.cluster, plan.id.pipeline);
        Ok(Self { step: plan.id.clone(), ways, allowed: plan.allowed_topics.clone(), own })
    }

    /// Where a document goes. `to` is what code asked for.
    ///
    /// # Errors
    /// Permanent: an unknown name, an expression without a usable result.
    pub(crate) fn document(&self, doc: &PipeDoc, to: Option<&str>, incoming: Incoming<'_>) -> Result<Vec<Destination>> {
        let scope = Scope { doc: Some(doc), headers: incoming.headers, key: incoming.key, step: &self.step };
        // All parts of a document, theirs too, stay in order with its deletion.
        let own_id = if doc.parent_id.is_empty() { doc.id.as_str() } else { root_id(&doc.parent_id) };
        let ways = match to {
            None => self.taken(&scope, incoming.key.unwrap_or(doc.id.as_bytes()))?,
            Some(name) => match self.named(name)? {
                Named::Way(way) => vec![way],
                Named::Topic(topic) => {
                    return Ok(vec![Destination::allowed(topic, copy(own_id))]);
                }
            },
        };
        ways.into_iter()
            .map(|way| {
                let key = match &way.key {
                    None => way.key_of(&doc.id, own_id, incoming),
                    Some(key) => key.evaluate(&scope).permanent().map_err(|error| way.blame(error, "key"))?,
                };
                Ok(way.destination(key))
            })
            .collect()
    }

    /// Where a deletion goes: everywhere, or where code asked for. With it, the
    /// names of the outputs that cannot carry it, as their key reads the document.
    ///
    /// # Errors
    /// Permanent: an unknown name, a key without a usable result.
    pub(crate) fn deletion(
        &self,
        id: &str,
        to: Option<&str>,
        incoming: Incoming<'_>,
    ) -> Result<(Vec<Destination>, Vec<String>)> {
        let ways: Vec<&Way> = match to {
            None => self.ways.iter().collect(),
            Some(name) => match self.named(name)? {
                Named::Way(way) => vec![way],
                Named::Topic(topic) => {
                    return Ok((vec![Destination::allowed(topic, copy(root_id(id)))], Vec::new()));
                }
            },
        };
        let scope = Scope { doc: None, headers: incoming.headers, key: incoming.key, step: &self.step };
        let (mut destinations, mut unable) = (Vec::new(), Vec::new());
        for way in ways {
            let key = match &way.key {
                None => way.key_of(id, root_id(id), incoming),
                Some(key) if key.reads_doc() => {
                    unable.push(way.name.clone());
                    continue;
                }
                Some(key) => key.evaluate(&scope).permanent().map_err(|error| way.blame(error, "key"))?,
            };
            destinations.push(way.destination(key));
        }
        Ok((destinations, unable))
    }

    /// Names and topics of the outputs, in the file's order.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.ways.iter().map(|way| (way.name.as_str(), &way.topic))
    }

    /// All topics that the step may write to.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.ways.iter().map(|way| &way.topic).chain(&self.allowed)
    }

    /// Whether a topic is none of the pipeline's own: what is sent there leaves it.
    pub(crate) fn leaves(&self, topic: &Topic) -> bool {
        !topic.as_str().starts_with(&self.own)
    }

    /// Whether all that the step sends leaves the pipeline.
    pub(crate) fn only_leaves(&self) -> bool {
        self.topics().all(|topic| self.leaves(topic))
    }

    /// The topic behind a name of an output or an allowed topic.
    pub(crate) fn topic(&self, name: &str) -> Option<&Topic> {
        match self.named(name).ok()? {
            Named::Way(way) => Some(&way.topic),
            Named::Topic(topic) => Some(topic),
        }
    }

    /// An unknown name, said with what would be right.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        let outputs: Vec<&str> = self.ways.iter().map(|way| way.name.as_str()).collect();
        let allowed: Vec<&str> = self.allowed.iter().map(Topic::as_str).collect();
        Error::permanent(format!(
            "{name:?} is neither an output of {} ({}) nor one of its allowed_kafka_topics ({})",
            self.step,
            list(&outputs),
            list(&allowed)
        ))
        .with_kind("unknown-output")
    }

    fn taken(&self, scope: &Scope<'_>, draw_by: &[u8]) -> Result<Vec<&Way>> {
        // Most steps have one way out, which is always open.
        if let [way @ Way { when: None, otherwise: false, weight: None, .. }] = self.ways.as_slice() {
            return Ok(vec![way]);
        }
        let (mut taken, mut drawn) = (Vec::new(), Vec::new());
        for (at, way) in self.ways.iter().enumerate().filter(|(_, way)| !way.otherwise) {
            let holds = match &way.when {
                None => true,
                Some(when) => when.holds(scope).permanent().map_err(|error| way.blame(error, "when"))?,
            };
            match way.weight {
                _ if !holds => {}
                None => taken.push(at),
                Some(weight) => drawn.push((at, weight)),
            }
        }
        let weights: Vec<u32> = drawn.iter().map(|(_, weight)| *weight).collect();
        let draw = weighted(draw_by, self.step.step.as_str(), &weights).and_then(|place| drawn.get(place));
        taken.extend(draw.map(|(at, _)| *at));
        // Every output may be sent to in the file's order.
        taken.sort_unstable();
        if taken.is_empty() {
            return Ok(self.ways.iter().filter(|way| way.otherwise).collect());
        }
        Ok(taken.into_iter().filter_map(|at| self.ways.get(at)).collect())
    }

    fn named(&self, name: &str) -> Result<Named<'_>> {
        if let Some(way) = self.ways.iter().find(|way| way.name == name) {
            return Ok(Named::Way(way));
        }
        if let Some(way) = self.ways.iter().find(|way| way.topic.as_str() == name) {
            return Ok(Named::Way(way));
        }
        let topic = self.allowed.iter().find(|topic| topic.as_str() == name);
        topic.map(Named::Topic).ok_or_else(|| self.unknown(name))
    }
}

impl Way {
    /// The key that a document has here by itself; `own` is the id of the whole one.
    fn key_of(&self, id: &str, own: &str, incoming: Incoming<'_>) -> Option<Bytes> {
        match self.format {
            Format::Pipedoc => Some(copy(own)),
            _ if incoming.foreign == Some(id) => incoming.key.map(Bytes::copy_from_slice),
            _ => Some(key_of_id(own)),
        }
    }

    fn destination(&self, key: Option<Bytes>) -> Destination {
        Destination { topic: self.topic.clone(), format: self.format, compacted: self.compacted, key }
    }

    fn blame(&self, error: Error, field: &str) -> Error {
        error.with_kind("expression").context(format!("`{field}` of output {}", self.name))
    }
}

enum Named<'a> {
    Way(&'a Way),
    Topic(&'a Topic),
}

fn copy(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
