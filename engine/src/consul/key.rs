//! How keys are written in Consul.
//!
//! consulrs and rustify each encode a path once, so that `%41` would arrive as
//! `%2541`. Names of ours need no encoding; in those that people give (an entry
//! of the inbox) every other byte becomes a comma and two hex digits, which no URL
//! rule touches. Newer agents take nothing else than letters, digits and `,-_./`.

use pipedoc_model::names::ClusterName;

use crate::store::Key;

/// The keys of one cluster: `pipedoc/<cluster>/…`.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn of(cluster: &ClusterName) -> Self {
        Self { prefix: format!("pipedoc/{cluster}/") }
    }

    /// Prefix of all of them, with its `/`.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A key as it is written in Consul.
    pub(super) fn full(&self, key: &Key) -> String {
        format!("{}{}", self.prefix, escape(key.as_str()))
    }

    /// Where people leave pipelines, with its `/`.
    pub(super) fn inbox(&self) -> String {
        format!("{}pipelines/", self.prefix)
    }

    /// An entry of the inbox by the name that it has in Consul.
    pub(super) fn inbox_entry(&self, name: &str) -> String {
        format!("{}pipelines/{name}", self.prefix)
    }

    /// Makes the inbox exist while it has no entries.
    pub(super) fn inbox_mark(&self) -> String {
        self.inbox_entry(INBOX_MARK)
    }

    /// Held by the engine that leads.
    pub(super) fn leader(&self) -> String {
        format!("{}leader", self.prefix)
    }
}

/// Name of the entry that only makes the inbox exist: without it, deleting the
/// last pipeline and losing the whole prefix would look the same.
pub(super) const INBOX_MARK: &str = ".inbox";

/// Whether a name travels to Consul as it is.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_plain_byte)
}

/// Writes a key so that no encoding of URLs touches it.
pub(super) fn escape(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        if is_plain_byte(byte) || byte == b'/' {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!(",{byte:02x}"));
        }
    }
    escaped
}

/// What [`escape`] was given; text that it cannot have made is left as it is.
pub(super) fn unescape(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) if byte == b',' => {
                bytes.push(code);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| escaped.to_owned())
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_and_travels_untouched() {
        for name in ["shelf", "my shelf%41.yaml", "ä~/b", ",zz", "~2c", ""] {
            let escaped = escape(name);
            assert_eq!(unescape(&escaped), name);
            assert!(escaped.bytes().all(|byte| is_plain_byte(byte) || matches!(byte, b',' | b'/')), "{escaped}");
        }
    }
}
