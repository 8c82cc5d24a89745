//! Large payloads on their way past the log: blobs and whole documents as claims.
//!
//! A blob above the step's `claim_threshold` is written to the object store and
//! replaced by a claim. A document that is still larger than that goes there
//! whole: what remains in the record is a `PipeDoc` with its identity, whose
//! `data` is an `Any` that holds the [`Claim`]. Knows nothing of topics.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use pipedoc_model::claim;
use pipedoc_model::step::StepPlan;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, Claim, blob};
use pipedoc_transport::objects::{self, Objects};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result, ResultExt};

/// Hydrated bytes are counted in units of so many.
const UNIT: u64 = 1024;

/// Where large payloads lie.
pub(crate) trait Shelf: Send + Sync {
    /// Writes a payload.
    fn put(&self, payload: Bytes) -> BoxFuture<'_, Result<Claim>>;
    /// Reads one back, checked against its claim.
    fn get<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Bytes>>;
}

impl Shelf for Objects {
    fn put(&self, payload: Bytes) -> BoxFuture<'_, Result<Claim>> {
        Box::pin(async move { Objects::put(self, payload).await.map_err(store_error) })
    }

    fn get<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move { Objects::get(self, claim).await.map_err(store_error) })
    }
}

fn store_error(error: objects::Error) -> Error {
    if error.is_retryable() { Error::retryable(error) } else { Error::permanent(error).with_kind("claim") }
}

/// Claims of one step.
pub(crate) struct Claims {
    shelf: Arc<dyn Shelf>,
    threshold: u64,
    hydrate_max: u64,
    /// Memory for what is hydrated at once.
    memory: Arc<Semaphore>,
    units: u32,
}

/// A document with everything in it, and a permit for the memory it takes.
pub(crate) type Hydrated = (PipeDoc, OwnedSemaphorePermit);

/// The value of a record, and a permit for the memory that reading it back takes.
pub(crate) type Shelved = (Bytes, Option<OwnedSemaphorePermit>);

/// A document ready to be written.
#[derive(Debug)]
pub(crate) struct Offloaded {
    pub(crate) value: Bytes,
    /// Each claim that the value refers to, as headers carry it.
    pub(crate) claims: Vec<String>,
}

impl Claims {
    /// Claims of a step. At most `memory` bytes are hydrated at once, but at
    /// least one document.
    pub(crate) fn new(shelf: Arc<dyn Shelf>, plan: &StepPlan, memory: u64) -> Self {
        let units = u32::try_from((memory / UNIT).clamp(1, 1 << 28)).unwrap_or(1);
        Self {
            shelf,
            threshold: plan.claim_threshold,
            hydrate_max: plan.hydrate_max,
            memory: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Reads everything back that a document refers to. The permit stands for the
    /// memory it takes: hold it as long as the document.
    ///
    /// Who holds such permits already must not wait for more: without `waits`,
    /// `None` says that there is no room for it now.
    pub(crate) async fn hydrate(&self, doc: PipeDoc, waits: bool) -> Result<Option<Hydrated>> {
        self.read_back(doc, if waits { Room::Awaited } else { Room::Now }).await
    }

    async fn read_back(&self, mut doc: PipeDoc, room: Room) -> Result<Option<Hydrated>> {
        let mut size = whole_claim(&doc)?.map_or(0, |claim| claim.size);
        self.check(&doc, size)?;
        let Some(mut permit) = self.reserve(size.saturating_add(blobs_size(&doc)), room).await? else {
            return Ok(None);
        };
        if let Some(claim) = whole_claim(&doc)? {
            let bytes = self.shelf.get(&claim).await.context(format!("the claim of {} cannot be read", doc.id))?;
            doc = PipeDoc::decode(bytes)
                .permanent()
                .context("what the claim holds is no PipeDoc")
                .map_err(|error| error.with_kind("decode"))?;
            size = size.saturating_add(blobs_size(&doc));
            self.check(&doc, size)?;
            if blobs_size(&doc) > 0 {
                // What it held before must be free first, or two documents could
                // wait for each other.
                drop(permit);
                let Some(more) = self.reserve(size, room).await? else { return Ok(None) };
                permit = more;
            }
        } else {
            self.check(&doc, blobs_size(&doc))?;
        }
        for blob in &mut doc.blobs {
            if let Some(blob::Content::Claim(claim)) = &blob.content {
                let bytes =
                    self.shelf.get(claim).await.context(format!("the claim of blob {:?} cannot be read", blob.name))?;
                blob.content = Some(blob::Content::Inline(bytes));
            }
        }
        Ok(Some((doc, permit)))
    }

    /// Reads back the value that lies where a stub says; a value that is no stub is
    /// given as it is, without permit. As [`hydrate`](Self::hydrate) otherwise.
    pub(crate) async fn unshelve(&self, value: &Bytes, waits: bool) -> Result<Option<Shelved>> {
        let stub = PipeDoc::decode(value.clone()).ok();
        let Some(stub) = stub.filter(claim::is_stub) else { return Ok(Some((value.clone(), None))) };
        let Some(claim) = whole_claim(&stub)? else { return Ok(Some((value.clone(), None))) };
        self.check(&stub, claim.size)?;
        let room = if waits { Room::Awaited } else { Room::Now };
        let Some(permit) = self.reserve(claim.size, room).await? else { return Ok(None) };
        let value = self.shelf.get(&claim).await.context(format!("the claim of {} cannot be read", stub.id))?;
        Ok(Some((value, Some(permit))))
    }

    /// Writes to the store what is too large for a record, and encodes the rest. Nothing
    /// else is to be done with the document then.
    pub(crate) async fn offload(&self, doc: &mut PipeDoc) -> Result<Offloaded> {
        for blob in &mut doc.blobs {
            self.offload_blob(blob).await?;
        }
        let mut claims: Vec<String> = doc.blobs.iter().filter_map(claim::of_blob).map(claim::text).collect();
        if let Some(whole) = whole_claim(doc)? {
            claims.push(claim::text(&whole));
        }
        let mut value = Bytes::from(doc.encode_to_vec());
        if value.len() as u64 > self.threshold {
            let (stub, claim) = self.shelve(value, std::mem::take(doc)).await?;
            claims.push(claim);
            value = stub;
        }
        Ok(Offloaded { value, claims })
    }

    /// Puts the value of a document on the shelf; gives the stub that stands for it,
    /// and its claim as headers carry it.
    pub(crate) async fn shelve(&self, value: Bytes, doc: PipeDoc) -> Result<(Bytes, String)> {
        let claim = self
            .shelf
            .put(value)
            .await
            .context(format!("{} is too large for a record and cannot be stored", doc.id))?;
        let stub = claim::stub(doc, &claim);
        Ok((Bytes::from(stub.encode_to_vec()), claim::text(&claim)))
    }

    async fn offload_blob(&self, blob: &mut Blob) -> Result<()> {
        let Some(blob::Content::Inline(bytes)) = &blob.content else { return Ok(()) };
        if bytes.len() as u64 <= self.threshold {
            return Ok(());
        }
        let claim = self
            .shelf
            .put(bytes.clone())
            .await
            .context(format!("blob {:?} is too large for a record and cannot be stored", blob.name))?;
        claim::put_in_blob(blob, claim);
        Ok(())
    }

    fn check(&self, doc: &PipeDoc, size: u64) -> Result<()> {
        if size <= self.hydrate_max {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "{} refers to {size} bytes of claims; hydrate_max is {}. Raise hydrate_max",
            doc.id, self.hydrate_max
        ))
        .with_kind("hydrate-max"))
    }

    async fn reserve(&self, bytes: u64, room: Room) -> Result<Option<OwnedSemaphorePermit>> {
        // What is larger than all of it waits for all of it.
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let memory = Arc::clone(&self.memory);
        match room {
            Room::Awaited => Ok(Some(memory.acquire_many_owned(units).await?)),
            Room::Now => Ok(memory.try_acquire_many_owned(units).ok()),
            Room::Uncounted => Ok(memory.try_acquire_many_owned(0).ok()),
        }
    }
}

/// Where the memory for what is read back comes from.
#[derive(Debug, Clone, Copy)]
enum Room {
    /// It is waited for.
    Awaited,
    /// What is there now, or none.
    Now,
    /// It is not asked for.
    Uncounted,
}

/// Reads claims back while a module works, as it asks for them. The memory counts
/// until the last clone is gone.
#[derive(Clone)]
pub(crate) struct Lent {
    claims: Arc<Claims>,
    held: Arc<Mutex<Vec<OwnedSemaphorePermit>>>,
}

impl Lent {
    pub(crate) fn new(claims: Arc<Claims>) -> Self {
        Self { claims, held: Arc::default() }
    }

    pub(crate) async fn hydrate(&self, doc: PipeDoc) -> Result<PipeDoc> {
        // Two that hold some and wait for more could wait for each other: who holds some
        // goes on without.
        let room = if self.held.lock().is_empty() { Room::Awaited } else { Room::Uncounted };
        let Some((doc, permit)) = self.claims.read_back(doc, room).await? else {
            return Err(Error::retryable("the step is closed"));
        };
        self.held.lock().push(permit);
        Ok(doc)
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lent")
    }
}

/// Whether a document refers to anything that is not in it.
pub(crate) fn needs_hydration(doc: &PipeDoc) -> bool {
    doc.blobs.iter().any(|blob| claim::of_blob(blob).is_some()) || claim::is_stub(doc)
}

fn whole_claim(doc: &PipeDoc) -> Result<Option<Claim>> {
    let claim = claim::of_stub(doc).permanent().context("the document's claim cannot be read");
    claim.map_err(|error| error.with_kind("decode"))
}

fn blobs_size(doc: &PipeDoc) -> u64 {
    doc.blobs.iter().filter_map(claim::of_blob).fold(0, |sum, claim| sum.saturating_add(claim.size))
}
