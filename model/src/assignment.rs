//! The list of steps in an assignment: its hash, and how it is told by changes.
//!
//! ```text
//! the list told before ──┐
//! steps, gone ───────────┴─▶ the list, its hash checked ─▶ a whole assignment
//! ```
//!
//! However it is told, an assignment stands for one whole list, named by its hash.
//! Knows nothing of generations and of what steps do.

use std::collections::BTreeMap;

use pipedoc_proto::v1::{AssignedStep, Assignment};
use sha2::{Digest, Sha256};

/// Why a message cannot be put together with those before it. The session is of
/// no more use then: both sides begin anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It changes another list than the one told last.
    #[error("it changes list {base}, but {told} was told last in this session")]
    OtherBase {
        /// Hash of the list that it changes.
        base: String,
        /// Hash of the list told last.
        told: String,
    },
    /// What comes out is not the list it is said to be.
    #[error("the list of steps has hash {found} instead of {wanted}")]
    OtherList {
        /// Hash of the list that came out.
        found: String,
        /// Hash that came with the message.
        wanted: String,
    },
    /// Parts of two assignments are mixed.
    #[error("a part of generation {found} came in the middle of generation {begun}")]
    OtherPart {
        /// Generation of the parts before.
        begun: u64,
        /// Generation of this one.
        found: u64,
    },
}

/// Hash of a list of steps, each `(pipeline, step, hash)`, in that order.
#[must_use]
pub fn list_hash<'a>(steps: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    for (pipeline, step, body) in steps {
        for part in [pipeline, "/", step, " ", body, "\n"] {
            hash.update(part);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The list of steps told last in a session, as the instance keeps it.
#[derive(Debug, Clone)]
pub struct Told {
    steps: BTreeMap<(String, String), String>,
    hash: String,
    /// Parts of an assignment whose last one has not come yet.
    begun: Option<Assignment>,
}

impl Told {
    /// A session's beginning: the list that the instance holds.
    #[must_use]
    pub fn new(held: impl IntoIterator<Item = AssignedStep>) -> Self {
        let steps = keyed(held).collect();
        let hash = hash_of(&steps);
        Self { steps, hash, begun: None }
    }

    /// Hash of the list.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Takes a message in; gives the assignment it completes, its list whole and in
    /// order. One that is whole as it is passes untouched.
    ///
    /// # Errors
    /// When it does not fit to what came before.
    pub fn take(&mut self, message: Assignment) -> Result<Option<Assignment>, Error> {
        let mut assignment = match self.begun.take() {
            None => message,
            Some(begun) => joined(begun, message)?,
        };
        if assignment.more {
            self.begun = Some(assignment);
            return Ok(None);
        }
        if assignment.list_hash.is_empty() {
            return Ok(Some(assignment));
        }
        let changed = std::mem::take(&mut assignment.steps);
        let gone = std::mem::take(&mut assignment.gone);
        let base = std::mem::take(&mut assignment.base_hash);
        if base.is_empty() {
            self.steps.clear();
        } else if base != self.hash {
            return Err(Error::OtherBase { base, told: self.hash.clone() });
        }
        let same = changed.is_empty() && gone.is_empty() && base == assignment.list_hash;
        if !same {
            for name in gone {
                let (pipeline, step) = name.split_once('/').unwrap_or((&name, ""));
                self.steps.remove(&(pipeline.to_owned(), step.to_owned()));
            }
            self.steps.extend(keyed(changed));
            self.hash = hash_of(&self.steps);
            if self.hash != assignment.list_hash {
                return Err(Error::OtherList { found: self.hash.clone(), wanted: assignment.list_hash });
            }
        }
        let whole = self.steps.iter().map(|((pipeline, step), hash)| AssignedStep {
            pipeline: pipeline.clone(),
            step: step.clone(),
            hash: hash.clone(),
        });
        assignment.steps = whole.collect();
        Ok(Some(assignment))
    }
}

fn keyed(steps: impl IntoIterator<Item = AssignedStep>) -> impl Iterator<Item = ((String, String), String)> {
    steps.into_iter().map(|step| ((step.pipeline, step.step), step.hash))
}

fn hash_of(steps: &BTreeMap<(String, String), String>) -> String {
    list_hash(steps.iter().map(|((pipeline, step), hash)| (pipeline.as_str(), step.as_str(), hash.as_str())))
}

fn joined(mut begun: Assignment, part: Assignment) -> Result<Assignment, Error> {
    if begun.generation != part.generation || begun.list_hash != part.list_hash {
        return Err(Error::OtherPart { begun: begun.generation, found: part.generation });
    }
    begun.steps.extend(part.steps);
    begun.gone.extend(part.gone);
    begun.bodies.extend(part.bodies);
    begun.more = part.more;
    Ok(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, hash: &str) -> AssignedStep {
        AssignedStep { pipeline: "shelf".into(), step: name.into(), hash: hash.into() }
    }

    fn hash(steps: &[(&str, &str)]) -> String {
        list_hash(steps.iter().map(|(step, hash)| ("shelf", *step, *hash)))
    }

    #[test]
    fn changes_make_the_whole_list_again() {
        let mut told = Told::new([step("b", "1"), step("a", "1")]);
        assert_eq!(told.hash(), hash(&[("a", "1"), ("b", "1")]), "in order");
        let message = Assignment {
            generation: 2,
            steps: vec![step("c", "1"), step("a", "2")],
            gone: vec!["shelf/b".into()],
            base_hash: told.hash().into(),
            list_hash: hash(&[("a", "2"), ("c", "1")]),
            ..Assignment::default()
        };
        let whole = told.take(message.clone()).unwrap().unwrap();
        assert_eq!(whole.steps, [step("a", "2"), step("c", "1")]);
        let again = told.take(message).unwrap_err();
        assert!(matches!(again, Error::OtherBase { .. }), "{again}");
        let same = Assignment {
            generation: 3,
            base_hash: told.hash().into(),
            list_hash: told.hash().into(),
            ..Assignment::default()
        };
        assert_eq!(told.take(same).unwrap().unwrap().steps, whole.steps, "nothing changed but the generation");
    }

    #[test]
    fn a_list_that_is_not_what_its_hash_says_is_refused() {
        let mut told = Told::new([]);
        let message =
            Assignment { steps: vec![step("a", "1")], list_hash: hash(&[("a", "2")]), ..Assignment::default() };
        assert!(matches!(told.take(message), Err(Error::OtherList { .. })));
    }

    #[test]
    fn parts_stand_when_the_last_has_come() {
        let mut told = Told::new([step("old", "1")]);
        let part = |name: &str, more| Assignment {
            generation: 7,
            steps: vec![step(name, "1")],
            list_hash: hash(&[("a", "1"), ("b", "1")]),
            more,
            ..Assignment::default()
        };
        assert_eq!(told.take(part("b", true)).unwrap(), None);
        let other = Assignment { generation: 8, ..part("a", false) };
        assert!(matches!(told.clone().take(other), Err(Error::OtherPart { begun: 7, found: 8 })));
        let whole = told.take(part("a", false)).unwrap().unwrap();
        assert_eq!(whole.steps, [step("a", "1"), step("b", "1")]);
    }
}
