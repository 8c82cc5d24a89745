//! What an instance is told: whole, with the bodies that it lacks. Pure.

use std::collections::BTreeSet;

use pipedoc_model::names::{ClusterName, ModuleName};
use pipedoc_proto::v1::{AssignedStep, Assignment, StepBody};

use crate::view::View;

/// The assignment of an instance, a function of the view, the module's name and
/// the steps the instance is narrowed to. Bodies travel only for hashes that are
/// not among `held`. `None` while there is no news.
pub(crate) fn of(
    cluster: &ClusterName,
    view: &View,
    module: &ModuleName,
    serve: &[String],
    held: &[String],
) -> Option<Assignment> {
    let generation = view.generation?;
    let steps = view.steps_for(module, serve);
    let mut travelling: BTreeSet<&str> = held.iter().map(String::as_str).collect();
    // Two steps never have the same body, since it names them; but once is enough anyway.
    let bodies = steps.iter().filter(|step| travelling.insert(&step.hash));
    let bodies = bodies.map(|step| StepBody { hash: step.hash.clone(), json: step.json.clone() }).collect();
    let steps = steps.iter().map(|step| AssignedStep {
        pipeline: step.plan.id.pipeline.to_string(),
        step: step.plan.id.step.to_string(),
        hash: step.hash.clone(),
    });
    Some(Assignment { generation: generation.0, steps: steps.collect(), bodies, cluster: cluster.to_string() })
}
