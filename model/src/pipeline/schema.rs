//! The JSON Schema of the pipeline file, and checks against schemas: ours and
//! those of modules. Every mistake becomes a problem at its place in the text,
//! in words that say what was found and what would be right.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value};

use super::tree::{Node, Path, Segment};
use super::variables::holds_secret;
use super::{Findings, wire};
use crate::text::nearest;

/// Schema of the whole file.
pub(super) fn schema() -> Value {
    let settings =
        schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<wire::Pipeline>();
    let mut schema = schema.to_value();
    plain(&mut schema);
    schema
}

/// Checks the file, and takes what is wrong out of `value`, so that the rest can
/// be read and checked further.
pub(super) fn check(schema: &Value, tree: &Node, value: &mut Value, findings: &mut Findings) {
    let mut wrong = Vec::new();
    match jsonschema::validator_for(schema) {
        Err(error) => findings.error(tree, &Path::default(), format!("the schema cannot be used: {error}")),
        Ok(validator) => {
            let mut report = Report { schema, tree, base: &Path::default(), findings, wrong: Some(&mut wrong) };
            report.all(&validator, value);
        }
    }
    for path in wrong {
        prune(value, &path.0);
    }
}

/// Checks a module's configuration that stands at `base` of the tree.
pub(super) fn check_config(schema: &Value, tree: &Node, config: &Value, base: &Path, findings: &mut Findings) {
    match jsonschema::validator_for(schema) {
        Err(error) => findings.error(tree, base, format!("the module's own schema cannot be used: {error}")),
        Ok(validator) => Report { schema, tree, base, findings, wrong: None }.all(&validator, config),
    }
}

/// Makes what schemars writes plainer: no `null` beside a type, enumerations of
/// texts as `enum`, bounds instead of formats of numbers.
fn plain(schema: &mut Value) {
    let Value::Object(object) = schema else {
        if let Value::Array(items) = schema {
            items.iter_mut().for_each(plain);
        }
        return;
    };
    object.values_mut().for_each(plain);
    without_null(object);
    constants_to_enum(object);
    if let Some(Value::String(format)) = object.get("format") {
        match format.as_str() {
            "uint32" => {
                object.entry("maximum").or_insert_with(|| u32::MAX.into());
            }
            "uint64" => {
                object.entry("maximum").or_insert_with(|| u64::MAX.into());
            }
            _ => {}
        }
        object.remove("format");
    }
}

fn without_null(object: &mut Map<String, Value>) {
    let is_null = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "null");
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(options)) = object.get_mut("enum") {
        options.retain(|option| !option.is_null());
    }
    let Some(Value::Array(branches)) = object.get_mut("anyOf") else { return };
    branches.retain(|branch| !is_null(branch));
    if let [Value::Object(only)] = &branches[..] {
        let only = only.clone();
        object.remove("anyOf");
        for (name, value) in only {
            object.entry(name).or_insert(value);
        }
    }
}

/// `oneOf` constants, as schemars writes documented variants, as one `enum`; what
/// the variants mean goes into the description.
fn constants_to_enum(object: &mut Map<String, Value>) {
    let Some(Value::Array(branches)) = object.get("oneOf") else { return };
    let texts: Option<Vec<_>> = branches.iter().map(|branch| branch.get("const").cloned()).collect();
    let Some(options) = texts else { return };
    let mut description = object.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    for branch in branches {
        let text = |name| branch.get(name).and_then(Value::as_str).unwrap_or_default();
        description.push_str(&format!("\n- `{}`: {}", text("const"), text("description")));
    }
    object.remove("oneOf");
    object.insert("type".to_owned(), "string".into());
    object.insert("enum".to_owned(), Value::Array(options));
    object.insert("description".to_owned(), Value::String(description));
}

/// Takes a value out: a field is gone, an element becomes nothing, since those
/// after it keep their numbers.
fn prune(value: &mut Value, path: &[Segment]) {
    match (value, path) {
        (value, []) => *value = Value::Object(Map::new()),
        (Value::Object(fields), [Segment::Field(name)]) => {
            fields.shift_remove(name);
        }
        (Value::Array(items), [Segment::Index(index)]) => {
            if let Some(item) = items.get_mut(*index) {
                *item = Value::Null;
            }
        }
        (Value::Object(fields), [Segment::Field(name), rest @ ..]) => {
            if let Some(field) = fields.get_mut(name) {
                prune(field, rest);
            }
        }
        (Value::Array(items), [Segment::Index(index), rest @ ..]) => {
            if let Some(item) = items.get_mut(*index) {
                prune(item, rest);
            }
        }
        // A holder that is gone already, with all that it held.
        _ => {}
    }
}

struct Report<'a> {
    schema: &'a Value,
    tree: &'a Node,
    base: &'a Path,
    findings: &'a mut Findings,
    /// Where to note what must be taken out.
    wrong: Option<&'a mut Vec<Path>>,
}

impl Report<'_> {
    fn all(&mut self, validator: &Validator, value: &Value) {
        let errors: Vec<_> = validator.iter_errors(value).collect();
        for error in &errors {
            self.one(error);
        }
    }

    fn one(&mut self, error: &ValidationError<'_>) {
        let inner = path_of(error.instance_path());
        let path = self.full(&inner);
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let known = self.known_fields(error);
                let mut unexpected: Vec<_> = unexpected.iter().collect();
                unexpected.dedup();
                for name in unexpected {
                    let hint = nearest(name, known.iter().map(String::as_str));
                    let hint = match (hint.is_empty(), known.is_empty()) {
                        (true, false) if known.len() <= 8 => format!("; known are {}", known.join(", ")),
                        _ => hint,
                    };
                    let at = self.tree.key_position(&path, name);
                    self.findings.error_at(at, &path.field(name), format!("there is no field {name:?}{hint}"));
                    self.take_out(inner.field(name));
                }
            }
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                // Given, but taken out as wrong before: reported already.
                let at = self.tree.position(&path);
                self.findings.error_at(at, &path, format!("{name:?} is missing"));
            }
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                self.branches(error, context, &inner);
            }
            _ if excused(error) => {}
            _ => {
                self.findings.error(self.tree, &path, self.message(error));
                self.take_out(inner);
            }
        }
    }

    /// Of several shapes that do not fit, reports the mistakes of the one that was
    /// meant: the one of the right type. If none is, says what types there are.
    fn branches(&mut self, error: &ValidationError<'_>, context: &[Vec<ValidationError<'static>>], inner: &Path) {
        let here = error.instance_path();
        // What the secret in it will be is not known here.
        if context.iter().any(|branch| branch.iter().all(excused)) {
            return;
        }
        let fits = |branch: &&Vec<ValidationError<'_>>| !branch.iter().any(|error| wrong_shape(error, here));
        let meant = context.iter().filter(fits).min_by_key(|branch| branch.len());
        if let Some(meant) = meant {
            for error in meant {
                self.one(error);
            }
            return;
        }
        let expected = expected_types(context.iter().flatten());
        let found = found(error.instance());
        let expected = if expected.is_empty() { "another shape".to_owned() } else { either(&expected) };
        self.findings.error(self.tree, &self.full(inner), format!("found {found}, expected {expected}"));
        self.take_out(inner.clone());
    }

    fn full(&self, inner: &Path) -> Path {
        Path(self.base.0.iter().chain(&inner.0).cloned().collect())
    }

    fn take_out(&mut self, path: Path) {
        if let Some(wrong) = self.wrong.as_mut() {
            wrong.push(path);
        }
    }

    fn message(&self, error: &ValidationError<'_>) -> String {
        let found = found(error.instance());
        let expected = match error.kind() {
            ValidationErrorKind::Type { .. } => {
                self.kind_of_text(error).unwrap_or_else(|| either(&expected_types([error])))
            }
            ValidationErrorKind::Enum { options } => {
                let options: Vec<_> = options.as_array().into_iter().flatten().map(shown).collect();
                let hint = match error.instance().as_str() {
                    Some(text) => nearest(text, options.iter().map(String::as_str)),
                    None => String::new(),
                };
                return format!("found {found}, expected {}{hint}", either(&options));
            }
            ValidationErrorKind::Constant { expected_value } => shown(expected_value),
            ValidationErrorKind::Minimum { limit } => format!("at least {}", bound(limit)),
            ValidationErrorKind::Maximum { limit } => format!("at most {}", bound(limit)),
            ValidationErrorKind::ExclusiveMinimum { limit } => format!("more than {}", bound(limit)),
            ValidationErrorKind::ExclusiveMaximum { limit } => format!("less than {}", bound(limit)),
            ValidationErrorKind::MinLength { limit: 1 } => "a text that is not empty".to_owned(),
            ValidationErrorKind::MinLength { limit } => format!("a text of at least {limit} characters"),
            ValidationErrorKind::MaxLength { limit } => format!("a text of at most {limit} characters"),
            ValidationErrorKind::MinItems { limit: 1 } => "a list that is not empty".to_owned(),
            ValidationErrorKind::MinItems { limit } => format!("at least {limit} elements"),
            ValidationErrorKind::MaxItems { limit } => format!("at most {limit} elements"),
            ValidationErrorKind::Pattern { pattern } => format!("a text that matches {pattern}"),
            ValidationErrorKind::Format { format } => format!("a text in the format {format}"),
            ValidationErrorKind::UniqueItems => "a list without repetitions".to_owned(),
            _ => return error.to_string(),
        };
        format!("found {found}, expected {expected}")
    }

    /// The title of the text that should be there: what kind of text it is.
    fn kind_of_text(&self, error: &ValidationError<'_>) -> Option<String> {
        let keyword = error.schema_path().to_string();
        let schema = self.schema.pointer(keyword.rsplit_once('/')?.0)?;
        let title = schema.get("title").filter(|_| schema.get("type").is_some_and(|kind| kind == "string"))?;
        title.as_str().map(str::to_owned)
    }

    /// Names of the fields that the schema knows where an unknown one was found.
    fn known_fields(&self, error: &ValidationError<'_>) -> Vec<String> {
        let keyword = error.schema_path().to_string();
        let Some((holder, _)) = keyword.rsplit_once('/') else { return Vec::new() };
        let fields = self.schema.pointer(holder).and_then(|schema| schema.get("properties")).and_then(Value::as_object);
        fields.map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    }
}

/// Whether an error says that the value at `here` is of another shape altogether.
fn wrong_shape(error: &ValidationError<'_>, here: &Location) -> bool {
    let at_fault = match error.kind() {
        ValidationErrorKind::Type { .. } | ValidationErrorKind::Constant { .. } => true,
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            context.iter().all(|branch| branch.iter().any(|error| wrong_shape(error, here)))
        }
        _ => false,
    };
    at_fault && error.instance_path() == here
}

/// Whether it is only about the spelling of a text that holds a secret: what it
/// will be is not known here.
fn excused(error: &ValidationError<'_>) -> bool {
    let about_spelling = matches!(
        error.kind(),
        ValidationErrorKind::Pattern { .. }
            | ValidationErrorKind::Format { .. }
            | ValidationErrorKind::MinLength { .. }
            | ValidationErrorKind::MaxLength { .. }
            | ValidationErrorKind::Enum { .. }
            | ValidationErrorKind::Constant { .. }
    );
    about_spelling && error.instance().as_str().is_some_and(holds_secret)
}

fn path_of(location: &Location) -> Path {
    let segments = location.iter().map(|segment| match segment {
        LocationSegment::Property(name) => Segment::Field(name.to_string()),
        LocationSegment::Index(index) => Segment::Index(index),
    });
    Path(segments.collect())
}

fn expected_types<'e>(errors: impl IntoIterator<Item = &'e ValidationError<'e>>) -> Vec<String> {
    let mut expected = Vec::new();
    for error in errors {
        let types: Vec<_> = match error.kind() {
            ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => vec![kind.to_string()],
            ValidationErrorKind::Type { kind: TypeKind::Multiple(kinds) } => {
                kinds.iter().map(|kind| kind.to_string()).collect()
            }
            ValidationErrorKind::Constant { expected_value } => vec![shown(expected_value)],
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                expected_types(context.iter().flatten())
            }
            _ => Vec::new(),
        };
        for kind in types {
            let name = match kind.as_str() {
                "string" => "a text",
                "integer" => "a whole number",
                "number" => "a number",
                "boolean" => "true or false",
                "array" => "a list",
                "object" => "a mapping",
                "null" => "nothing",
                other => other,
            };
            if !expected.iter().any(|known| known == name) {
                expected.push(name.to_owned());
            }
        }
    }
    expected
}

/// `a`, `a or b`, `a, b or c`.
fn either(options: &[String]) -> String {
    match options {
        [] => "something else".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// What stands there, in few words.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(held) => held.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() > 60 => {
            format!("the text {:?}…", text.chars().take(60).collect::<String>())
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// A bound as people write it: `1`, not `1.0`.
fn bound(limit: &Value) -> String {
    let text = limit.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
