//! The parser: files in, text and what the file states about itself out.
//!
//! Takes a document with one blob, the file, and fills `body`, `title`, `authors`,
//! dates, `language`, `keywords`, `mime_type`, `metadata` and `parse_warnings`.
//! The type is found in the content; names decide only between texts. Files are
//! parsed in child processes of the same program with bounded memory and time, so
//! that a hostile file costs one child and is a clear permanent error.
//!
//! `metadata` may hold, beside what the file states: `body_format` (`markdown`
//! when the body is Markdown), `pages` (where each page begins in the body, in
//! bytes), `page_count`, `encoding` (of texts that were not UTF-8), `compression`.
//!
//! Knows nothing of where files come from or where documents go.

mod child;
mod config;
mod dates;
pub mod detect;
mod error;
pub mod extract;
mod frame;
pub mod pool;
pub mod text;

use std::path::PathBuf;

use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::blob;

pub use child::child_main_if_asked;
pub use config::Config;
pub use error::Error;

use crate::pool::Pool;

/// The module.
#[derive(Debug)]
pub struct Parser {
    pool: Pool,
    keep_blob: bool,
}

impl Parser {
    /// A parser whose children are processes of `program`, which must call
    /// [`child_main_if_asked`] first in its `main`. For programs that cannot do
    /// so themselves, such as test binaries.
    #[must_use]
    pub fn with_program(config: &Config, program: PathBuf) -> Self {
        Self { pool: Pool::new(program, config.limits()), keep_blob: config.keep_blob }
    }

    /// The children.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Parses a document's file into the document.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub async fn parse(&self, mut doc: PipeDoc) -> Result<PipeDoc, Error> {
        let Some(index) = doc.blobs.iter().position(|blob| blob.content.is_some() || blob.size == 0) else {
            // A document that came as text needs no parsing.
            return if doc.body.is_empty() { Err(Error::NoFile { id: doc.id }) } else { Ok(doc) };
        };
        let parsed = {
            let blob = &doc.blobs[index];
            let name = if blob.name.is_empty() { doc.id.as_str() } else { blob.name.as_str() };
            match &blob.content {
                Some(blob::Content::Inline(bytes)) if !bytes.is_empty() => self.pool.parse(name, bytes).await?,
                Some(blob::Content::Claim(_)) => return Err(Error::NotHydrated { name: name.to_owned() }),
                _ => return Err(Error::Empty { name: name.to_owned() }),
            }
        };
        fill(&mut doc, parsed);
        if self.keep_blob {
            doc.blobs[index].mime_type.clone_from(&doc.mime_type);
        } else {
            doc.blobs.remove(index);
        }
        Ok(doc)
    }
}

impl Module for Parser {
    type Config = Config;
    const NAME: &'static str = "parser";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str =
        "Reads text, title, authors and dates out of PDF, office, HTML, mail and text files.";

    async fn open(config: Config, _step: &Step) -> Result<Self> {
        Ok(Self::with_program(&config, pool::this_program()))
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        self.parse(doc).await.map(Output::from).map_err(crate::Error::into_module_error)
    }
}

/// Takes over what the file says. Where it says nothing, what the document's
/// source said before stays.
fn fill(doc: &mut PipeDoc, parsed: PipeDoc) {
    let text = |old: &mut String, new: String| {
        if !new.is_empty() {
            *old = new;
        }
    };
    text(&mut doc.title, parsed.title);
    text(&mut doc.language, parsed.language);
    doc.body = parsed.body;
    doc.mime_type = parsed.mime_type;
    doc.created_at = parsed.created_at.or(doc.created_at);
    doc.modified_at = parsed.modified_at.or(doc.modified_at);
    if !parsed.authors.is_empty() {
        doc.authors = parsed.authors;
    }
    if !parsed.keywords.is_empty() {
        doc.keywords = parsed.keywords;
    }
    if let Some(stated) = parsed.metadata {
        doc.metadata.get_or_insert_default().fields.extend(stated.fields);
    }
    doc.parse_warnings.extend(parsed.parse_warnings);
}
