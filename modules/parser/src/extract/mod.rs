//! From a file's bytes to what it says. Runs inside a child, so it may be slow,
//! take memory, panic or never end: none of that is its concern.

mod fields;
mod mail;
mod markdown;
mod office;
mod pdf;

use std::io::Read;

use pipedoc_sdk::proto::v1::{ParseWarning, PipeDoc};

use crate::detect::{self, Detected, Kind, find};
use crate::error::Error;
use crate::text;

/// A file may unpack to so many times the parser's `max_file_size`: office files
/// compress well.
const EXPANSION: u64 = 4;

/// A file to be read.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its content.
    pub bytes: &'a [u8],
    /// The parser's `max_file_size`, in bytes.
    pub max_size: u64,
}

/// Reads a file. The document that comes back holds only what the file says:
/// text, media type, and what it states about itself.
///
/// # Errors
/// Why nothing could be read.
pub fn extract(file: File<'_>) -> Result<PipeDoc, Error> {
    if file.bytes.is_empty() {
        return Err(Error::Empty { name: file.name.to_owned() });
    }
    let detected = detect::detect(file.name, file.bytes);
    let mime = detected.mime.clone();
    let mut doc = match detected.kind {
        Kind::Pdf => pdf::extract(file)?,
        Kind::Office => {
            if file.bytes.starts_with(b"PK") {
                check_expansion(file, &mime)?;
            }
            office::extract(file, &mime)?
        }
        Kind::Rtf => {
            if !file.bytes.trim_ascii_end().ends_with(b"}") && !file.bytes.trim_ascii_end().ends_with(b"}\0") {
                return Err(file.truncated(&mime, "the closing brace is missing"));
            }
            office::extract(file, &mime)?
        }
        Kind::Html => html(file)?,
        Kind::Xml => office::extract(file, &mime)?,
        Kind::Mail => mail::extract(file, &mime)?,
        Kind::Markdown => markdown::extract(&decoded(file, &detected)?),
        Kind::Text => plain(decoded(file, &detected)?),
        Kind::Gzip => return gzip(file),
        Kind::Encrypted => return Err(file.encrypted(&mime)),
        Kind::TruncatedZip => return Err(file.truncated(&mime, "the archive's directory is missing")),
        Kind::Unsupported => return Err(Error::Unsupported { name: file.name.to_owned(), mime }),
    };
    doc.mime_type = mime;
    if doc.body.trim().is_empty() {
        doc.body.clear();
        doc.parse_warnings.push(warning("no-text", "the file holds no text (scanned pages or pictures only?)", ""));
    }
    Ok(doc)
}

impl File<'_> {
    fn encrypted(&self, mime: &str) -> Error {
        Error::Encrypted { name: self.name.to_owned(), mime: mime.to_owned() }
    }

    fn damaged(&self, mime: &str, reason: impl Into<String>) -> Error {
        Error::Damaged { name: self.name.to_owned(), mime: mime.to_owned(), reason: reason.into() }
    }

    fn truncated(&self, mime: &str, missing: &str) -> Error {
        let size = self.bytes.len() as u64;
        Error::Truncated { name: self.name.to_owned(), mime: mime.to_owned(), size, missing: missing.to_owned() }
    }
}

fn warning(code: &str, message: impl Into<String>, location: impl Into<String>) -> ParseWarning {
    ParseWarning { code: code.to_owned(), message: message.into(), location: location.into() }
}

fn decoded(file: File<'_>, detected: &Detected) -> Result<text::Decoded, Error> {
    text::decode(file.bytes).ok_or_else(|| file.damaged(&detected.mime, "its bytes are no text in any known encoding"))
}

/// A text as it is; its encoding is told when it was not UTF-8.
fn plain(decoded: text::Decoded) -> PipeDoc {
    let mut doc = PipeDoc { body: decoded.text, ..PipeDoc::default() };
    note_encoding(&mut doc, decoded.encoding, decoded.lossy);
    doc
}

fn note_encoding(doc: &mut PipeDoc, encoding: &'static str, lossy: bool) {
    if encoding != "UTF-8" {
        fields::set(doc, "encoding", encoding);
    }
    if lossy {
        doc.parse_warnings.push(warning(
            "unreadable-bytes",
            format!("some bytes are no {encoding} and were replaced"),
            "",
        ));
    }
}

/// HTML, in the encoding that it names itself if it names one.
fn html(file: File<'_>) -> Result<PipeDoc, Error> {
    let head = &file.bytes[..file.bytes.len().min(2048)];
    let named = find(&head.to_ascii_lowercase(), b"charset=").and_then(|at| {
        let rest = &head[at + "charset=".len()..];
        let rest = rest.strip_prefix(b"\"").or_else(|| rest.strip_prefix(b"'")).unwrap_or(rest);
        let end = rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"-_:.".contains(byte));
        encoding_rs::Encoding::for_label(&rest[..end.unwrap_or(rest.len())])
    });
    // A label of UTF-16 cannot be true where it could be read byte by byte.
    let named = named.filter(|encoding| encoding.is_ascii_compatible());
    let decoded = match named {
        Some(encoding) if std::str::from_utf8(file.bytes).is_err() => text::with(encoding, file.bytes),
        _ => text::decode(file.bytes).unwrap_or_else(|| text::with(encoding_rs::UTF_8, file.bytes)),
    };
    let mut doc = office::html(file, &decoded.text)?;
    note_encoding(&mut doc, decoded.encoding, decoded.lossy);
    Ok(doc)
}

/// What lies in a gzip file, read as if it were the file itself.
fn gzip(file: File<'_>) -> Result<PipeDoc, Error> {
    let mime = "application/gzip";
    let limit = file.max_size.saturating_mul(EXPANSION);
    let mut inner = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(file.bytes).take(limit.saturating_add(1)).read_to_end(&mut inner);
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(file.truncated(mime, "the packed data breaks off"));
        }
        Err(error) => return Err(file.damaged(mime, error.to_string())),
        Ok(size) if size as u64 > limit => {
            return Err(Error::Expands { name: file.name.to_owned(), size: size as u64, limit });
        }
        Ok(_) => {}
    }
    if inner.starts_with(&[0x1F, 0x8B]) {
        return Err(Error::Unsupported { name: file.name.to_owned(), mime: mime.to_owned() });
    }
    let name = file.name.strip_suffix(".gz").unwrap_or(file.name);
    let mut doc = extract(File { name, bytes: &inner, ..file })?;
    fields::set(&mut doc, "compression", "gzip");
    Ok(doc)
}

/// Refuses an archive that would unpack to too much, by what its directory says.
/// One that lies about it meets the child's memory limit.
fn check_expansion(file: File<'_>, mime: &str) -> Result<(), Error> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(file.bytes))
        .map_err(|error| file.damaged(mime, error.to_string()))?;
    let limit = file.max_size.saturating_mul(EXPANSION);
    let size = (0..archive.len())
        .filter_map(|index| archive.by_index_raw(index).ok().map(|entry| entry.size()))
        .fold(0_u64, u64::saturating_add);
    if size > limit { Err(Error::Expands { name: file.name.to_owned(), size, limit }) } else { Ok(()) }
}
