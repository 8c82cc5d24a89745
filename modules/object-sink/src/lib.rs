//! The object sink: stores documents as JSON, one file each or as JSON Lines.
//!
//! Storing the same twice gives the same result as once, an older version never
//! replaces a newer one, and a deletion leaves nothing behind but the memory of it
//! (for `deletion_horizon`). No file is ever visible half written. It knows nothing
//! of pipelines, nor where documents come from. See [`config::Config`] for what can
//! be set.

pub mod config;
mod error;
mod files;
mod head;
mod lines;
mod merge;
mod name;
mod place;
mod render;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use pipedoc_sdk::prelude::{Deletion, Module, Output, PipeDoc, Result, Step, StepType};

use crate::config::{Config, Format};
use crate::error::told;
use crate::files::Files;
use crate::lines::Lines;
use crate::place::Place;
use crate::render::Style;

pub use crate::error::Error;
pub use crate::merge::{Merged, finish, merge};

/// Threads that write one batch.
const WRITERS: usize = 8;

/// Stores documents.
#[derive(Debug)]
pub struct ObjectSink {
    target: Target,
    style: Style,
}

#[derive(Debug)]
enum Target {
    Files(Arc<Files>),
    Lines(Lines),
}

impl Module for ObjectSink {
    type Config = Config;
    const NAME: &'static str = "object-sink";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str = "Stores documents as JSON, one file for each or as JSON Lines.";
    const STEP_TYPES: &'static [StepType] = &[StepType::Sink];

    async fn open(config: Config, _step: &Step) -> Result<Self> {
        let style = Style::of(&config);
        let opened = tokio::task::spawn_blocking(move || {
            let place = Place::open(&config.url, config.fsync)?;
            Ok(match config.format {
                Format::Json => Target::Files(Arc::new(Files::new(place, style, config.deletion_horizon.0))),
                Format::Jsonl => Target::Lines(Lines::start(place)),
            })
        });
        let target = opened.await?.map_err(|error: Error| told(Box::new(error)))?;
        Ok(Self { target, style })
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        match &self.target {
            Target::Files(files) => blocking(files, move |files| files.store(doc)).await,
            Target::Lines(lines) => self.line(lines, doc).await,
        }
    }

    async fn process_batch(&self, docs: Vec<PipeDoc>, _step: &Step) -> Vec<Result<Output>> {
        match &self.target {
            Target::Files(files) => store_batch(files, docs).await,
            // Queued in order, before any of them is waited for.
            Target::Lines(lines) => join_all(docs.into_iter().map(|doc| self.line(lines, doc))).await,
        }
    }

    async fn deleted(&self, deletion: Deletion, _step: &Step) -> Result<Output> {
        match &self.target {
            Target::Files(files) => blocking(files, move |files| files.delete(&deletion)).await,
            Target::Lines(lines) => written(lines.write(render::deletion(&deletion.id, deletion.version)).await),
        }
    }
}

impl ObjectSink {
    async fn line(&self, lines: &Lines, doc: PipeDoc) -> Result<Output> {
        if doc.id.is_empty() {
            return Err(told(Box::new(Error::NoId)));
        }
        // A line is a line.
        let style = Style { pretty: false, ..self.style };
        let line = style.document(doc).map_err(|error| told(Box::new(error)))?;
        written(lines.write(line).await)
    }
}

fn written(result: std::result::Result<(), Arc<Error>>) -> Result<Output> {
    result.map(|()| Output::skip()).map_err(told)
}

/// Works on files where that holds nobody up.
async fn blocking(
    files: &Arc<Files>,
    work: impl FnOnce(&Files) -> std::result::Result<(), Error> + Send + 'static,
) -> Result<Output> {
    let files = Arc::clone(files);
    let result = tokio::task::spawn_blocking(move || work(&files)).await?;
    result.map(|()| Output::skip()).map_err(|error| told(Box::new(error)))
}

/// Stores a batch with several threads; documents of one root go to one thread, and
/// so stay in order.
async fn store_batch(files: &Arc<Files>, docs: Vec<PipeDoc>) -> Vec<Result<Output>> {
    let count = docs.len();
    let mut shares: BTreeMap<usize, Vec<(usize, PipeDoc)>> = BTreeMap::new();
    let mut share_of: BTreeMap<String, usize> = BTreeMap::new();
    for (n, doc) in docs.into_iter().enumerate() {
        let next = share_of.len() % WRITERS;
        let share = *share_of.entry(name::root(&doc.id).to_owned()).or_insert(next);
        shares.entry(share).or_default().push((n, doc));
    }
    let work = shares.into_values().map(|share| {
        let files = Arc::clone(files);
        tokio::task::spawn_blocking(move || share.into_iter().map(|(n, doc)| (n, files.store(doc))).collect::<Vec<_>>())
    });
    let mut results: Vec<Option<Result<Output>>> = (0..count).map(|_| None).collect();
    for share in join_all(work).await.into_iter().flatten() {
        for (n, result) in share {
            results[n] = Some(result.map(|()| Output::skip()).map_err(|error| told(Box::new(error))));
        }
    }
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(told(Box::new(Error::Closed))))).collect()
}
