//! Lends records to expressions: texts are borrowed, nothing is converted that
//! the expression does not ask for.

use std::collections::HashMap;
use std::fmt;

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer};
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, ByteSpan, Chunk, Embedding, ParseWarning, data};

use super::Scope;
use crate::headers::Headers;
use crate::names::StepId;

type BoxVal<'v> = Box<dyn Val + 'v>;

/// A scope as the CEL library asks for it.
#[derive(Debug)]
pub(super) struct Lent<'a>(pub(super) Scope<'a>);

impl VariableResolver for Lent<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let value: BoxVal<'b> = match variable {
            "doc" => Box::new(Message(self.0.doc?)),
            "headers" => Box::new(HeaderMap(self.0.headers)),
            "key" => match self.0.key {
                None => Box::new(CelNull),
                Some(key) => Box::new(CelString::from(String::from_utf8_lossy(key))),
            },
            "step" => Box::new(Message(self.0.step)),
            _ => return None,
        };
        Some(CowVal::Owned(value))
    }
}

/// Says what went wrong in the words of pipelines.
pub(super) fn explain(error: &ExecutionError, scope: &Scope<'_>) -> String {
    match error {
        ExecutionError::UndeclaredReference(name) if name.as_str() == "doc" && scope.doc.is_none() => {
            "there is no document: the record is a deletion".to_owned()
        }
        ExecutionError::NoSuchKey(name) => {
            format!("{name:?} is missing; ask has(..) or `in` first where it may be")
        }
        ExecutionError::FunctionError { function, message } if function == READING => shortened(message.clone()),
        // Some of them quote the values, which may be whole bodies.
        other => shortened(other.to_string()),
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A message whose fields are lent one by one.
trait Fields: fmt::Debug + Send + Sync {
    /// A field by its name in the `.proto` file.
    ///
    /// # Errors
    /// `NoSuchKey` when there is no such field; [`unreadable`] when its value is
    /// there and cannot be read.
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError>;
}

/// A borrowed message as a CEL value.
#[derive(Debug)]
struct Message<'a, T>(&'a T);

/// Marks a field's name when its presence is asked for; `check` writes it.
pub(super) const PRESENCE: char = '?';

impl<T: Fields> Val for Message<'_, T> {
    fn get_type(&self) -> &Type {
        &DYN_TYPE
    }
    fn cel_type() -> &'static Type {
        &DYN_TYPE
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(Message(self.0))
    }
}

impl<T: Fields> Indexer for Message<'_, T> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        lend_field(self.0, index).map(CowVal::Owned)
    }
    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        lend_field(self.0, index)
    }
}

fn lend_field<'v, T: Fields>(message: &'v T, index: &dyn Val) -> Result<BoxVal<'v>, ExecutionError> {
    let name = text_of(index)?;
    let Some(name) = name.strip_prefix(PRESENCE) else { return message.field(name) };
    let is_there = match message.field(name) {
        Ok(value) => is_set(value.as_ref()),
        // There it is, whatever it is.
        Err(ExecutionError::FunctionError { function, .. }) if function == READING => true,
        Err(error) => return Err(error),
    };
    Ok(Box::new(CelBool::from(is_there)))
}

/// Where the library has a function's name, in errors of [`unreadable`].
const READING: &str = "read";

/// A value that is there and cannot be read. The library knows no such error; of
/// those that it has, this one goes through all operators as it is.
fn unreadable(what: &str, why: &dyn fmt::Display) -> ExecutionError {
    ExecutionError::function_error(READING, format!("{what} cannot be read: {why}"))
}

fn text_of(index: &dyn Val) -> Result<&str, ExecutionError> {
    index.downcast_ref::<CelString<'_>>().map(CelString::inner).ok_or_else(|| ExecutionError::UnexpectedType {
        got: index.get_type().name().to_owned(),
        want: "string".to_owned(),
    })
}

/// Whether a proto3 field has a value, by its value.
fn is_set(value: &dyn Val) -> bool {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        !text.inner().is_empty()
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        *number.inner() != 0
    } else if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        !list.inner().is_empty()
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        !map.inner().is_empty()
    } else {
        value.downcast_ref::<CelNull>().is_none()
    }
}

impl Fields for PipeDoc {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "id" => text(&self.id),
            "version" => int(self.version),
            "source_uri" => text(&self.source_uri),
            "title" => text(&self.title),
            "mime_type" => text(&self.mime_type),
            "language" => text(&self.language),
            "created_at" => time(self.created_at.as_ref()),
            "modified_at" => time(self.modified_at.as_ref()),
            "authors" => list(&self.authors, |author| text(author)),
            "keywords" => list(&self.keywords, |keyword| text(keyword)),
            "body" => text(&self.body),
            "metadata" => map(self
                .metadata
                .iter()
                .flat_map(|metadata| &metadata.fields)
                .map(|(name, value)| (name.as_str(), dynamic(value)))),
            "blobs" => list(&self.blobs, message),
            "chunks" => list(&self.chunks, message),
            "data" => payload(self)?,
            "parse_warnings" => list(&self.parse_warnings, message),
            "parent_id" => text(&self.parent_id),
            "part" => int(self.part.into()),
            "parts" => int(self.parts.into()),
            "parent_version" => int(self.parent_version),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for Blob {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "name" => text(&self.name),
            "mime_type" => text(&self.mime_type),
            "size" => unsigned(self.size),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for Chunk {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "id" => text(&self.id),
            "text" => text(&self.text),
            "span" => self.span.as_ref().map_or_else(|| Box::new(CelNull) as BoxVal<'v>, message),
            "page" => int(self.page.into()),
            "heading_path" => list(&self.heading_path, |heading| text(heading)),
            "embeddings" => {
                // A protobuf map has no order; a CEL map has none either.
                map(self.embeddings.iter().map(|(model, embedding)| (model.as_str(), message(embedding))))
            }
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for ByteSpan {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "start" => unsigned(self.start),
            "end" => unsigned(self.end),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for Embedding {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "values" => list(&self.values, |value| Box::new(CelDouble::from(f64::from(*value)))),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for ParseWarning {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "code" => text(&self.code),
            "message" => text(&self.message),
            "location" => text(&self.location),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

impl Fields for StepId {
    fn field<'v>(&'v self, name: &str) -> Result<BoxVal<'v>, ExecutionError> {
        Ok(match name {
            "pipeline" => text(self.pipeline.as_str()),
            "step" => text(self.step.as_str()),
            _ => return Err(ExecutionError::no_such_key(name)),
        })
    }
}

fn text(text: &str) -> BoxVal<'_> {
    Box::new(CelString::from(text))
}

fn int<'v>(number: i64) -> BoxVal<'v> {
    Box::new(CelInt::from(number))
}

/// Sizes are `int` too, so that they compare and add with plain literals.
fn unsigned<'v>(number: u64) -> BoxVal<'v> {
    int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn time<'v>(time: Option<&prost_types::Timestamp>) -> BoxVal<'v> {
    let millis = time.map(|time| time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000)));
    Box::new(CelString::from(millis.map(crate::headers::format_time).unwrap_or_default()))
}

fn message<'v, T: Fields>(message: &'v T) -> BoxVal<'v> {
    Box::new(Message(message))
}

fn list<'v, T>(items: &'v [T], lend: impl Fn(&'v T) -> BoxVal<'v>) -> BoxVal<'v> {
    Box::new(CelList::from(items.iter().map(lend).collect::<Vec<_>>()))
}

fn map<'v>(entries: impl Iterator<Item = (&'v str, BoxVal<'v>)>) -> BoxVal<'v> {
    let entries: HashMap<_, _> =
        entries.map(|(name, value)| (CelMapKey::String(CelString::from(name)), value)).collect();
    Box::new(CelMap::from(entries))
}

fn dynamic(value: &prost_types::Value) -> BoxVal<'_> {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Box::new(CelNull),
        Some(Kind::BoolValue(held)) => Box::new(CelBool::from(*held)),
        Some(Kind::NumberValue(number)) => Box::new(CelDouble::from(*number)),
        Some(Kind::StringValue(string)) => text(string),
        Some(Kind::ListValue(items)) => list(&items.values, dynamic),
        Some(Kind::StructValue(fields)) => {
            map(fields.fields.iter().map(|(name, value)| (name.as_str(), dynamic(value))))
        }
    }
}

/// The structured payload, parsed now that somebody asks for it; `null` when
/// there is none. One that cannot be read is an error: taken for `null`, it would
/// send the document another way without a word.
fn payload<'v>(doc: &PipeDoc) -> Result<BoxVal<'v>, ExecutionError> {
    let parsed: serde_json::Value = match doc.data.as_ref().and_then(|data| data.kind.as_ref()) {
        Some(data::Kind::Json(text)) => serde_json::from_str(text).map_err(|why| unreadable(DATA, &why))?,
        Some(data::Kind::Any(any)) => {
            let bytes = prost::Message::encode_to_vec(any);
            pipedoc_proto::json::message_to_json("google.protobuf.Any", &bytes).map_err(|why| unreadable(DATA, &why))?
        }
        None => return Ok(Box::new(CelNull)),
    };
    Ok(from_json(&parsed))
}

const DATA: &str = "the document's data";

fn from_json<'v>(value: &serde_json::Value) -> BoxVal<'v> {
    use serde_json::Value;
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(held) => Box::new(CelBool::from(*held)),
        Value::Number(number) => match number.as_i64() {
            Some(number) => int(number),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(string) => Box::new(CelString::from(string.clone())),
        Value::Array(items) => Box::new(CelList::from(items.iter().map(from_json).collect::<Vec<_>>())),
        Value::Object(fields) => {
            let key = |name: &String| CelMapKey::String(CelString::from(name.clone()));
            let entries: HashMap<_, _> = fields.iter().map(|(name, value)| (key(name), from_json(value))).collect();
            Box::new(CelMap::from(entries))
        }
    }
}

/// Headers as a CEL value: asked by name, never gone through.
#[derive(Debug)]
struct HeaderMap<'a>(&'a Headers);

impl Val for HeaderMap<'_> {
    fn get_type(&self) -> &Type {
        &DYN_TYPE
    }
    fn cel_type() -> &'static Type {
        &DYN_TYPE
    }
    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(HeaderMap(self.0))
    }
}

impl Container for HeaderMap<'_> {
    fn contains(&self, name: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.0.get_str(text_of(name)?).is_some())
    }
}

impl Indexer for HeaderMap<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        lend_header(self.0, index).map(CowVal::Owned)
    }
    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        lend_header(self.0, index)
    }
}

fn lend_header<'v>(headers: &'v Headers, index: &dyn Val) -> Result<BoxVal<'v>, ExecutionError> {
    let name = text_of(index)?;
    headers.get_str(name).map(text).ok_or_else(|| ExecutionError::no_such_key(name))
}
