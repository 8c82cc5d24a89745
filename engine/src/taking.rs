//! Does what follows from the inbox: the leader's part of a change.
//!
//! What the texts say was looked at before ([`crate::inbox`]); here it is seen whether
//! the store can hold them, and the log is asked whether their topics fit and whether
//! records would be left behind. Every engine looks, so that each can show what is
//! wrong; only the leader writes.

use std::collections::{BTreeMap, BTreeSet};

use pipedoc_model::names::PipelineName;
use pipedoc_model::pipeline;
use pipedoc_model::problem::{Problem, Problems, chain};
use pipedoc_model::registry::Modules;

use crate::catalog::{Catalog, Intent, Note, Revision};
use crate::clock;
use crate::editor::Editor;
use crate::inbox::Review;
use crate::snapshot::Snapshot;
use crate::store::{self, Lease};

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// What is wrong.
    pub(crate) problems: Vec<Problem>,
    /// Whether the head changed.
    pub(crate) changed: bool,
    /// Whether something waits for records to be worked off: look again soon.
    pub(crate) waiting: bool,
}

/// Does what a review says, with the lease of a leader; without one it only looks.
pub(crate) async fn carry_out(
    catalog: &Catalog,
    editor: &Editor,
    review: Review,
    snapshot: &Snapshot,
    lease: Option<&Lease>,
) -> store::Result<Carried> {
    let Review { takes, removals, mut notes, mut forgotten, rewrites, leftovers, problems, look_again: _ } = review;
    let mut carried = Carried { problems, ..Carried::default() };
    let removals = removable(editor, removals, snapshot, &mut carried).await;
    let held = |name: &PipelineName| removals.held.contains(name);
    let good = takeable(editor, &takes, held, snapshot, &mut carried).await;
    let Some(lease) = lease else { return Ok(carried) };
    // An entry whose pipeline stays keeps its note, which is how its going is known.
    forgotten.retain(|entry| !snapshot.notes.get(entry).and_then(|note| note.pipeline.as_ref()).is_some_and(held));
    if !good.is_empty() || !removals.free.is_empty() {
        for (entry, name, revision) in &good {
            note_intent(catalog, entry, name, (revision, None), snapshot, lease).await?;
        }
        let texts: Vec<_> = good.iter().map(|(_, name, revision)| (name.clone(), revision)).collect();
        let current = snapshot.current.as_ref();
        let numbers = editor.take(current, &texts, &removals.free, clock::now_millis(), lease).await?;
        for ((entry, name, revision), number) in good.iter().zip(numbers) {
            let hash = revision.hash.clone();
            let note = Note { hash, pipeline: Some(name.clone()), taken: true, revision: number, intent: None };
            notes.insert(entry.clone(), note);
            carried.changed = true;
        }
        carried.changed |= !removals.free.is_empty();
    }
    for (entry, name) in rewrites {
        let Some((number, revision)) = snapshot.facts.revisions.get(&name) else { continue };
        note_intent(catalog, &entry, &name, (revision, Some(*number)), snapshot, lease).await?;
        match catalog.store().write_inbox(&entry, &revision.text, snapshot.entry_text(&entry)).await {
            Ok(()) => {
                let (hash, pipeline) = (revision.hash.clone(), Some(name));
                forgotten.remove(&entry);
                notes.insert(entry, Note { hash, pipeline, taken: true, revision: *number, intent: None });
            }
            // Edited meanwhile: the next look takes that in.
            Err(store::Error::Conflict { .. }) => {}
            Err(error) => carried.problems.push(Problem { message: chain(&error), ..Problem::default() }),
        }
    }
    for (entry, text) in leftovers {
        match catalog.store().remove_inbox(&entry, &text).await {
            Ok(()) => drop(forgotten.insert(entry)),
            Err(store::Error::Conflict { .. }) => {}
            Err(error) => carried.problems.push(Problem { message: chain(&error), ..Problem::default() }),
        }
    }
    write_notes(catalog, &notes, &forgotten, snapshot, lease).await?;
    Ok(carried)
}

/// Pipelines whose entries are gone.
struct Removals {
    /// They go.
    free: BTreeSet<PipelineName>,
    /// Records wait for their steps: they stay until those are worked off.
    held: BTreeSet<PipelineName>,
}

async fn removable(
    editor: &Editor,
    removals: BTreeSet<PipelineName>,
    snapshot: &Snapshot,
    carried: &mut Carried,
) -> Removals {
    let mut sorted = Removals { free: BTreeSet::new(), held: BTreeSet::new() };
    for name in removals {
        let Some((_, revision)) = snapshot.facts.revisions.get(&name) else { continue };
        let remedy = format!("give them up with `pipedoc delete {name} --abandon` (they stay in its topic)");
        match editor.check_backlog(revision, None, &remedy).await {
            Ok(()) => drop(sorted.free.insert(name)),
            Err(Problems(problems)) => {
                let removed = format!("pipeline {name} was removed here, but ");
                carried.problems.extend(problems.into_iter().map(|problem| Problem {
                    file: revision.file.clone(),
                    message: removed.clone() + &problem.message,
                    ..problem
                }));
                carried.waiting = true;
                sorted.held.insert(name);
            }
        }
    }
    sorted
}

/// Texts that can run, with the entries they come from.
async fn takeable(
    editor: &Editor,
    takes: &[(String, PipelineName, Revision)],
    held: impl Fn(&PipelineName) -> bool,
    snapshot: &Snapshot,
    carried: &mut Carried,
) -> Vec<(String, PipelineName, Revision)> {
    let mut good = Vec::new();
    for (entry, name, revision) in takes {
        // Its entry was another pipeline's, which still has to finish.
        let before = snapshot.notes.get(entry).and_then(|note| note.pipeline.as_ref());
        if before.is_some_and(|before| before != name && held(before)) {
            continue;
        }
        match check(editor, name, revision, snapshot).await {
            Ok(Checked::Good) => good.push((entry.clone(), name.clone(), revision.clone())),
            Ok(Checked::LeavesBehind(problems)) => {
                let file = &revision.file;
                carried.problems.extend(problems.into_iter().map(|problem| Problem { file: file.clone(), ..problem }));
                carried.waiting = true;
            }
            Err(Problems(unfit)) => carried.problems.extend(unfit),
        }
    }
    good
}

enum Checked {
    Good,
    LeavesBehind(Vec<Problem>),
}

async fn check(
    editor: &Editor,
    name: &PipelineName,
    revision: &Revision,
    snapshot: &Snapshot,
) -> Result<Checked, Problems> {
    // Its modules were asked in the review.
    let parsed = pipeline::parse(&revision.text, &revision.file, &revision.variables, &Modules::new(), false)?;
    editor.check_size(revision)?;
    editor.check_topics(&parsed.config, &revision.file).await?;
    let Some((_, current)) = snapshot.facts.revisions.get(name) else { return Ok(Checked::Good) };
    let remedy = "give them up with `pipedoc apply FILE --abandon` (they stay in its topic)";
    match editor.check_backlog(current, Some(&parsed.config), remedy).await {
        Ok(()) => Ok(Checked::Good),
        Err(Problems(problems)) => Ok(Checked::LeavesBehind(problems)),
    }
}

/// Notes which text an entry will have as a pipeline's, before that is so: if the
/// pipeline is deleted after we died, or gets another text, this one is not taken for
/// a new wish. A revision that is written there has its number already.
async fn note_intent(
    catalog: &Catalog,
    entry: &str,
    pipeline: &PipelineName,
    (revision, written): (&Revision, Option<u64>),
    snapshot: &Snapshot,
    lease: &Lease,
) -> store::Result<()> {
    let known = snapshot.notes.get(entry);
    let (hash, replaces) = (revision.hash.clone(), revision.made.replaces);
    let intent = Some(Intent { hash, pipeline: pipeline.clone(), replaces, written });
    let meant = Note { intent, ..known.cloned().unwrap_or_default() };
    if known == Some(&meant) { Ok(()) } else { catalog.set_note(entry, &meant, lease).await }
}

async fn write_notes(
    catalog: &Catalog,
    notes: &BTreeMap<String, Note>,
    forgotten: &BTreeSet<String>,
    snapshot: &Snapshot,
    lease: &Lease,
) -> store::Result<()> {
    for (entry, note) in notes {
        if snapshot.notes.get(entry) != Some(note) {
            catalog.set_note(entry, note, lease).await?;
        }
    }
    for entry in forgotten {
        catalog.remove_note(entry, lease).await?;
    }
    Ok(())
}
