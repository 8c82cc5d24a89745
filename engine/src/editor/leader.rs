//! Changes of the head that only a leader makes: all of them carry its lease.

use std::collections::{BTreeMap, BTreeSet};

use pipedoc_model::names::PipelineName;
use pipedoc_model::problem::Problem;

use super::{Editor, oversized, remove};
use crate::catalog::{CurrentHead, Note, Revision};
use crate::store::{self, Error, Lease};

/// What became of texts that were to be taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The revision that each of them is, in their order; none: it was refused.
    pub(crate) numbers: Vec<Option<u64>>,
    /// Why they were refused.
    pub(crate) problems: Vec<Problem>,
}

impl Editor {
    /// Makes revisions of texts that were validated against `current`, and removes
    /// pipelines, at the time `now`.
    ///
    /// Fails with a conflict when the head is another one by now.
    pub(crate) async fn take(
        &self,
        current: Option<&CurrentHead>,
        takes: &[(PipelineName, &Revision)],
        removals: &BTreeSet<PipelineName>,
        now: i64,
        lease: &Lease,
    ) -> store::Result<Taken> {
        let mut next = self.next(current).await?;
        let mut taken = Taken::default();
        for name in removals {
            remove(&mut next, name, now, "");
        }
        for (name, revision) in takes {
            let number = match self.catalog.add_revision(name, revision).await {
                Ok(number) => number,
                Err(Error::TooLarge { size, limit, .. }) => {
                    taken.problems.push(oversized(&revision.file, size, limit));
                    taken.numbers.push(None);
                    continue;
                }
                Err(error) => return Err(error),
            };
            next.pipelines.insert(name.clone(), number);
            next.deleted.remove(name);
            taken.numbers.push(Some(number));
        }
        if removals.is_empty() && taken.numbers.iter().all(Option::is_none) {
            return Ok(taken);
        }
        self.catalog.set_head(current, &next, Some(lease)).await?;
        for ((pipeline, revision), number) in takes.iter().zip(&taken.numbers) {
            let Some(number) = number else { continue };
            tracing::info!(%pipeline, revision = number, file = revision.file, generation = %next.generation, "taken from the inbox");
            self.forget_old_revisions(pipeline, *number).await;
        }
        for pipeline in removals {
            tracing::info!(%pipeline, generation = %next.generation, "removed; its topics stay");
        }
        Ok(taken)
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
