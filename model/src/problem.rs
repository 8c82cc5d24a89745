//! One thing wrong with a text, said so that a person can put it right.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something wrong with a pipeline, a configuration or an environment.
///
/// Shown as `library.yaml:7:12: steps[2].outputs[0].to: no step is named "stoer"; did you mean "store"?`
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// File or key it stands in; empty when unknown.
    pub file: String,
    /// Line, from 1; 0 when there is none.
    pub line: u32,
    /// Column, from 1; 0 when there is none.
    pub column: u32,
    /// Path of the field (`steps[2].outputs[0].to`); empty for the whole text.
    pub field: String,
    /// What was found and what would be right; lower case, no full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separate = false;
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            separate = true;
        }
        if self.line > 0 {
            write!(f, "{}{}:{}", if separate { ":" } else { "" }, self.line, self.column)?;
            separate = true;
        }
        if !self.field.is_empty() {
            write!(f, "{}{}", if separate { ": " } else { "" }, self.field)?;
            separate = true;
        }
        write!(f, "{}{}", if separate { ": " } else { "" }, self.message)
    }
}

/// Everything wrong with a text, at once; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl From<Vec<crate::kafka::Finding>> for Problems {
    fn from(findings: Vec<crate::kafka::Finding>) -> Self {
        let problem = |finding: crate::kafka::Finding| Problem {
            field: finding.name,
            message: finding.message,
            ..Problem::default()
        };
        Self(findings.into_iter().map(problem).collect())
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if n > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// An error with its causes, outermost first. A cause that the text ends with
/// already is not said twice: transport errors tend to repeat what they wrap.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}
