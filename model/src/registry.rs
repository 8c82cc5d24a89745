//! What is known of modules: their step types and the schemas of their configurations.

use std::collections::BTreeMap;

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
