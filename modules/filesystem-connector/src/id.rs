//! Document ids from paths.
//!
//! An id is the path from the folder, with `/` between names, whatever the bytes:
//! `%` and `#` mean something in ids, and not all names are UTF-8, so these bytes
//! are percent-encoded. Different paths have different ids.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Encodes one name of a path.
pub fn encode(name: &[u8]) -> String {
    let mut id = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '%' => id.push_str("%25"),
                '#' => id.push_str("%23"),
                other => id.push(other),
            }
        }
        for byte in chunk.invalid() {
            id.push_str(&format!("%{byte:02X}"));
        }
    }
    id
}

/// The id of a path from the folder, without prefix.
pub fn of(relative: &Path) -> String {
    let names: Vec<_> = relative.iter().map(|name| encode(name.as_bytes())).collect();
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_paths_that_can_be_read() {
        for (path, id) in [
            ("a/b c.pdf", "a/b c.pdf"),
            ("C#/100%.txt", "C%23/100%25.txt"),
            ("Grüße.md", "Grüße.md"),
            ("new\nline", "new\nline"),
        ] {
            assert_eq!(of(Path::new(path)), id);
        }
        assert_eq!(encode(b"caf\xe9.txt"), "caf%E9.txt");
    }

    /// The inverse, byte for byte.
    fn decode(id: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = id.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            if first == b'%' {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
                rest = &after[2..];
            } else {
                bytes.push(first);
                rest = after;
            }
        }
        bytes
    }

    proptest::proptest! {
        #[test]
        fn different_names_have_different_ids(name: Vec<u8>) {
            let id = encode(&name);
            proptest::prop_assert!(!id.contains('#'));
            proptest::prop_assert_eq!(decode(&id), name);
        }
    }
}
