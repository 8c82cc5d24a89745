//! YAML or JSON text as a tree in which every value knows where it stands.
//!
//! YAML 1.2 with the scalars of its core schema; anchors and aliases; one
//! document. Bounded in depth and in nodes, so that no text, however made, costs
//! more than its size. Knows nothing of pipelines.

use std::fmt;

use serde_json::{Number, Value};

use super::Findings;

mod build;
mod scalar;

pub(super) use build::parse;
pub(super) use scalar::plain as plain_scalar;

/// Where something begins: line and column from 1, in characters; 0 when unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: u32,
    pub column: u32,
}

/// A step of a path into the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Field(String),
    Index(usize),
}

/// A path into the tree, written `steps[2].outputs[0].to`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Path(pub Vec<Segment>);

impl Path {
    pub(super) fn field(&self, name: &str) -> Self {
        self.with(Segment::Field(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    pub(super) fn with(&self, segment: Segment) -> Self {
        let mut path = self.clone();
        path.0.push(segment);
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let simple = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
        for (n, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if name.is_empty() || !name.chars().all(simple) => write!(f, "[{name:?}]")?,
                Segment::Field(name) => write!(f, "{}{name}", if n > 0 { "." } else { "" })?,
            }
        }
        Ok(())
    }
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: Position,
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(Text),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A text value.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub value: String,
    /// Column of its first character, when it stands in the file exactly as it
    /// reads, so that columns within it are columns of the file.
    pub exact: Option<u32>,
    /// Whether it was written without quotes.
    pub plain: bool,
}

/// Name of a field and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub name: String,
    pub at: Position,
}

impl Node {
    /// A tree without positions.
    pub(super) fn from_json(value: &Value) -> Self {
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(held) => Kind::Bool(*held),
            Value::Number(number) => Kind::Number(number.clone()),
            Value::String(text) => Kind::Text(Text { value: text.clone(), exact: None, plain: false }),
            Value::Array(items) => Kind::List(items.iter().map(Self::from_json).collect()),
            Value::Object(fields) => {
                let key = |name: &String| Key { name: name.clone(), at: Position::default() };
                Kind::Map(fields.iter().map(|(name, value)| (key(name), Self::from_json(value))).collect())
            }
        };
        Self { at: Position::default(), kind }
    }

    /// The tree as JSON.
    pub(super) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(held) => Value::Bool(*held),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) => Value::String(text.value.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(fields) => {
                Value::Object(fields.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect())
            }
        }
    }

    /// The node at a path.
    pub(super) fn get(&self, path: &Path) -> Option<&Self> {
        path.0.iter().try_fold(self, |node, segment| node.child(segment))
    }

    fn child(&self, segment: &Segment) -> Option<&Self> {
        match (&self.kind, segment) {
            (Kind::List(items), Segment::Index(index)) => items.get(*index),
            (Kind::Map(fields), Segment::Field(name)) => {
                fields.iter().find(|(key, _)| key.name == *name).map(|(_, node)| node)
            }
            _ => None,
        }
    }

    /// Where the value at a path begins; of what is not there, where its
    /// innermost holder begins.
    pub(super) fn position(&self, path: &Path) -> Position {
        let mut node = self;
        for segment in &path.0 {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.at
    }

    /// Where the name of the field at a path stands.
    pub(super) fn key_position(&self, holder: &Path, name: &str) -> Position {
        match self.get(holder).map(|node| &node.kind) {
            Some(Kind::Map(fields)) => {
                fields.iter().find(|(key, _)| key.name == name).map_or_else(|| self.position(holder), |(key, _)| key.at)
            }
            _ => self.position(holder),
        }
    }

    /// Where the character `column` (from 1) of the text at a path stands, when
    /// that can be told, else where the text begins.
    pub(super) fn position_in_text(&self, path: &Path, column: u32) -> Position {
        let at = self.position(path);
        match self.get(path).map(|node| &node.kind) {
            Some(Kind::Text(Text { exact: Some(first), .. })) => {
                Position { column: first.saturating_add(column.saturating_sub(1)), ..at }
            }
            _ => at,
        }
    }
}
