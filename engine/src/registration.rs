//! Reads what a module says of itself, and refuses what cannot be right.

use pipedoc_model::names::ModuleName;
use pipedoc_model::registry::ModuleInfo;
use pipedoc_model::step::StepType;
use pipedoc_proto::v1::{InstanceReport, ServiceRegistration, StepType as ProtoStepType};

use crate::error::Error;

/// The registration in an instance's report.
///
/// # Errors
/// Every reason why it cannot be one.
pub(crate) fn read(report: &InstanceReport) -> Result<ModuleInfo, Error> {
    let mut reasons = Vec::new();
    if report.instance_id.is_empty() {
        reasons.push("instance_id is empty; give the instance an id that it keeps".to_owned());
    }
    match report.registration.as_ref().map(info) {
        None => reasons.push("registration is missing; the first report says who the module is".to_owned()),
        Some(Ok(info)) if reasons.is_empty() => return Ok(info),
        Some(Ok(_)) => {}
        Some(Err(Error::Invalid(more))) => reasons.extend(more),
        Some(Err(error)) => return Err(error),
    }
    Err(Error::Invalid(reasons))
}

/// What a module says of itself.
///
/// # Errors
/// Every reason why that cannot be right.
pub(crate) fn info(registration: &ServiceRegistration) -> Result<ModuleInfo, Error> {
    let mut reasons = Vec::new();
    let module =
        ModuleName::new(&registration.module).map_err(|error| reasons.push(format!("registration.module: {error}")));
    let mut step_types = Vec::new();
    for number in &registration.step_types {
        match ProtoStepType::try_from(*number) {
            Ok(ProtoStepType::Connector) => step_types.push(StepType::Connector),
            Ok(ProtoStepType::Pipeline) => step_types.push(StepType::Pipeline),
            Ok(ProtoStepType::Sink) => step_types.push(StepType::Sink),
            Ok(ProtoStepType::Unspecified) | Err(_) => {
                reasons.push(format!(
                    "registration.step_types: {number} is no type; there are CONNECTOR (1), PIPELINE (2), SINK (3)"
                ));
            }
        }
    }
    if registration.step_types.is_empty() {
        reasons.push("registration.step_types is empty; name the types of steps that the module can be".to_owned());
    }
    // A module without settings may say nothing of them.
    let schema = if registration.config_schema.is_empty() { "true" } else { &registration.config_schema };
    let config_schema = serde_json::from_str(schema)
        .map_err(|error| reasons.push(format!("registration.config_schema is not JSON: {error}")));
    match (module, config_schema) {
        (Ok(module), Ok(config_schema)) if reasons.is_empty() => Ok(ModuleInfo {
            module,
            version: registration.version.clone(),
            step_types,
            config_schema,
            description: registration.description.clone(),
        }),
        _ => Err(Error::Invalid(reasons)),
    }
}
