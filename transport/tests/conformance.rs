//! Every log that needs no server keeps every promise of the contract.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use async_trait::async_trait;
use pipedoc_transport::conformance::Bed;
use pipedoc_transport::log::Log;

mod memory {
    use super::*;
    use pipedoc_transport::memory::MemoryLog;

    struct MemoryBed(MemoryLog);

    #[async_trait]
    impl Bed for MemoryBed {
        async fn open(&self) -> Arc<dyn Log> {
            Arc::new(self.0.clone())
        }
    }

    pipedoc_transport::conformance!(MemoryBed(MemoryLog::new()));
}

mod sqlite {
    use super::*;
    use pipedoc_transport::sqlite::{Options, SqliteLog};

    /// One file; each handle is as another process on it.
    struct FileBed(tempfile::TempDir);

    #[async_trait]
    impl Bed for FileBed {
        async fn open(&self) -> Arc<dyn Log> {
            Arc::new(SqliteLog::open(self.0.path().join("log.db"), Options::default()).await.unwrap())
        }
    }

    pipedoc_transport::conformance!(FileBed(tempfile::tempdir().unwrap()));
}
