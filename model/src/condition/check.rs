//! Checks an expression before it is ever evaluated: names, functions and field
//! paths, the latter against the document's descriptor.

use std::collections::BTreeMap;

use cel::common::ast::{EntryExpr, Expr, LiteralValue, SourceInfo, operators};
use cel::{IdedExpr, ParseErrors};
use pipedoc_proto::json::descriptor;
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

use super::lend::PRESENCE;
use super::{CompileError, CompileErrors};
use crate::text::nearest;

/// The functions of standard CEL that we have (times are texts here).
const FUNCTIONS: [&str; 13] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "dyn",
    "type",
];

/// Types that an expression may name, for `type(x) == int`.
const TYPES: [&str; 10] = ["int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type"];

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 64;

/// What is known of a value before there is one.
#[derive(Clone)]
enum Known {
    /// Not known; anything may be asked of it.
    Anything,
    /// Neither fields nor elements.
    Scalar,
    Message(MessageDescriptor),
    List(Box<Known>),
    Map(Box<Known>),
    Headers,
    Step,
}

/// The CEL parser's own errors as ours.
pub(super) fn syntax_errors(source: &str, errors: &ParseErrors) -> CompileErrors {
    let line_start = |line: isize| -> usize {
        let before = usize::try_from(line - 1).unwrap_or(0);
        source.split_inclusive('\n').take(before).map(str::len).sum()
    };
    let mut ours: Vec<_> = errors
        .errors
        .iter()
        .map(|error| {
            let offset = line_start(error.pos.0) + usize::try_from(error.pos.1 - 1).unwrap_or(0);
            at(source, offset, format!("syntax error: {}", plain_syntax_error(&error.msg)))
        })
        .collect();
    ours.dedup();
    if ours.is_empty() {
        ours.push(at(source, 0, "syntax error".to_owned()));
    }
    CompileErrors(ours)
}

/// The generated parser's message without its list of all tokens it knows.
fn plain_syntax_error(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default().trim_start_matches("Syntax error: ");
    let message = message.split(" expecting ").next().unwrap_or(message);
    if message.contains("<EOF>") { "the expression ends too early".to_owned() } else { message.to_owned() }
}

/// Checks an expression and rewrites `has(message.field)`, which the library
/// would answer as for maps, into a question that [`super::lend`] answers.
/// Tells whether the expression reads `doc`.
pub(super) fn check(source: &str, expression: &mut IdedExpr, positions: &SourceInfo) -> Result<bool, CompileErrors> {
    let mut checker = Checker {
        source,
        positions,
        variables: BTreeMap::new(),
        errors: Vec::new(),
        reads_doc: false,
        depth: 0,
        too_deep: false,
    };
    let known = checker.visit(expression);
    if matches!(known, Known::Message(_) | Known::Headers | Known::Step) {
        checker.error(expression.id, "the result is a whole message; name one of its fields".to_owned());
    }
    if checker.errors.is_empty() { Ok(checker.reads_doc) } else { Err(CompileErrors(checker.errors)) }
}

fn at(source: &str, offset: usize, message: String) -> CompileError {
    let offset = (0..=offset.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
    let column = source[..offset].chars().count() + 1;
    CompileError { offset, column: u32::try_from(column).unwrap_or(u32::MAX), message }
}

struct Checker<'a> {
    source: &'a str,
    positions: &'a SourceInfo,
    /// Variables of macros, innermost last.
    variables: BTreeMap<String, Vec<Known>>,
    errors: Vec<CompileError>,
    reads_doc: bool,
    depth: usize,
    too_deep: bool,
}

impl Checker<'_> {
    fn error(&mut self, id: u64, message: String) {
        let offset = self.positions.offset_for(id).map_or(0, |(start, _)| start as usize);
        self.errors.push(at(self.source, offset, message));
    }

    fn visit(&mut self, expression: &mut IdedExpr) -> Known {
        // What goes deeper here goes deeper on the stack at each evaluation.
        if self.depth >= MAX_DEPTH {
            if !std::mem::replace(&mut self.too_deep, true) {
                self.error(expression.id, format!("the expression is nested more than {MAX_DEPTH} deep"));
            }
            return Known::Anything;
        }
        self.depth += 1;
        let known = self.visit_inner(expression);
        self.depth -= 1;
        known
    }

    fn visit_inner(&mut self, expression: &mut IdedExpr) -> Known {
        let id = expression.id;
        match &mut expression.expr {
            Expr::Unspecified | Expr::Literal(_) => Known::Scalar,
            Expr::Ident(name) => {
                let name = name.clone();
                self.identifier(id, &name)
            }
            Expr::Select(select) => {
                let operand = self.visit(&mut select.operand);
                let known = self.field(id, &operand, &select.field);
                if select.test && matches!(operand, Known::Message(_)) {
                    select.test = false;
                    select.field.insert(0, PRESENCE);
                    return Known::Scalar;
                }
                if select.test { Known::Scalar } else { known }
            }
            Expr::Call(call) => {
                let mut known: Vec<_> =
                    call.target.as_deref_mut().map(|target| self.visit(target)).into_iter().collect();
                known.extend(call.args.iter_mut().map(|argument| self.visit(argument)));
                let literal = |at: usize| match call.args.get(at).map(|argument| &argument.expr) {
                    Some(Expr::Literal(LiteralValue::String(text))) => Some(text.inner().to_owned()),
                    _ => None,
                };
                match call.func_name.as_str() {
                    operators::INDEX => match (&known[..], literal(1)) {
                        ([operand, _], Some(name)) => self.field(id, operand, &name),
                        ([Known::List(item) | Known::Map(item), _], _) => *item.clone(),
                        ([Known::Message(message), _], _) => {
                            let reason = format!("a {} has fields; name one, as in `.id`", message.name());
                            self.error(id, reason);
                            Known::Anything
                        }
                        ([Known::Scalar, _], _) => {
                            self.error(id, "a plain value has no elements".to_owned());
                            Known::Anything
                        }
                        _ => Known::Anything,
                    },
                    operators::CONDITIONAL => known.into_iter().nth(1).unwrap_or(Known::Anything),
                    "matches" => {
                        let pattern = literal(if call.target.is_some() { 0 } else { 1 });
                        if let Some(Err(error)) = pattern.map(|pattern| regex::Regex::new(&pattern)) {
                            let reason = error.to_string().lines().last().unwrap_or_default().replace("error: ", "");
                            self.error(id, format!("the pattern is no regular expression: {reason}"));
                        }
                        Known::Scalar
                    }
                    name if name.starts_with(['_', '!', '-', '@']) => Known::Anything,
                    name if FUNCTIONS.contains(&name) => Known::Anything,
                    name => {
                        let mut hint = nearest(name, FUNCTIONS.iter().copied());
                        if hint.is_empty() {
                            hint = format!("; there are {}", FUNCTIONS.join(", "));
                        }
                        let reason = format!("no function is named {name:?}{hint}");
                        self.error(id, reason);
                        Known::Anything
                    }
                }
            }
            Expr::List(list) => {
                for element in &mut list.elements {
                    self.visit(element);
                }
                Known::List(Box::new(Known::Anything))
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        self.visit(&mut entry.key);
                        self.visit(&mut entry.value);
                    }
                }
                Known::Map(Box::new(Known::Anything))
            }
            Expr::Struct(message) => {
                let reason = format!("messages cannot be made in expressions: {:?}", message.type_name);
                self.error(id, reason);
                Known::Anything
            }
            Expr::Comprehension(comprehension) => {
                let item = match self.visit(&mut comprehension.iter_range) {
                    Known::List(item) => *item,
                    // Going through a map gives its keys.
                    Known::Map(_) => Known::Scalar,
                    Known::Headers | Known::Step | Known::Message(_) => {
                        self.error(id, "only lists and maps can be gone through".to_owned());
                        Known::Anything
                    }
                    Known::Anything | Known::Scalar => Known::Anything,
                };
                self.visit(&mut comprehension.accu_init);
                let bound = [&comprehension.iter_var, &comprehension.accu_var].map(String::clone);
                self.variables.entry(bound[0].clone()).or_default().push(item);
                self.variables.entry(bound[1].clone()).or_default().push(Known::Anything);
                self.visit(&mut comprehension.loop_cond);
                self.visit(&mut comprehension.loop_step);
                self.visit(&mut comprehension.result);
                for name in bound {
                    self.variables.entry(name).or_default().pop();
                }
                Known::Anything
            }
        }
    }

    fn identifier(&mut self, id: u64, name: &str) -> Known {
        if let Some(known) = self.variables.get(name).and_then(|bound| bound.last()) {
            return known.clone();
        }
        match name {
            "doc" => {
                self.reads_doc = true;
                descriptor("pipedoc.v1.PipeDoc").map_or(Known::Anything, Known::Message)
            }
            "headers" => Known::Headers,
            "step" => Known::Step,
            "key" => Known::Scalar,
            name if TYPES.contains(&name) => Known::Scalar,
            name => {
                let hint = nearest(name, ["doc", "headers", "key", "step"]);
                self.error(id, format!("nothing is named {name:?}; there are doc, headers, key and step{hint}"));
                Known::Anything
            }
        }
    }

    fn field(&mut self, id: u64, operand: &Known, name: &str) -> Known {
        match operand {
            Known::Message(message) => {
                let visible: Vec<_> = visible_fields(message).collect();
                if let Some(field) = visible.iter().find(|field| field.name() == name) {
                    return known_field(field);
                }
                let reason = if message.full_name() == "pipedoc.v1.Blob" && message.get_field_by_name(name).is_some() {
                    "expressions cannot read what a blob holds; it has name, mime_type and size".to_owned()
                } else {
                    let hint = nearest(name, visible.iter().map(FieldDescriptor::name));
                    format!("a {} has no field {name:?}{hint}", message.name())
                };
                self.error(id, reason);
                Known::Anything
            }
            Known::Step if !["pipeline", "step"].contains(&name) => {
                self.error(id, format!("step has no field {name:?}; it has pipeline and step"));
                Known::Scalar
            }
            Known::List(_) => {
                self.error(id, format!("a list has no field {name:?}; take an element first, as in `[0]`"));
                Known::Anything
            }
            Known::Map(item) => *item.clone(),
            Known::Step | Known::Headers => Known::Scalar,
            Known::Anything => Known::Anything,
            Known::Scalar => {
                self.error(id, format!("there is no field {name:?} in a plain value"));
                Known::Anything
            }
        }
    }
}

fn visible_fields(message: &MessageDescriptor) -> impl Iterator<Item = FieldDescriptor> + use<> {
    let blob = message.full_name() == "pipedoc.v1.Blob";
    let fields: Vec<_> = message.fields().collect();
    fields.into_iter().filter(move |field| !blob || ["name", "mime_type", "size"].contains(&field.name()))
}

fn known_field(field: &FieldDescriptor) -> Known {
    let one = |kind: Kind| match kind {
        Kind::Message(message) => match message.full_name() {
            // Free in shape.
            "google.protobuf.Struct" | "pipedoc.v1.Data" => Known::Anything,
            // A text here.
            "google.protobuf.Timestamp" => Known::Scalar,
            _ => Known::Message(message),
        },
        _ => Known::Scalar,
    };
    match (field.kind(), field.cardinality()) {
        (Kind::Message(entry), _) if field.is_map() => Known::Map(Box::new(one(entry.map_entry_value_field().kind()))),
        (kind, Cardinality::Repeated) => Known::List(Box::new(one(kind))),
        (kind, _) => one(kind),
    }
}
