//! CEL: conditions of outputs and expressions for keys.
//!
//! Compiled once, with every name and every field path checked against the
//! document's descriptor, since the CEL library has no type checker. Evaluated
//! per document without converting it: an expression is lent exactly the fields
//! it reads. Knows nothing of outputs or what a result is used for.
//!
//! What an expression sees:
//!
//! | name | what |
//! |---|---|
//! | `doc` | the document, fields by their names in the `.proto` file. Times are RFC 3339 texts (empty when unknown), numbers are `int`, `metadata` is as it is, `data` is the parsed payload, blobs have `name`, `mime_type` and `size`. `has(doc.title)`: the title is not empty |
//! | `headers` | by name, the last value as text; a missing one is an error, so ask `'x' in headers` or `has(headers.x)` first |
//! | `key` | the record's key as text, or `null` |
//! | `step` | `step.pipeline` and `step.step`, the names |

mod check;
mod lend;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cel::common::types::{CelBool, CelBytes, CelInt, CelNull, CelString};
use cel::{Context, Env, IdedExpr, Value};
use pipedoc_proto::PipeDoc;
use sha2::{Digest, Sha256};

use crate::headers::Headers;
use crate::names::StepId;

/// What an expression is evaluated over.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The document; none for tombstones, where reading `doc` is an error.
    pub doc: Option<&'a PipeDoc>,
    /// The record's headers.
    pub headers: &'a Headers,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The step that asks.
    pub step: &'a StepId,
}

/// Why an expression does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (column {column} of the expression)")]
pub struct CompileError {
    /// Byte of the expression where the mistake begins, from 0.
    pub offset: usize,
    /// Column in the expression, in characters from 1.
    pub column: u32,
    /// What was found and what would be right.
    pub message: String,
}

/// Everything wrong with an expression; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CompileErrors(pub Vec<CompileError>);

impl CompileErrors {
    /// An error of the expression as a whole.
    fn of_all(message: String) -> Self {
        Self(vec![CompileError { offset: 0, column: 1, message }])
    }
}

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if n > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Why an expression has no usable result for a document. The same document
/// will fail again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It could not be evaluated.
    #[error("expression `{expression}`: {reason}")]
    Evaluate {
        /// The expression.
        expression: Arc<str>,
        /// What went wrong.
        reason: String,
    },
    /// Its result is of a type that is of no use.
    #[error("expression `{expression}` gave {found}, expected {expected}")]
    Type {
        /// The expression.
        expression: Arc<str>,
        /// Type of the result.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// A condition over records: an expression that is true or false.
#[derive(Debug, Clone)]
pub struct Condition(Compiled);

impl Condition {
    /// Compiles a condition.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn compile(expression: &str) -> Result<Self, CompileErrors> {
        Compiled::new(expression).map(Self)
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// When the expression reads what is not there, or is neither true nor false.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, Error> {
        self.0.evaluate(scope, |value| value.downcast_ref::<CelBool>().map(|held| *held.inner()).ok_or("true or false"))
    }

    /// Whether it reads `doc`.
    #[must_use]
    pub fn reads_doc(&self) -> bool {
        self.0.reads_doc
    }
}

/// An expression that gives a record's key.
#[derive(Debug, Clone)]
pub struct KeyExpr(Compiled);

impl KeyExpr {
    /// Compiles an expression for keys.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn compile(expression: &str) -> Result<Self, CompileErrors> {
        Compiled::new(expression).map(Self)
    }

    /// The key: a text's UTF-8, bytes as they are, a whole number in ASCII
    /// decimal, or none for `null`.
    ///
    /// # Errors
    /// When the expression reads what is not there, or gives anything else.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Option<Bytes>, Error> {
        self.0.evaluate(scope, |value| {
            if let Some(text) = value.downcast_ref::<CelString<'_>>() {
                Ok(Some(Bytes::copy_from_slice(text.inner().as_bytes())))
            } else if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
                Ok(Some(Bytes::copy_from_slice(bytes.inner())))
            } else if let Some(number) = value.downcast_ref::<CelInt>() {
                Ok(Some(Bytes::from(number.inner().to_string())))
            } else if value.downcast_ref::<CelNull>().is_some() {
                Ok(None)
            } else {
                Err("a text, bytes, a whole number or null")
            }
        })
    }

    /// Whether it reads `doc`; such a key cannot be made for deletions.
    #[must_use]
    pub fn reads_doc(&self) -> bool {
        self.0.reads_doc
    }
}

/// Draws one of several by their weights: the first 8 bytes, big-endian, of
/// SHA-256 over the step's name, a zero byte and the key, modulo the sum of the
/// weights. The same key always draws the same. Not murmur2, which would follow
/// the partitions.
///
/// A record without key should pass its document's id, or all of them would
/// draw the same. `None` when all weights are 0.
#[must_use]
pub fn weighted(key: &[u8], step: &str, weights: &[u32]) -> Option<usize> {
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let digest = Sha256::new().chain_update(step.as_bytes()).chain_update([0]).chain_update(key).finalize();
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let mut place = number % total;
    weights.iter().position(|weight| match place.checked_sub(u64::from(*weight)) {
        None => true,
        Some(rest) => {
            place = rest;
            false
        }
    })
}

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4096;

/// Stack for the parser; only what is touched is ever memory.
const PARSER_STACK: usize = 64 << 20;

/// An expression ready to be evaluated.
#[derive(Clone)]
struct Compiled {
    source: Arc<str>,
    expression: Arc<IdedExpr>,
    environment: Arc<Env>,
    reads_doc: bool,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.source)
    }
}

impl Compiled {
    fn new(source: &str) -> Result<Self, CompileErrors> {
        if source.len() > MAX_LENGTH {
            let message = format!("the expression has {} bytes; at most {MAX_LENGTH}", source.len());
            return Err(CompileErrors::of_all(message));
        }
        // The generated parser takes up to 100 KiB of stack for each bracket (in debug
        // builds), more than a worker's stack has; and should it ever panic, that is a
        // refused expression and no more.
        let parsed = std::thread::scope(|scope| {
            let parser = std::thread::Builder::new().name("expression".to_owned()).stack_size(PARSER_STACK);
            parser.spawn_scoped(scope, || Self::parse(source)).map(|thread| thread.join())
        });
        match parsed {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(CompileErrors::of_all("the expression cannot be parsed".to_owned())),
            Err(error) => Err(CompileErrors::of_all(format!("no thread to parse the expression: {error}"))),
        }
    }

    fn parse(source: &str) -> Result<Self, CompileErrors> {
        let environment = Env::stdlib();
        let (mut expression, positions) = environment
            .parser()
            .enable_optional_syntax(false)
            .parse_with_source_info(source)
            .map_err(|errors| check::syntax_errors(source, &errors))?;
        let reads_doc = check::check(source, &mut expression, &positions)?;
        Ok(Self { source: source.into(), expression: expression.into(), environment: environment.into(), reads_doc })
    }

    fn evaluate<T>(
        &self,
        scope: &Scope<'_>,
        read: impl FnOnce(&dyn cel::common::value::Val) -> Result<T, &'static str>,
    ) -> Result<T, Error> {
        let resolver = lend::Lent(*scope);
        let mut context = Context::with_env(self.environment.clone());
        context.set_variable_resolver(&resolver);
        let value = Value::resolve_val(&self.expression, &context).map_err(|error| Error::Evaluate {
            expression: self.source.clone(),
            reason: lend::explain(&error, scope),
        })?;
        read(value.as_ref()).map_err(|expected| Error::Type {
            expression: self.source.clone(),
            found: value.get_type().name().to_owned(),
            expected,
        })
    }
}

#[cfg(test)]
mod tests;
