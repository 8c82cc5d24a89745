//! Parts of a body: pages, and chunks that a chunker has made.

use pipedoc_sdk::prelude::PipeDoc;
use pipedoc_sdk::proto::v1::{ByteSpan, Chunk};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// A part for each page of the body, empty ones included, so that numbers stay those
/// of the pages. None where nothing tells of pages.
pub fn pages(doc: &PipeDoc, base: &PipeDoc) -> Vec<PipeDoc> {
    let starts = page_starts(doc);
    let ends = starts.iter().skip(1).copied().chain([doc.body.len()]);
    let pages = starts.iter().zip(ends).zip(1_u32..);
    pages
        .map(|((start, end), number)| {
            // Starts were checked to lie in the body, on the boundaries of characters.
            let text = doc.body.get(*start..end).unwrap_or_default();
            let mut part = PipeDoc { body: text.trim().to_owned(), mime_type: mime_of(doc), ..base.clone() };
            set(&mut part, "page", Kind::NumberValue(f64::from(number)));
            part
        })
        .collect()
}

/// A part for each chunk. It keeps the chunk, with its embeddings, as the one chunk of
/// its own body.
pub fn chunks(doc: &PipeDoc, base: &PipeDoc) -> Vec<PipeDoc> {
    let part = |chunk: &Chunk| {
        let span = ByteSpan { start: 0, end: chunk.text.len() as u64 };
        let mut part = PipeDoc { body: chunk.text.clone(), mime_type: mime_of(doc), ..base.clone() };
        if chunk.page > 0 {
            set(&mut part, "page", Kind::NumberValue(f64::from(chunk.page)));
        }
        if !chunk.heading_path.is_empty() {
            let text = |heading: &String| Value { kind: Some(Kind::StringValue(heading.clone())) };
            let values = chunk.heading_path.iter().map(text).collect();
            set(&mut part, "heading_path", Kind::ListValue(ListValue { values }));
        }
        part.chunks = vec![Chunk { span: Some(span), ..chunk.clone() }];
        part
    };
    doc.chunks.iter().map(part).collect()
}

/// The text's own type: the original's says nothing of a part of it.
fn mime_of(doc: &PipeDoc) -> String {
    let markdown = doc.mime_type == "text/markdown"
        || matches!(field(doc, "body_format"), Some(Kind::StringValue(format)) if format == "markdown");
    if markdown { "text/markdown" } else { "text/plain" }.to_owned()
}

/// Where pages begin, in bytes; empty where what says so cannot be true of the body.
fn page_starts(doc: &PipeDoc) -> Vec<usize> {
    let Some(Kind::ListValue(list)) = field(doc, "pages") else { return Vec::new() };
    let start = |value: &Value| match value.kind {
        // Offsets are written as JSON numbers, and small enough to be exact.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked on the line before")]
        Some(Kind::NumberValue(number)) if number >= 0.0 && number.fract() == 0.0 => Some(number as usize),
        _ => None,
    };
    let starts: Vec<usize> = list.values.iter().map(start).collect::<Option<_>>().unwrap_or_default();
    let fits = starts.is_sorted() && starts.iter().all(|start| doc.body.is_char_boundary(*start));
    if fits { starts } else { Vec::new() }
}

fn field<'a>(doc: &'a PipeDoc, name: &str) -> Option<&'a Kind> {
    doc.metadata.as_ref().and_then(|Struct { fields }| fields.get(name)?.kind.as_ref())
}

fn set(doc: &mut PipeDoc, name: &str, kind: Kind) {
    doc.metadata.get_or_insert_default().fields.insert(name.to_owned(), Value { kind: Some(kind) });
}
