//! Settings of a step's clients as the log takes them: secrets in place. Which
//! settings there are is checked where the plan was made and by the log.

use pipedoc_model::kafka::Settings;
use pipedoc_model::problem::{Problem, Problems};
use serde_json::Value;

use crate::error::{Result, ResultExt};
use crate::secrets;

/// The settings of one kind of client (`consumer`, `producer`), for which this
/// process must have all secrets.
pub(super) fn settings(client: &str, settings: &Settings) -> Result<Settings> {
    let mut expanded = Settings::new();
    let mut problems = Vec::new();
    for (name, value) in settings {
        match secrets::expand(&Value::String(value.clone())) {
            Ok(Value::String(value)) => drop(expanded.insert(name.clone(), value)),
            Ok(_) => {}
            Err(found) => problems.extend(found.into_iter().map(|problem| Problem {
                field: format!("kafka.{client}.{name}"),
                message: problem.message,
                ..Problem::default()
            })),
        }
    }
    if problems.is_empty() { Ok(expanded) } else { Err(Problems(problems)).permanent() }
}
