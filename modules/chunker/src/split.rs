//! Cuts a body into chunks. Pure: the same body and configuration give the same
//! chunks.

use std::cmp::Reverse;

use pipedoc_sdk::proto::v1::{ByteSpan, Chunk};
use text_splitter::{ChunkConfig, ChunkConfigError, ChunkSizer, MarkdownSplitter, TextSplitter};

use crate::config::{Config, Unit};
use crate::headings::Headings;
use crate::sizer::Tokens;

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
    let pieces: Vec<_> = if shape.markdown {
        MarkdownSplitter::new(settings).chunk_indices(body).collect()
    } else {
        TextSplitter::new(settings).chunk_indices(body).collect()
    };
    Ok(in_order(pieces))
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
    #[test]
    fn chunks_within_others_and_empty_ones_are_left_out() {
        let body = "abcdefgh  i";
        let pieces = [(2, 4), (1, 6), (1, 3), (8, 10), (5, 8), (10, 11)].map(|(start, end)| (start, &body[start..end]));
        assert_eq!(super::in_order(pieces.to_vec()), [(1, "bcdef"), (5, "fgh"), (10, "i")]);
    }
}
