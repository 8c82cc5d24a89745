//! Large payloads of submitted documents: blobs, and whole documents, as claims.
//!
//! The same form as steps give them: a blob holds its claim; a document that is
//! too large without its blobs is a stub whose `data` is an `Any` of the claim.

use bytes::Bytes;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Claim, Data, blob, data};
use pipedoc_transport::objects::{Objects, Result};
use prost::Message;

/// Type of a claim in an `Any`.
const CLAIM_TYPE: &str = "type.googleapis.com/pipedoc.v1.Claim";

/// A document ready to be written.
#[derive(Debug)]
pub(crate) struct Offloaded {
    pub(crate) value: Bytes,
    /// Each claim that the value refers to, as headers carry it.
    pub(crate) claims: Vec<String>,
}

/// Writes what is above `threshold` bytes to the object store, and encodes the rest.
pub(crate) async fn offload(objects: &Objects, mut document: PipeDoc, threshold: u64) -> Result<Offloaded> {
    let mut claims = Vec::new();
    for blob in &mut document.blobs {
        if let Some(blob::Content::Inline(bytes)) = &blob.content
            && bytes.len() as u64 > threshold
        {
            let claim = objects.put(bytes.clone()).await?;
            blob.size = claim.size;
            blob.sha256 = claim.sha256.clone();
            blob.content = Some(blob::Content::Claim(claim));
        }
        if let Some(blob::Content::Claim(claim)) = &blob.content {
            claims.push(text(claim));
        }
    }
    let mut value = Bytes::from(document.encode_to_vec());
    if value.len() as u64 > threshold {
        let claim = objects.put(value).await?;
        claims.push(text(&claim));
        let any = prost_types::Any { type_url: CLAIM_TYPE.to_owned(), value: claim.encode_to_vec() };
        value = Bytes::from(stub_of(document, any).encode_to_vec());
    }
    Ok(Offloaded { value, claims })
}

/// What remains of a document whose rest lies elsewhere.
fn stub_of(document: PipeDoc, claim: prost_types::Any) -> PipeDoc {
    PipeDoc {
        id: document.id,
        version: document.version,
        source_uri: document.source_uri,
        mime_type: document.mime_type,
        parent_id: document.parent_id,
        part: document.part,
        parts: document.parts,
        parent_version: document.parent_version,
        data: Some(Data { kind: Some(data::Kind::Any(claim)) }),
        ..PipeDoc::default()
    }
}

/// A claim as headers carry it: store and key.
fn text(claim: &Claim) -> String {
    format!("{}/{}", claim.store, claim.key)
}
