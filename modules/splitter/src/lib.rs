//! The splitter: breaks a document into parts, each a document of its own.
//!
//! Parts are what [`config::By`] lists: elements of an array, pages, chunks, blobs,
//! parts of a mail. They are numbered from 0 through all rules; part 3 of `a` has the
//! id `a#3` and says whose part it is, of how many, and of which version. It has what
//! the document states of itself (source, title, authors, dates, language, keywords,
//! metadata) and the content that the rule gives it. Of a document that has nothing for
//! any rule, what was there of older versions goes.
//!
//! Knows nothing of what becomes of the parts.

pub mod array;
pub mod config;
mod error;
mod mail;
mod text;

use std::collections::BTreeSet;
use std::sync::Arc;

use pipedoc_sdk::output::{Content, Item};
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::{Blob, Data, data};

pub use config::{By, Config, Rule};
pub use error::Error as SplitError;

use array::Found;

/// Documents with more content than this, in bytes, are split on a thread of their
/// own, so that they hold up nobody.
const LARGE: usize = 64 << 10;

/// The module.
#[derive(Debug, Clone)]
pub struct Splitter {
    config: Arc<Config>,
}

impl Module for Splitter {
    type Config = Config;
    const NAME: &'static str = "splitter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str =
        "Breaks a document into parts: elements of an array, pages, chunks, attachments, parts of a mail.";

    async fn open(config: Config, step: &Step) -> Result<Self> {
        Ok(Self { config: Arc::new(config.checked_for(step).permanent()?) })
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        let mails = self.config.rules.iter().any(|rule| rule.by == By::Mail);
        let output = if size(&doc) > LARGE || (mails && !doc.blobs.is_empty()) {
            let config = Arc::clone(&self.config);
            tokio::task::spawn_blocking(move || split(&doc, &config)).await?
        } else {
            split(&doc, &self.config)
        };
        output.map_err(SplitError::into_module_error)
    }
}

fn size(doc: &PipeDoc) -> usize {
    doc.body.len() + json(doc).map_or(0, str::len)
}

/// What comes of a document: the document itself, where it is wanted, then its parts; of
/// one without parts, that there are none any more.
///
/// # Errors
/// When the document is not what a rule can be asked of.
pub fn split(doc: &PipeDoc, config: &Config) -> Result<Output, SplitError> {
    if doc.id.is_empty() {
        return Err(SplitError::NoId);
    }
    let base = base(doc);
    let mut parts: Vec<(Option<&str>, PipeDoc)> = Vec::new();
    for rule in &config.rules {
        let made = by_rule(doc, rule, &base)?;
        parts.extend(made.into_iter().map(|part| (rule.output.as_deref(), part)));
    }
    let found = parts.len();
    let count = i32::try_from(found).map_err(|_| SplitError::TooMany { id: doc.id.clone(), found })?;

    let mut output = Output::default();
    if parts.is_empty() {
        let all: BTreeSet<Option<&str>> = config.rules.iter().map(|rule| rule.output.as_deref()).collect();
        for empty in all {
            output = output.and(to(Output::outdated(doc.id.clone()), empty));
        }
    }
    if config.whole.is_some() {
        output = output.and(to(Output::from(doc.clone()), config.whole.as_deref()));
    }
    output.items.extend(parts.into_iter().zip(0..).map(|((to, part), number)| {
        let part = PipeDoc {
            id: format!("{}#{number}", doc.id),
            version: doc.version,
            parent_id: doc.id.clone(),
            part: number,
            parts: count,
            parent_version: doc.version,
            ..part
        };
        Item { content: Content::Document(part), to: to.map(str::to_owned) }
    }));
    Ok(output)
}

fn to(output: Output, name: Option<&str>) -> Output {
    match name {
        Some(name) => output.to(name),
        None => output,
    }
}

fn by_rule(doc: &PipeDoc, rule: &Rule, base: &PipeDoc) -> Result<Vec<PipeDoc>, SplitError> {
    match rule.by {
        By::Array => elements(doc, rule.at.as_deref().unwrap_or_default(), base),
        By::Pages => Ok(text::pages(doc, base)),
        By::Chunks => Ok(text::chunks(doc, base)),
        By::Attachments => Ok(attachments(doc, base)),
        By::Mail => match mail::find(doc)? {
            Some(mail) => mail::parts(&doc.id, mail, base),
            None => Ok(Vec::new()),
        },
    }
}

/// What parts have of their document: what it states of itself, not what it holds.
fn base(doc: &PipeDoc) -> PipeDoc {
    let mut metadata = doc.metadata.clone();
    if let Some(metadata) = &mut metadata {
        // They tell of the whole body.
        metadata.fields.remove("pages");
        metadata.fields.remove("page_count");
    }
    PipeDoc {
        source_uri: doc.source_uri.clone(),
        title: doc.title.clone(),
        language: doc.language.clone(),
        created_at: doc.created_at,
        modified_at: doc.modified_at,
        authors: doc.authors.clone(),
        keywords: doc.keywords.clone(),
        metadata,
        ..PipeDoc::default()
    }
}

fn json(doc: &PipeDoc) -> Option<&str> {
    match &doc.data {
        Some(Data { kind: Some(data::Kind::Json(text)) }) => Some(text),
        _ => None,
    }
}

fn elements(doc: &PipeDoc, at: &str, base: &PipeDoc) -> Result<Vec<PipeDoc>, SplitError> {
    let Some(text) = json(doc) else { return Ok(Vec::new()) };
    match array::elements(text, at).map_err(|source| SplitError::NoJson { id: doc.id.clone(), source })? {
        Found::Array(elements) => Ok(elements
            .into_iter()
            .map(|element| PipeDoc {
                mime_type: "application/json".to_owned(),
                data: Some(Data { kind: Some(data::Kind::Json(element.to_owned())) }),
                ..base.clone()
            })
            .collect()),
        Found::Nothing => Ok(Vec::new()),
        Found::Other(found) => Err(SplitError::NoArray { id: doc.id.clone(), at: at.to_owned(), found }),
    }
}

fn attachments(doc: &PipeDoc, base: &PipeDoc) -> Vec<PipeDoc> {
    let part = |blob: &Blob| {
        let title = if blob.name.is_empty() { &base.title } else { &blob.name };
        PipeDoc { title: title.clone(), mime_type: blob.mime_type.clone(), blobs: vec![blob.clone()], ..base.clone() }
    };
    doc.blobs.iter().map(part).collect()
}
