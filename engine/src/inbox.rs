//! What follows from the inbox. Pure: looks at a snapshot, decides, writes nothing.
//!
//! ```text
//! entry's text ─┬─ as noted or written, and another is current by now ─▶ the entry is written anew
//!               ├─ as noted and taken ────────────────────────────────▶ nothing
//!               ├─ good ──────────────────────────────────────────────▶ a revision
//!               └─ bad ───────────────────────────────────────────────▶ problems; what runs goes on
//! entry as noted or meant, but its pipeline was deleted since ───────────▶ the entry is removed
//! entry gone for 5 s ─────────────────────────────────────────────────▶ the pipeline is removed
//! pipeline without an entry ──────────────────────────────────────────▶ an entry is written
//! ```
//!
//! A text that was refused is looked at again each time: a module may have
//! registered, or a variable been given, that makes it good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pipedoc_model::names::PipelineName;
use pipedoc_model::pipeline::{self, Parsed};
use pipedoc_model::plan::hash_of;
use pipedoc_model::problem::{Problem, Problems};

use crate::catalog::{Head, Made, Note, Revision, Road};
use crate::snapshot::{Facts, Snapshot};
use crate::store::InboxEntry;

/// An entry that is gone for so long was deleted; before, somebody may be
/// replacing it.
pub(crate) const GONE_AFTER: Duration = Duration::from_secs(5);

/// After a loss, what is put into the inbox is taken when it was still for so long:
/// pipelines come back one by one, and all that are not there are stopped.
pub(crate) const STILL_FOR: Duration = Duration::from_secs(3);

/// What is to be done about the inbox.
#[derive(Debug, Default)]
pub(crate) struct Review {
    /// Texts that become revisions, with the entry they come from.
    pub(crate) takes: Vec<(String, PipelineName, Revision)>,
    /// Pipelines that are removed.
    pub(crate) removals: BTreeSet<PipelineName>,
    /// Notes to write.
    pub(crate) notes: BTreeMap<String, Note>,
    /// Notes to remove.
    pub(crate) forgotten: BTreeSet<String>,
    /// Entries to write: name, pipeline.
    pub(crate) rewrites: Vec<(String, PipelineName)>,
    /// Entries to remove, with the texts they hold: their pipelines were deleted.
    pub(crate) leftovers: Vec<(String, String)>,
    /// What is wrong.
    pub(crate) problems: Vec<Problem>,
    /// When to look again, though nothing changes.
    pub(crate) look_again: Option<Instant>,
}

/// Remembers since when entries are gone, and since when a lost store's inbox is as it is.
#[derive(Debug, Default)]
pub(crate) struct Reviewer {
    gone: BTreeMap<String, Instant>,
    still: Option<(String, Instant)>,
}

impl Reviewer {
    /// Looks at the inbox. `variables` are the values for variables of pipelines
    /// that have no revision yet, `now` is the time that new revisions get. `lost` says
    /// that there was a head which is gone.
    pub(crate) fn review(
        &mut self,
        snapshot: &Snapshot,
        lost: bool,
        inbox_name: impl Fn(&str) -> String,
        variables: &BTreeMap<String, String>,
        now: i64,
    ) -> Review {
        let mut review = Review::default();
        let entries = match &snapshot.inbox {
            Ok(entries) => entries,
            Err(error) => {
                // Missing and empty are not the same: nothing was deleted.
                self.gone.clear();
                review.problems.push(Problem { message: pipedoc_model::problem::chain(error), ..Problem::default() });
                return review;
            }
        };
        // Who had a pipeline keeps it, whatever a newer file says.
        let mut owners: BTreeMap<PipelineName, String> = BTreeMap::new();
        for entry in entries {
            if let Some(pipeline) = snapshot.notes.get(&entry.name).and_then(|note| note.pipeline.clone()) {
                owners.entry(pipeline).or_insert_with(|| entry.name.clone());
            }
        }
        for entry in entries {
            review_entry(entry, snapshot, variables, now, &mut owners, &mut review);
        }
        self.review_gone(entries, snapshot, &owners, &mut review);
        review_missing(entries, snapshot, &owners, inbox_name, &mut review);
        review.removals.retain(|pipeline| !owners.contains_key(pipeline));
        if lost && !review.takes.is_empty() {
            self.wait_until_still(entries, &mut review);
        } else {
            self.still = None;
        }
        review
    }

    /// Takes nothing until nothing was put there for a while.
    fn wait_until_still(&mut self, entries: &[InboxEntry], review: &mut Review) {
        let texts: String = entries.iter().map(|entry| format!("{} {:?}\n", entry.name, entry.text)).collect();
        let now_there = hash_of(&texts);
        let still = self.still.take().filter(|(before, _)| *before == now_there);
        let (_, since) = self.still.insert(still.unwrap_or_else(|| (now_there, Instant::now())));
        let end = *since + STILL_FOR;
        if Instant::now() < end {
            review.takes.clear();
            review.look_again = Some(review.look_again.map_or(end, |earlier| earlier.min(end)));
        }
    }

    fn review_gone(
        &mut self,
        entries: &[InboxEntry],
        snapshot: &Snapshot,
        owners: &BTreeMap<PipelineName, String>,
        review: &mut Review,
    ) {
        self.gone.retain(|name, _| snapshot.notes.contains_key(name));
        for (name, note) in &snapshot.notes {
            if entries.iter().any(|entry| entry.name == *name) {
                self.gone.remove(name);
                continue;
            }
            let since = *self.gone.entry(name.clone()).or_insert_with(Instant::now);
            let Some(pipeline) = note.pipeline.as_ref().filter(|pipeline| !owners.contains_key(*pipeline)) else {
                // It was renamed, or never taken: nothing else to remove.
                review.forgotten.insert(name.clone());
                continue;
            };
            if since.elapsed() >= GONE_AFTER {
                review.removals.insert(pipeline.clone());
                review.forgotten.insert(name.clone());
            } else {
                let again = since + GONE_AFTER;
                review.look_again = Some(review.look_again.map_or(again, |earlier| earlier.min(again)));
            }
        }
    }
}

fn review_entry(
    entry: &InboxEntry,
    snapshot: &Snapshot,
    variables: &BTreeMap<String, String>,
    now: i64,
    owners: &mut BTreeMap<PipelineName, String>,
    review: &mut Review,
) {
    let note = snapshot.notes.get(&entry.name);
    let noted = note.and_then(|note| note.pipeline.clone());
    let text = match &entry.text {
        Ok(text) => text,
        Err(message) => {
            review.problems.push(Problem {
                file: entry.origin.clone(),
                message: message.clone(),
                ..Problem::default()
            });
            return;
        }
    };
    let hash = hash_of(text);
    let current = noted.as_ref().and_then(|name| snapshot.facts.revisions.get(name));
    let head = snapshot.current.as_ref().map(|current| &current.head);
    let deleted = |pipeline: &PipelineName| head.and_then(|head| head.deleted.get(pipeline));
    let is_noted = note.is_some_and(|note| note.hash == hash) && noted.as_ref().and_then(deleted).is_some();
    // A leader took or wrote it and died before it could note that.
    let intent = note.and_then(|note| note.intent.as_ref()).filter(|intent| intent.hash == hash);
    let is_meant = intent
        .is_some_and(|intent| deleted(&intent.pipeline).is_some_and(|deleted| deleted.revision > intent.replaces));
    if is_noted || is_meant {
        // Not edited since: this is the last step of the deletion.
        review.leftovers.push((entry.name.clone(), text.clone()));
        return;
    }
    // Whose text it is, as far as is known, and the revision that was current then.
    let noted_as =
        note.filter(|note| note.hash == hash).and_then(|note| Some((note.pipeline.as_ref()?, note.revision)));
    let written_as = intent.and_then(|intent| Some((&intent.pipeline, intent.written?)));
    if let Some((pipeline, before)) = noted_as.or(written_as)
        && let Some((number, revision)) = snapshot.facts.revisions.get(pipeline)
        && owners.get(pipeline).is_none_or(|owner| *owner == entry.name)
    {
        if revision.hash == hash {
            if noted_as.is_some() {
                return;
            }
        } else if *number > before {
            // Another text was applied since; this is the last step of that.
            owners.insert(pipeline.clone(), entry.name.clone());
            review.rewrites.push((entry.name.clone(), pipeline.clone()));
            return;
        }
    }
    match parse(entry, text, noted.as_ref(), &snapshot.facts, variables) {
        Ok((parsed, values)) => {
            let name = parsed.config.name.clone();
            if let Some(other) = owners.get(&name).filter(|owner| **owner != entry.name) {
                review.problems.push(Problem {
                    file: entry.origin.clone(),
                    field: "pipeline".into(),
                    message: format!("pipeline {name} stands in {other} already; keep one of the two"),
                    ..Problem::default()
                });
                return;
            }
            owners.insert(name.clone(), entry.name.clone());
            let known = snapshot.facts.revisions.get(&name);
            let revision = known.map_or(0, |(number, _)| *number);
            let noted_now =
                Note { hash: hash.clone(), pipeline: Some(name.clone()), taken: true, revision, intent: None };
            if known.is_some_and(|(_, known)| known.hash == hash) {
                review.notes.insert(entry.name.clone(), noted_now);
            } else {
                let replaces = head.map_or(0, |head: &Head| head.last_revision(&name));
                let made = Made { at: now, by: String::new(), road: Road::Inbox, replaces };
                let steps = parsed.config.steps.len();
                let revision = Revision::new(text.clone(), entry.origin.clone(), values, steps, made);
                review.takes.push((entry.name.clone(), name.clone(), revision));
            }
            // An entry that is another pipeline's now no longer holds its old one.
            if let Some(old) = noted.filter(|old| *old != name) {
                if owners.get(&old) == Some(&entry.name) {
                    owners.remove(&old);
                }
                review.removals.insert(old);
            }
        }
        Err(Problems(problems)) => {
            review.problems.extend(problems);
            let revision = current.map_or(0, |(number, _)| *number);
            if note.is_none_or(|note| note.hash != hash) {
                let refused = Note { hash, pipeline: noted.clone(), taken: false, revision, intent: None };
                review.notes.insert(entry.name.clone(), refused);
            }
        }
    }
}

/// Reads a text with the values its pipeline has already, those given for new
/// pipelines filling in.
fn parse(
    entry: &InboxEntry,
    text: &str,
    noted: Option<&PipelineName>,
    facts: &Facts,
    variables: &BTreeMap<String, String>,
) -> Result<(Parsed, BTreeMap<String, String>), Problems> {
    let values = |name: Option<&PipelineName>| {
        let mut values = variables.clone();
        if let Some((_, revision)) = name.and_then(|name| facts.revisions.get(name)) {
            values.extend(revision.variables.clone());
        }
        values
    };
    // The name stands in the text, which can only be read with the values.
    let stem = entry.name.split('.').next().and_then(|stem| PipelineName::new(stem).ok());
    let guess = noted.or(stem.as_ref());
    let guessed = values(guess);
    let parsed = pipeline::parse(text, &entry.origin, &guessed, &facts.modules, false)?;
    let right = values(Some(&parsed.config.name));
    if right == guessed {
        return Ok((parsed, right));
    }
    let parsed = pipeline::parse(text, &entry.origin, &right, &facts.modules, false)?;
    Ok((parsed, right))
}

/// Pipelines that were applied and never came into the inbox.
fn review_missing(
    entries: &[InboxEntry],
    snapshot: &Snapshot,
    owners: &BTreeMap<PipelineName, String>,
    inbox_name: impl Fn(&str) -> String,
    review: &mut Review,
) {
    let noted: BTreeSet<_> = snapshot.notes.values().filter_map(|note| note.pipeline.as_ref()).collect();
    for pipeline in snapshot.facts.revisions.keys() {
        if owners.contains_key(pipeline) || noted.contains(pipeline) || review.removals.contains(pipeline) {
            continue;
        }
        let name = inbox_name(pipeline.as_str());
        let taken_by_another =
            entries.iter().any(|entry| entry.name == name) && owners.values().any(|owner| *owner == name);
        if taken_by_another {
            review.problems.push(Problem {
                file: name.clone(),
                message: format!(
                    "pipeline {pipeline} was applied, but {name} holds another pipeline; rename that file and {pipeline} is written there"
                ),
                ..Problem::default()
            });
        } else {
            review.rewrites.push((name, pipeline.clone()));
        }
    }
}
