//! Large payloads of submitted documents: blobs, and whole documents, as claims.
//!
//! The same form as steps give them, that of [`pipedoc_model::claim`].

use bytes::Bytes;
use pipedoc_model::claim;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::blob;
use pipedoc_transport::objects::{Objects, Result};
use prost::Message;

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
            let stored = objects.put(bytes.clone()).await?;
            claim::put_in_blob(blob, stored);
        }
        claims.extend(claim::of_blob(blob).map(claim::text));
    }
    let mut value = Bytes::from(document.encode_to_vec());
    if value.len() as u64 > threshold {
        let whole = objects.put(value).await?;
        claims.push(claim::text(&whole));
        value = Bytes::from(claim::stub(document, &whole).encode_to_vec());
    }
    Ok(Offloaded { value, claims })
}
