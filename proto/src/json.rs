//! The proto3 JSON form of our messages, by descriptor.
//!
//! Exactly the mapping of the protobuf documentation, with one addition: a
//! `google.protobuf.Any` whose type is not known here is written as
//! `{"@type": type URL, "value": base64}` and read back from it, where the
//! mapping has no form at all. Knows nothing of what the messages mean.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage};
use prost_reflect::{DeserializeOptions, SerializeOptions};
use serde_json::{Map, Value};

use crate::PipeDoc;

/// Why a message has no JSON form, or a JSON text is no message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no JSON.
    #[error("the text is no JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// The JSON does not fit the message.
    #[error("{path}: {source}")]
    Shape {
        /// Where in the message (`PipeDoc.data.any`).
        path: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The JSON does not fit the message, in a way that only we can see.
    #[error("{path}: {reason}")]
    Field {
        /// Where in the message.
        path: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// The bytes are no such message.
    #[error("the bytes are no {message}: {source}")]
    Decode {
        /// Full name of the message.
        message: String,
        /// What does not fit.
        #[source]
        source: prost::DecodeError,
    },
    /// No message of that name is known here.
    #[error("no message is named {0:?}")]
    UnknownMessage(String),
}

/// The descriptors of all our messages and of Google's well-known ones.
#[must_use]
pub fn descriptor_pool() -> &'static DescriptorPool {
    // Built once: it is derived from a constant, and building takes milliseconds.
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        // The committed set is read back by a test; an empty pool would name itself in every error.
        DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).unwrap_or_default()
    });
    &POOL
}

/// Descriptor of one of our messages by its full name (`pipedoc.v1.PipeDoc`).
///
/// # Errors
/// When no message has that name.
pub fn descriptor(full_name: &str) -> Result<MessageDescriptor, Error> {
    descriptor_pool().get_message_by_name(full_name).ok_or_else(|| Error::UnknownMessage(full_name.to_owned()))
}

/// A document as JSON. Fields without value are left out; 64-bit numbers are texts.
///
/// # Errors
/// When a value has no JSON form (a timestamp beyond the year 9999, a number
/// that is not finite in `metadata`).
pub fn to_json(document: &PipeDoc) -> Result<Value, Error> {
    message_to_json("pipedoc.v1.PipeDoc", &document.encode_to_vec())
}

/// A document from its JSON text. Field names may be `lowerCamelCase` or as in
/// the `.proto` file; unknown fields are errors.
///
/// # Errors
/// When the text is no JSON or does not fit.
pub fn from_json(text: &str) -> Result<PipeDoc, Error> {
    let bytes = message_from_json("pipedoc.v1.PipeDoc", text)?;
    PipeDoc::decode(bytes.as_slice())
        .map_err(|source| Error::Decode { message: "pipedoc.v1.PipeDoc".to_owned(), source })
}

/// Any of our messages, encoded, as JSON. Fields without value are left out.
///
/// # Errors
/// When no message has that name, the bytes are none, or a value has no JSON form.
pub fn message_to_json(full_name: &str, bytes: &[u8]) -> Result<Value, Error> {
    let message = decode(descriptor(full_name)?, bytes)?;
    write(message, short_name(full_name), &SerializeOptions::new())
}

/// As [`message_to_json`], with zeros, empty texts and empty lists too, so that who
/// reads it finds every field; only messages within it that are not set are left out.
///
/// # Errors
/// As [`message_to_json`].
pub fn message_to_whole_json(full_name: &str, bytes: &[u8]) -> Result<Value, Error> {
    let message = decode(descriptor(full_name)?, bytes)?;
    write(message, short_name(full_name), &SerializeOptions::new().skip_default_fields(false))
}

/// Any of our messages, encoded, from its JSON text.
///
/// # Errors
/// When no message has that name, or the text is no JSON or does not fit.
pub fn message_from_json(full_name: &str, text: &str) -> Result<Vec<u8>, Error> {
    let descriptor = descriptor(full_name)?;
    let mut value: Value = serde_json::from_str(text).map_err(Error::Syntax)?;
    plain_numbers(&mut value);
    Ok(read(&descriptor, value, short_name(full_name))?.encode_to_vec())
}

fn decode(descriptor: MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, Error> {
    let name = descriptor.full_name().to_owned();
    DynamicMessage::decode(descriptor, bytes).map_err(|source| Error::Decode { message: name, source })
}

/// Writes a message. Fields that may hold an Any are written by us, one by one;
/// all else is the library's.
fn write(mut message: DynamicMessage, path: &str, options: &SerializeOptions) -> Result<Value, Error> {
    let descriptor = message.descriptor();
    if descriptor.full_name() == ANY {
        return write_any(&message, path, options);
    }
    let ours: Vec<_> = descriptor.fields().filter(may_hold_any).filter(|field| message.has_field(field)).collect();
    let taken: Vec<_> = ours.iter().filter_map(|field| Some((field, message.take_field(field)?))).collect();
    let mut json = message
        .serialize_with_options(serde_json::value::Serializer, options)
        .map_err(|source| Error::Shape { path: path.to_owned(), source })?;
    if let Value::Object(object) = &mut json {
        for (field, value) in taken {
            let path = format!("{path}.{}", field.json_name());
            object.insert(field.json_name().to_owned(), write_field(value, &path, options)?);
        }
    }
    Ok(json)
}

fn write_field(value: prost_reflect::Value, path: &str, options: &SerializeOptions) -> Result<Value, Error> {
    match value {
        prost_reflect::Value::Message(message) => write(message, path, options),
        prost_reflect::Value::List(items) => {
            items.into_iter().map(|item| write_field(item, path, options)).collect::<Result<_, _>>().map(Value::Array)
        }
        prost_reflect::Value::Map(entries) => {
            let entry = |(key, item): (MapKey, _)| Ok((key_text(&key), write_field(item, path, options)?));
            let entries = entries.into_iter().map(entry);
            entries.collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
        // `may_hold_any` lets only messages through.
        _ => Err(Error::Field { path: path.to_owned(), reason: "expected a message" }),
    }
}

fn write_any(any: &DynamicMessage, path: &str, options: &SerializeOptions) -> Result<Value, Error> {
    let url = any.get_field_by_number(1).and_then(|url| url.as_str().map(str::to_owned)).unwrap_or_default();
    let bytes = any.get_field_by_number(2).and_then(|bytes| bytes.as_bytes().cloned()).unwrap_or_default();
    let mut object = Map::new();
    if url.is_empty() && bytes.is_empty() {
        return Ok(Value::Object(object));
    }
    object.insert("@type".to_owned(), Value::String(url.clone()));
    // Bytes that do not decode as their type says keep the form that loses nothing.
    match known_type(&url).and_then(|descriptor| decode(descriptor, &bytes).ok()) {
        None => {
            object.insert("value".to_owned(), Value::String(STANDARD.encode(&bytes)));
        }
        Some(message) => {
            let special = has_special_json(&message.descriptor());
            match write(message, path, options)? {
                Value::Object(fields) if !special => object.extend(fields),
                value => {
                    object.insert("value".to_owned(), value);
                }
            }
        }
    }
    Ok(Value::Object(object))
}

/// Reads a message; the counterpart of [`write`].
fn read(descriptor: &MessageDescriptor, value: Value, path: &str) -> Result<DynamicMessage, Error> {
    if descriptor.full_name() == ANY {
        return read_any(value, path);
    }
    let Value::Object(mut object) = value else {
        return read_plain(descriptor, value, path);
    };
    let mut taken = Vec::new();
    if !has_special_json(descriptor) {
        for field in descriptor.fields().filter(may_hold_any) {
            for name in [field.json_name(), field.name()] {
                match object.shift_remove(name) {
                    None | Some(Value::Null) => {}
                    Some(value) => taken.push((field.clone(), value)),
                }
            }
        }
    }
    let mut message = read_plain(descriptor, Value::Object(object), path)?;
    for (field, value) in taken {
        let path = format!("{path}.{}", field.json_name());
        let other = field.containing_oneof().and_then(|one| one.fields().find(|other| message.has_field(other)));
        if message.has_field(&field) || other.is_some() {
            return Err(Error::Field { path, reason: "it is given twice, or beside another of its oneof" });
        }
        let value = read_field(&field, value, &path)?;
        message.set_field(&field, value);
    }
    Ok(message)
}

fn read_plain(descriptor: &MessageDescriptor, value: Value, path: &str) -> Result<DynamicMessage, Error> {
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &DeserializeOptions::new())
        .map_err(|source| Error::Shape { path: path.to_owned(), source })
}

fn read_field(field: &FieldDescriptor, value: Value, path: &str) -> Result<prost_reflect::Value, Error> {
    let shape = |reason| Error::Field { path: path.to_owned(), reason };
    let Kind::Message(descriptor) = field.kind() else {
        return Err(shape("expected a message"));
    };
    if field.is_map() {
        let Value::Object(entries) = value else {
            return Err(shape("expected an object"));
        };
        let Kind::Message(item) = descriptor.map_entry_value_field().kind() else {
            return Err(shape("expected messages"));
        };
        let entries = entries.into_iter().map(|(key, value)| {
            let key = read_key(&descriptor.map_entry_key_field().kind(), key).ok_or_else(|| shape("unreadable key"))?;
            Ok((key, prost_reflect::Value::Message(read(&item, value, path)?)))
        });
        return entries.collect::<Result<_, Error>>().map(prost_reflect::Value::Map);
    }
    if field.is_list() {
        let Value::Array(items) = value else {
            return Err(shape("expected an array"));
        };
        let items = items.into_iter().map(|item| Ok(prost_reflect::Value::Message(read(&descriptor, item, path)?)));
        return items.collect::<Result<_, Error>>().map(prost_reflect::Value::List);
    }
    Ok(prost_reflect::Value::Message(read(&descriptor, value, path)?))
}

fn read_any(value: Value, path: &str) -> Result<DynamicMessage, Error> {
    let shape = |reason| Error::Field { path: path.to_owned(), reason };
    let mut any = DynamicMessage::new(descriptor(ANY)?);
    let Value::Object(mut object) = value else {
        return Err(shape("expected an object with \"@type\""));
    };
    if object.is_empty() {
        return Ok(any);
    }
    let Some(Value::String(url)) = object.shift_remove("@type") else {
        return Err(shape("\"@type\" must be there and be a text"));
    };
    let known = known_type(&url);
    let only_value = object.len() == 1 && object.contains_key("value");
    let bytes = match known {
        Some(descriptor) if has_special_json(&descriptor) => match object.shift_remove("value") {
            Some(value) if object.is_empty() => read(&descriptor, value, path)?.encode_to_vec(),
            _ => return Err(shape("expected \"@type\" and \"value\", nothing else")),
        },
        // The form for bytes that do not decode as their type says.
        Some(descriptor) if only_value && descriptor.get_field_by_json_name("value").is_none() => {
            read_bytes(&object).ok_or_else(|| shape("\"value\" must be base64"))?
        }
        Some(descriptor) => read(&descriptor, Value::Object(object), path)?.encode_to_vec(),
        None if only_value => read_bytes(&object).ok_or_else(|| shape("\"value\" must be base64"))?,
        None => return Err(shape("its type is not known here; expected \"@type\" and \"value\" in base64")),
    };
    any.set_field_by_number(1, prost_reflect::Value::String(url));
    any.set_field_by_number(2, prost_reflect::Value::Bytes(Bytes::from(bytes)));
    Ok(any)
}

const ANY: &str = "google.protobuf.Any";

fn read_bytes(object: &Map<String, Value>) -> Option<Vec<u8>> {
    // As the mapping demands: both alphabets, with or without padding.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = object.get("value")?.as_str()?.replace('-', "+").replace('_', "/");
    GeneralPurpose::new(&ALPHABET, config).decode(text).ok()
}

fn known_type(url: &str) -> Option<MessageDescriptor> {
    let (_, name) = url.rsplit_once('/')?;
    descriptor_pool().get_message_by_name(name)
}

/// Whether the mapping has a form of its own for a type.
fn has_special_json(descriptor: &MessageDescriptor) -> bool {
    descriptor.full_name().starts_with("google.protobuf.") && descriptor.full_name() != "google.protobuf.Empty"
}

/// Whether a field's messages may hold an Any, however deep.
fn may_hold_any(field: &FieldDescriptor) -> bool {
    fn reaches(descriptor: &MessageDescriptor, seen: &mut Vec<String>) -> bool {
        if descriptor.full_name() == ANY {
            return true;
        }
        // Google's own types hold none.
        if has_special_json(descriptor) || seen.iter().any(|name| name == descriptor.full_name()) {
            return false;
        }
        seen.push(descriptor.full_name().to_owned());
        descriptor.fields().any(|field| matches!(field.kind(), Kind::Message(inner) if reaches(&inner, seen)))
    }
    matches!(field.kind(), Kind::Message(inner) if reaches(&inner, &mut Vec::new()))
}

/// Spells numbers as the library can read them: beyond whole ones, as doubles.
fn plain_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if !number.is_i64() && !number.is_u64() => {
            if let Some(plain) = number.as_f64().and_then(serde_json::Number::from_f64) {
                *number = plain;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_numbers),
        Value::Object(fields) => fields.values_mut().for_each(plain_numbers),
        _ => {}
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn read_key(kind: &Kind, text: String) -> Option<MapKey> {
    Some(match kind {
        Kind::String => MapKey::String(text),
        Kind::Bool => MapKey::Bool(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => MapKey::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => MapKey::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => MapKey::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => MapKey::U64(text.parse().ok()?),
        _ => return None,
    })
}

fn short_name(full_name: &str) -> &str {
    full_name.rsplit('.').next().unwrap_or(full_name)
}
