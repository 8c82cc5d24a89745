//! The pipeline file: from text to a configuration that needs no more checks.
//!
//! ```text
//! text ─▶ tree with positions ─▶ JSON Schema ─▶ wire types ─▶ semantic checks ─▶ PipelineConfig
//!         (tree)                 (schema)       (wire)        (check)
//! ```
//!
//! Every stage reports all that it finds and the next one goes on with what is
//! left, so that a file with five mistakes names all five. Knows nothing of
//! files, stores or instances: the caller brings the text, the values of the
//! variables and what is known of modules.

mod check;
mod config;
mod schema;
mod tree;
mod variables;
mod wire;

use std::collections::BTreeMap;

pub use config::{OutputConfig, PipelineConfig, StepConfig, Target, TopicPolicy};

use crate::problem::{Problem, Problems};
use crate::registry::Modules;

/// Longest text of a pipeline, in bytes: 1 MiB.
pub const MAX_TEXT: usize = 1 << 20;

/// A pipeline that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What it says, checked.
    pub config: PipelineConfig,
    /// What the operator should know though it was taken.
    pub warnings: Vec<Problem>,
    /// Those of the warnings that say of a module that it was never seen.
    pub unseen: Vec<Problem>,
}

/// Reads a pipeline text, YAML or JSON.
///
/// - `file` names the text in problems; may be empty.
/// - `variables` are the values of `${name}` in the text's strings. `$${` stands
///   for `${`; `${env:NAME}` and `${file:PATH}` are secrets and stay as they are.
/// - `modules` is what is known of modules: configurations are checked against
///   their schemas. A module never seen is an error when `strict`, else a warning.
///
/// # Errors
/// Everything that is wrong, in the order of the text.
pub fn parse(
    text: &str,
    file: &str,
    variables: &BTreeMap<String, String>,
    modules: &Modules,
    strict: bool,
) -> Result<Parsed, Problems> {
    let mut findings = Findings::default();
    let config = read(text, variables, modules, strict, &mut findings);
    let unseen = sorted(findings.unseen.clone(), file);
    let (errors, warnings) = findings.sorted(file);
    match config {
        Some(config) if errors.is_empty() => Ok(Parsed { config, warnings, unseen }),
        _ if errors.is_empty() => Err(Problems(vec![Problem {
            file: file.to_owned(),
            message: "the pipeline cannot be read".to_owned(),
            ..Problem::default()
        }])),
        _ => Err(Problems(errors)),
    }
}

fn read(
    text: &str,
    variables: &BTreeMap<String, String>,
    modules: &Modules,
    strict: bool,
    findings: &mut Findings,
) -> Option<PipelineConfig> {
    let mut tree = tree::parse(text, findings)?;
    variables::expand(&mut tree, variables, findings);
    let mut value = tree.to_json();
    schema::check(&schema::schema(), &tree, &mut value, findings);
    let wire: wire::Pipeline = match serde_json::from_value(value) {
        Ok(wire) => wire,
        Err(error) => {
            // The schema allows exactly what the wire types read; a difference
            // between them is our mistake, and still no reason to panic.
            findings.error(&tree, &tree::Path::default(), format!("cannot be read: {error}"));
            return None;
        }
    };
    check::Checker::new(&tree, modules, strict, findings).check(&wire)
}

/// The JSON Schema (draft 2020-12) of the pipeline file, for editors and for
/// people: descriptions say units and defaults.
#[must_use]
pub fn schema() -> serde_json::Value {
    schema::schema()
}

/// Checks a module's configuration against the module's JSON Schema. Problems
/// carry the path within the configuration; lines and columns are 0.
///
/// Texts that hold a secret (`${env:NAME}`, `${file:PATH}`) fit wherever a text
/// is wanted, whatever its pattern.
#[must_use]
pub fn check_module_config(schema: &serde_json::Value, config: &serde_json::Value) -> Vec<Problem> {
    let tree = tree::Node::from_json(config);
    let mut findings = Findings::default();
    schema::check_config(schema, &tree, config, &tree::Path::default(), &mut findings);
    findings.sorted("").0
}

/// What was found wrong so far.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Warnings of modules that were never seen.
    unseen: Vec<Problem>,
    /// Values that a mistake has left unknown: nothing more is said of them.
    unknown: Vec<tree::Path>,
}

impl Findings {
    /// Notes an error at a node of the tree.
    fn error(&mut self, tree: &tree::Node, path: &tree::Path, message: impl Into<String>) {
        let position = tree.position(path);
        self.error_at(position, path, message);
    }

    /// Notes an error at a position.
    fn error_at(&mut self, at: tree::Position, path: &tree::Path, message: impl Into<String>) {
        if !self.unknown.contains(path) {
            self.errors.push(problem(at, path, message.into()));
        }
    }

    /// Notes a warning at a node of the tree.
    fn warning(&mut self, tree: &tree::Node, path: &tree::Path, message: impl Into<String>) {
        self.warnings.push(problem(tree.position(path), path, message.into()));
    }

    /// Notes at a node of the tree that a module was never seen.
    fn unseen(&mut self, tree: &tree::Node, path: &tree::Path, message: String) {
        self.unseen.push(problem(tree.position(path), path, message));
    }

    /// Errors and warnings in the order of the text, each once.
    fn sorted(self, file: &str) -> (Vec<Problem>, Vec<Problem>) {
        let warnings = [self.warnings, self.unseen].concat();
        (sorted(self.errors, file), sorted(warnings, file))
    }
}

/// Problems of a file in the order of its text, each once.
fn sorted(mut list: Vec<Problem>, file: &str) -> Vec<Problem> {
    for problem in &mut list {
        file.clone_into(&mut problem.file);
    }
    list.sort_by(|a, b| (a.line, a.column, &a.field, &a.message).cmp(&(b.line, b.column, &b.field, &b.message)));
    list.dedup();
    list
}

fn problem(at: tree::Position, path: &tree::Path, message: String) -> Problem {
    Problem { file: String::new(), line: at.line, column: at.column, field: path.to_string(), message }
}

#[cfg(test)]
mod tests;
