//! Markdown: the text stays as it is; a front matter block is read and taken away.

use pipedoc_sdk::proto::v1::PipeDoc;

use super::fields;
use crate::dates;
use crate::text::Decoded;

/// Reads a Markdown text. The title is the front matter's, else the first
/// heading of level 1.
pub(super) fn extract(decoded: &Decoded) -> PipeDoc {
    let text = decoded.text.replace("\r\n", "\n");
    let (front, body) = split_front_matter(&text);
    let mut doc = PipeDoc { body: body.to_owned(), ..PipeDoc::default() };
    super::note_encoding(&mut doc, decoded.encoding, decoded.lossy);
    fields::set(&mut doc, "body_format", "markdown");
    for (key, values) in front.map(entries).unwrap_or_default() {
        let first = values.first().cloned().unwrap_or_default();
        match key.as_str() {
            "title" => doc.title = first,
            "author" | "authors" => {
                doc.authors = values.iter().flat_map(|value| fields::split(value, &[';', ','])).collect()
            }
            "keywords" | "tags" => {
                doc.keywords = values.iter().flat_map(|value| fields::split(value, &[';', ','])).collect()
            }
            "lang" | "language" => doc.language = fields::language(&first),
            "date" | "created" => doc.created_at = dates::parse(&first),
            "modified" | "updated" | "lastmod" => doc.modified_at = dates::parse(&first),
            _ if values.len() == 1 => fields::set(&mut doc, &key, first),
            _ => fields::set(&mut doc, &key, values),
        }
    }
    if doc.title.is_empty() {
        doc.title = first_heading(&doc.body).unwrap_or_default();
    }
    doc
}

/// The first heading of level 1 outside of code fences, if it stands before any
/// other heading.
pub(super) fn first_heading(body: &str) -> Option<String> {
    let mut fenced = false;
    let mut previous = "";
    for line in body.lines() {
        if line.starts_with("```") || line.starts_with("~~~") {
            fenced = !fenced;
        } else if !fenced {
            if let Some(title) = line.strip_prefix("# ") {
                return Some(title.trim().trim_end_matches('#').trim().to_owned()).filter(|title| !title.is_empty());
            }
            if line.starts_with("## ") {
                return None;
            }
            let underline = line.len() >= 3 && line.bytes().all(|byte| byte == b'=');
            if underline && !previous.trim().is_empty() {
                return Some(previous.trim().to_owned());
            }
        }
        previous = line;
    }
    None
}

/// A YAML block between two `---` lines at the very start, and what follows it.
pub(super) fn split_front_matter(text: &str) -> (Option<&str>, &str) {
    let Some(rest) = text.strip_prefix("---\n") else { return (None, text) };
    let end = rest.find("\n---\n").map(|at| (at, at + 5)).or_else(|| rest.find("\n...\n").map(|at| (at, at + 5)));
    match end {
        Some((end, after)) => (Some(&rest[..end]), rest[after..].trim_start_matches('\n')),
        None => (None, text),
    }
}

/// Keys of a front matter with their texts. Only scalars and flat lists are
/// understood; deeper structure is passed over.
fn entries(front: &str) -> Vec<(String, Vec<String>)> {
    let unquote = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    let mut entries: Vec<(String, Vec<String>)> = Vec::new();
    for line in front.lines() {
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            if let Some((_, values)) = entries.last_mut() {
                values.push(unquote(item));
            }
            continue;
        }
        if line.starts_with([' ', '\t', '#']) {
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let values = match value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
            Some(list) => list.split(',').map(unquote).filter(|item| !item.is_empty()).collect(),
            None if value.is_empty() => Vec::new(),
            None => vec![unquote(value)],
        };
        entries.push((key.trim().to_ascii_lowercase(), values));
    }
    entries.retain(|(_, values)| !values.is_empty());
    entries
}
