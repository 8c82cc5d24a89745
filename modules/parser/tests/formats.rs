//! What comes out of files of each format, and what is said of files that are
//! broken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use pipedoc_parser::Error;
use pipedoc_parser::extract::{File, extract};
use pipedoc_sdk::proto::v1::PipeDoc;

const DOCX: &str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";

fn library(name: &str) -> Vec<u8> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/library/in").join(name))
}

fn fixture(name: &str) -> Vec<u8> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name))
}

fn read(path: &PathBuf) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(name: &str, bytes: &[u8]) -> Result<PipeDoc, Error> {
    extract(File { name, bytes, max_size: 16 << 20 })
}

/// Media type, title, authors and language of a file of the example library, and
/// something that its body says.
fn check(name: &str, mime: &str, title: &str, authors: &[&str], language: &str, says: &[&str]) -> PipeDoc {
    let doc = parse(name, &library(name)).unwrap();
    assert_eq!(doc.mime_type, mime, "{name}");
    assert_eq!(doc.title, title, "{name}");
    assert_eq!(doc.authors, authors, "{name}");
    assert_eq!(doc.language, language, "{name}");
    for text in says {
        assert!(doc.body.contains(text), "{name} does not say {text:?}:\n{}", doc.body);
    }
    doc
}

fn json(doc: &PipeDoc, field: &str) -> Option<prost_types::value::Kind> {
    doc.metadata.as_ref()?.fields.get(field)?.kind.clone()
}

fn is_markdown(doc: &PipeDoc) -> bool {
    json(doc, "body_format") == Some(prost_types::value::Kind::StringValue("markdown".into()))
}

#[test]
fn pdf_gives_text_pages_and_what_it_states() {
    let title = "Annual Report of the Marrowick Town Library";
    let says = ["lent 18,406 books to 1,377 readers", "The library spent 2,310 crowns"];
    let doc = check("annual-report.pdf", "application/pdf", title, &["Ambrose Tallow"], "en-GB", &says);
    assert_eq!(doc.keywords, ["annual report", "lending", "repairs"]);
    assert!(doc.created_at.is_some());
    let Some(prost_types::value::Kind::ListValue(pages)) = json(&doc, "pages") else { panic!("no pages") };
    let second = match pages.values[1].kind {
        Some(prost_types::value::Kind::NumberValue(start)) => start as usize,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(pages.values.len(), 2);
    assert!(doc.body[second..].starts_with("Accounts"), "{:?}", &doc.body[second..]);
}

#[test]
fn pdf_without_a_password_to_open_is_read_though_it_is_protected() {
    let doc = parse("owner.pdf", &fixture("owner-locked.pdf")).unwrap();
    assert!(doc.body.contains("a new bell for the desk"), "{}", doc.body);
}

#[test]
fn docx_gives_markdown_with_tables() {
    let says = ["# Silence", "Of the two only the clock may be heard.", "| Town maps | M 1-212 | 2 |"];
    let doc = check("reading-room-rules.docx", DOCX, "Rules of the Reading Room", &["Henrietta Quill"], "en-GB", &says);
    assert!(is_markdown(&doc));
    assert_eq!(doc.keywords, ["rules", "reading room", "visitors"]);
    assert!(doc.created_at.is_some() && doc.modified_at.is_some());
}

#[test]
fn pptx_gives_the_slides() {
    let mime = "application/vnd.openxmlformats-officedocument.presentationml.presentation";
    let says = ["## Why a new catalogue", "- The cards of letter Q were eaten by mice", "Books by the winter fair"];
    check("catalogue-talk.pptx", mime, "A New Catalogue for an Old House", &["Osric Fenn"], "", &says);
}

#[test]
fn xlsx_gives_the_sheets_as_tables() {
    let mime = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
    let says = ["| Month | Novels | Natural history | Tide tables |", "| June | 430 | 402 | 57 |"];
    check("lending-figures.xlsx", mime, "", &[], "en-US", &says);
}

#[test]
fn odt_gives_markdown() {
    let says = ["# What we need", "A librarian who can wind a clock."];
    let title = "Letter on the Founding of the Library";
    check("founding-letter.odt", "application/vnd.oasis.opendocument.text", title, &["Edmund Harrow"], "en-GB", &says);
}

#[test]
fn epub_gives_the_chapters() {
    let says = ["# The miller’s clock", "settled, fresh"];
    let doc =
        check("tales-of-the-weir.epub", "application/epub+zip", "Tales of the Weir", &["Ione Pask"], "en-GB", &says);
    assert_eq!(doc.created_at.map(|time| time.seconds), Some(-1_207_180_800));
}

#[test]
fn rtf_gives_text_and_what_it_states() {
    let says = ["thirty-one years Wilhelmina Dray kept the library open after dark"];
    let title = "In Memory of the Night Librarian";
    check("night-librarian.rtf", "application/rtf", title, &["Ambrose Tallow"], "", &says);
}

#[test]
fn html_gives_markdown_without_scripts_and_styles() {
    let says = ["# Opening hours", "| Saturday", "every day", "in the shape of a heron"];
    let title = "Opening Hours of the Marrowick Town Library";
    let doc = check("opening-hours.html", "text/html", title, &["Henrietta Quill"], "en-GB", &says);
    assert!(doc.body.starts_with("# Opening hours") && is_markdown(&doc), "{}", doc.body);
    assert!(!doc.body.contains("console.log") && !doc.body.contains("serif"), "{}", doc.body);
    assert_eq!(doc.keywords, ["opening hours", "visitors", "holidays"]);
}

#[test]
fn html_is_read_in_the_encoding_it_names() {
    let page = b"<html><head><meta charset=\"iso-8859-2\"><title>\xa3\xf3d\xbc</title></head><body><p>\xa3\xf3d\xbc</p></body></html>";
    let doc = parse("page", page).unwrap();
    assert_eq!((doc.title.as_str(), doc.body.as_str()), ("Łódź", "Łódź"));
}

#[test]
fn mail_gives_subject_people_date_and_text() {
    let says = ["shows a café that never existed", "before Friday"];
    let title = "The Harrow maps are here — all 212 of them";
    let doc = check("harrow-maps.eml", "message/rfc822", title, &["Osric Fenn"], "", &says);
    assert_eq!(doc.created_at.map(|time| time.seconds), Some(1_715_672_460));
    assert!(json(&doc, "to").is_some() && json(&doc, "message_id").is_some());
}

#[test]
fn markdown_stays_as_it_is_and_its_front_matter_is_read() {
    let says = ["# How we shelve\n", "### Water damage\n", "1. Shake gently"];
    let doc = check("how-we-shelve.md", "text/markdown", "How We Shelve", &["Henrietta Quill"], "en-GB", &says);
    assert_eq!(doc.keywords, ["shelving", "handbook"]);
    assert!(doc.body.starts_with("# How we shelve") && is_markdown(&doc));
}

#[test]
fn texts_are_read_in_their_encodings() {
    let text = "Café “Weir” – naïve, größer\n";
    let utf16 = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let cases: [(&str, Vec<u8>); 5] = [
        ("UTF-8", text.into()),
        ("UTF-8 with mark", [b"\xEF\xBB\xBF", text.as_bytes()].concat()),
        ("UTF-16LE with mark", [b"\xFF\xFE".to_vec(), utf16(u16::to_le_bytes)].concat()),
        ("UTF-16BE with mark", [b"\xFE\xFF".to_vec(), utf16(u16::to_be_bytes)].concat()),
        ("Windows-1252", b"Caf\xe9 \x93Weir\x94 \x96 na\xefve, gr\xf6\xdfer\n".to_vec()),
    ];
    for (encoding, bytes) in cases {
        let doc = parse("note.txt", &bytes).unwrap();
        assert_eq!((doc.body.as_str(), doc.mime_type.as_str()), (text, "text/plain"), "{encoding}");
    }
    let doc = check("ledger-1871.txt", "text/plain", "", &[], "", &["a café in Besançon", "“Dear Ambrose”", "toast –"]);
    assert_eq!(json(&doc, "encoding"), Some(prost_types::value::Kind::StringValue("windows-1252".into())));
    check("lamps.txt", "text/plain", "", &[], "", &["The trustees – Marrowick"]);
}

#[test]
fn what_gzip_packs_is_read_as_what_it_is() {
    let doc = parse("report.pdf.gz", &gzip(&library("annual-report.pdf"))).unwrap();
    assert_eq!(doc.mime_type, "application/pdf");
    let doc = parse("notes.md.gz", &gzip(b"# Notes\n\nfew")).unwrap();
    assert_eq!((doc.mime_type.as_str(), doc.title.as_str()), ("text/markdown", "Notes"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn content_wins_over_a_lying_name() {
    for (file, name, mime) in [
        ("reading-room-rules.docx", "rules.pdf", DOCX),
        ("annual-report.pdf", "report.docx", "application/pdf"),
        ("opening-hours.html", "hours.txt", "text/html"),
        ("harrow-maps.eml", "maps.html", "message/rfc822"),
        ("tales-of-the-weir.epub", "tales.zip", "application/epub+zip"),
        ("lamps.txt", "lamps.pdf", "text/plain"),
    ] {
        assert_eq!(parse(name, &library(file)).unwrap().mime_type, mime, "{file} as {name}");
    }
}

/// The kind of the error for some bytes; it must be permanent and name the file.
fn refused(name: &str, bytes: &[u8]) -> (&'static str, String) {
    let error = parse(name, bytes).expect_err(name);
    assert!(!error.is_retryable() && error.to_string().contains(name), "{error}");
    (error.kind(), error.to_string())
}

#[test]
fn encrypted_files_are_refused_as_such() {
    for (name, bytes) in
        [("a.pdf", fixture("encrypted.pdf")), ("a.docx", fixture("encrypted.docx")), ("a.odt", encrypted_odt())]
    {
        assert_eq!(refused(name, &bytes).0, "encrypted", "{name}");
    }
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write as _;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn encrypted_odt() -> Vec<u8> {
    archive(&[
        ("mimetype", b"application/vnd.oasis.opendocument.text"),
        ("META-INF/manifest.xml", b"<manifest:file-entry><manifest:encryption-data/></manifest:file-entry>"),
        ("content.xml", b"\x01\x02\x03"),
    ])
}

#[test]
fn truncated_files_are_refused_as_such() {
    let half = |name: &str| {
        let bytes = library(name);
        bytes[..bytes.len() / 2].to_vec()
    };
    for (name, bytes) in [
        ("broken.pdf", library("broken-truncated.pdf")),
        ("half.docx", half("reading-room-rules.docx")),
        ("half.pptx", half("catalogue-talk.pptx")),
        ("half.odt", half("founding-letter.odt")),
        ("half.epub", half("tales-of-the-weir.epub")),
        ("half.rtf", half("night-librarian.rtf")),
        ("half.txt.gz", gzip(&library("ledger-1871.txt"))[..100].to_vec()),
    ] {
        let (kind, message) = refused(name, &bytes);
        assert_eq!(kind, "truncated", "{message}");
    }
    let (_, message) = refused("half.docx", &half("reading-room-rules.docx"));
    assert!(message.contains(DOCX) && message.contains("truncated after 5225 bytes"), "{message}");
}

#[test]
fn damaged_files_are_refused_as_such() {
    let mut pdf = library("annual-report.pdf");
    let middle = pdf.len() - 6000;
    pdf[1000..middle].fill(b'x');
    let docx = archive(&[("[Content_Types].xml", b"<Types/>"), ("word/document.xml", b"<w:document><w:body")]);
    for (name, bytes) in [("a.pdf", pdf), ("b.pdf", b"%PDF-1.7\nnothing\n%%EOF".to_vec()), ("c.docx", docx)] {
        let (kind, message) = refused(name, &bytes);
        assert_eq!(kind, "damaged", "{message}");
    }
}

#[test]
fn files_without_text_are_refused_by_what_they_are() {
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde".to_vec();
    let elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    for (name, bytes, mime) in [
        ("photo.txt", png, "image/png"),
        ("program", elf, "application/x-executable"),
        ("some.zip", archive(&[("a.txt", b"a")]), "application/zip"),
        ("noise", (0..=255).cycle().take(4096).collect(), "application/octet-stream"),
    ] {
        let (kind, message) = refused(name, &bytes);
        assert_eq!(kind, "unsupported", "{message}");
        assert!(message.contains(mime), "{message}");
    }
    assert_eq!(refused("nothing.txt", b"").0, "empty");
}

#[test]
fn files_that_unpack_to_too_much_are_refused_before_they_do() {
    let bomb = archive(&[("[Content_Types].xml", b"<Types/>"), ("word/document.xml", &vec![b' '; 80 << 20])]);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(refused("bomb.docx", &bomb).0, "expands");
    assert_eq!(refused("bomb.txt.gz", &gzip(&vec![b' '; 80 << 20])).0, "expands");
}

#[test]
fn a_file_without_text_passes_with_a_warning() {
    let doc =
        parse("empty.html", b"<!DOCTYPE html><html><head><title>Blank</title></head><body></body></html>").unwrap();
    assert_eq!((doc.title.as_str(), doc.body.as_str()), ("Blank", ""));
    assert_eq!(doc.parse_warnings[0].code, "no-text");
}
