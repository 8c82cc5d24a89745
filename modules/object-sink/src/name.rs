//! File names from document ids.
//!
//! The names read like the ids, and no two ids share one, nor does a file stand
//! where another id needs a folder:
//!
//! - `a/b.pdf` is `a/b.pdf.json`; files end in `.json`, folders never do (a folder
//!   `x.json` is `x%2Ejson`).
//! - Part 3 of `a/b.pdf`, whose id is `a/b.pdf#3`, is `a/b.pdf#/3.json`; any other
//!   `#` is `%23`.
//! - `%`, `\`, control characters, and the leading dot of `.`, `..` and names that
//!   begin with `.pipedoc` are percent-encoded; a name that is empty is `%_`.
//! - A name that would be too long is cut, followed by `%~` and the SHA-256 of the
//!   whole name; an id that would be too long altogether is `%~/<SHA-256>`.
//!
//! Knows texts only. File systems that ignore case are not provided for.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// Longest name, leaving room for an ending within the usual 255 bytes.
const MAX_NAME: usize = 240;
/// Of a name that is too long, what is kept.
const KEPT: usize = 120;
/// Longest path from the sink's folder, well within the usual 4096 bytes.
const MAX_PATH: usize = 3000;

/// Where a document's file lies, from the sink's folder.
pub fn file(id: &str) -> PathBuf {
    PathBuf::from(stem(id) + ".json")
}

/// Where the files of a document's parts lie, from the sink's folder.
pub fn parts_folder(id: &str) -> PathBuf {
    PathBuf::from(stem(id) + "#")
}

/// Parent and number of a part, if the id is one of a part: `<parent>#<number>`.
pub fn part(id: &str) -> Option<(&str, i32)> {
    let (parent, text) = id.rsplit_once('#')?;
    let number: i32 = text.parse().ok().filter(|&number| number >= 0)?;
    // `+3` and `03` are numbers too, but not ours.
    (!parent.is_empty() && number.to_string() == text).then_some((parent, number))
}

/// What an id is a part of, a part of a part of, and so on, nearest first.
pub fn above(id: &str) -> impl Iterator<Item = &str> {
    let parent = |id| part(id).map(|(parent, _)| parent);
    std::iter::successors(parent(id), move |id| parent(id))
}

/// Id of the whole document that this one belongs to; itself for a whole one.
pub fn root(id: &str) -> &str {
    above(id).last().unwrap_or(id)
}

fn stem(id: &str) -> String {
    if let Some((parent, number)) = part(id) {
        return format!("{}#/{number}", stem(parent));
    }
    let mut stem = String::with_capacity(id.len() + 8);
    let mut names = id.split('/').peekable();
    while let Some(name) = names.next() {
        let is_folder = names.peek().is_some();
        stem.push_str(&encode(name, is_folder));
        if is_folder {
            stem.push('/');
        }
    }
    if stem.len() > MAX_PATH { format!("%~/{}", sha256(id)) } else { stem }
}

fn encode(name: &str, is_folder: bool) -> String {
    let mut encoded = String::with_capacity(name.len());
    if name.is_empty() {
        return "%_".to_owned();
    }
    let hidden = name == "." || name == ".." || name.starts_with(".pipedoc");
    for (n, character) in name.chars().enumerate() {
        match character {
            '.' if hidden && n == 0 => encoded.push_str("%2E"),
            '%' | '#' | '\\' => encoded.push_str(&format!("%{:02X}", u32::from(character))),
            // All control characters are one or two bytes in UTF-8.
            character if character.is_control() => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    encoded.push_str(&format!("%{byte:02X}"));
                }
            }
            character => encoded.push(character),
        }
    }
    if is_folder && let Some(before) = encoded.strip_suffix(".json") {
        encoded = format!("{before}%2Ejson");
    }
    if encoded.len() > MAX_NAME {
        let kept = encoded.floor_char_boundary(KEPT);
        encoded = format!("{}%~{}", &encoded[..kept], sha256(name));
    }
    encoded
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn names_read_like_the_ids() {
        for (id, expected) in [
            ("sub/dir/name.pdf", "sub/dir/name.pdf.json"),
            ("Grüße aus Köln.txt", "Grüße aus Köln.txt.json"),
            ("a", "a.json"),
            ("a.json", "a.json.json"),
            ("a.json/b", "a%2Ejson/b.json"),
            ("a/", "a/%_.json"),
            ("/a", "%_/a.json"),
            ("", "%_.json"),
            ("../../etc/passwd", "%2E./%2E./etc/passwd.json"),
            ("./a", "%2E/a.json"),
            (".hidden", ".hidden.json"),
            (".pipedoc-sink/tombstones/a", "%2Epipedoc-sink/tombstones/a.json"),
            ("C%23.txt", "C%2523.txt.json"),
            ("https://example.com/a?b", "https:/%_/example.com/a?b.json"),
            ("line\nbreak\\", "line%0Abreak%5C.json"),
            ("a/b.pdf#3", "a/b.pdf#/3.json"),
            ("a/b.pdf#3#0", "a/b.pdf#/3#/0.json"),
            ("a#03", "a%2303.json"),
            ("a#b", "a%23b.json"),
            ("#3", "%233.json"),
            ("a#1/b", "a%231/b.json"),
        ] {
            assert_eq!(file(id), Path::new(expected), "{id:?}");
        }
    }

    #[test]
    fn names_fit_into_the_file_system() {
        let long = "ü".repeat(300);
        let deep = vec!["x"; 5000].join("/");
        for id in [long.clone(), format!("{long}/{long}"), deep, format!("{long}#7"), "\u{1}".repeat(200)] {
            let file = file(&id);
            assert!(file.as_os_str().len() < 3500, "{}", file.display());
            assert!(file.iter().all(|name| name.len() <= 255), "{}", file.display());
        }
        assert_ne!(file(&long), file(&format!("{long}ü")));
    }

    #[test]
    fn a_part_belongs_to_the_whole_document_above_it() {
        assert_eq!(part("a#1#2"), Some(("a#1", 2)));
        assert_eq!(root("a#1#2"), "a");
        assert_eq!(root("a#b"), "a#b");
        assert_eq!(root("#1"), "#1");
    }

    /// Ids made of what is special, so that clashes would be found.
    fn tricky() -> impl Strategy<Value = String> {
        const PIECES: &[&str] =
            &["a", "b", "/", "#", "0", "1", "%", ".", ".json", "..", "2E", "%_", "~", ".pipedoc", "\\", "\n", "ü"];
        let longer = prop_oneof![20 => Just(1_usize), 1 => Just(130), 1 => Just(1600)];
        (proptest::collection::vec(proptest::sample::select(PIECES), 0..8), longer)
            .prop_map(|(parts, times)| parts.concat().repeat(times))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn no_two_ids_share_a_file_nor_a_file_with_a_folder(one in tricky(), other in tricky()) {
            prop_assume!(one != other);
            let (first, second) = (file(&one), file(&other));
            prop_assert_ne!(&first, &second);
            // `starts_with` compares whole names: a folder of the other one's path.
            prop_assert!(!second.starts_with(&first) && !first.starts_with(&second));
            let parts = parts_folder(&one);
            prop_assert_eq!(second.starts_with(&parts), above(&other).any(|above| above == one));
        }

        #[test]
        fn files_stay_in_the_sinks_folder_and_out_of_its_own(id in tricky()) {
            let file = file(&id);
            prop_assert!(file.is_relative());
            prop_assert!(file.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            let first = file.iter().next().unwrap().to_string_lossy().into_owned();
            prop_assert!(file.iter().count() == 1 || !first.starts_with(".pipedoc"), "{}", file.display());
        }
    }
}
