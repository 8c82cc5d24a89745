//! What comes of a document in a step.

use pipedoc_proto::PipeDoc;

use crate::error::Error;

/// What came of one document: documents and deletions for the step's outputs, or
/// nothing.
#[derive(Debug, Default)]
pub struct Output {
    /// What to send on, in order.
    pub items: Vec<Item>,
    /// What was lost although the rest is good: counts as done, with a warning.
    pub partial: Option<Error>,
}

/// One thing to send on.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub content: Content,
    /// Name of the output, or a topic of `allowed_kafka_topics`, that it must
    /// take; none: the step's outputs decide.
    pub to: Option<String>,
}

/// A document, or the deletion of one.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "documents are the rule, deletions the exception")]
pub enum Content {
    /// A document.
    Document(PipeDoc),
    /// The deletion of the document with this id.
    Deletion(String),
    /// The deletion of whatever is older, under this id, than the document that is
    /// worked on, and of its parts: see [`Output::outdated`].
    Outdated(String),
}

impl Output {
    /// Nothing: the document ends here, counted as filtered.
    #[must_use]
    pub fn skip() -> Self {
        Self::default()
    }

    /// Several documents.
    pub fn many(docs: impl IntoIterator<Item = PipeDoc>) -> Self {
        let items = docs.into_iter().map(|doc| Item { content: Content::Document(doc), to: None }).collect();
        Self { items, partial: None }
    }

    /// The deletion of a document, for everything downstream.
    pub fn delete(id: impl Into<String>) -> Self {
        Self { items: vec![Item { content: Content::Deletion(id.into()), to: None }], partial: None }
    }

    /// Whatever of this document is older than the version that is worked on goes,
    /// for everything downstream: what a document that is made into parts leaves behind
    /// when no parts come of it any more. (While some do, outputs that get none are told
    /// by the runtime.) What is as new stays, in whatever order both arrive; of a document
    /// without version it is a plain deletion.
    pub fn outdated(id: impl Into<String>) -> Self {
        Self { items: vec![Item { content: Content::Outdated(id.into()), to: None }], partial: None }
    }

    /// Sends all that is in here to the named output, or to a topic of
    /// `allowed_kafka_topics`; a name that is neither is a permanent error.
    #[must_use]
    pub fn to(mut self, output: &str) -> Self {
        for item in &mut self.items {
            item.to = Some(output.to_owned());
        }
        self
    }

    /// Adds what is in another output.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.items.extend(other.items);
        self.partial = self.partial.or(other.partial);
        self
    }

    /// Says what was lost although the rest is good.
    #[must_use]
    pub fn partial(mut self, loss: Error) -> Self {
        self.partial = Some(loss);
        self
    }
}

impl From<PipeDoc> for Output {
    fn from(doc: PipeDoc) -> Self {
        Self::many([doc])
    }
}
