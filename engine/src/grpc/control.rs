//! `PipelineControl`, as gRPC.

use pipedoc_proto::v1;
use tonic::{Request, Response, Status};

use crate::engine::Engine;

/// `PipelineControl`, as gRPC.
pub(crate) struct Control {
    engine: Engine,
}

impl Control {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl v1::pipeline_control_server::PipelineControl for Control {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        Ok(Response::new(self.engine.apply(request.into_inner()).await?))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(self.engine.get(request.into_inner()).await?))
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Ok(Response::new(self.engine.history(request.into_inner()).await?))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        Ok(Response::new(self.engine.rollback(request.into_inner()).await?))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        Ok(Response::new(self.engine.delete(request.into_inner()).await?))
    }

    async fn list(&self, _request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Ok(Response::new(self.engine.list().await?))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.engine.status(&request.into_inner().pipeline).await?))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        Ok(Response::new(self.engine.resume(request.into_inner()).await?))
    }
}
