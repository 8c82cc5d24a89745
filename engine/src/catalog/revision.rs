//! A revision: a pipeline's text as it was once, with how it came to be.
//!
//! Written as one line of JSON, then the text as it is: whoever looks into the
//! store can read it, and a text that fits into the inbox fits here but for that line.

use std::collections::BTreeMap;

use pipedoc_model::plan::hash_of;
use serde::{Deserialize, Serialize};

/// A pipeline as it was applied once. Never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// The text, byte for byte.
    pub text: String,
    /// File or key that it came from, for messages.
    pub file: String,
    /// Values of its variables.
    pub variables: BTreeMap<String, String>,
    /// SHA-256 of the text, in hex.
    pub hash: String,
    /// How many steps it has.
    pub steps: u32,
    /// How it came to be.
    pub made: Made,
}

/// How a revision came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Who made it, as they said; empty when nobody said.
    pub by: String,
    /// On which road.
    pub road: Road,
    /// Revision that was the current one before; 0: none.
    pub replaces: u64,
}

/// The road on which a revision came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Road {
    /// By a caller's apply.
    Apply,
    /// By an edit in the inbox.
    Inbox,
    /// By a caller's rollback, with the text of this revision.
    Rollback(u64),
}

/// The first line of a revision as it is written.
#[derive(Serialize, Deserialize)]
struct FirstLine {
    file: String,
    variables: BTreeMap<String, String>,
    hash: String,
    steps: u32,
    made: Made,
}

impl Revision {
    /// A revision of a text with so many steps.
    #[must_use]
    pub fn new(text: String, file: String, variables: BTreeMap<String, String>, steps: usize, made: Made) -> Self {
        let hash = hash_of(&text);
        Self { text, file, variables, hash, steps: u32::try_from(steps).unwrap_or(u32::MAX), made }
    }

    /// Whether both say the same.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.hash == other.hash && self.variables == other.variables
    }

    /// Whether it is what another try to write `other` has written.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        self.same_as(other) && (self.made.road, self.made.replaces) == (other.made.road, other.made.replaces)
    }

    pub(super) fn to_text(&self) -> serde_json::Result<String> {
        let Self { text, file, variables, hash, steps, made } = self.clone();
        let first_line = serde_json::to_string(&FirstLine { file, variables, hash, steps, made })?;
        Ok(format!("{first_line}\n{text}"))
    }

    pub(super) fn from_text(written: &str) -> serde_json::Result<Self> {
        let (first_line, text) = written.split_once('\n').unwrap_or((written, ""));
        let FirstLine { file, variables, hash, steps, made } = serde_json::from_str(first_line)?;
        Ok(Self { text: text.to_owned(), file, variables, hash, steps, made })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_comes_back_as_it_was_written() {
        for text in ["pipeline: shelf\r\n\nsteps: []\n", "", "\n", "{\"pipeline\": \"ä\"}"] {
            let made = Made { at: 7, by: "ann@host".into(), road: Road::Rollback(3), replaces: 6 };
            let variables = [("in".to_owned(), "a\nb".to_owned())].into();
            let revision = Revision::new(text.to_owned(), "shelf.yaml".into(), variables, 2, made);
            let written = revision.to_text().unwrap();
            assert!(written.ends_with(text), "{written}");
            assert_eq!(Revision::from_text(&written).unwrap(), revision);
        }
    }
}
