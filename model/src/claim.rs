//! How a document refers to payloads that lie in an object store.
//!
//! A blob holds its claim in place of its bytes. A document that is too large
//! without its blobs becomes a *stub*: its identity, and `data` that is an `Any` of
//! the claim for the whole of it. Knows the form; reads and writes no store.

use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, Claim, Data, blob, data};
use prost::{DecodeError, Message};

/// Type of a claim in an `Any`.
const TYPE_URL: &str = "type.googleapis.com/pipedoc.v1.Claim";

/// What remains of a document whose whole lies where the claim says.
#[must_use]
pub fn stub(doc: PipeDoc, claim: &Claim) -> PipeDoc {
    let any = prost_types::Any { type_url: TYPE_URL.to_owned(), value: claim.encode_to_vec() };
    PipeDoc {
        id: doc.id,
        version: doc.version,
        source_uri: doc.source_uri,
        mime_type: doc.mime_type,
        parent_id: doc.parent_id,
        part: doc.part,
        parts: doc.parts,
        parent_version: doc.parent_version,
        data: Some(Data { kind: Some(data::Kind::Any(any)) }),
        ..PipeDoc::default()
    }
}

/// Whether a document is a stub.
#[must_use]
pub fn is_stub(doc: &PipeDoc) -> bool {
    any_of(doc).is_some()
}

/// The claim for the whole of a document, if it is a stub.
///
/// # Errors
/// When it is one whose claim cannot be read.
pub fn of_stub(doc: &PipeDoc) -> Result<Option<Claim>, DecodeError> {
    any_of(doc).map(|any| Claim::decode(any.value.as_slice())).transpose()
}

/// The claim of a blob, if its bytes lie elsewhere.
#[must_use]
pub fn of_blob(blob: &Blob) -> Option<&Claim> {
    match &blob.content {
        Some(blob::Content::Claim(claim)) => Some(claim),
        _ => None,
    }
}

/// Puts a claim in place of a blob's bytes.
pub fn put_in_blob(blob: &mut Blob, claim: Claim) {
    blob.size = claim.size;
    blob.sha256 = claim.sha256.clone();
    blob.content = Some(blob::Content::Claim(claim));
}

/// A claim as the header [`CLAIM`](crate::headers::CLAIM) carries it: store and key.
#[must_use]
pub fn text(claim: &Claim) -> String {
    format!("{}/{}", claim.store, claim.key)
}

fn any_of(doc: &PipeDoc) -> Option<&prost_types::Any> {
    match &doc.data {
        Some(Data { kind: Some(data::Kind::Any(any)) }) if any.type_url == TYPE_URL => Some(any),
        _ => None,
    }
}
