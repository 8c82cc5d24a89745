//! What a batch is to a module that knows only single documents: those of one
//! lane one after the other, lanes side by side.
//!
//! Knows documents; what makes a lane is the runtime's to say.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use pipedoc_proto::PipeDoc;

use crate::error::{Error, Result};
use crate::module::{Module, Step};
use crate::output::Output;
use crate::runtime::process::panicked;

/// Processes documents each on its own; one result for each, in order. After a
/// failure the later ones of its lane are not tried. A panic is the failure of
/// its document alone.
pub(crate) async fn process_each<M: Module>(module: &M, docs: Vec<PipeDoc>, step: &Step) -> Vec<Result<Output>> {
    let told = step.lanes();
    let mut lanes: BTreeMap<Lane, Vec<(usize, PipeDoc)>> = BTreeMap::new();
    let count = docs.len();
    for (place, doc) in docs.into_iter().enumerate() {
        let lane = match told.get(place) {
            Some(lane) if told.len() == count => Lane::Told(*lane),
            _ => Lane::Of(if doc.parent_id.is_empty() { doc.id.clone() } else { doc.parent_id.clone() }),
        };
        lanes.entry(lane).or_default().push((place, doc));
    }
    let work = lanes.into_values().map(|docs| one_after_the_other(module, docs, step));
    let mut results: Vec<(usize, Result<Output>)> =
        futures::future::join_all(work).await.into_iter().flatten().collect();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// What must stay in order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// By the runtime's word.
    Told(u64),
    /// By whole document, where there is no runtime to say.
    Of(String),
}

async fn one_after_the_other<M: Module>(
    module: &M,
    docs: Vec<(usize, PipeDoc)>,
    step: &Step,
) -> Vec<(usize, Result<Output>)> {
    let mut results: Vec<(usize, Result<Output>)> = Vec::with_capacity(docs.len());
    for (place, doc) in docs {
        let result = if results.last().is_some_and(|(_, result)| result.is_err()) {
            Err(Error::retryable("not tried: an earlier one of its key failed").with_kind("not-tried"))
        } else {
            let work = AssertUnwindSafe(async { module.process(doc, step).await }).catch_unwind();
            work.await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
        };
        results.push((place, result));
    }
    results
}
