//! PDF: text page by page, so that one bad page costs only itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pdf_extract::{Dictionary, Document, Object, PlainTextOutput, output_doc_page};
use pipedoc_sdk::proto::v1::PipeDoc;

use super::{File, fields, warning};
use crate::dates;
use crate::detect::find;
use crate::error::Error;
use crate::text::tidy;

const MIME: &str = "application/pdf";

/// Where the end of a file is looked for; some programs add padding.
const TAIL: usize = 4096;

pub(super) fn extract(file: File<'_>) -> Result<PipeDoc, Error> {
    let tail = &file.bytes[file.bytes.len().saturating_sub(TAIL)..];
    let ended = find(tail, b"%%EOF").is_some() || find(tail, b"startxref").is_some();
    if !ended {
        return Err(file.truncated(MIME, "the end mark %%EOF is missing"));
    }
    let document = load(file)?;
    let numbers: Vec<u32> = document.get_pages().into_keys().collect();
    if numbers.is_empty() {
        return Err(file.damaged(MIME, "it has no pages"));
    }

    let mut doc = PipeDoc::default();
    describe(&mut doc, &document);
    let mut starts = Vec::with_capacity(numbers.len());
    let mut failures = Vec::new();
    for number in &numbers {
        let text = match page(&document, *number) {
            Ok(text) => tidy(&text),
            Err(reason) => match simply(&document, *number) {
                Some(text) => {
                    doc.parse_warnings.push(warning("simplified-page", reason, format!("page {number}")));
                    tidy(&text)
                }
                None => {
                    failures.push((*number, reason));
                    String::new()
                }
            },
        };
        if !doc.body.is_empty() && !text.is_empty() {
            doc.body.push_str("\n\n");
        }
        starts.push(doc.body.len());
        doc.body.push_str(&text);
    }
    if let (true, Some((_, reason))) = (failures.len() == numbers.len(), failures.first()) {
        return Err(file.damaged(MIME, format!("none of its {} pages can be read: {reason}", numbers.len())));
    }
    for (number, reason) in failures {
        doc.parse_warnings.push(warning("unreadable-page", reason, format!("page {number}")));
    }
    fields::set(&mut doc, "page_count", numbers.len() as f64);
    fields::set(&mut doc, "pages", starts.as_slice());
    Ok(doc)
}

/// The document, decrypted if it opens without a password.
fn load(file: File<'_>) -> Result<Document, Error> {
    let protected = || file.bytes.len() > 8 && find(file.bytes, b"/Encrypt").is_some();
    let mut document = match Document::load_mem(file.bytes) {
        Ok(document) => document,
        Err(_) if protected() => return Err(file.encrypted(MIME)),
        Err(error) => return Err(file.damaged(MIME, error.to_string())),
    };
    if document.is_encrypted() && document.decrypt("").is_err() {
        return Err(file.encrypted(MIME));
    }
    Ok(document)
}

/// The text of a page. The library panics on what it does not expect.
fn page(document: &Document, number: u32) -> Result<String, String> {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let mut text = String::new();
        output_doc_page(document, &mut PlainTextOutput::new(&mut text), number).map(|()| text)
    }));
    match read {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("its content breaks the reader: {}", crate::child::panic_message(panic.as_ref()))),
    }
}

/// The text of a page in the order of the file, without regard to where it
/// stands on the page: better than nothing where [`page`] fails.
fn simply(document: &Document, number: u32) -> Option<String> {
    let read = catch_unwind(AssertUnwindSafe(|| document.extract_text(&[number])));
    read.ok()?.ok().filter(|text| !text.trim().is_empty())
}

/// What the file states about itself: the information dictionary (ISO 32000-1,
/// 14.3.3) and the catalog's language.
fn describe(doc: &mut PipeDoc, document: &Document) {
    let information = document.trailer.get(b"Info").ok().and_then(|info| dictionary(document, info));
    let entry = |name: &[u8]| information.and_then(|info| text(document, info, name)).unwrap_or_default();
    doc.title = entry(b"Title");
    doc.authors = fields::split(&entry(b"Author"), &[';']);
    doc.keywords = fields::split(&entry(b"Keywords"), &[',', ';']);
    doc.created_at = dates::parse(&entry(b"CreationDate"));
    doc.modified_at = dates::parse(&entry(b"ModDate"));
    for (name, key) in [("subject", &b"Subject"[..]), ("creator", b"Creator"), ("producer", b"Producer")] {
        let value = entry(key);
        if !value.is_empty() {
            fields::set(doc, name, value);
        }
    }
    let language = document.catalog().ok().and_then(|catalog| text(document, catalog, b"Lang"));
    doc.language = fields::language(&language.unwrap_or_default());
}

fn dictionary<'a>(document: &'a Document, object: &'a Object) -> Option<&'a Dictionary> {
    document.dereference(object).ok()?.1.as_dict().ok()
}

/// A text string (ISO 32000-1, 7.9.2.2): UTF-16 or UTF-8 with a mark, else
/// PDFDocEncoding, which is near enough to Windows-1252.
fn text(document: &Document, dictionary: &Dictionary, key: &[u8]) -> Option<String> {
    let (_, object) = document.dereference(dictionary.get(key).ok()?).ok()?;
    let bytes = object.as_str().ok()?;
    let (text, ..) = encoding_rs::WINDOWS_1252.decode(bytes);
    let text = text.trim().trim_matches('\0').to_owned();
    (!text.is_empty()).then_some(text)
}
