//! Changes of the head that only a leader makes: all of them carry its lease.

use std::collections::{BTreeMap, BTreeSet};

use pipedoc_model::names::PipelineName;

use super::{Editor, remove};
use crate::catalog::{CurrentHead, Note, Revision};
use crate::store::{self, Lease};

impl Editor {
    /// Makes revisions of texts that were validated against `current`, and removes
    /// pipelines, at the time `now`. Gives the revisions' numbers.
    ///
    /// Fails with a conflict when the head is another one by now.
    pub(crate) async fn take(
        &self,
        current: Option<&CurrentHead>,
        takes: &[(PipelineName, &Revision)],
        removals: &BTreeSet<PipelineName>,
        now: i64,
        lease: &Lease,
    ) -> store::Result<Vec<u64>> {
        let mut next = self.next(current).await?;
        let mut numbers = Vec::with_capacity(takes.len());
        for name in removals {
            remove(&mut next, name, now, "");
        }
        for (name, revision) in takes {
            let number = self.catalog.add_revision(name, revision).await?;
            next.pipelines.insert(name.clone(), number);
            next.deleted.remove(name);
            numbers.push(number);
        }
        self.catalog.set_head(current, &next, Some(lease)).await?;
        for ((pipeline, revision), number) in takes.iter().zip(&numbers) {
            tracing::info!(%pipeline, revision = number, file = revision.file, generation = %next.generation, "taken from the inbox");
            self.forget_old_revisions(pipeline, *number).await;
        }
        for pipeline in removals {
            tracing::info!(%pipeline, generation = %next.generation, "removed; its topics stay");
        }
        Ok(numbers)
    }

    /// Makes a head above what instances remember of an earlier one.
    pub(crate) async fn raise(&self, current: &CurrentHead, lease: &Lease) -> store::Result<()> {
        let next = self.next(Some(current)).await?;
        tracing::warn!(from = %current.head.generation, to = %next.generation,
            "instances remember a newer generation than the store; going on above it");
        self.catalog.set_head(Some(current), &next, Some(lease)).await
    }

    /// Makes a head that was deleted anew, from the notes on the inbox, which know
    /// every pipeline that ran; tells whether there was anything to make it from.
    /// A store that has lost all of its data has no notes.
    pub(crate) async fn recover(&self, notes: &BTreeMap<String, Note>, lease: &Lease) -> store::Result<bool> {
        let mut pipelines = BTreeMap::new();
        for note in notes.values() {
            let Some(pipeline) = note.pipeline.as_ref().filter(|_| note.revision > 0) else { continue };
            if self.catalog.revision(pipeline, note.revision).await?.is_some() {
                pipelines.insert(pipeline.clone(), note.revision);
            }
        }
        if pipelines.is_empty() {
            return Ok(false);
        }
        let mut next = self.next(None).await?;
        for pipeline in pipelines.keys() {
            if let Some(number) = self.catalog.newest_wishes(pipeline).await? {
                next.controls.insert(pipeline.clone(), number);
            }
        }
        next.pipelines = pipelines;
        self.catalog.set_head(None, &next, Some(lease)).await?;
        let pipelines: Vec<_> = next.pipelines.iter().map(|(name, number)| format!("{name} {number}")).collect();
        tracing::warn!(generation = %next.generation, pipelines = pipelines.join(", "),
            "the head was deleted; it is made anew with the revisions that ran");
        Ok(true)
    }
}
