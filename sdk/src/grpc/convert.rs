//! Messages to what modules know, and back. Pure.

use pipedoc_proto::v1;
use pipedoc_proto::v1::process_data_response::Outcome;
use prost_types::value::Kind;
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};
use crate::output::{Content, Item, Output};

/// Whole numbers up to here are exact in a `google.protobuf.Struct`.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A `Struct` as JSON. Its numbers are doubles: whole ones become whole numbers
/// again; NaN and the infinities, which JSON does not have, become null.
#[must_use]
pub fn json(fields: prost_types::Struct) -> Value {
    Value::Object(fields.fields.into_iter().map(|(name, value)| (name, json_value(value))).collect::<Map<_, _>>())
}

fn json_value(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= EXACT => {
            Value::Number(Number::from(number as i64))
        }
        Some(Kind::NumberValue(number)) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_value).collect(),
        Some(Kind::StructValue(fields)) => json(fields),
    }
}

/// What became of a document, as callers learn it.
#[must_use]
pub fn response(sequence: u64, result: Result<Output>) -> v1::ProcessDataResponse {
    match result {
        Ok(output) => v1::ProcessDataResponse {
            sequence,
            outcome: if output.partial.is_some() { Outcome::Partial } else { Outcome::Done }.into(),
            results: output.items.into_iter().map(item).collect(),
            error: output.partial.as_ref().map(Error::chain).unwrap_or_default(),
        },
        Err(error) => v1::ProcessDataResponse {
            sequence,
            outcome: if error.is_retryable() { Outcome::Retryable } else { Outcome::Failed }.into(),
            results: Vec::new(),
            error: error.chain(),
        },
    }
}

fn item(item: Item) -> v1::Result {
    let kind = match item.content {
        Content::Document(document) => v1::result::Kind::Document(document),
        Content::Deletion(id) => v1::result::Kind::DeletedId(id),
        Content::Outdated(id) => v1::result::Kind::OutdatedId(id),
    };
    v1::Result { kind: Some(kind), output: item.to.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_struct_fit_integer_fields_again() {
        let number = |number| prost_types::Value { kind: Some(Kind::NumberValue(number)) };
        let fields = [("size", 1000.0), ("share", 0.5), ("negative", -3.0), ("huge", 1e300), ("none", f64::NAN)];
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), number(value))).collect();
        let json = json(prost_types::Struct { fields });
        assert_eq!(json["size"].as_u64(), Some(1000));
        assert_eq!(json["share"].as_f64(), Some(0.5));
        assert_eq!(json["negative"].as_i64(), Some(-3));
        assert_eq!(json["huge"].as_f64(), Some(1e300));
        assert!(json["none"].is_null());
    }
}
