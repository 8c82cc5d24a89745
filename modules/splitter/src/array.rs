//! Elements of an array within a JSON text, as they stand there. The text is looked
//! through, never taken apart: numbers, escapes and the order of names stay.

use std::collections::HashMap;

use serde_json::value::RawValue;

/// What is where an array was looked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'t> {
    /// An array, with its elements.
    Array(Vec<&'t str>),
    /// Nothing, or `null`.
    Nothing,
    /// Something else, by its kind.
    Other(&'static str),
}

/// Looks for an array where a JSON pointer (RFC 6901) says. Of names that stand twice
/// in an object, the last counts.
///
/// # Errors
/// When the text is no JSON.
pub fn elements<'t>(text: &'t str, pointer: &str) -> Result<Found<'t>, serde_json::Error> {
    let mut here = serde_json::from_str::<&RawValue>(text)?.get();
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        let next = match here.as_bytes().first() {
            Some(b'{') => serde_json::from_str::<HashMap<String, &RawValue>>(here)?.remove(&token),
            Some(b'[') => {
                // `01` and `+1` are no indexes of RFC 6901.
                let index = token.parse::<usize>().ok().filter(|index| index.to_string() == token);
                let items = serde_json::from_str::<Vec<&RawValue>>(here)?;
                index.and_then(|index| items.get(index).copied())
            }
            _ => None,
        };
        let Some(next) = next else { return Ok(Found::Nothing) };
        here = next.get();
    }
    Ok(match here.as_bytes().first() {
        Some(b'[') => {
            Found::Array(serde_json::from_str::<Vec<&RawValue>>(here)?.into_iter().map(RawValue::get).collect())
        }
        Some(b'n') => Found::Nothing,
        Some(b'{') => Found::Other("an object"),
        Some(b'"') => Found::Other("a text"),
        Some(b't' | b'f') => Found::Other("true or false"),
        _ => Found::Other("a number"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_as_they_stand() {
        let text = r#" {"z": 1, "lines" : [ {"b": 9007199254740993, "a":1.10} ,"\u00e4", [ ],null,-0 ] } "#;
        let expected = [r#"{"b": 9007199254740993, "a":1.10}"#, r#""\u00e4""#, "[ ]", "null", "-0"];
        assert_eq!(elements(text, "/lines").unwrap(), Found::Array(expected.to_vec()));
        assert_eq!(elements("[1, 2]", "").unwrap(), Found::Array(vec!["1", "2"]));
        assert_eq!(elements("[]", "").unwrap(), Found::Array(vec![]));
    }

    #[test]
    fn pointers_lead_where_rfc_6901_says() {
        let text = r#"{"a/b": {"m~n": [[1], [2, 3]]}, "": [4], "x": [5], "x": [6]}"#;
        for (pointer, expected) in [
            ("/a~1b/m~0n", vec!["[1]", "[2, 3]"]),
            ("/a~1b/m~0n/1", vec!["2", "3"]),
            ("/", vec!["4"]),
            ("/x", vec!["6"]),
        ] {
            assert_eq!(elements(text, pointer).unwrap(), Found::Array(expected), "{pointer}");
        }
        for pointer in ["/nothing", "/x/1", "/x/00", "/x/-", "/x/0/deeper", "/a~1b/m~0n/9"] {
            assert_eq!(elements(text, pointer).unwrap(), Found::Nothing, "{pointer}");
        }
    }

    #[test]
    fn what_is_no_array_is_told() {
        let text = r#"{"o": {}, "t": "x", "n": 5, "b": true, "z": null}"#;
        for (pointer, found) in [
            ("/o", Found::Other("an object")),
            ("/t", Found::Other("a text")),
            ("/n", Found::Other("a number")),
            ("/b", Found::Other("true or false")),
            ("/z", Found::Nothing),
        ] {
            assert_eq!(elements(text, pointer).unwrap(), found);
        }
        assert!(elements("{", "").is_err());
        assert!(elements("", "/a").is_err());
    }

    #[test]
    fn depth_does_no_harm() {
        let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(elements(&deep, ""), Ok(Found::Array(items)) if items.len() == 1));
    }
}
