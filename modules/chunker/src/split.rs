//! Cuts a body into chunks. Pure: the same body and configuration give the same
//! chunks.

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
    // White space alone says nothing, wherever it lies.
    Ok(pieces.into_iter().filter(|(_, text)| !text.trim().is_empty()).collect())
}
