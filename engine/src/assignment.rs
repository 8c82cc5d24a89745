//! What an instance is told: the list of its steps, whole or by what changed in
//! it, and the bodies that it lacks. Pure.
//!
//! Long assignments travel in parts, made one after the other: a thousand
//! instances that attach at once must not need a thousand times all bodies.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use pipedoc_model::names::ClusterName;
use pipedoc_proto::v1::{AssignedStep, Assignment, StepBody};

use crate::view::{ReadyStep, StepList};

/// Size of a part, about: each connection keeps a buffer for the largest it has sent.
const PART: usize = 16 << 10;
/// What a step in a list takes beside its names and hashes, about.
const OVERHEAD: usize = 16;

/// What an instance is known to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The list told last; it holds the bodies of that.
    pub(crate) list: Option<&'a StepList>,
    /// Whether it can be told changes of that list, and parts.
    pub(crate) takes_changes: bool,
    /// Hashes of other bodies that it holds.
    pub(crate) held: &'a BTreeSet<String>,
}

/// An assignment on its way: an iterator over its parts, of which there is at least one.
#[derive(Debug)]
pub(crate) struct Parts {
    frame: Assignment,
    steps: VecDeque<Arc<ReadyStep>>,
    bodies: VecDeque<Arc<ReadyStep>>,
    gone: Vec<String>,
    room: usize,
    ended: bool,
}

/// Tells a list of steps to an instance.
pub(crate) fn tell(cluster: &ClusterName, generation: u64, list: &StepList, known: Known<'_>) -> Parts {
    let (changed, gone) = changes(known.list.map_or(&[], StepList::steps), list.steps());
    let bodies = changed.iter().filter(|step| !known.held.contains(&step.hash)).cloned().collect();
    match known.list.filter(|_| known.takes_changes) {
        Some(base) => Parts::new(cluster, generation, list, base.hash(), changed.into(), gone, bodies, PART),
        None => {
            let room = if known.takes_changes { PART } else { usize::MAX };
            Parts::new(cluster, generation, list, "", list.steps().to_vec().into(), Vec::new(), bodies, room)
        }
    }
}

/// Tells what was told before once more, with the bodies that are lacking all the same.
pub(crate) fn tell_again(
    cluster: &ClusterName,
    generation: u64,
    list: &StepList,
    takes_changes: bool,
    lacking: &[String],
) -> Parts {
    let lacks = |step: &&Arc<ReadyStep>| lacking.contains(&step.hash);
    let bodies = list.steps().iter().filter(lacks).cloned().collect();
    if takes_changes {
        Parts::new(cluster, generation, list, list.hash(), VecDeque::new(), Vec::new(), bodies, PART)
    } else {
        Parts::new(cluster, generation, list, "", list.steps().to_vec().into(), Vec::new(), bodies, usize::MAX)
    }
}

/// Steps of `new` that are not in `old` as they are, and names of those in `old`
/// that are not in `new` at all. Both are in order.
fn changes(old: &[Arc<ReadyStep>], new: &[Arc<ReadyStep>]) -> (Vec<Arc<ReadyStep>>, Vec<String>) {
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    let mut old = old.iter().peekable();
    for step in new {
        while let Some(before) = old.next_if(|before| !Arc::ptr_eq(before, step) && before.plan.id < step.plan.id) {
            gone.push(before.plan.id.to_string());
        }
        let before = old.next_if(|before| Arc::ptr_eq(before, step) || before.plan.id == step.plan.id);
        if before.is_none_or(|before| before != step) {
            changed.push(Arc::clone(step));
        }
    }
    gone.extend(old.map(|before| before.plan.id.to_string()));
    (changed, gone)
}

impl Parts {
    #[allow(clippy::too_many_arguments, reason = "the fields of a private constructor, each with its own type or name")]
    fn new(
        cluster: &ClusterName,
        generation: u64,
        list: &StepList,
        base: &str,
        steps: VecDeque<Arc<ReadyStep>>,
        gone: Vec<String>,
        bodies: VecDeque<Arc<ReadyStep>>,
        room: usize,
    ) -> Self {
        let frame = Assignment {
            generation,
            cluster: cluster.to_string(),
            list_hash: list.hash().to_owned(),
            base_hash: base.to_owned(),
            ..Assignment::default()
        };
        Self { frame, steps, bodies, gone, room, ended: false }
    }
}

impl Iterator for Parts {
    type Item = Assignment;

    fn next(&mut self) -> Option<Assignment> {
        if self.ended {
            return None;
        }
        let mut part = Assignment { gone: std::mem::take(&mut self.gone), ..self.frame.clone() };
        let mut size = 0;
        while size < self.room
            && let Some(step) = self.steps.pop_front()
        {
            let id = &step.plan.id;
            let assigned =
                AssignedStep { pipeline: id.pipeline.to_string(), step: id.step.to_string(), hash: step.hash.clone() };
            size += assigned.pipeline.len() + assigned.step.len() + assigned.hash.len() + OVERHEAD;
            part.steps.push(assigned);
        }
        while size < self.room
            && let Some(step) = self.bodies.pop_front()
        {
            size += step.json.len() + step.hash.len() + OVERHEAD;
            part.bodies.push(StepBody { hash: step.hash.clone(), json: step.json.clone() });
        }
        self.ended = self.steps.is_empty() && self.bodies.is_empty();
        part.more = !self.ended;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::assignment::Told;

    use super::*;
    use crate::view::View;
    use crate::view::tests::{module, pipeline_view, view_of};

    fn list(view: &View) -> Arc<StepList> {
        Arc::clone(view.list(&module("m0")).unwrap())
    }

    fn cluster() -> ClusterName {
        ClusterName::new("local").unwrap()
    }

    fn names(assignment: &Assignment) -> Vec<String> {
        assignment.steps.iter().map(|step| format!("{}/{}", step.pipeline, step.step)).collect()
    }

    const NOTHING: &BTreeSet<String> = &BTreeSet::new();

    #[test]
    fn only_what_changed_travels_and_the_whole_comes_out() {
        let before = view_of(&View::default(), vec![pipeline_view("a", &[1; 5]), pipeline_view("b", &[1])]);
        let after = view_of(&before, vec![pipeline_view("a", &[1, 1, 7]), pipeline_view("c", &[1])]);
        let (old, new) = (list(&before), list(&after));
        let mut told = Told::new([]);
        let first = Known { list: None, takes_changes: true, held: NOTHING };
        let parts: Vec<_> = tell(&cluster(), 1, &old, first).collect();
        let [whole] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!(
            (names(whole), whole.bodies.len()),
            (vec!["a/s0".into(), "a/s2".into(), "a/s4".into(), "b/s0".into()], 4)
        );
        told.take(whole.clone()).unwrap().unwrap();

        let known = Known { list: Some(&old), ..first };
        let parts: Vec<_> = tell(&cluster(), 2, &new, known).collect();
        let [change] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!(names(change), ["a/s2", "c/s0"]);
        assert_eq!((&change.gone[..], change.bodies.len()), (&["a/s4".to_owned(), "b/s0".to_owned()][..], 2));
        let whole = told.take(change.clone()).unwrap().unwrap();
        assert_eq!(names(&whole), ["a/s0", "a/s2", "c/s0"]);
        assert_eq!(told.hash(), new.hash());

        // An instance that knows nothing of changes is told the list, with new bodies.
        let parts: Vec<_> = tell(&cluster(), 2, &new, Known { takes_changes: false, ..known }).collect();
        assert_eq!((names(&parts[0]), parts[0].bodies.len()), (names(&whole), 2));
    }

    #[test]
    fn a_generation_with_the_same_steps_is_told_without_any() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1; 50])]);
        let list = list(&view);
        let known = Known { list: Some(&list), takes_changes: true, held: NOTHING };
        let parts: Vec<_> = tell(&cluster(), 2, &list, known).collect();
        let [part] = &parts[..] else { panic!("{parts:?}") };
        assert!(part.steps.is_empty() && part.bodies.is_empty() && part.gone.is_empty() && !part.more);
        assert!(prost::Message::encoded_len(part) < 200);
    }

    #[test]
    fn bodies_that_are_held_or_lacking_are_known_by_their_hashes() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1, 1, 1])]);
        let list = list(&view);
        let hashes: Vec<_> = list.steps().iter().map(|step| step.hash.clone()).collect();
        let held = BTreeSet::from([hashes[0].clone()]);
        let known = Known { list: None, takes_changes: false, held: &held };
        let parts: Vec<_> = tell(&cluster(), 1, &list, known).collect();
        assert_eq!(parts[0].bodies.iter().map(|body| &body.hash).collect::<Vec<_>>(), [&hashes[1]]);
        let again: Vec<_> = tell_again(&cluster(), 1, &list, true, &[hashes[0].clone(), "other".into()]).collect();
        assert_eq!(again[0].bodies.iter().map(|body| &body.hash).collect::<Vec<_>>(), [&hashes[0]]);
        assert_eq!(again[0].base_hash, list.hash());
    }

    #[test]
    fn long_assignments_travel_in_parts_that_add_up() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1; 500])]);
        let list = list(&view);
        let known = Known { list: None, takes_changes: true, held: NOTHING };
        let parts: Vec<_> = tell(&cluster(), 1, &list, known).collect();
        assert!(parts.len() > 3, "{}", parts.len());
        assert!(parts.iter().all(|part| prost::Message::encoded_len(part) < PART + (4 << 10)));
        let mut told = Told::new([]);
        let mut parts = parts.into_iter();
        let whole = parts.by_ref().find_map(|part| told.take(part).unwrap()).unwrap();
        assert_eq!((whole.steps.len(), whole.bodies.len(), parts.len()), (250, 250, 0));
    }
}
