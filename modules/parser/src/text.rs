//! From bytes to text: which encoding it is, or that it is no text at all.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// A text and the encoding it was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The text, without byte order mark.
    pub text: String,
    /// The encoding's name, as IANA knows it.
    pub encoding: &'static str,
    /// Whether some bytes could not be read and were replaced.
    pub lossy: bool,
}

/// Decodes a text, or says that the bytes are none.
///
/// A byte order mark decides; then UTF-8 if it is valid; then UTF-16 if every
/// other byte is zero, as in mostly Latin text; then Windows-1252, of which
/// ISO-8859-1 texts are a part, unless control characters show that it is no text.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Decoded> {
    if let Some((encoding, _)) = Encoding::for_bom(bytes) {
        let decoded = with(encoding, bytes);
        return is_text(&decoded.text).then_some(decoded);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        return is_text(text).then(|| Decoded { text: text.to_owned(), encoding: UTF_8.name(), lossy: false });
    }
    let decoded = with(utf16_without_mark(bytes).unwrap_or(WINDOWS_1252), bytes);
    (!decoded.lossy && is_text(&decoded.text)).then_some(decoded)
}

/// Decodes with a known encoding.
#[must_use]
pub fn with(encoding: &'static Encoding, bytes: &[u8]) -> Decoded {
    let (text, used, lossy) = encoding.decode(bytes);
    Decoded { text: text.into_owned(), encoding: used.name(), lossy }
}

/// UTF-16 by where its zero bytes stand, in the first kilobytes.
fn utf16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let sample = &bytes[..bytes.len().min(4096)];
    let zeros = |offset: usize| sample.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
    let half = sample.len() / 2;
    match (zeros(0), zeros(1)) {
        (even, odd) if half >= 2 && odd * 10 > half * 6 && even * 10 < half => Some(UTF_16LE),
        (even, odd) if half >= 2 && even * 10 > half * 6 && odd * 10 < half => Some(UTF_16BE),
        _ => None,
    }
}

/// Whether characters are those of a text: of control characters only white
/// space, escapes and page breaks, with rare exceptions.
fn is_text(text: &str) -> bool {
    let mut count = 0_usize;
    let mut strange = 0_usize;
    for character in text.chars().take(64 * 1024) {
        count += 1;
        match character {
            '\t' | '\n' | '\r' | '\x0B' | '\x0C' | '\x1B' | '\x08' => {}
            '\0' => return false,
            // The control characters above ASCII come of bytes that Windows-1252
            // does not define.
            '\x01'..='\x1F' | '\x7F'..='\u{9F}' => strange += 1,
            _ => {}
        }
    }
    strange * 100 <= count
}

/// Makes line ends `\n`, takes spaces from their ends, and leaves at most one
/// empty line between paragraphs.
#[must_use]
pub fn tidy(text: &str) -> String {
    let mut tidied = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.lines() {
        let line = line.trim_end();
        if line.is_empty() {
            empty += 1;
            continue;
        }
        if !tidied.is_empty() {
            tidied.push_str(if empty > 0 { "\n\n" } else { "\n" });
        }
        empty = 0;
        tidied.push_str(line);
    }
    tidied
}
