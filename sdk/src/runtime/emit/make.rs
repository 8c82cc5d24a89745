//! Makes records of what a connector gives, and dead letters of what cannot be sent,
//! each for as long as it takes.
//!
//! Runs in tasks of its own; knows nothing of what becomes of them.

use std::sync::Arc;

use pipedoc_transport::log::OutgoingRecord;

use crate::connector::{Emission, EmissionContent};
use crate::error::Result;
use crate::output::Content;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::hop::root_id;
use crate::runtime::retry;
use crate::runtime::status::Board;
use crate::runtime::work::{About, Workshop};

/// An emission made into records.
pub(super) struct Made {
    pub(super) emission: Emission,
    pub(super) about: About,
    /// Its records, and the outputs that could not carry a deletion.
    pub(super) came: Result<(Vec<OutgoingRecord>, Vec<String>)>,
}

/// The dead letter of an emission.
pub(super) struct Buried {
    pub(super) number: u64,
    /// An error where it can never be written.
    pub(super) letter: Result<OutgoingRecord>,
    pub(super) content: EmissionContent,
}

/// Makes an emission into records.
pub(super) async fn make(shop: &Arc<Workshop>, board: &Board, emission: Emission) -> Made {
    let span = tracing::info_span!("connect", step = %shop.plan.id);
    let (content, version) = match &emission.content {
        EmissionContent::Document(doc) => (Content::Document(doc.clone()), doc.version),
        EmissionContent::Deletion { id, version } => (Content::Deletion(id.clone()), *version),
        EmissionContent::Unchanged { id } => {
            let about = About { document: root_id(id).to_owned(), ..About::default() };
            return Made { emission, about, came: Ok((Vec::new(), Vec::new())) };
        }
        EmissionContent::Unreadable { id, version, error } => {
            let about = About { document: root_id(id).to_owned(), version: *version, tombstone: false };
            let came = Err(error.duplicate());
            return Made { emission, about, came };
        }
    };
    let mut failures = 0_u32;
    loop {
        match shop.bring_in(copy(&content), version, &span).await {
            Ok(worked) => {
                let about = worked.about.map_or_else(About::default, |about| *about);
                return Made { emission, about, came: Ok((worked.records, worked.unable)) };
            }
            Err(failed) if failed.patient => {
                failures = failures.saturating_add(1);
                board.trouble(&failed.error);
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
            Err(failed) => return Made { emission, about: failed.about, came: Err(failed.error) },
        }
    }
}

/// Makes a dead letter, for as long as it takes, unless the log can never take it.
pub(super) async fn bury(
    shop: &Workshop,
    board: &Board,
    content: &EmissionContent,
    about: &About,
    reason: &Reason,
) -> Result<OutgoingRecord> {
    let mut failures = 0_u32;
    loop {
        let letter = match content {
            EmissionContent::Document(doc) => dead_letter::of_document(shop, doc, reason).await,
            EmissionContent::Deletion { id, version } | EmissionContent::Unreadable { id, version, .. } => {
                dead_letter::of_unreadable(shop, id, *version, reason).await
            }
            EmissionContent::Unchanged { id } => dead_letter::of_unreadable(shop, id, about.version, reason).await,
        };
        match letter {
            Ok(letter) => return Ok(letter),
            Err(error) if dead_letter::is_unwritable(&error) => return Err(error),
            Err(error) => {
                failures = failures.saturating_add(1);
                board.trouble(&error.context("a dead letter cannot be made"));
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
        }
    }
}

fn copy(content: &Content) -> Content {
    match content {
        Content::Document(doc) => Content::Document(doc.clone()),
        Content::Deletion(id) => Content::Deletion(id.clone()),
        Content::Outdated(id) => Content::Outdated(id.clone()),
    }
}
