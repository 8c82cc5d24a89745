//! What a file is, by its content. Names decide only between texts.
//!
//! Looks into zip archives and compound files, and never parses a document.

use std::io::{Cursor, Read};

use crate::text;

/// Media type of Office Open XML text documents.
pub const DOCX: &str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
/// Media type of Office Open XML presentations.
pub const PPTX: &str = "application/vnd.openxmlformats-officedocument.presentationml.presentation";
/// Media type of Office Open XML workbooks.
pub const XLSX: &str = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
/// Media type of OpenDocument texts.
pub const ODT: &str = "application/vnd.oasis.opendocument.text";
/// Media type of OpenDocument spreadsheets.
pub const ODS: &str = "application/vnd.oasis.opendocument.spreadsheet";
/// Media type of electronic books.
pub const EPUB: &str = "application/epub+zip";
/// Media type of legacy Word documents.
pub const DOC: &str = "application/msword";
/// Media type of legacy PowerPoint presentations.
pub const PPT: &str = "application/vnd.ms-powerpoint";
/// Media type of legacy Excel workbooks.
pub const XLS: &str = "application/vnd.ms-excel";
/// Media type of Outlook messages.
pub const MSG: &str = "application/vnd.ms-outlook";

/// How a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PDF.
    Pdf,
    /// A zip archive that holds a document, or a legacy office file.
    Office,
    /// Rich Text Format.
    Rtf,
    /// HTML or XHTML.
    Html,
    /// Another XML.
    Xml,
    /// An e-mail message.
    Mail,
    /// Markdown.
    Markdown,
    /// Another text, taken as it is.
    Text,
    /// Something packed with gzip.
    Gzip,
    /// A compound file or archive with protected content.
    Encrypted,
    /// A zip archive without its end.
    TruncatedZip,
    /// Nothing that holds text.
    Unsupported,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// How it is to be read.
    pub kind: Kind,
    /// Its IANA media type.
    pub mime: String,
}

impl Detected {
    fn new(kind: Kind, mime: impl Into<String>) -> Self {
        Self { kind, mime: mime.into() }
    }
}

/// Says what a file is. `name` matters only where the content is text.
#[must_use]
pub fn detect(name: &str, bytes: &[u8]) -> Detected {
    // Readers of PDF accept up to a kilobyte of junk before the header.
    if find(&bytes[..bytes.len().min(1024)], b"%PDF-").is_some() {
        return Detected::new(Kind::Pdf, "application/pdf");
    }
    if bytes.starts_with(b"{\\rtf") {
        return Detected::new(Kind::Rtf, "application/rtf");
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return zip(bytes);
    }
    if bytes.starts_with(&[0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1]) {
        return compound(bytes);
    }
    if bytes.starts_with(&[0x1F, 0x8B]) {
        return Detected::new(Kind::Gzip, "application/gzip");
    }
    match text::decode(bytes) {
        Some(decoded) => of_text(name, &decoded.text),
        None => {
            Detected::new(Kind::Unsupported, infer::get(bytes).map_or("application/octet-stream", |t| t.mime_type()))
        }
    }
}

/// Tells texts apart: by how they begin, then by the name's extension.
fn of_text(name: &str, text: &str) -> Detected {
    let head = head(text);
    let lower = head.to_ascii_lowercase();
    let start = after_prologue(&lower);
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
    let extension = extension.as_str();

    let is_html = ["<!doctype html", "<html", "<head", "<body", "<title"].iter().any(|tag| start.starts_with(tag));
    if is_html {
        let xhtml = lower.trim_start().starts_with("<?xml");
        return Detected::new(Kind::Html, if xhtml { "application/xhtml+xml" } else { "text/html" });
    }
    if lower.trim_start().starts_with("<?xml") {
        return Detected::new(Kind::Xml, "application/xml");
    }
    if is_mail(head) {
        return Detected::new(Kind::Mail, "message/rfc822");
    }
    match extension {
        "md" | "markdown" | "mdown" | "mkd" => Detected::new(Kind::Markdown, "text/markdown"),
        // A fragment without a head, named for what it is.
        "html" | "htm" | "xhtml" if start.starts_with('<') => Detected::new(Kind::Html, "text/html"),
        "csv" => Detected::new(Kind::Text, "text/csv"),
        "tsv" => Detected::new(Kind::Text, "text/tab-separated-values"),
        "json" => Detected::new(Kind::Text, "application/json"),
        "yaml" | "yml" => Detected::new(Kind::Text, "application/yaml"),
        "rst" => Detected::new(Kind::Text, "text/x-rst"),
        "tex" => Detected::new(Kind::Text, "text/x-tex"),
        _ => Detected::new(Kind::Text, "text/plain"),
    }
}

/// The first 4 KiB, on a character boundary.
fn head(text: &str) -> &str {
    let mut end = text.len().min(4096);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What follows an XML declaration, processing instructions, comments and a
/// document type that is not HTML's.
fn after_prologue(text: &str) -> &str {
    let mut rest = text.trim_start();
    loop {
        let end = if rest.starts_with("<!--") {
            rest.find("-->").map(|at| at + 3)
        } else if rest.starts_with("<?") {
            rest.find("?>").map(|at| at + 2)
        } else {
            return rest;
        };
        match end {
            Some(end) => rest = rest[end..].trim_start(),
            None => return rest,
        }
    }
}

/// Whether a text begins with the header of a message (RFC 5322): only header
/// lines up to the first empty one, a sender among them and one more of the
/// fields that nothing but mail has.
fn is_mail(text: &str) -> bool {
    let mut sender = false;
    let mut others = 0;
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() {
            break;
        }
        if line.starts_with([' ', '\t']) && number > 0 || number == 0 && line.starts_with("From ") {
            continue;
        }
        let Some((field, _)) = line.split_once(':') else { return false };
        if field.is_empty() || !field.bytes().all(|byte| byte.is_ascii_graphic()) {
            return false;
        }
        match field.to_ascii_lowercase().as_str() {
            "from" | "return-path" | "sender" => sender = true,
            "received" | "date" | "subject" | "message-id" | "mime-version" | "to" | "delivered-to" => others += 1,
            _ => {}
        }
    }
    sender && others >= 2
}

/// What a zip archive holds.
fn zip(bytes: &[u8]) -> Detected {
    let Ok(mut archive) = zip::ZipArchive::new(Cursor::new(bytes)) else {
        // Without its end an archive has no directory; the names of its first
        // entries still stand before their contents.
        let mime = [(&b"word/"[..], DOCX), (b"ppt/", PPTX), (b"xl/", XLSX)]
            .into_iter()
            .find(|(folder, _)| find(bytes, folder).is_some())
            .map_or_else(
                || stored_mimetype(bytes).unwrap_or_else(|| "application/zip".to_owned()),
                |(_, m)| m.to_owned(),
            );
        return Detected::new(Kind::TruncatedZip, mime);
    };
    let mut mime = String::new();
    if let Ok(entry) = archive.by_name("mimetype") {
        let _ = entry.take(256).read_to_string(&mut mime);
    }
    let has = |name: &str| archive.index_for_name(name).is_some();
    let mime = match mime.trim() {
        "" if has("word/document.xml") => DOCX,
        "" if has("ppt/presentation.xml") => PPTX,
        "" if has("xl/workbook.xml") => XLSX,
        "" if has("xl/workbook.bin") => "application/vnd.ms-excel.sheet.binary.macroEnabled.12",
        "" if has("META-INF/container.xml") => EPUB,
        "" => "application/zip",
        stated => stated,
    };
    let mime = mime.to_owned();
    let kind = match mime.as_str() {
        DOCX | PPTX | XLSX | ODT | ODS | EPUB => Kind::Office,
        "application/vnd.ms-excel.sheet.binary.macroEnabled.12" => Kind::Office,
        _ => return Detected::new(Kind::Unsupported, mime),
    };
    let encrypted = archive.file_names().any(|name| name == "META-INF/rights.xml")
        || contains(&mut archive, "META-INF/manifest.xml", b"encryption-data")
        || (0..archive.len()).any(|index| archive.by_index_raw(index).is_ok_and(|entry| entry.encrypted()));
    Detected::new(if encrypted { Kind::Encrypted } else { kind }, mime)
}

/// The content of a first entry `mimetype`, stored without compression, as
/// OpenDocument and EPUB demand.
fn stored_mimetype(bytes: &[u8]) -> Option<String> {
    let name_len = usize::from(u16::from_le_bytes([*bytes.get(26)?, *bytes.get(27)?]));
    let extra_len = usize::from(u16::from_le_bytes([*bytes.get(28)?, *bytes.get(29)?]));
    let size = u32::from_le_bytes(bytes.get(18..22)?.try_into().ok()?) as usize;
    if bytes.get(30..30 + name_len)? != b"mimetype" || size > 256 {
        return None;
    }
    let start = 30 + name_len + extra_len;
    String::from_utf8(bytes.get(start..start + size)?.to_vec()).ok()
}

/// Whether an entry of an archive holds some bytes within its first megabyte.
fn contains(archive: &mut zip::ZipArchive<Cursor<&[u8]>>, entry: &str, needle: &[u8]) -> bool {
    let Ok(file) = archive.by_name(entry) else { return false };
    let mut content = Vec::new();
    let _ = file.take(1 << 20).read_to_end(&mut content);
    find(&content, needle).is_some()
}

/// What a compound file (the container of legacy office formats) holds, by the
/// names of its streams.
fn compound(bytes: &[u8]) -> Detected {
    let has = |name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        find(bytes, &name).is_some()
    };
    if has("EncryptedPackage") {
        // Which of the three it is stands inside what is encrypted.
        return Detected::new(Kind::Encrypted, "application/vnd.openxmlformats-officedocument");
    }
    let mime = if has("WordDocument") {
        DOC
    } else if has("PowerPoint Document") {
        PPT
    } else if has("Workbook") {
        XLS
    } else if has("__properties_version1.0") {
        MSG
    } else {
        return Detected::new(Kind::Unsupported, "application/x-ole-storage");
    };
    Detected::new(if mime == MSG { Kind::Mail } else { Kind::Office }, mime)
}

/// Where some bytes first stand in others.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
