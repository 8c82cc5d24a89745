//! What is known of modules: their step types and the schemas of their configurations.

use std::collections::BTreeMap;

use pipedoc_proto::v1;
use serde::{Deserialize, Serialize};

use crate::names::ModuleName;
use crate::step::StepType;

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Its name.
    pub module: ModuleName,
    /// Its version, semver.
    pub version: String,
    /// Types of steps that it can be.
    pub step_types: Vec<StepType>,
    /// JSON Schema of its configuration.
    pub config_schema: serde_json::Value,
    /// What it does, one sentence.
    pub description: String,
}

/// The modules known, by name.
pub type Modules = BTreeMap<ModuleName, ModuleInfo>;

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module's name is no name.
    #[error(transparent)]
    Name(#[from] crate::names::Error),
    /// The schema is no JSON.
    #[error("module {module}: the schema of its configuration is no JSON: {source}")]
    Syntax {
        /// The module.
        module: ModuleName,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The schema is JSON but no schema.
    #[error("module {module}: the schema of its configuration is none: {reason}")]
    Schema {
        /// The module.
        module: ModuleName,
        /// What is wrong.
        reason: String,
    },
    /// The module can be no step at all.
    #[error("module {module} names no step type that it can be")]
    NoStepTypes {
        /// The module.
        module: ModuleName,
    },
}

impl TryFrom<&v1::ServiceRegistration> for ModuleInfo {
    type Error = Error;

    fn try_from(registration: &v1::ServiceRegistration) -> Result<Self, Error> {
        let module = ModuleName::new(&registration.module)?;
        // No schema at all means that anything is taken.
        let text = if registration.config_schema.is_empty() { "true" } else { &registration.config_schema };
        let config_schema: serde_json::Value =
            serde_json::from_str(text).map_err(|source| Error::Syntax { module: module.clone(), source })?;
        jsonschema::validator_for(&config_schema)
            .map_err(|error| Error::Schema { module: module.clone(), reason: error.to_string() })?;
        // Types of a newer module that are not known here are of no use here.
        let step_types: Vec<_> = registration.step_types().filter_map(from_wire).collect();
        if step_types.is_empty() {
            return Err(Error::NoStepTypes { module });
        }
        let (version, description) = (registration.version.clone(), registration.description.clone());
        Ok(Self { module, version, step_types, config_schema, description })
    }
}

impl From<&ModuleInfo> for v1::ServiceRegistration {
    fn from(info: &ModuleInfo) -> Self {
        Self {
            module: info.module.to_string(),
            version: info.version.clone(),
            step_types: info.step_types.iter().map(|step_type| v1::StepType::from(*step_type).into()).collect(),
            config_schema: info.config_schema.to_string(),
            description: info.description.clone(),
        }
    }
}

impl From<StepType> for v1::StepType {
    fn from(step_type: StepType) -> Self {
        match step_type {
            StepType::Connector => Self::Connector,
            StepType::Pipeline => Self::Pipeline,
            StepType::Sink => Self::Sink,
        }
    }
}

fn from_wire(step_type: v1::StepType) -> Option<StepType> {
    match step_type {
        v1::StepType::Unspecified => None,
        v1::StepType::Connector => Some(StepType::Connector),
        v1::StepType::Pipeline => Some(StepType::Pipeline),
        v1::StepType::Sink => Some(StepType::Sink),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_survive_the_wire() {
        let info = ModuleInfo {
            module: ModuleName::new("parser").unwrap(),
            version: "1.2.3".to_owned(),
            step_types: vec![StepType::Pipeline, StepType::Sink],
            config_schema: serde_json::json!({"type": "object"}),
            description: "Parses.".to_owned(),
        };
        assert_eq!(ModuleInfo::try_from(&v1::ServiceRegistration::from(&info)).unwrap(), info);
    }

    #[test]
    fn registrations_that_cannot_be_used_are_refused() {
        let refused = |change: &dyn Fn(&mut v1::ServiceRegistration)| {
            let mut registration = v1::ServiceRegistration {
                module: "parser".to_owned(),
                step_types: vec![v1::StepType::Pipeline.into()],
                ..Default::default()
            };
            change(&mut registration);
            ModuleInfo::try_from(&registration).map_err(|error| error.to_string())
        };
        assert!(refused(&|_| {}).is_ok());
        assert!(refused(&|r| r.module = "No Name".to_owned()).unwrap_err().contains("No Name"));
        assert!(refused(&|r| r.step_types = vec![0, 77]).unwrap_err().contains("no step type"));
        assert!(refused(&|r| r.config_schema = "{".to_owned()).unwrap_err().contains("no JSON"));
        assert!(refused(&|r| r.config_schema = r#"{"type": 5}"#.to_owned()).unwrap_err().contains("parser"));
    }
}
