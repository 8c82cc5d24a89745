//! Builds the tree from the YAML parser's events, with a stack of its own, so
//! that depth is a number and not the process's.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::{Findings, Key, Kind, Node, Path, Position, Text, scalar};

/// Deepest nesting of lists and mappings.
const MAX_DEPTH: usize = 64;
/// Most values in one text, aliases counted as often as they stand for something.
const MAX_NODES: usize = 100_000;

/// Reads a text; none when nothing of it can be used. What is wrong is noted.
pub(in super::super) fn parse(text: &str, findings: &mut Findings) -> Option<Node> {
    let root = Path::default();
    if text.len() > super::super::MAX_TEXT {
        let limit = super::super::MAX_TEXT;
        findings.error_at(Position::default(), &root, format!("the text has {} bytes; at most {limit}", text.len()));
        return None;
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        lines: text.split('\n').collect(),
        findings,
        frames: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        nodes: 0,
    };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let at = position(*error.marker());
                builder.findings.error_at(at, &root, format!("this is no YAML: {}", error.info()));
                return None;
            }
        };
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                let reason = "a second document begins here; a file holds one pipeline";
                builder.findings.error_at(position(span.start), &root, reason);
                break;
            }
        }
        // What is too large is read no further.
        builder.take(event, span)?;
    }
    let tree = builder.root;
    if tree.as_ref().is_none_or(|tree| matches!(tree.kind, Kind::Null)) {
        let reason = "the text is empty; expected a mapping with `pipeline` and `steps`";
        findings.error_at(Position { line: 1, column: 1 }, &root, reason);
        return None;
    }
    tree
}

fn position(marker: Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line().max(1)), column: number(marker.col() + 1) }
}

/// A list or mapping that is still open.
struct Frame {
    at: Position,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { fields: Vec<(Key, Node)>, seen: HashMap<String, Position>, key: Option<Key> },
}

struct Builder<'a, 'f> {
    lines: Vec<&'a str>,
    findings: &'f mut Findings,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
}

impl Builder<'_, '_> {
    /// Takes an event; none when the text is larger than can be dealt with.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = position(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Some(())
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                if node.is_none() {
                    self.complain(at, "the anchor is not known here");
                }
                let node = node.unwrap_or(Node { at, kind: Kind::Null });
                self.nodes = self.nodes.saturating_add(count(&node));
                if self.depth() + depth(&node) > MAX_DEPTH {
                    return self.too_deep(at);
                }
                self.complete(node, 0)
            }
            Event::Scalar(value, style, anchor, tag) => {
                let node = self.scalar(at, &value, style, tag.as_deref());
                self.complete(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(at, tag.as_deref(), "seq");
                self.open(Frame { at, anchor, content: Content::List(Vec::new()) })
            }
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(at, tag.as_deref(), "map");
                let content = Content::Map { fields: Vec::new(), seen: HashMap::new(), key: None };
                self.open(Frame { at, anchor, content })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.frames.pop()?;
                let kind = match frame.content {
                    Content::List(items) => Kind::List(items),
                    Content::Map { fields, .. } => Kind::Map(fields),
                };
                self.complete(Node { at: frame.at, kind }, frame.anchor)
            }
        }
    }

    fn depth(&self) -> usize {
        self.frames.len()
    }

    fn open(&mut self, frame: Frame) -> Option<()> {
        if self.depth() >= MAX_DEPTH {
            return self.too_deep(frame.at);
        }
        self.frames.push(frame);
        Some(())
    }

    /// Puts a finished value where it belongs.
    fn complete(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.complain(node.at, format!("the text has more than {MAX_NODES} values"));
            return None;
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.frames.last_mut().map(|frame| &mut frame.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { fields, seen, key }) => match key.take() {
                None => {
                    let at = node.at;
                    let name = key_name(&node);
                    *key = Some(Key { name: name.clone().unwrap_or_default(), at });
                    match name {
                        None => {
                            // So that its value is passed over.
                            seen.insert(String::new(), at);
                            self.complain(at, "the name of a field must be a text");
                        }
                        Some(name) => {
                            if let Some(first) = seen.get(&name) {
                                let (line, column) = (first.line, first.column);
                                let reason = format!("{name:?} is given twice; the first is at {line}:{column}");
                                self.complain_of(at, Some(&name), reason);
                            }
                        }
                    }
                }
                // The first of two stays; the second was reported.
                Some(key) => {
                    if !seen.contains_key(&key.name) {
                        seen.insert(key.name.clone(), key.at);
                        fields.push((key, node));
                    }
                }
            },
        }
        Some(())
    }

    fn scalar(&mut self, at: Position, value: &str, style: ScalarStyle, tag: Option<&Tag>) -> Node {
        let plain = style == ScalarStyle::Plain;
        let quotes = u32::from(matches!(style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted));
        let first = at.column + quotes;
        let line = self.lines.get(at.line as usize - 1).copied().unwrap_or_default();
        let written = line.char_indices().nth(first as usize - 1).map_or("", |(start, _)| &line[start..]);
        let exact = written.starts_with(value).then_some(first);
        let text = |value: &str| Kind::Text(Text { value: value.to_owned(), exact, plain });
        let wanted = tag.map(|tag| (tag.is_yaml_core_schema(), tag.suffix.as_str()));
        let kind = match wanted {
            Some((true, "str")) => text(value),
            Some((false, "")) if !plain => text(value),
            None if !plain => text(value),
            None | Some((true, "int" | "float" | "bool" | "null")) => match scalar::plain(value) {
                Ok(Some(kind)) => kind,
                Ok(None) => text(value),
                Err(reason) => {
                    self.complain(at, reason);
                    Kind::Null
                }
            },
            Some(_) => {
                self.unknown_tag(at, tag);
                text(value)
            }
        };
        Node { at, kind }
    }

    fn collection_tag(&mut self, at: Position, tag: Option<&Tag>, expected: &str) {
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema() || tag.suffix != expected) {
            self.unknown_tag(at, tag);
        }
    }

    fn unknown_tag(&mut self, at: Position, tag: Option<&Tag>) {
        let tag = tag.map(|tag| format!("{}{}", tag.handle, tag.suffix)).unwrap_or_default();
        self.complain(at, format!("the tag {tag:?} means nothing here"));
    }

    fn too_deep(&mut self, at: Position) -> Option<()> {
        self.complain(at, format!("lists and mappings are nested more than {MAX_DEPTH} deep"));
        None
    }

    fn complain(&mut self, at: Position, message: impl Into<String>) {
        self.complain_of(at, None, message);
    }

    fn complain_of(&mut self, at: Position, field: Option<&str>, message: impl Into<String>) {
        let path = self.path();
        let path = field.map_or_else(|| path.clone(), |field| path.field(field));
        self.findings.error_at(at, &path, message);
    }

    /// Path of the list or mapping that is open.
    fn path(&self) -> Path {
        let inner = self.frames.len().saturating_sub(1);
        self.frames[..inner].iter().fold(Path::default(), |path, frame| match &frame.content {
            Content::List(items) => path.index(items.len()),
            Content::Map { key, .. } => path.field(key.as_ref().map_or("", |key| &key.name)),
        })
    }
}

fn key_name(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Text(text) => Some(text.value.clone()),
        Kind::Number(number) => Some(number.to_string()),
        Kind::Bool(held) => Some(held.to_string()),
        Kind::Null | Kind::List(_) | Kind::Map(_) => None,
    }
}

fn count(node: &Node) -> usize {
    match &node.kind {
        Kind::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Kind::Map(fields) => 1 + fields.iter().map(|(_, node)| count(node)).sum::<usize>(),
        _ => 1,
    }
}

fn depth(node: &Node) -> usize {
    match &node.kind {
        Kind::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Kind::Map(fields) => 1 + fields.iter().map(|(_, node)| depth(node)).max().unwrap_or(0),
        _ => 0,
    }
}
