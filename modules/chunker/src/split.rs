//! Cuts a body into chunks. Pure: the same body and configuration give the same
//! chunks.

use std::cmp::Reverse;

use pipedoc_sdk::proto::v1::{ByteSpan, Chunk};
use text_splitter::{ChunkConfig, ChunkConfigError, ChunkSizer, MarkdownSplitter, TextSplitter};

use crate::config::{Config, Unit};
use crate::headings::Headings;
use crate::sizer::Tokens;

/// Least text that the splitter is shown at once, in bytes.
const WINDOW: usize = 16 << 10;
/// The same for Markdown, where a window may begin within a list or a block of code
/// and not know it: most documents fit into one.
const MARKDOWN_WINDOW: usize = 128 << 10;
/// Chunks that a window has room for, at least.
const CHUNKS_A_WINDOW: usize = 8;
/// Bytes of a character or token, about, at most.
const BYTES_A_UNIT: usize = 4;

/// What a body is, beside its text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Whether it is Markdown, and is cut where its structure says.
    pub markdown: bool,
    /// Where each page begins, in bytes, growing; empty when it has no pages.
    pub pages: Vec<usize>,
}

/// Cuts a body into chunks, in order.
///
/// # Errors
/// When the configuration is impossible, which [`Config::checked`] finds out before.
pub fn split(body: &str, shape: &Shape, config: &Config) -> Result<Vec<Chunk>, ChunkConfigError> {
    let pieces = match config.unit {
        Unit::Characters => pieces(body, shape, config, text_splitter::Characters)?,
        Unit::Tokens => pieces(body, shape, config, Tokens)?,
    };
    let headings = if shape.markdown { Headings::of(body) } else { Headings::default() };
    let chunks = pieces.into_iter().enumerate().map(|(number, (start, text))| Chunk {
        id: number.to_string(),
        text: text.to_owned(),
        span: Some(ByteSpan { start: start as u64, end: (start + text.len()) as u64 }),
        page: u32::try_from(shape.pages.partition_point(|page| *page <= start)).unwrap_or(0),
        heading_path: headings.above(start),
        ..Chunk::default()
    });
    Ok(chunks.collect())
}

/// Chunks of a body with where they begin.
fn pieces<'a>(
    body: &'a str,
    shape: &Shape,
    config: &Config,
    sizer: impl ChunkSizer,
) -> Result<Vec<(usize, &'a str)>, ChunkConfigError> {
    let settings =
        ChunkConfig::new(config.size).with_sizer(sizer).with_trim(config.trim).with_overlap(config.overlap)?;
    let window = WINDOW.max(config.size.saturating_mul(BYTES_A_UNIT).saturating_mul(CHUNKS_A_WINDOW));
    Ok(in_order(if shape.markdown {
        let splitter = MarkdownSplitter::new(settings);
        windowed(body, window.max(MARKDOWN_WINDOW), |text| splitter.chunk_indices(text).collect())
    } else {
        let splitter = TextSplitter::new(settings);
        windowed(body, window, |text| splitter.chunk_indices(text).collect())
    }))
}

/// Shows the splitter a window of the body at a time, since its time grows with the
/// square of what it is shown. The last chunk of a window, which the window's end
/// may have cut short, is made again as the first of the next.
fn windowed<'a>(
    body: &'a str,
    window: usize,
    split: impl Fn(&'a str) -> Vec<(usize, &'a str)>,
) -> Vec<(usize, &'a str)> {
    let mut all = Vec::new();
    let mut start = 0;
    while start < body.len() {
        // At least one character, however long.
        let end = body.ceil_char_boundary(start.saturating_add(window.max(1)));
        let mut pieces: Vec<_> = split(&body[start..end]).into_iter().map(|(at, text)| (start + at, text)).collect();
        pieces.sort_by_key(|(at, text)| (*at, Reverse(text.len())));
        match pieces.last() {
            Some(&(at, _)) if end < body.len() && at > start => {
                pieces.retain(|(before, _)| *before < at);
                start = at;
            }
            // One chunk, and then white space to the end of the window.
            Some(&(at, text)) if end < body.len() => start = at + text.len(),
            _ => start = end,
        }
        all.extend(pieces);
    }
    all
}

/// Chunks in order, both ends growing. White space alone says nothing and is left
/// out, and so is a chunk that lies within another: with overlap the splitter may
/// go back to before the chunk that it has just made.
fn in_order(mut pieces: Vec<(usize, &str)>) -> Vec<(usize, &str)> {
    pieces.retain(|(_, text)| !text.trim().is_empty());
    pieces.sort_by_key(|(start, text)| (*start, Reverse(text.len())));
    let mut end = 0;
    pieces.retain(|(start, text)| {
        let adds = start + text.len() > end;
        end = end.max(start + text.len());
        adds
    });
    pieces
}

#[cfg(test)]
mod tests {
    use text_splitter::{ChunkConfig, TextSplitter};

    #[test]
    fn windows_change_nothing_in_plain_text() {
        let prose = "One sentence, of a few words. Another one!\nA line.\n\n".repeat(40) + &"x".repeat(900) + "   \n  ";
        for (size, overlap) in [(50, 0), (50, 20), (120, 0), (7, 3)] {
            let settings = ChunkConfig::new(size).with_overlap(overlap).unwrap();
            let splitter = TextSplitter::new(settings);
            let split = |text| splitter.chunk_indices(text).collect::<Vec<_>>();
            let whole = super::in_order(split(prose.as_str()));
            for window in [1000, 1500, 2999] {
                let windowed = super::in_order(super::windowed(&prose, window, split));
                assert_eq!(windowed, whole, "size {size}, overlap {overlap}, window {window}");
            }
        }
    }

    #[test]
    fn windows_of_any_size_end() {
        let body = "ab  \u{1f469}\u{200d}\u{1f467}".repeat(20) + &" ".repeat(50) + "end";
        let splitter = TextSplitter::new(ChunkConfig::new(3));
        for window in 0..40 {
            let pieces = super::windowed(&body, window, |text| splitter.chunk_indices(text).collect());
            let text: String = super::in_order(pieces).iter().map(|(_, text)| *text).collect();
            assert_eq!(text.replace(' ', ""), body.replace(' ', ""), "window {window}");
        }
    }

    #[test]
    fn chunks_within_others_and_empty_ones_are_left_out() {
        let body = "abcdefgh  i";
        let pieces = [(2, 4), (1, 6), (1, 3), (8, 10), (5, 8), (10, 11)].map(|(start, end)| (start, &body[start..end]));
        assert_eq!(super::in_order(pieces.to_vec()), [(1, "bcdef"), (5, "fgh"), (10, "i")]);
    }
}
