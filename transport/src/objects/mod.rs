//! Object stores by name, and the claims that refer to what lies in them.
//!
//! A claim names a store, a key, a size and a SHA-256. Keys are made of the content
//! (`sha256/ab/abcdef…`), so that writing the same payload twice is writing it once,
//! and a retry leaves nothing behind. What is read is checked against its claim.
//! Knows nothing of documents; only this module knows which library speaks to the
//! stores.

mod url;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};
use pipedoc_proto::v1::Claim;
use sha2::{Digest, Sha256};

pub use self::url::{ObjectsUrl, UnknownStore};

/// Name of the store that is written to.
pub const DEFAULT: &str = "default";

/// Result of an operation on an object store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with an object store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder of a local store cannot be used.
    #[error("object folder {} cannot be used; check its permissions", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A store that is there does not serve us.
    #[error("object store {url} cannot be used; check its name, AWS_ENDPOINT_URL, AWS_REGION and the AWS_* keys")]
    Unusable {
        /// The store.
        url: ObjectsUrl,
        /// Why; boxed, for it is large.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The claim names a store that is not configured here.
    #[error("object store {store:?} is not configured here; known are {known}")]
    UnknownStore {
        /// The store.
        store: String,
        /// Names of the stores that are.
        known: String,
    },
    /// The object is gone.
    #[error("object {key} is not in store {store:?} any more")]
    Missing {
        /// The store.
        store: String,
        /// The object's key.
        key: String,
    },
    /// What was read is not what the claim says.
    #[error("object {key} in store {store:?} is damaged: its {what} is not that of the claim")]
    Damaged {
        /// The store.
        store: String,
        /// The object's key.
        key: String,
        /// `size` or `SHA-256`.
        what: &'static str,
    },
    /// The claim's key is none that a store can have.
    #[error("{key:?} is no key of an object")]
    Key {
        /// The key.
        key: String,
    },
    /// The disk of a local store is full.
    #[error("object folder {} is on a full disk; it goes on when there is room", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// The store did something else than was asked.
    #[error("{operation} of object {key} in store {store:?} failed")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// The store.
        store: String,
        /// The object's key.
        key: String,
        /// The cause; boxed, for it is large.
        #[source]
        source: Box<object_store::Error>,
    },
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // A folder may be mounted again, a store may come back.
            Self::Folder { .. } | Self::Full { .. } => true,
            Self::Store { source, .. } => !matches!(
                **source,
                object_store::Error::NotSupported { .. }
                    | object_store::Error::NotImplemented { .. }
                    | object_store::Error::InvalidPath { .. }
            ),
            Self::Unusable { .. }
            | Self::UnknownStore { .. }
            | Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Key { .. } => false,
        }
    }
}

/// The object stores of a process.
#[derive(Debug, Clone)]
pub struct Objects {
    stores: BTreeMap<String, Arc<dyn ObjectStore>>,
    /// Folder of the default store when it is local, for messages.
    folder: PathBuf,
}

impl Objects {
    /// One store, [`DEFAULT`], in a local folder, made if it is missing. What is
    /// written is on the disk before its claim is given out.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn local(folder: &Path) -> Result<Self> {
        let unusable = |source| Error::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(unusable)?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(error.into()))?.with_fsync(true);
        let stores = BTreeMap::from([(DEFAULT.to_owned(), Arc::new(store) as Arc<dyn ObjectStore>)]);
        Ok(Self { stores, folder: folder.to_owned() })
    }

    /// Writes a payload to the default store; gives the claim for it. Writing what
    /// is there already is cheap: nothing is written again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put(&self, payload: Bytes) -> Result<Claim> {
        let size = payload.len() as u64;
        let (payload, digest) = hash(payload).await;
        let hex = hex(&digest);
        let claim = Claim {
            store: DEFAULT.to_owned(),
            key: format!("sha256/{}/{hex}", &hex[..2]),
            size,
            sha256: Bytes::copy_from_slice(&digest),
        };
        let (store, path) = self.locate(&claim)?;
        // The key is the content: an object of that key and size is the payload.
        if store.head(&path).await.is_ok_and(|found| found.size == size) {
            return Ok(claim);
        }
        match store.put(&path, payload.into()).await {
            Ok(_) => Ok(claim),
            Err(error) if is_full(&error) => Err(Error::Full { path: self.folder.clone() }),
            Err(source) => {
                let source = Box::new(source);
                Err(Error::Store { operation: "writing", store: claim.store, key: claim.key, source })
            }
        }
    }

    /// Reads what a claim refers to, and checks its size and SHA-256.
    ///
    /// # Errors
    /// When it is not there, is damaged, or cannot be read.
    pub async fn get(&self, claim: &Claim) -> Result<Bytes> {
        let (store, path) = self.locate(claim)?;
        let fail = |source| match source {
            object_store::Error::NotFound { .. } => {
                Error::Missing { store: claim.store.clone(), key: claim.key.clone() }
            }
            source => {
                let source = Box::new(source);
                Error::Store { operation: "reading", store: claim.store.clone(), key: claim.key.clone(), source }
            }
        };
        let damaged = |what| Error::Damaged { store: claim.store.clone(), key: claim.key.clone(), what };
        let found = store.get(&path).await.map_err(fail)?;
        // Before it is read: a claim must not make us read more than it says.
        if found.meta.size != claim.size {
            return Err(damaged("size"));
        }
        let (payload, digest) = hash(found.bytes().await.map_err(fail)?).await;
        if digest[..] != claim.sha256[..] {
            return Err(damaged("SHA-256"));
        }
        Ok(payload)
    }

    fn locate(&self, claim: &Claim) -> Result<(&dyn ObjectStore, object_store::path::Path)> {
        let Some(store) = self.stores.get(&claim.store) else {
            let known = self.stores.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownStore { store: claim.store.clone(), known });
        };
        let path = object_store::path::Path::parse(&claim.key).map_err(|_| Error::Key { key: claim.key.clone() })?;
        Ok((store.as_ref(), path))
    }
}

/// Hashes off the async workers when it takes long.
async fn hash(payload: Bytes) -> (Bytes, [u8; 32]) {
    const LONG: usize = 256 << 10;
    if payload.len() < LONG {
        let digest = Sha256::digest(&payload).into();
        return (payload, digest);
    }
    let copy = payload.clone();
    let digest = tokio::task::spawn_blocking(move || Sha256::digest(&copy).into()).await;
    // The task cannot panic, and is cancelled only when the runtime ends.
    let digest = digest.unwrap_or_else(|_| Sha256::digest(&payload).into());
    (payload, digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_full(error: &object_store::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::local(&folder.path().join("objects")).unwrap();
        (folder, objects)
    }

    #[tokio::test]
    async fn what_is_put_is_got_back_and_equal_content_lies_there_once() {
        let (folder, objects) = objects();
        for size in [0, 10, 3 << 20] {
            let payload = Bytes::from(vec![7_u8; size]);
            let claim = objects.put(payload.clone()).await.unwrap();
            assert_eq!(claim.size, size as u64);
            assert_eq!(objects.put(payload.clone()).await.unwrap(), claim);
            assert_eq!(objects.get(&claim).await.unwrap(), payload);
            assert!(folder.path().join("objects").join(&claim.key).is_file());
        }
    }

    #[tokio::test]
    async fn damage_and_loss_are_told_apart_and_are_permanent() {
        let (folder, objects) = objects();
        let claim = objects.put(Bytes::from_static(b"a payload")).await.unwrap();
        let file = folder.path().join("objects").join(&claim.key);
        std::fs::write(&file, b"b payload").unwrap();
        assert!(matches!(objects.get(&claim).await, Err(Error::Damaged { what: "SHA-256", .. })));
        std::fs::write(&file, b"longer than it was").unwrap();
        assert!(matches!(objects.get(&claim).await, Err(Error::Damaged { what: "size", .. })));
        std::fs::remove_file(&file).unwrap();
        let error = objects.get(&claim).await.unwrap_err();
        assert!(matches!(error, Error::Missing { .. }) && !error.is_retryable(), "{error}");
    }

    #[tokio::test]
    async fn a_claim_cannot_reach_out_of_its_store() {
        let (folder, objects) = objects();
        std::fs::write(folder.path().join("secret"), b"secret").unwrap();
        let claim = objects.put(Bytes::from_static(b"x")).await.unwrap();
        for key in ["../secret", "/../secret", "a/../../secret"] {
            let error = objects.get(&Claim { key: key.into(), ..claim.clone() }).await.unwrap_err();
            assert!(matches!(error, Error::Key { .. } | Error::Missing { .. }), "{key}: {error}");
        }
        let error = objects.get(&Claim { store: "other".into(), ..claim }).await.unwrap_err();
        assert_eq!(error.to_string(), "object store \"other\" is not configured here; known are default");
    }
}
