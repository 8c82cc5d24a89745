//! The step's configuration, and what makes it impossible.

use pipedoc_sdk::prelude::Step;
use schemars::JsonSchema;
use serde::Deserialize;

/// How documents are broken into parts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What becomes parts, and where they go; at least one rule. Parts are numbered
    /// through all rules, in their order.
    pub rules: Vec<Rule>,
    /// Name of the output that takes the document itself, as it is, beside its parts.
    /// Default: none does.
    #[serde(default)]
    pub whole: Option<String>,
}

/// One way in which parts are made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What of a document becomes a part each.
    pub by: By,
    /// With `ARRAY`: where in the document's JSON `data` the array is, as a JSON pointer
    /// (RFC 6901: `/order/lines`). Default: the data is the array.
    #[serde(default)]
    pub at: Option<String>,
    /// Name of the output that takes the parts. Default: the step's outputs decide.
    #[serde(default)]
    pub output: Option<String>,
}

/// What becomes a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum By {
    /// Each element of an array in the JSON `data`, byte for byte; it is the part's
    /// `data`.
    Array,
    /// Each page of the body, as `metadata.pages` tells where they begin.
    Pages,
    /// Each chunk that a chunker has made; its text is the part's body.
    Chunks,
    /// Each blob: attachments, pictures, the file itself where it was kept.
    Attachments,
    /// Each part of the e-mail that is the document's file: texts, attachments,
    /// forwarded messages.
    Mail,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);

/// What can be wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing would become of any document.
    #[error("`rules` is empty; it needs at least one rule")]
    NoRules,
    /// An array is looked for where there is none.
    #[error("`rules[{0}].at` is for `by: ARRAY`; leave it out")]
    NoArray(usize),
    /// A text that is no JSON pointer.
    #[error(
        "`rules[{rule}].at` is {found:?}; a JSON pointer is empty or begins with `/`, and `~` stands only in `~0` and `~1`"
    )]
    Pointer {
        /// Number of the rule, from 0.
        rule: usize,
        /// What was found.
        found: String,
    },
    /// An output without a name.
    #[error("`rules[{0}].output` is empty; name an output, or leave it out")]
    NoOutput(usize),
    /// An output that the step does not have.
    #[error("`{at}` is {found:?}, and the step has {}; correct the name, or give an output `name: {found}`", named(.outputs))]
    UnknownOutput {
        /// The setting.
        at: String,
        /// What was found.
        found: String,
        /// Names of the step's outputs.
        outputs: Vec<String>,
    },
    /// The same parts twice.
    #[error("`rules[{rule}]` is the same as `rules[{first}]`; remove one of them")]
    Twice {
        /// Number of the rule, from 0.
        rule: usize,
        /// The one that it repeats.
        first: usize,
    },
    /// An output without a name.
    #[error("`whole` is empty; name an output, or leave it out")]
    NoWhole,
}

impl Config {
    /// The configuration, if it is possible.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn checked(self) -> Result<Self, Problems> {
        let problems = self.problems();
        if problems.is_empty() { Ok(self) } else { Err(Problems(problems)) }
    }

    /// The configuration, if it is possible for this step.
    ///
    /// # Errors
    /// Everything that is wrong with it, outputs that the step does not have among it.
    pub fn checked_for(self, step: &Step) -> Result<Self, Problems> {
        let mut problems = self.problems();
        let rules = self.rules.iter().enumerate();
        let of_rules = rules.filter_map(|(n, rule)| Some((format!("rules[{n}].output"), rule.output.as_ref()?)));
        for (at, found) in of_rules.chain(self.whole.iter().map(|name| ("whole".to_owned(), name))) {
            // An empty one has its own words.
            if !found.is_empty() && !step.has_output(found) {
                let outputs = step.outputs().unwrap_or_default().to_vec();
                problems.push(Problem::UnknownOutput { at, found: found.clone(), outputs });
            }
        }
        if problems.is_empty() { Ok(self) } else { Err(Problems(problems)) }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.rules.is_empty() {
            problems.push(Problem::NoRules);
        }
        for (n, rule) in self.rules.iter().enumerate() {
            match (&rule.at, rule.by) {
                (Some(at), By::Array) if !is_pointer(at) => {
                    problems.push(Problem::Pointer { rule: n, found: at.clone() });
                }
                (None, _) | (Some(_), By::Array) => {}
                (Some(_), _) => problems.push(Problem::NoArray(n)),
            }
            if rule.output.as_ref().is_some_and(String::is_empty) {
                problems.push(Problem::NoOutput(n));
            }
            if let Some(first) = self.rules[..n].iter().position(|before| before == rule) {
                problems.push(Problem::Twice { rule: n, first });
            }
        }
        if self.whole.as_ref().is_some_and(String::is_empty) {
            problems.push(Problem::NoWhole);
        }
        problems
    }
}

fn named(outputs: &[String]) -> String {
    match outputs {
        [] => "no outputs".to_owned(),
        [only] => format!("only the output {only:?}"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|name| format!("{name:?}")).collect();
            format!("the outputs {} and {last:?}", first.join(", "))
        }
    }
}

fn is_pointer(text: &str) -> bool {
    let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    is_escaped && (text.is_empty() || text.starts_with('/'))
}
