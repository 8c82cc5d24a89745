//! Assignments of steps of the module `parser` in the pipeline `library`.

use std::time::Duration;

use pipedoc_model::names::{ClusterName, ModuleName, StepId};
use pipedoc_model::plan::hash_of;
use pipedoc_model::step::{ControlState, Delivery, Hydration, OnExhausted, Ordering, Retries, StepPlan, StepType};
use pipedoc_proto::v1;

pub fn module() -> ModuleName {
    ModuleName::new("parser").unwrap()
}

pub fn step(name: &str) -> StepId {
    StepId::new("library".parse().unwrap(), name.parse().unwrap())
}

pub fn body(name: &str) -> v1::StepBody {
    let cluster = ClusterName::new("local").unwrap();
    let id = step(name);
    let plan = StepPlan {
        step_type: StepType::Pipeline,
        module: module(),
        group: id.group(&cluster),
        inputs: Vec::new(),
        dead_letters: id.dead_letter_topic(&cluster),
        state: None,
        outputs: Vec::new(),
        allowed_topics: Vec::new(),
        config: serde_json::json!({"key": "${env:KEY}"}),
        control: ControlState::Running,
        delivery: Delivery::AtLeastOnce,
        ordering: Ordering::Key,
        concurrency: 0,
        batch: None,
        retries: Retries::default(),
        on_exhausted: OnExhausted::DeadLetter,
        stop_at_failure_rate: None,
        timeout: Duration::from_secs(60),
        revoke_grace: Duration::from_secs(5),
        max_hops: None,
        claim_threshold: 1 << 19,
        hydration: Hydration::Eager,
        hydrate_max: 1 << 26,
        consumer_settings: Default::default(),
        producer_settings: Default::default(),
        id,
        cluster,
    };
    let json = plan.to_json().unwrap();
    v1::StepBody { hash: hash_of(&json), json }
}

/// An assignment of these steps, with the bodies of those in `sent`.
pub fn assignment(generation: u64, steps: &[&str], sent: &[&str]) -> v1::Assignment {
    let assigned =
        |name: &&str| v1::AssignedStep { pipeline: "library".into(), step: (*name).into(), hash: body(name).hash };
    v1::Assignment {
        generation,
        steps: steps.iter().map(assigned).collect(),
        bodies: sent.iter().map(|name| body(name)).collect(),
        cluster: "local".into(),
        ..v1::Assignment::default()
    }
}
