//! Where an object store is, and how it is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use super::{DEFAULT, Error, Objects, Result};

/// How long one call is tried again within the client. Whoever calls waits and
/// tries again by itself.
const RETRIES: Duration = Duration::from_secs(10);

/// Where an object store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectsUrl {
    /// A folder, as a path or as `file:PATH`.
    Folder(PathBuf),
    /// `s3://BUCKET[/PREFIX]`: S3, or a store that speaks its protocol. Keys,
    /// region and address come from the variables that Amazon's tools know.
    S3 {
        /// The bucket; it must exist.
        bucket: String,
        /// What keys begin with; may be empty.
        prefix: String,
    },
}

/// A URL that names no object store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownStore {
    /// It begins like none.
    #[error("{found:?} names no object store; write s3://BUCKET[/PREFIX] or a folder")]
    Scheme {
        /// The URL.
        found: String,
    },
    /// A kind that comes later.
    #[error("{scheme}:// is not supported yet; write s3://BUCKET[/PREFIX] or a folder")]
    Later {
        /// Its scheme.
        scheme: String,
    },
    /// No bucket can be called so.
    #[error("{found:?} is no name of a bucket: 3 to 63 characters of a-z, 0-9, `.` and `-`")]
    Bucket {
        /// The name.
        found: String,
    },
}

impl FromStr for ObjectsUrl {
    type Err = UnknownStore;
    fn from_str(text: &str) -> Result<Self, UnknownStore> {
        let unknown = || UnknownStore::Scheme { found: text.to_owned() };
        match text.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
                if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
                    return Err(UnknownStore::Bucket { found: bucket.to_owned() });
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
            }
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Folder(path.into())),
            Some((scheme @ ("gs" | "az" | "abfs" | "http" | "https"), _)) => {
                Err(UnknownStore::Later { scheme: scheme.to_owned() })
            }
            Some(_) => Err(unknown()),
            None => match text.strip_prefix("file:").unwrap_or(text) {
                "" => Err(unknown()),
                path => Ok(Self::Folder(path.into())),
            },
        }
    }
}

impl fmt::Display for ObjectsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl Objects {
    /// Opens the store of a URL as [`DEFAULT`]. A folder is made if it is missing, a
    /// bucket is not. A store that does not answer now is tried when it is needed.
    ///
    /// # Errors
    /// When the folder cannot be made; when the bucket is missing, or its store
    /// does not let us in.
    pub async fn open(url: &ObjectsUrl) -> Result<Self> {
        let (bucket, prefix) = match url {
            ObjectsUrl::Folder(folder) => return Self::local(folder),
            ObjectsUrl::S3 { bucket, prefix } => (bucket, prefix),
        };
        let refused = |source| Error::Unusable { url: url.clone(), source: Box::new(source) };
        let retry = RetryConfig { max_retries: 3, retry_timeout: RETRIES, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
        if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
            // Whoever writes so means it.
            builder = builder.with_allow_http(true);
        }
        let store = builder.build().map_err(refused)?;
        let store: Arc<dyn ObjectStore> =
            if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix.as_str())) };
        let found = store.list(None).next().await;
        match found {
            None | Some(Ok(_)) => {}
            Some(Err(
                error @ (object_store::Error::NotFound { .. }
                | object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }),
            )) => return Err(refused(error)),
            Some(Err(error)) => {
                tracing::warn!(%url, %error, "the object store does not answer; it is tried when needed")
            }
        }
        Ok(Self { stores: BTreeMap::from([(DEFAULT.to_owned(), store)]), folder: PathBuf::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_stores() {
        let s3 = |bucket: &str, prefix: &str| ObjectsUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        for (text, url, shown) in [
            ("s3://claims", s3("claims", ""), "s3://claims"),
            ("s3://claims/a/b/", s3("claims", "a/b"), "s3://claims/a/b"),
            ("objects", ObjectsUrl::Folder("objects".into()), "objects"),
            ("file:///var/objects", ObjectsUrl::Folder("/var/objects".into()), "/var/objects"),
            ("file:objects", ObjectsUrl::Folder("objects".into()), "objects"),
        ] {
            assert_eq!(text.parse(), Ok(url.clone()), "{text}");
            assert_eq!(url.to_string(), shown);
        }
        for (text, words) in [
            ("", "names no object store"),
            ("redis://x", "names no object store"),
            ("gs://x", "gs:// is not supported yet"),
            ("s3://", "is no name of a bucket"),
            ("s3://Big_Bucket", "\"Big_Bucket\" is no name of a bucket"),
        ] {
            let error = text.parse::<ObjectsUrl>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
