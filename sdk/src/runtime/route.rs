//! Which outputs take what a step made.
//!
//! Knows conditions, weights and keys; knows nothing of how records are sent.

use bytes::Bytes;
use pipedoc_model::condition::{Condition, KeyExpr, Scope, weighted};
use pipedoc_model::headers::Headers;
use pipedoc_model::names::{StepId, Topic};
use pipedoc_model::step::StepPlan;
use pipedoc_proto::PipeDoc;

use super::hop::root_id;
use crate::error::{Error, Result, ResultExt};

/// The ways out of a step.
#[derive(Debug)]
pub(crate) struct Router {
    step: StepId,
    ways: Vec<Way>,
    allowed: Vec<Topic>,
}

#[derive(Debug)]
struct Way {
    name: String,
    topic: Topic,
    when: Option<Condition>,
    otherwise: bool,
    weight: Option<u32>,
    key: Option<KeyExpr>,
    compacted: bool,
}

/// Where something goes, and under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) topic: Topic,
    pub(crate) key: Option<Bytes>,
}

/// What the record that a step works on tells its outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming<'a> {
    /// Headers of what is sent on.
    pub(crate) headers: &'a Headers,
    /// The incoming record's key.
    pub(crate) key: Option<&'a [u8]>,
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
                    compacted: output.compacted,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { step: plan.id.clone(), ways, allowed: plan.allowed_topics.clone() })
    }

    /// Where a document goes. `to` is what code asked for.
    ///
    /// # Errors
    /// Permanent: an unknown name, an expression without a usable result, a part
    /// for a compacted topic.
    pub(crate) fn document(&self, doc: &PipeDoc, to: Option<&str>, incoming: Incoming<'_>) -> Result<Vec<Destination>> {
        let scope = Scope { doc: Some(doc), headers: incoming.headers, key: incoming.key, step: &self.step };
        let own_key = if doc.parent_id.is_empty() { &doc.id } else { &doc.parent_id };
        let ways = match to {
            None => self.taken(&scope, incoming.key.unwrap_or(doc.id.as_bytes()))?,
            Some(name) => match self.named(name)? {
                Named::Way(way) => vec![way],
                Named::Topic(topic) => {
                    return Ok(vec![Destination { topic: topic.clone(), key: Some(copy(own_key)) }]);
                }
            },
        };
        ways.into_iter()
            .map(|way| {
                if way.compacted && !doc.parent_id.is_empty() {
                    return Err(Error::permanent(format!(
                        "{} is a part, and output {} writes to the compacted topic {}, where only the last part of {} would remain",
                        doc.id, way.name, way.topic, doc.parent_id
                    ))
                    .with_kind("part-to-compacted"));
                }
                let key = match &way.key {
                    None => Some(copy(own_key)),
                    Some(key) => key.evaluate(&scope).permanent().map_err(|error| way.blame(error, "key"))?,
                };
                Ok(Destination { topic: way.topic.clone(), key })
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
                    let key = Some(copy(root_id(id)));
                    return Ok((vec![Destination { topic: topic.clone(), key }], Vec::new()));
                }
            },
        };
        let scope = Scope { doc: None, headers: incoming.headers, key: incoming.key, step: &self.step };
        let (mut destinations, mut unable) = (Vec::new(), Vec::new());
        for way in ways {
            let key = match &way.key {
                None => Some(copy(root_id(id))),
                Some(key) if key.reads_doc() => {
                    unable.push(way.name.clone());
                    continue;
                }
                Some(key) => key.evaluate(&scope).permanent().map_err(|error| way.blame(error, "key"))?,
            };
            destinations.push(Destination { topic: way.topic.clone(), key });
        }
        Ok((destinations, unable))
    }

    /// All topics that the step may write to.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.ways.iter().map(|way| &way.topic).chain(&self.allowed)
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
