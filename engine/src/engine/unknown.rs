//! Why there is no pipeline of a name: whoever asks for one that was deleted, or that
//! the store has lost, is told what brings it back.

use pipedoc_model::names::{Generation, PipelineName};

use super::Engine;
use crate::error::Error;

impl Engine {
    /// The error for a name that no pipeline has.
    pub(super) async fn unknown(&self, found: String) -> Error {
        let view = self.view().borrow().clone();
        let mut known: Vec<_> = view.pipelines.iter().map(|pipeline| pipeline.name.to_string()).collect();
        let Ok(head) = self.0.catalog.head().await else { return Error::UnknownPipeline { found, known } };
        if let (Some(current), Ok(pipeline)) = (&head, PipelineName::new(&found)) {
            if let Some(deleted) = current.head.deleted.get(&pipeline) {
                return Error::Deleted { pipeline, last: deleted.revision };
            }
            if current.head.pipelines.contains_key(&pipeline) {
                // It came this moment, and is not planned yet.
                return Error::NotReady;
            }
        }
        let is_reported = || {
            let instances = self.sessions().all();
            instances.iter().any(|attached| attached.steps().any(|step| step.name().0 == found))
        };
        let runs = view.pipeline(&found).is_some() || is_reported();
        if runs || (head.is_none() && self.editor().highest() > Generation(0)) {
            return Error::Lost { store: self.0.catalog.store().describe(), found, runs };
        }
        if let Some(current) = head {
            known = current.head.pipelines.keys().map(ToString::to_string).collect();
        }
        Error::UnknownPipeline { found, known }
    }
}
