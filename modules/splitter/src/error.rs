//! What a document can be that it cannot be split.

/// Why a document was not split. The same document will fail again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its parts would have no names.
    #[error("the document has no id, which its parts would be named by")]
    NoId,
    /// Its data cannot be read.
    #[error("the data of {id:?} is no JSON")]
    NoJson {
        /// The document.
        id: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// There is something else where an array should be.
    #[error("{at:?} in the data of {id:?} is {found}; an array was expected")]
    NoArray {
        /// The document.
        id: String,
        /// The pointer of the rule.
        at: String,
        /// What is there.
        found: &'static str,
    },
    /// The mail lies in an object store.
    #[error("the mail of {id:?} lies in an object store and was not read back; give the step `hydration: EAGER`")]
    NotHydrated {
        /// The document.
        id: String,
    },
    /// The file is no mail.
    #[error("the file of {id:?} is no e-mail: it has no header fields")]
    NoMail {
        /// The document.
        id: String,
    },
    /// The mail has more parts than any honest one.
    #[error("the mail of {id:?} has more than {most} parts")]
    TooManyParts {
        /// The document.
        id: String,
        /// How many are read.
        most: usize,
    },
    /// The mail cannot be read at all.
    #[error("the mail of {id:?} breaks the reader")]
    Unreadable {
        /// The document.
        id: String,
    },
    /// More parts than can be numbered.
    #[error("{id:?} would have {found} parts, more than can be numbered")]
    TooMany {
        /// The document.
        id: String,
        /// How many.
        found: usize,
    },
}

impl Error {
    /// A stable word for machines; the dead letter's `error_type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoId => "no-id",
            Self::NoJson { .. } => "no-json",
            Self::NoArray { .. } => "no-array",
            Self::NotHydrated { .. } => "not-hydrated",
            Self::NoMail { .. } => "no-mail",
            Self::TooManyParts { .. } | Self::TooMany { .. } => "too-many-parts",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// As an error of a module.
    #[must_use]
    pub fn into_module_error(self) -> pipedoc_sdk::error::Error {
        let kind = self.kind();
        pipedoc_sdk::error::Error::permanent(self).with_kind(kind)
    }
}
