//! Office files, books, HTML and XML through kreuzberg: text as Markdown, and
//! what the file states about itself.

use kreuzberg::core::config::{OutputFormat, PageConfig};
use kreuzberg::extraction::html::convert_html_to_markdown_with_metadata;
use kreuzberg::{ExtractionConfig, ExtractionResult, KreuzbergError};
use pipedoc_sdk::proto::v1::PipeDoc;

use super::{File, fields, markdown, warning};
use crate::dates;
use crate::error::Error;

/// Fields of the library's metadata that fill fixed fields of the document, say
/// nothing about the file, or repeat its content.
const TAKEN: &[&str] = &[
    "title",
    "authors",
    "author",
    "keywords",
    "tags",
    "language",
    "created_at",
    "modified_at",
    "pages",
    "error",
    "headers",
    "links",
    "images",
    "structured_data",
    "output_format",
    "extraction_duration_ms",
    "format_type",
    "json_schema",
    "meta_tags",
    "open_graph",
    "twitter_card",
    "image_preprocessing",
    "creator",
    "date",
    "word_count",
    "line_count",
    "character_count",
    "slide_names",
    "slide_titles",
    "hidden_slides",
    "name",
];

pub(super) fn extract(file: File<'_>, mime: &str) -> Result<PipeDoc, Error> {
    let result = run(file, mime)?;
    let mut doc = markdown_document(&result.content);
    describe(&mut doc, &serde_json::to_value(&result.metadata).unwrap_or_default());
    if mime == "application/xml" && result.metadata.title.is_none() {
        // Headings are made of the elements' names here and say nothing.
        doc.title.clear();
    }
    for problem in &result.processing_warnings {
        doc.parse_warnings.push(warning("incomplete", problem.message.to_string(), problem.source.to_string()));
    }
    Ok(doc)
}

/// Reads HTML that was decoded already.
pub(super) fn html(file: File<'_>, text: &str) -> Result<PipeDoc, Error> {
    let converted = convert_html_to_markdown_with_metadata(text, None, Some(OutputFormat::Markdown));
    let (content, metadata) = converted.map_err(|error| file.damaged("text/html", error.to_string()))?;
    // The library repeats what it found in the head as a front matter.
    let mut doc = markdown_document(markdown::split_front_matter(&content).1);
    describe(&mut doc, &serde_json::to_value(&metadata).unwrap_or_default());
    Ok(doc)
}

fn markdown_document(content: &str) -> PipeDoc {
    let mut doc = PipeDoc { body: content.trim().to_owned(), ..PipeDoc::default() };
    fields::set(&mut doc, "body_format", "markdown");
    doc
}

fn run(file: File<'_>, mime: &str) -> Result<ExtractionResult, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| file.damaged(mime, format!("no runtime to read it with: {error}")))?;
    let config = ExtractionConfig {
        use_cache: false,
        enable_quality_processing: false,
        disable_ocr: true,
        output_format: OutputFormat::Markdown,
        pages: Some(PageConfig { extract_pages: false, ..PageConfig::default() }),
        // Archives and attachments inside of documents are not followed.
        max_archive_depth: 0,
        ..ExtractionConfig::default()
    };
    runtime.block_on(kreuzberg::extract_bytes(file.bytes, mime, &config)).map_err(|error| match error {
        KreuzbergError::UnsupportedFormat(found) => Error::Unsupported { name: file.name.to_owned(), mime: found },
        error => {
            let reason = error.to_string();
            let lower = reason.to_lowercase();
            if lower.contains("encrypt") || lower.contains("password") {
                file.encrypted(mime)
            } else {
                file.damaged(mime, reason)
            }
        }
    })
}

/// What the file states about itself.
fn describe(doc: &mut PipeDoc, stated: &serde_json::Value) {
    let text = |name: &str| stated.get(name).and_then(|value| value.as_str()).map(str::trim).unwrap_or_default();
    let texts = |name: &str| -> Vec<String> {
        match stated.get(name) {
            Some(serde_json::Value::Array(items)) => {
                items.iter().filter_map(|item| item.as_str()).map(str::to_owned).collect()
            }
            Some(serde_json::Value::String(one)) => vec![one.clone()],
            _ => Vec::new(),
        }
    };
    let tag = |names: &[&str]| -> String {
        let tags = stated.get("meta_tags");
        let find = |name: &&str| tags.and_then(|tags| tags.get(*name)).and_then(|value| value.as_str());
        names.iter().find_map(find).unwrap_or_default().to_owned()
    };

    doc.title = text("title").to_owned();
    if doc.title.is_empty() {
        doc.title = markdown::first_heading(&doc.body).unwrap_or_default();
    }
    doc.authors = people(&[texts("authors"), texts("author"), texts("creator"), texts("created_by")]);
    let keywords: Vec<String> = texts("keywords").into_iter().chain(texts("tags")).collect();
    doc.keywords = keywords.iter().flat_map(|keyword| fields::split(keyword, &[',', ';'])).collect();
    doc.language = fields::language(text("language"));
    doc.created_at = dates::parse(text("created_at"))
        .or_else(|| dates::parse(text("date")))
        .or_else(|| dates::parse(&tag(&["dcterms.created", "dc.date", "date", "article:published_time"])));
    doc.modified_at = dates::parse(text("modified_at"))
        .or_else(|| dates::parse(&tag(&["dcterms.modified", "last-modified", "article:modified_time"])));
    for (name, value) in stated.as_object().into_iter().flatten() {
        if !TAKEN.contains(&name.as_str()) {
            fields::set_json(doc, name, value);
        }
    }
}

/// The first list that names anybody, each name once.
fn people(lists: &[Vec<String>]) -> Vec<String> {
    let mut people: Vec<String> = Vec::new();
    let named = lists.iter().find(|list| list.iter().any(|name| !name.trim().is_empty()));
    for name in named.into_iter().flatten().flat_map(|name| fields::split(name, &[';'])) {
        if !people.contains(&name) {
            people.push(name);
        }
    }
    people
}
