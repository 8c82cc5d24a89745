//! What callers can do with pipelines: apply, get, list, look back, roll back, delete.

use std::collections::HashMap;
use std::time::Duration;

use pipedoc_model::names::PipelineName;
use pipedoc_proto::v1;

use super::{Engine, PLANNED_WITHIN};
use crate::catalog::{Head, Revision, Road};
use crate::clock;
use crate::editor::{Applied, NotApplied, Proposal, Terms};
use crate::error::Error;
use crate::reconcile;
use crate::status;

impl Engine {
    /// Makes a text its pipeline's newest revision, or says everything against it.
    /// Returns when the plan that follows is published, or after 5 s.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn apply(&self, request: v1::ApplyRequest) -> Result<v1::ApplyResponse, Error> {
        let proposal = Proposal {
            text: request.text,
            file: request.file,
            variables: request.variables.into_iter().collect(),
            road: Road::Apply,
            dry_run: request.dry_run,
            terms: Terms { expected: request.expected_revision, abandon: request.abandon, by: request.by },
        };
        self.propose(proposal).await
    }

    /// Makes an earlier revision's text its pipeline's newest revision.
    ///
    /// # Errors
    /// When there is no such revision, or the store cannot be used.
    pub async fn rollback(&self, request: v1::RollbackRequest) -> Result<v1::ApplyResponse, Error> {
        let head = self.head().await?;
        let (name, last) = self.past(&head, request.pipeline).await?;
        let is_deleted = head.deleted.contains_key(&name);
        let wanted = match request.revision {
            Some(number) => number,
            None if is_deleted => last,
            None => match self.0.catalog.revision(&name, last).await?.map(|revision| revision.made.replaces) {
                None | Some(0) => return Err(Error::NothingBefore { pipeline: name, current: last }),
                Some(before) => before,
            },
        };
        let Some(revision) = self.0.catalog.revision(&name, wanted).await? else {
            return Err(self.unknown_revision(name, last, wanted).await?);
        };
        // What is rolled back is what the caller saw, not what came meanwhile.
        let expected = request.expected_revision.unwrap_or(if is_deleted { 0 } else { last });
        self.propose(Proposal {
            text: revision.text,
            file: revision.file,
            variables: revision.variables,
            road: Road::Rollback(wanted),
            dry_run: false,
            terms: Terms { expected: Some(expected), abandon: request.abandon, by: request.by },
        })
        .await
    }

    /// Removes a pipeline from what runs, and from the inbox.
    ///
    /// # Errors
    /// When there is none of the name, or the store cannot be used.
    pub async fn delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        let terms = Terms { expected: request.expected_revision, abandon: request.abandon, by: request.by };
        let deleted = match PipelineName::new(&request.pipeline) {
            Ok(name) => self.0.editor.delete(&name, &terms, clock::now_millis()).await,
            // What is no name names no pipeline.
            Err(_) => Ok(None),
        };
        match deleted {
            Ok(None) => Err(self.unknown(request.pipeline).await),
            Ok(Some(applied)) => {
                self.wait_until_planned(&applied, PLANNED_WITHIN).await;
                Ok(v1::DeleteResponse {
                    accepted: true,
                    revision: applied.revision,
                    generation: applied.generation.0,
                    ..v1::DeleteResponse::default()
                })
            }
            Err(not) => {
                let Refusal { errors, conflict } = refusal(not)?;
                Ok(v1::DeleteResponse { errors, conflict, ..v1::DeleteResponse::default() })
            }
        }
    }

    /// A pipeline as it was applied.
    ///
    /// # Errors
    /// When there is none of the name, no such revision, or the store cannot be read.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        let head = self.head().await?;
        let current = PipelineName::new(&request.pipeline).ok();
        let current = current.and_then(|name| head.pipelines.get(&name).copied()).unwrap_or(0);
        let (name, last) = match request.revision {
            None if current == 0 => return Err(self.unknown(request.pipeline).await),
            _ => self.past(&head, request.pipeline).await?,
        };
        let wanted = request.revision.unwrap_or(current);
        let Some(revision) = self.0.catalog.revision(&name, wanted).await? else {
            return Err(self.unknown_revision(name, last, wanted).await?);
        };
        Ok(v1::GetResponse {
            pipeline: name.to_string(),
            revision: wanted,
            summary: Some(summary(wanted, &revision, current)),
            text: revision.text,
            variables: HashMap::from_iter(revision.variables),
            cluster: self.0.cluster.to_string(),
        })
    }

    /// A pipeline's revisions, newest first.
    ///
    /// # Errors
    /// When there never was one of the name, or the store cannot be read.
    pub async fn history(&self, request: v1::HistoryRequest) -> Result<v1::HistoryResponse, Error> {
        let head = self.head().await?;
        let (name, last) = self.past(&head, request.pipeline).await?;
        let deleted = head.deleted.get(&name);
        let current = head.pipelines.get(&name).copied().unwrap_or(0);
        let revisions = self.0.catalog.history(&name, last).await?;
        Ok(v1::HistoryResponse {
            pipeline: name.to_string(),
            revisions: revisions.iter().map(|(number, revision)| summary(*number, revision, current)).collect(),
            deleted_at: deleted.map(|deleted| timestamp(deleted.at)),
            deleted_by: deleted.map(|deleted| deleted.by.clone()).unwrap_or_default(),
        })
    }

    /// The pipelines.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self) -> Result<v1::ListResponse, Error> {
        let mut pipelines = Vec::new();
        for (name, number) in self.head().await?.pipelines {
            let Some(revision) = self.0.catalog.revision(&name, number).await? else { continue };
            pipelines.push(v1::PipelineSummary {
                pipeline: name.to_string(),
                revision: number,
                steps: revision.steps,
                applied_at: Some(timestamp(revision.made.at)),
            });
        }
        Ok(v1::ListResponse { pipelines })
    }

    async fn propose(&self, proposal: Proposal) -> Result<v1::ApplyResponse, Error> {
        let dry_run = proposal.dry_run;
        match self.0.editor.apply(proposal, clock::now_millis()).await {
            Ok(applied) => {
                if !dry_run {
                    self.wait_until_planned(&applied, PLANNED_WITHIN).await;
                }
                Ok(v1::ApplyResponse {
                    accepted: true,
                    pipeline: applied.pipeline.to_string(),
                    revision: applied.revision,
                    generation: applied.generation.0,
                    warnings: applied.warnings.into_iter().map(status::problem).collect(),
                    unchanged: applied.unchanged,
                    ..v1::ApplyResponse::default()
                })
            }
            Err(not) => {
                let pipeline = match &not {
                    NotApplied::Conflict { pipeline, .. } => pipeline.to_string(),
                    _ => String::new(),
                };
                let Refusal { errors, conflict } = refusal(not)?;
                Ok(v1::ApplyResponse { pipeline, errors, conflict, ..v1::ApplyResponse::default() })
            }
        }
    }

    async fn wait_until_planned(&self, applied: &Applied, limit: Duration) {
        self.nudge();
        if !reconcile::wait_for(&mut self.view(), applied.generation, limit).await {
            tracing::warn!(pipeline = %applied.pipeline, "changed, but not planned yet; status tells why");
        }
    }

    /// The head; an empty one when there is none.
    async fn head(&self) -> Result<Head, Error> {
        Ok(self.0.catalog.head().await?.map_or_else(Head::default, |current| current.head))
    }

    /// A pipeline that is or was there, with its last revision.
    async fn past(&self, head: &Head, name: String) -> Result<(PipelineName, u64), Error> {
        let Ok(pipeline) = PipelineName::new(&name) else { return Err(self.unknown(name).await) };
        match head.last_revision(&pipeline) {
            0 => Err(self.unknown(name).await),
            last => Ok((pipeline, last)),
        }
    }

    async fn unknown_revision(&self, pipeline: PipelineName, last: u64, found: u64) -> Result<Error, Error> {
        let kept = self.0.catalog.history(&pipeline, last).await?.into_iter().map(|(number, _)| number).collect();
        Ok(Error::UnknownRevision { pipeline, found, kept })
    }
}

struct Refusal {
    errors: Vec<v1::Problem>,
    conflict: Option<v1::Conflict>,
}

/// A refusal as it travels; what is no answer is an error.
fn refusal(not: NotApplied) -> Result<Refusal, Error> {
    match not {
        NotApplied::Refused(problems) => {
            Ok(Refusal { errors: problems.0.into_iter().map(status::problem).collect(), conflict: None })
        }
        NotApplied::Conflict { pipeline, expected, current } => {
            let found =
                current.as_ref().map_or_else(|| "there is none".to_owned(), |found| format!("{} is current", found.0));
            let wanted = if expected == 0 { "no revision".to_owned() } else { format!("revision {expected}") };
            let message =
                format!("{wanted} of pipeline {pipeline} was expected, but {found}; look at it, then apply again");
            let current = current.map(|found| summary(found.0, &found.1, found.0));
            Ok(Refusal {
                errors: vec![v1::Problem { message, ..v1::Problem::default() }],
                conflict: Some(v1::Conflict { expected, current }),
            })
        }
        NotApplied::Store(error) => Err(error.into()),
    }
}

fn summary(number: u64, revision: &Revision, current: u64) -> v1::RevisionSummary {
    let (road, rollback_of) = match revision.made.road {
        Road::Apply => (v1::Road::Apply, 0),
        Road::Inbox => (v1::Road::Inbox, 0),
        Road::Rollback(of) => (v1::Road::Rollback, of),
    };
    v1::RevisionSummary {
        revision: number,
        applied_at: Some(timestamp(revision.made.at)),
        road: road.into(),
        rollback_of,
        replaces: revision.made.replaces,
        by: revision.made.by.clone(),
        file: revision.file.clone(),
        steps: revision.steps,
        current: number == current,
    }
}

fn timestamp(millis: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: millis.div_euclid(1000),
        nanos: i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}
