//! The free fields of a document (`metadata`), and how what files state fits
//! the fixed ones.

use pipedoc_sdk::proto::v1::PipeDoc;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// Lists longer than this are left out of the metadata: they are content.
const LONGEST_LIST: usize = 200;

/// Sets a free field.
pub(super) fn set(doc: &mut PipeDoc, name: &str, value: impl Into<Field>) {
    let value = Value { kind: Some(value.into().0) };
    doc.metadata.get_or_insert_with(Struct::default).fields.insert(name.to_owned(), value);
}

/// A value for [`set`].
pub(super) struct Field(Kind);

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self(Kind::StringValue(text.to_owned()))
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self(Kind::StringValue(text))
    }
}

impl From<f64> for Field {
    fn from(number: f64) -> Self {
        Self(Kind::NumberValue(number))
    }
}

impl From<bool> for Field {
    fn from(truth: bool) -> Self {
        Self(Kind::BoolValue(truth))
    }
}

impl From<Vec<String>> for Field {
    fn from(texts: Vec<String>) -> Self {
        list(texts.into_iter().map(Kind::StringValue))
    }
}

impl From<&[usize]> for Field {
    fn from(numbers: &[usize]) -> Self {
        list(numbers.iter().map(|number| Kind::NumberValue(*number as f64)))
    }
}

fn list(kinds: impl Iterator<Item = Kind>) -> Field {
    Field(Kind::ListValue(ListValue { values: kinds.map(|kind| Value { kind: Some(kind) }).collect() }))
}

/// Sets a free field from JSON, if it is a scalar or a short list of texts;
/// anything deeper is structure of the content and not a fact about the file.
pub(super) fn set_json(doc: &mut PipeDoc, name: &str, value: &serde_json::Value) {
    match value {
        serde_json::Value::Bool(truth) => set(doc, name, *truth),
        serde_json::Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                set(doc, name, number);
            }
        }
        serde_json::Value::String(text) if !text.trim().is_empty() => set(doc, name, text.as_str()),
        serde_json::Value::Array(items) if !items.is_empty() && items.len() <= LONGEST_LIST => {
            let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            if let Some(texts) = texts {
                set(doc, name, texts);
            }
        }
        _ => {}
    }
}

/// Splits a list of names or keywords as people write it.
pub(super) fn split(text: &str, separators: &[char]) -> Vec<String> {
    text.split(separators).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A language as a BCP 47 tag; empty if what was stated is none.
pub(super) fn language(stated: &str) -> String {
    let tag = stated.trim().replace('_', "-");
    let tag = tag.split('.').next().unwrap_or_default();
    let mut subtags = tag.split('-');
    let primary = subtags.next().unwrap_or_default();
    let primary_is_one = (2..=8).contains(&primary.len()) && primary.bytes().all(|byte| byte.is_ascii_alphabetic());
    let rest_is_one = subtags.all(|sub| (1..=8).contains(&sub.len()) && sub.bytes().all(|b| b.is_ascii_alphanumeric()));
    if !primary_is_one || !rest_is_one || primary.eq_ignore_ascii_case("und") {
        return String::new();
    }
    let mut normal = primary.to_ascii_lowercase();
    for subtag in tag.split('-').skip(1) {
        normal.push('-');
        match subtag.len() {
            // Regions are upper case, scripts have a capital (RFC 5646, 2.1.1).
            2 => normal.push_str(&subtag.to_ascii_uppercase()),
            4 if subtag.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                normal.push_str(&subtag[..1].to_ascii_uppercase());
                normal.push_str(&subtag[1..].to_ascii_lowercase());
            }
            _ => normal.push_str(&subtag.to_ascii_lowercase()),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::language;

    #[test]
    fn languages_become_tags_or_nothing() {
        for (stated, tag) in [
            ("en", "en"),
            ("EN_us", "en-US"),
            ("de_DE.UTF-8", "de-DE"),
            ("zh-hant-tw", "zh-Hant-TW"),
            ("???", ""),
            ("", ""),
        ] {
            assert_eq!(language(stated), tag, "{stated:?}");
        }
    }
}
