//! `Intake`, as gRPC.

use pipedoc_proto::v1;
use tonic::{Request, Response, Status};

use crate::engine::Engine;

/// `Intake`, as gRPC.
pub(crate) struct IntakeService {
    engine: Engine,
}

impl IntakeService {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl v1::intake_server::Intake for IntakeService {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let reports = self.engine.submit(request.into_inner()).await?;
        Ok(Response::new(v1::SubmitResponse { reports }))
    }
}
