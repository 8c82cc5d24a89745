//! The chunker: cuts a document's body into chunks that know where they stand.
//!
//! A chunk's text is exactly `body[span]`; chunks are in order, and without
//! `overlap` no two share a byte. Markdown (media type `text/markdown`, or
//! `metadata.body_format: markdown`, as the parser sets it) is cut along its
//! structure, and chunks know the headings above them. Where `metadata.pages`
//! tells the pages' beginnings, chunks know the page they begin on. A document
//! without body passes through without chunks.
//!
//! Knows nothing of files, models or embeddings.

pub mod config;
mod headings;
mod sizer;
pub mod split;

use pipedoc_sdk::prelude::*;
use prost_types::Struct;
use prost_types::value::Kind;

pub use config::{Config, Unit};
use split::{Shape, split};

/// Bodies longer than this, in bytes, are cut on a thread of their own, so that
/// they hold up nobody.
const LONG: usize = 64 << 10;

/// The module.
#[derive(Debug, Clone)]
pub struct Chunker {
    config: Config,
}

impl Module for Chunker {
    type Config = Config;
    const NAME: &'static str = "chunker";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str = "Cuts the body into chunks by size, along its structure.";

    async fn open(config: Config, _step: &Step) -> Result<Self> {
        Ok(Self { config: config.checked().permanent()? })
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        let doc = if doc.body.len() > LONG {
            let config = self.config.clone();
            tokio::task::spawn_blocking(move || chunked(doc, &config)).await?
        } else {
            chunked(doc, &self.config)
        };
        doc.map(Output::from)
    }
}

/// The document with its chunks.
fn chunked(mut doc: PipeDoc, config: &Config) -> Result<PipeDoc> {
    doc.chunks = split(&doc.body, &shape(&doc), config).permanent()?;
    Ok(doc)
}

/// What the body is, as the document says.
fn shape(doc: &PipeDoc) -> Shape {
    let field = |name: &str| doc.metadata.as_ref().and_then(|Struct { fields }| fields.get(name)?.kind.as_ref());
    let markdown = doc.mime_type == "text/markdown"
        || matches!(field("body_format"), Some(Kind::StringValue(format)) if format == "markdown");
    let pages = match field("pages") {
        Some(Kind::ListValue(list)) => list.values.iter().map(|value| match value.kind {
            // Offsets are written as JSON numbers, and small enough to be exact.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked on the line before")]
            Some(Kind::NumberValue(number)) if number >= 0.0 && number.fract() == 0.0 => Some(number as usize),
            _ => None,
        }),
        _ => return Shape { markdown, pages: Vec::new() },
    };
    // Numbers that do not grow tell no pages.
    let pages: Vec<usize> = pages.collect::<Option<_>>().unwrap_or_default();
    let pages = if pages.is_sorted() { pages } else { Vec::new() };
    Shape { markdown, pages }
}
