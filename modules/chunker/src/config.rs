//! The step's configuration, and what makes it impossible.

use schemars::JsonSchema;
use serde::Deserialize;

/// How bodies are cut into chunks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest size of a chunk, in `unit`s; at least 1. Default: 1000.
    pub size: usize,
    /// What sizes count. Default: `characters`.
    pub unit: Unit,
    /// How much of a chunk's end is repeated at the beginning of the next, at most,
    /// in `unit`s; less than `size`. Default: 0.
    pub overlap: usize,
    /// Whether white space at both ends of a chunk is left out of it. Default: true.
    pub trim: bool,
}

/// What sizes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Characters (Unicode scalar values).
    #[default]
    Characters,
    /// About what language models count: each run of letters and digits is one
    /// token for every four characters begun, and each other character that is no
    /// white space is one. No model's vocabulary is needed; for English the count
    /// is near theirs, so leave some room below a model's limit.
    Tokens,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: 1000, unit: Unit::Characters, overlap: 0, trim: true }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);

/// What can be wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Chunks of nothing.
    #[error("`size` is 0; it must be at least 1")]
    NoSize,
    /// Each chunk would repeat the one before it.
    #[error("`overlap` is {overlap}; it must be less than `size` ({size})")]
    Overlap {
        /// The overlap.
        overlap: usize,
        /// The size.
        size: usize,
    },
}

impl Config {
    /// The configuration, if it is possible.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn checked(self) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        if self.size == 0 {
            problems.push(Problem::NoSize);
        }
        if self.overlap > 0 && self.overlap >= self.size {
            problems.push(Problem::Overlap { overlap: self.overlap, size: self.size });
        }
        if problems.is_empty() { Ok(self) } else { Err(Problems(problems)) }
    }
}
