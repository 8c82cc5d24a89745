//! Every log that needs no server keeps every promise of the contract.

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
