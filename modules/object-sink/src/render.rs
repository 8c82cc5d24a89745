//! Documents as JSON text, `id` and `version` first, so that both can be read back
//! without the rest.

use pipedoc_sdk::prelude::PipeDoc;
use pipedoc_sdk::proto::json;
use serde_json::{Map, Value};

use crate::config::{Blobs, Config};
use crate::error::Error;

/// How to write documents.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// With line breaks and indentation.
    pub pretty: bool,
    /// What of blobs is written.
    pub blobs: Blobs,
}

impl Style {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self { pretty: config.pretty, blobs: config.blobs }
    }

    /// A document's JSON, ending in a line break.
    pub fn document(self, mut doc: PipeDoc) -> Result<String, Error> {
        if self.blobs == Blobs::Omit {
            for blob in &mut doc.blobs {
                blob.content = None;
            }
        }
        let fields = match json::to_json(&doc) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => Map::new(),
            Err(source) => return Err(Error::Json { id: doc.id, source }),
        };
        let mut document = first_fields(&doc.id, doc.version);
        for (name, value) in fields {
            document.insert(name, value);
        }
        let document = Value::Object(document);
        // The alternate form of a JSON value is the indented one.
        Ok(if self.pretty { format!("{document:#}\n") } else { format!("{document}\n") })
    }
}

/// The line that says that a document was deleted.
pub fn deletion(id: &str, version: i64) -> String {
    let mut line = first_fields(id, version);
    line.insert("deleted".to_owned(), true.into());
    format!("{}\n", Value::Object(line))
}

/// The same, once merged: with the time since when it is remembered, in seconds
/// since 1970.
pub fn merged_deletion(id: &str, version: i64, deleted_at: u64) -> String {
    let mut line = first_fields(id, version);
    line.insert("deleted".to_owned(), true.into());
    line.insert("deletedAt".to_owned(), deleted_at.into());
    Value::Object(line).to_string()
}

/// An object of id and version; more may follow. The version is a string, as the
/// JSON mapping has it for 64-bit numbers.
pub fn first_fields(id: &str, version: i64) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("id".to_owned(), id.into());
    if version != 0 {
        fields.insert("version".to_owned(), version.to_string().into());
    }
    fields
}
