//! E-mail: subject, people and date of the message, its text as the body, and the
//! names of its attachments, which are not read.

use kreuzberg::extraction::email;
use pipedoc_sdk::proto::v1::PipeDoc;

use super::{File, fields, office, warning};
use crate::dates;
use crate::detect::MSG;
use crate::text::tidy;

pub(super) fn extract(file: File<'_>, mime: &str) -> Result<PipeDoc, crate::error::Error> {
    let message = if mime == MSG {
        email::parse_msg_content(file.bytes, None)
    } else {
        email::parse_eml_content(without_envelope(file.bytes))
    }
    .map_err(|error| file.damaged(mime, error.to_string()))?;

    let mut doc = PipeDoc::default();
    match (&message.plain_text, &message.html_content) {
        (Some(text), _) if !text.trim().is_empty() => doc.body = tidy(text),
        (_, Some(html)) => {
            doc.body = office::html(file, html)?.body;
            fields::set(&mut doc, "body_format", "markdown");
        }
        _ => doc.body = tidy(&message.cleaned_text),
    }
    doc.title = message.subject.unwrap_or_default().trim().to_owned();
    doc.created_at = message.date.as_deref().and_then(dates::parse);
    if let Some(from) = message.from_email {
        doc.authors = vec![person(&from)];
        fields::set(&mut doc, "from", from);
    }
    for (name, people) in [("to", message.to_emails), ("cc", message.cc_emails)] {
        if !people.is_empty() {
            fields::set(&mut doc, name, people);
        }
    }
    if let Some(id) = message.message_id {
        fields::set(&mut doc, "message_id", id);
    }
    let attachments: Vec<String> = message
        .attachments
        .iter()
        .filter_map(|attachment| attachment.filename.clone().or(attachment.name.clone()))
        .collect();
    for name in &attachments {
        doc.parse_warnings.push(warning("attachment-not-read", "an attachment was not read", name));
    }
    if !attachments.is_empty() {
        fields::set(&mut doc, "attachments", attachments);
    }
    Ok(doc)
}

/// A message without the `From ` line that mailboxes put before it.
fn without_envelope(bytes: &[u8]) -> &[u8] {
    if !bytes.starts_with(b"From ") {
        return bytes;
    }
    bytes.iter().position(|byte| *byte == b'\n').map_or(bytes, |end| &bytes[end + 1..])
}

/// The name in `"Name" <address>`, or the address where there is no name.
fn person(from: &str) -> String {
    let name = from.split_once('<').map_or(from, |(name, _)| name).trim().trim_matches('"').trim();
    if name.is_empty() { from.trim_matches(['<', '>']).to_owned() } else { name.to_owned() }
}
