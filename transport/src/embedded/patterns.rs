//! Which topics a subscription selects. Knows only names.

use std::collections::BTreeSet;

use pipedoc_model::names::Topic;
use regex::Regex;

/// Topics by name and by pattern.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    names: BTreeSet<Topic>,
    patterns: Vec<Regex>,
}

impl Selection {
    /// Anchors the patterns to whole names.
    pub(crate) fn new(names: &[Topic], patterns: &[Regex]) -> Self {
        // The line feed ends a comment that a pattern in verbose mode may end with.
        let anchored = |pattern: &Regex| {
            let text = pattern.as_str();
            Regex::new(&format!("^(?:{text})$"))
                .or_else(|_| Regex::new(&format!("^(?:{text}\n)$")))
                .unwrap_or_else(|_| pattern.clone())
        };
        Self { names: names.iter().cloned().collect(), patterns: patterns.iter().map(anchored).collect() }
    }

    /// Whether topics are selected by pattern.
    pub(crate) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The topics wanted: all that are named, present or not, and those of
    /// `present` that match.
    pub(crate) fn resolve<'a>(&self, present: impl Iterator<Item = &'a Topic>) -> BTreeSet<Topic> {
        let matching = |topic: &&Topic| {
            !topic.is_internal() && self.patterns.iter().any(|pattern| pattern.is_match(topic.as_str()))
        };
        self.names.iter().cloned().chain(present.filter(matching).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_and_never_internal_ones() {
        let topic = |name: &str| Topic::new(name).unwrap();
        let present = [topic("orders"), topic("orders.dlq"), topic("orders.old"), topic("preorders"), topic("ab")];
        let selection = Selection::new(&[topic("missing")], &[Regex::new("orders|a|ab").unwrap()]);
        let resolved: Vec<_> = selection.resolve(present.iter()).into_iter().collect();
        assert_eq!(resolved, [topic("ab"), topic("missing"), topic("orders")]);
        let all = Selection::new(&[], &[Regex::new(".*").unwrap()]);
        assert!(!all.resolve(present.iter()).contains("orders.dlq"));
    }
}
