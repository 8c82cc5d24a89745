//! The engine's gRPC services: turn messages into calls and errors into statuses.
//!
//! The only place of the engine that knows `tonic::Status`; decides nothing else.

mod control;
mod error;
mod gateway;
mod intake;

use pipedoc_proto::v1::intake_server::IntakeServer;
use pipedoc_proto::v1::module_gateway_server::ModuleGatewayServer;
use pipedoc_proto::v1::pipeline_control_server::PipelineControlServer;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};

use crate::engine::Engine;

/// Largest document that comes in, its files inline: 512 MiB.
const MAX_DOCUMENTS: usize = 512 << 20;

/// Largest of all other messages: 64 MiB.
const MAX_MESSAGE: usize = 64 << 20;

/// All services of an engine. Sessions of instances end with `shutdown`.
pub(crate) async fn routes(
    engine: Engine,
    shutdown: CancellationToken,
) -> Result<Routes, tonic_reflection::server::Error> {
    let gateway = ModuleGatewayServer::new(gateway::Gateway::new(engine.clone(), shutdown))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let control = PipelineControlServer::new(control::Control::new(engine.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let intake = IntakeServer::new(intake::IntakeService::new(engine)).max_decoding_message_size(MAX_DOCUMENTS);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ModuleGatewayServer<gateway::Gateway>>().await;
    health.set_serving::<PipelineControlServer<control::Control>>().await;
    health.set_serving::<IntakeServer<intake::IntakeService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pipedoc_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(gateway)
        .add_service(control)
        .add_service(intake)
        .add_service(health_service)
        .add_service(reflection);
    Ok(routes.routes())
}
