//! What an operator may set.

use pipedoc_sdk::prelude::*;
use pipedoc_sdk::units::Duration;

/// Configuration of an echo step. Without any, documents pass as they are.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long to hold each document back, to see how a pipeline does with a slow
    /// step (`20ms`). Default: not at all.
    #[serde(default)]
    pub delay: Option<Duration>,

    /// Makes some documents fail, to try out a pipeline's retries and dead letters.
    /// Default: none.
    #[serde(default)]
    pub fail: Option<Fail>,
}

/// Which documents fail, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// One attempt in this many fails: with 1 all, with 3 the third, sixth and so
    /// on that this instance makes. At least 1.
    #[schemars(range(min = 1))]
    pub every: u64,

    /// Whether another attempt is made. Default: `PERMANENT`.
    #[serde(default)]
    pub kind: Kind,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Another attempt is made; it may succeed.
    Retryable,
    /// The document is given up on.
    #[default]
    Permanent,
}
