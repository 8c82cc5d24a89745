//! The parts of an e-mail (RFC 5322, RFC 2045): texts, attachments, messages within.
//!
//! The reader is plain safe Rust, but drops messages within messages one inside the
//! other: so it works on a thread of its own, whose stack is large enough for as many
//! parts as are taken at most. Knows nothing of numbers and outputs.

use mail_parser::{MessageParser, MessagePart, MimeHeaders, PartType};
use pipedoc_sdk::proto::PipeDoc;
use pipedoc_sdk::proto::v1::{Blob, blob};
use prost_types::Timestamp;

use crate::error::Error;

/// Most parts of a mail, messages within it included.
const MOST_PARTS: usize = 1000;
/// Stack of the reader's thread; only what is touched is ever memory.
const STACK: usize = 32 << 20;

const MAIL: &str = "message/rfc822";

/// The mail in a document, if there is one: the blob that says it is one, or the only
/// one where none says what it is.
///
/// # Errors
/// When it was not read back from the object store.
pub fn find(doc: &PipeDoc) -> Result<Option<&[u8]>, Error> {
    let is_mail = |blob: &&Blob| blob.mime_type == MAIL || blob.name.to_ascii_lowercase().ends_with(".eml");
    let only = match doc.blobs.as_slice() {
        [blob] if doc.mime_type == MAIL || (blob.mime_type.is_empty() && doc.mime_type.is_empty()) => Some(blob),
        _ => None,
    };
    match doc.blobs.iter().find(is_mail).or(only).map(|blob| &blob.content) {
        None => Ok(None),
        Some(Some(blob::Content::Inline(bytes))) => Ok(Some(bytes.as_ref())),
        Some(None) => Ok(Some(&[])),
        Some(Some(blob::Content::Claim(_))) => Err(Error::NotHydrated { id: doc.id.clone() }),
    }
}

/// The leaves of a mail, in its order, each on top of `base`.
///
/// # Errors
/// When it is no mail, or none that an honest sender would send.
pub fn parts(id: &str, mail: &[u8], base: &PipeDoc) -> Result<Vec<PipeDoc>, Error> {
    let unreadable = || Error::Unreadable { id: id.to_owned() };
    let fields = mail.split(|byte| *byte == b'\n').filter(|line| is_content_type(line)).take(MOST_PARTS + 1);
    if fields.count() > MOST_PARTS {
        return Err(Error::TooManyParts { id: id.to_owned(), most: MOST_PARTS });
    }
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("mail".to_owned()).stack_size(STACK);
        let reader = reader.spawn_scoped(scope, || read(mail, base)).map_err(|_| unreadable())?;
        // A panic of the reader is told by whoever watches the process, and here.
        reader.join().map_err(|_| unreadable())?.ok_or_else(|| Error::NoMail { id: id.to_owned() })
    })
}

/// Whether a line begins a `Content-Type` field. No message is within another, and no
/// part is there, without one in what is around it.
fn is_content_type(line: &[u8]) -> bool {
    const FIELD: &[u8] = b"content-type";
    line.get(..FIELD.len()).is_some_and(|start| start.eq_ignore_ascii_case(FIELD))
}

fn read(mail: &[u8], base: &PipeDoc) -> Option<Vec<PipeDoc>> {
    let message = MessageParser::default().parse(mail).filter(|message| !message.headers().is_empty())?;
    let mut base = base.clone();
    if base.title.is_empty() {
        message.subject().unwrap_or_default().clone_into(&mut base.title);
    }
    if base.authors.is_empty() {
        let from = message.from().and_then(|from| from.first());
        base.authors = from.and_then(|from| from.name().or(from.address())).map(str::to_owned).into_iter().collect();
    }
    if base.created_at.is_none() {
        base.created_at = message.date().map(|date| Timestamp { seconds: date.to_timestamp(), nanos: 0 });
    }
    let leaves = message.parts.iter().filter(|part| !matches!(part.body, PartType::Multipart(_)));
    Some(leaves.map(|part| leaf(part, &base)).collect())
}

fn leaf(part: &MessagePart<'_>, base: &PipeDoc) -> PipeDoc {
    let mut doc = base.clone();
    let name = part.attachment_name().unwrap_or_default();
    let stated = part.content_type().map(|stated| match &stated.c_subtype {
        Some(subtype) => format!("{}/{subtype}", stated.c_type).to_ascii_lowercase(),
        None => stated.c_type.to_ascii_lowercase(),
    });
    let file = |bytes: &[u8], mime: &str, name: &str| Blob {
        name: name.to_owned(),
        mime_type: mime.to_owned(),
        size: bytes.len() as u64,
        content: Some(blob::Content::Inline(bytes.to_vec().into())),
        ..Blob::default()
    };
    match &part.body {
        PartType::Text(text) if name.is_empty() => {
            doc.mime_type = stated.unwrap_or_else(|| "text/plain".to_owned());
            doc.body = text.trim_end().to_owned();
            return doc;
        }
        PartType::Text(text) => {
            doc.mime_type = stated.unwrap_or_else(|| "text/plain".to_owned());
            doc.blobs = vec![file(text.as_bytes(), &doc.mime_type, name)];
        }
        PartType::Html(text) => {
            "text/html".clone_into(&mut doc.mime_type);
            doc.blobs = vec![file(text.as_bytes(), &doc.mime_type, name)];
        }
        PartType::Binary(bytes) | PartType::InlineBinary(bytes) => {
            doc.mime_type = stated.unwrap_or_else(|| "application/octet-stream".to_owned());
            doc.blobs = vec![file(bytes, &doc.mime_type, name)];
        }
        PartType::Message(message) => {
            MAIL.clone_into(&mut doc.mime_type);
            doc.blobs = vec![file(message.raw_message(), MAIL, name)];
            message.subject().unwrap_or_default().clone_into(&mut doc.title);
            return doc;
        }
        // Only leaves come here.
        PartType::Multipart(_) => {}
    }
    if !name.is_empty() {
        name.clone_into(&mut doc.title);
    }
    doc
}
