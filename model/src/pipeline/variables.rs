//! Puts the values of variables into the texts of a pipeline.
//!
//! `${name}` is a variable, `$${` stands for `${`. Secrets (`${env:NAME}`,
//! `${file:PATH}`) are left for the instance, escaped ones too. A text without
//! quotes that is one variable and nothing else is a number or a truth value
//! when the variable's value reads like one.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use super::tree::{Kind, Node, Path, Position, Segment, plain_scalar};
use crate::text::nearest;

/// Whether a text holds a secret that the instance expands.
pub(super) fn holds_secret(text: &str) -> bool {
    pieces(text).any(|piece| matches!(piece, Piece::Secret(_)))
}

/// Puts the values in. Variables without value are errors; values that no text
/// uses are warnings.
pub(super) fn expand(tree: &mut Node, variables: &BTreeMap<String, String>, findings: &mut Findings) {
    let mut expander = Expander { variables, used: BTreeSet::new(), findings };
    expander.visit(tree, &Path::default());
    let used = expander.used;
    for name in variables.keys().filter(|name| !used.contains(*name)) {
        let hint = nearest(name, used.iter().map(String::as_str));
        let reason = format!("variable {name:?} is given but `${{{name}}}` stands nowhere in the text{hint}");
        findings.warning(tree, &Path::default(), reason);
    }
}

struct Expander<'a> {
    variables: &'a BTreeMap<String, String>,
    used: BTreeSet<String>,
    findings: &'a mut Findings,
}

impl Expander<'_> {
    fn visit(&mut self, node: &mut Node, path: &Path) {
        match &mut node.kind {
            Kind::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.visit(item, &path.with(Segment::Index(index)));
                }
            }
            Kind::Map(fields) => {
                for (key, value) in fields {
                    self.visit(value, &path.field(&key.name));
                }
            }
            Kind::Text(text) if text.value.contains("${") => {
                let first = text.exact.unwrap_or(node.at.column);
                let at = |offset: usize| match text.exact {
                    Some(_) => {
                        let before = text.value[..offset].chars().count();
                        Position { line: node.at.line, column: first + u32::try_from(before).unwrap_or(0) }
                    }
                    None => node.at,
                };
                let mut expanded = String::new();
                let mut offset = 0;
                let before = self.findings.errors.len();
                for piece in pieces(&text.value) {
                    match piece {
                        Piece::Text(text) | Piece::Secret(text) => expanded.push_str(text),
                        Piece::Escaped => expanded.push_str("${"),
                        Piece::Variable(name) => expanded.push_str(self.value(name, at(offset), path)),
                        Piece::Broken(text) => {
                            let reason = "`${` begins a variable, whose name of letters, digits, `_` and `-` must end \
                                          with `}`; write `$${` for the characters themselves";
                            self.findings.error_at(at(offset), path, reason);
                            expanded.push_str(text);
                        }
                    }
                    offset += piece.len();
                }
                if self.findings.errors.len() > before {
                    self.findings.unknown.push(path.clone());
                }
                let alone = matches!(pieces(&text.value).collect::<Vec<_>>()[..], [Piece::Variable(_)]);
                let scalar = if alone && text.plain { plain_scalar(&expanded).ok().flatten() } else { None };
                match scalar {
                    Some(scalar @ (Kind::Number(_) | Kind::Bool(_))) => node.kind = scalar,
                    _ => {
                        if text.value != expanded {
                            text.exact = None;
                        }
                        text.value = expanded;
                    }
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, name: &str, at: Position, path: &Path) -> &str {
        self.used.insert(name.to_owned());
        match self.variables.get(name) {
            Some(value) => value,
            None => {
                let given = match name {
                    "in" => "--in DIR".to_owned(),
                    "out" => "--out DIR".to_owned(),
                    name => format!("--var {name}=VALUE"),
                };
                let hint = nearest(name, self.variables.keys().map(String::as_str));
                let reason = format!(
                    "variable `${{{name}}}` has no value; give it with {given}, or as {name:?} in the request's \
                     variables{hint}"
                );
                self.findings.error_at(at, path, reason);
                ""
            }
        }
    }
}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// `$${`
    Escaped,
    /// Name within `${…}`.
    Variable(&'a str),
    /// A whole `${env:…}` or `${file:…}`, or an escaped one.
    Secret(&'a str),
    /// `${` that begins nothing.
    Broken(&'a str),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Secret(text) | Self::Broken(text) => text.len(),
            Self::Escaped => 3,
            Self::Variable(name) => name.len() + 3,
        }
    }
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = next_piece(rest);
        rest = &rest[piece.len()..];
        Some(piece)
    })
}

fn next_piece(text: &str) -> Piece<'_> {
    let secret = |text: &str| text.starts_with("${env:") || text.starts_with("${file:");
    if let Some(after) = text.strip_prefix("$${") {
        // The instance undoes the escape of what would be a secret there.
        let is_secret = secret(&text[1..]);
        return match after.find('}') {
            Some(end) if is_secret => Piece::Text(&text[..3 + end + 1]),
            _ => Piece::Escaped,
        };
    }
    if let Some(after) = text.strip_prefix("${") {
        return match after.find('}') {
            Some(end) if secret(text) => Piece::Secret(&text[..2 + end + 1]),
            Some(end) if is_name(&after[..end]) => Piece::Variable(&after[..end]),
            _ => Piece::Broken(&text[..2]),
        };
    }
    // Neither begins here, so whatever is found stands further on.
    let end = [text.find("$${"), text.find("${")].into_iter().flatten().min().unwrap_or(text.len());
    Piece::Text(&text[..end])
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}
