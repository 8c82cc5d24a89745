//! Secrets in configurations: `${env:NAME}` and `${file:PATH}`.
//!
//! They stand unexpanded wherever a configuration is stored or sent, and are
//! expanded in the instance when a step opens. Knows nothing of what a field
//! means; it looks at texts alone.
//!
//! ```text
//! "${env:TOKEN}"                 the variable's value
//! "Bearer ${file:/run/token}"    the file's content, without a line end at its end
//! "$${env:TOKEN}"                the text ${env:TOKEN} itself
//! "${other}"                     left as it is: not a secret
//! ```

use std::path::Path;

use pipedoc_model::problem::{Problem, Problems};
use serde_json::Value;

/// What stands for a secret where settings are shown.
pub const REDACTED: &str = "***";

/// The values that an expansion put in, so that they can be kept out of messages.
#[derive(Clone, Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// The text with every secret in it replaced by [`REDACTED`].
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), REDACTED))
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// The configuration with all its secrets in place.
///
/// # Errors
/// All secrets that cannot be had, each with its field. They are permanent as far
/// as this process is concerned: its environment does not change by itself.
pub fn expand(config: &Value) -> Result<Value, Problems> {
    expand_and_tell(config).map(|(config, _)| config)
}

/// As [`expand`], and tells which values were put in.
///
/// # Errors
/// As [`expand`].
pub fn expand_and_tell(config: &Value) -> Result<(Value, Secrets), Problems> {
    expand_from(config, &Surroundings)
}

/// Where secrets come from.
trait Source {
    fn variable(&self, name: &str) -> Result<String, String>;
    fn file(&self, path: &Path) -> Result<String, String>;
}

struct Surroundings;

impl Source for Surroundings {
    fn variable(&self, name: &str) -> Result<String, String> {
        std::env::var(name).map_err(|error| match error {
            std::env::VarError::NotPresent => {
                format!("environment variable {name} is not set; set it where the module runs")
            }
            std::env::VarError::NotUnicode(_) => format!("environment variable {name} is not UTF-8"),
        })
    }

    fn file(&self, path: &Path) -> Result<String, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("secret file {} cannot be read: {error}", path.display()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
    }
}

fn expand_from(config: &Value, source: &dyn Source) -> Result<(Value, Secrets), Problems> {
    let mut expansion = Expansion { source, secrets: Vec::new(), problems: Vec::new() };
    let expanded = expansion.value(config, "config");
    if !expansion.problems.is_empty() {
        return Err(Problems(expansion.problems));
    }
    // Longest first, so that a secret within another does not tear it apart.
    expansion.secrets.retain(|secret| !secret.is_empty());
    expansion.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    expansion.secrets.dedup();
    Ok((expanded, Secrets(expansion.secrets)))
}

struct Expansion<'a> {
    source: &'a dyn Source,
    secrets: Vec<String>,
    problems: Vec<Problem>,
}

impl Expansion<'_> {
    fn value(&mut self, value: &Value, field: &str) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, field)),
            Value::Array(items) => Value::Array(
                items.iter().enumerate().map(|(n, item)| self.value(item, &format!("{field}[{n}]"))).collect(),
            ),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(name, value)| (name.clone(), self.value(value, &format!("{field}.{name}"))))
                    .collect(),
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn text(&mut self, text: &str, field: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        for piece in pieces(text) {
            match piece {
                Piece::Plain(plain) => expanded.push_str(plain),
                Piece::Reference { kind, name } => match self.look_up(kind, name) {
                    Ok(secret) => {
                        expanded.push_str(&secret);
                        self.secrets.push(secret);
                    }
                    Err(message) => self.problem(field, message),
                },
                Piece::Unclosed(rest) => {
                    self.problem(
                        field,
                        format!("{rest:?} is not closed; write `}}` after the name, or `$${{` for a plain `${{`"),
                    );
                }
            }
        }
        expanded
    }

    fn look_up(&self, kind: Kind, name: &str) -> Result<String, String> {
        match kind {
            Kind::Variable if name.is_empty() => Err("`${env:}` names no variable; write `${env:NAME}`".to_owned()),
            Kind::File if name.is_empty() => Err("`${file:}` names no file; write `${file:PATH}`".to_owned()),
            Kind::Variable => self.source.variable(name),
            Kind::File => self.source.file(Path::new(name)),
        }
    }

    fn problem(&mut self, field: &str, message: String) {
        self.problems.push(Problem { field: field.to_owned(), message, ..Problem::default() });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Variable,
    File,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Plain(&'a str),
    Reference { kind: Kind, name: &'a str },
    Unclosed(&'a str),
}

/// A text cut into what stands as it is and what stands for a secret.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            // `$${`: one dollar sign goes, the other and the brace stay.
            pieces.push(Piece::Plain(&rest[..at - 1]));
            pieces.push(Piece::Plain("${"));
            rest = &rest[at + 2..];
            continue;
        }
        pieces.push(Piece::Plain(&rest[..at]));
        let inner = &rest[at + 2..];
        let reference = match inner {
            _ if inner.starts_with("env:") => Some((Kind::Variable, 4)),
            _ if inner.starts_with("file:") => Some((Kind::File, 5)),
            _ => None,
        };
        rest = match (reference, inner.find('}')) {
            (Some((kind, skip)), Some(end)) => {
                pieces.push(Piece::Reference { kind, name: inner[skip..end].trim() });
                &inner[end + 1..]
            }
            (Some(_), None) => {
                pieces.push(Piece::Unclosed(&rest[at..]));
                ""
            }
            (None, _) => {
                pieces.push(Piece::Plain("${"));
                inner
            }
        };
    }
    pieces.push(Piece::Plain(rest));
    pieces.retain(|piece| *piece != Piece::Plain(""));
    pieces
}

/// The configuration as it may be shown: references to secrets stay (they tell
/// only where a secret comes from), what stands openly under a name like
/// `password` or `token`, and passwords in URLs, become [`REDACTED`].
#[must_use]
pub fn redact(config: &Value) -> Value {
    match config {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let shown = if is_secret_name(name) { hide(value) } else { redact(value) };
                (name.clone(), shown)
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(redact).collect(),
        Value::String(text) => Value::String(redact_url(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => config.clone(),
    }
}

/// Hides all texts and numbers below a name that says they are secret.
fn hide(value: &Value) -> Value {
    match value {
        Value::String(text) if is_reference(text) => value.clone(),
        Value::String(_) | Value::Number(_) => Value::String(REDACTED.to_owned()),
        Value::Array(items) => items.iter().map(hide).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), hide(value))).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Null | Value::Bool(_) => value.clone(),
    }
}

/// Whether a text is nothing but one reference.
fn is_reference(text: &str) -> bool {
    matches!(pieces(text).as_slice(), [Piece::Reference { .. }])
}

fn is_secret_name(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    ["password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "privatekey", "credential", "authorization"]
        .iter()
        .any(|word| name.contains(word))
        // Sizes and limits in tokens are no secrets.
        && !["tokens", "tokenizer", "maxtoken"].iter().any(|word| name.contains(word))
}

/// Hides the password of `scheme://user:password@host`.
fn redact_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..authority_end].rfind('@') else { return text.to_owned() };
    match rest[..at].split_once(':') {
        Some((user, password)) if !is_reference(password) => format!("{scheme}://{user}:{REDACTED}{}", &rest[at..]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Fake;

    impl Source for Fake {
        fn variable(&self, name: &str) -> Result<String, String> {
            if name == "TOKEN" { Ok("s3cret".into()) } else { Err(format!("environment variable {name} is not set")) }
        }
        fn file(&self, path: &Path) -> Result<String, String> {
            Surroundings.file(path)
        }
    }

    #[test]
    fn secrets_are_expanded_whole_and_within_texts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "from-file\n").unwrap();
        let config = json!({
            "whole": "${env:TOKEN}", "within": "Bearer ${env:TOKEN}!", "twice": ["${env:TOKEN}${env:TOKEN}"],
            "file": format!("${{file:{}}}", file.display()), "number": 7, "plain": "a $ and a {brace}",
        });
        let (expanded, secrets) = expand_from(&config, &Fake).unwrap();
        assert_eq!(
            expanded,
            json!({
                "whole": "s3cret", "within": "Bearer s3cret!", "twice": ["s3crets3cret"],
                "file": "from-file", "number": 7, "plain": "a $ and a {brace}",
            })
        );
        assert_eq!(secrets.scrub("invalid type: string \"s3cret\""), "invalid type: string \"***\"");
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }

    #[test]
    fn a_doubled_dollar_sign_escapes_and_other_braces_are_left_alone() {
        let config = json!({"escaped": "$${env:TOKEN}", "both": "$${x} ${env:TOKEN}", "other": "${in}/x"});
        let (expanded, _) = expand_from(&config, &Fake).unwrap();
        assert_eq!(expanded, json!({"escaped": "${env:TOKEN}", "both": "${x} s3cret", "other": "${in}/x"}));
    }

    #[test]
    fn all_missing_secrets_are_named_with_their_fields_at_once() {
        let config =
            json!({"a": {"b": ["x", "${env:NOPE}"]}, "c": "${file:/does/not/exist}", "d": "${env:", "e": "${env:}"});
        let problems = expand_from(&config, &Fake).unwrap_err().to_string();
        let lines: Vec<_> = problems.lines().collect();
        assert_eq!(lines.len(), 4, "{problems}");
        assert_eq!(lines[0], "config.a.b[1]: environment variable NOPE is not set");
        assert!(lines[1].starts_with("config.c: secret file /does/not/exist cannot be read: "), "{problems}");
        assert!(lines[2].starts_with("config.d: \"${env:\" is not closed"), "{problems}");
        assert!(lines[3].starts_with("config.e: `${env:}` names no variable"), "{problems}");
    }

    #[test]
    fn what_is_shown_tells_no_secret() {
        let config = json!({
            "password": "open", "api_key": "${env:KEY}", "nested": {"accessToken": ["open"]}, "max_tokens": 512,
            "url": "postgres://me:open@host/db", "safe": "postgres://me:${env:PW}@host/db", "name": "x",
        });
        assert_eq!(
            redact(&config),
            json!({
                "password": "***", "api_key": "${env:KEY}", "nested": {"accessToken": ["***"]}, "max_tokens": 512,
                "url": "postgres://me:***@host/db", "safe": "postgres://me:${env:PW}@host/db", "name": "x",
            })
        );
    }
}
