//! What every log must do, as tests that run on any of them.
//!
//! A [`Bed`] opens handles on one log. [`conformance!`](crate::conformance!)
//! makes one `#[tokio::test]` of each case; [`run_all`] runs them side by side in
//! one test. The cases share no topic and no group. They poll for what they expect, never sleep for it,
//! and hold on a broker too: rebalances take their time and in steps, and
//! offsets have gaps.

// A case that does not hold is to panic, with a word on what was expected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod administration;
mod balance;
mod cleaning;
mod ends;
mod fencing;
mod groups;
mod many;
mod reading;
mod records;
mod starts;
mod tools;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::log::Log;

pub use administration::*;
pub use balance::*;
pub use cleaning::*;
pub use ends::*;
pub use fencing::*;
pub use groups::*;
pub use many::*;
pub use reading::*;
pub use records::*;
pub use starts::*;
pub use transactions::*;

/// Where a log to be tested is.
#[async_trait]
pub trait Bed: Send + Sync {
    /// A handle on the log; each call is as another process on the same log.
    async fn open(&self) -> Arc<dyn Log>;

    /// How long to wait for something that has to happen.
    fn patience(&self) -> Duration {
        Duration::from_secs(90)
    }
}

/// One case.
pub type Case = for<'a> fn(&'a dyn Bed) -> BoxFuture<'a, ()>;

/// Runs every case whose name holds one of the comma-separated words of
/// `PIPEDOC_TEST_CASES` (all, where it is not set), so many at once, and says how
/// long each took.
///
/// # Panics
/// When a case does not hold, after all of them have ended.
pub async fn run_all(bed: Arc<dyn Bed>, at_once: usize) {
    let words = std::env::var("PIPEDOC_TEST_CASES").unwrap_or_default();
    let is_wanted = |name: &str| words.is_empty() || words.split(',').any(|word| name.contains(word));
    let room = Arc::new(Semaphore::new(at_once));
    let mut running = JoinSet::new();
    // The last ones take longest, so they begin first.
    for (name, case) in cases().into_iter().rev().filter(|(name, _)| is_wanted(name)) {
        let (bed, room) = (bed.clone(), room.clone());
        running.spawn(async move {
            let _room = room.acquire_owned().await;
            let began = tokio::time::Instant::now();
            // On a task of its own, so that a panic ends nothing else.
            let ended = tokio::spawn(async move { case(&*bed).await }).await;
            (name, began.elapsed(), ended.is_ok())
        });
    }
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (name, took, held) = ended.expect("a case ends");
        eprintln!("conformance: {name}: {} after {took:.1?}", if held { "held" } else { "FAILED" });
        if !held {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "these do not hold: {failed:?}");
}

/// Calls a macro with the names of all cases, after tokens of its own.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($each:path, $($own:tt)*) => {
        $each! { [$($own)*]
            records_of_a_partition_keep_their_order,
            keys_choose_partitions_as_kafkas_java_client_does,
            members_share_partitions_and_take_over,
            reading_resumes_where_the_group_committed,
            a_transaction_commits_records_and_offsets_at_once,
            an_aborted_transaction_was_never_there,
            a_tombstone_is_not_an_empty_value,
            headers_come_back_as_they_were_sent,
            a_pattern_picks_up_topics_made_later,
            a_paused_partition_rests_and_goes_on,
            seeking_goes_on_elsewhere,
            a_large_value_comes_back_whole,
            a_record_fits_to_the_byte,
            what_cannot_be_written_does_not_hold_up_the_rest,
            timestamps_are_kept_and_found,
            a_cancelled_next_loses_nothing,
            reading_begins_where_it_was_told,
            overtaken_offsets_are_told,
            positions_and_ends_are_known,
            the_end_of_a_partition_is_told_each_time,
            the_end_is_told_behind_transactions,
            a_revocation_holds_partitions_back_while_it_lasts,
            nothing_is_lost_while_members_come_and_go,
            a_member_that_is_not_polled_is_fenced,
            an_offset_of_a_stale_member_fails_the_transaction,
            a_new_transactional_id_fences_the_old,
            offsets_are_set_only_while_a_group_is_empty,
            commit_metadata_has_a_limit,
            a_closed_consumer_frees_its_partitions_at_once,
            a_topic_grows_and_never_shrinks,
            a_deleted_topic_is_gone,
            a_flush_waits_for_what_was_sent,
            shares_stay_equal_through_join_leave_and_death,
            others_go_on_while_a_member_stalls,
            a_zombie_that_wakes_up_commits_no_transaction,
            a_transaction_may_hold_offsets_alone,
            transactions_of_many_writers_are_seen_whole,
            a_large_transaction_keeps_the_order_of_its_records_and_reports,
            committed_ends_leave_no_lag_and_skip_nothing_while_others_append,
            records_without_key_are_spread,
            the_default_limit_is_kafkas,
            times_are_found_in_every_partition,
            latest_holds_only_for_what_was_there_before_the_group,
            latest_is_where_the_group_began_not_each_member,
            records_that_are_too_old_go,
            records_that_are_too_many_go,
            compaction_keeps_the_newest_record_of_each_key,
            a_thousand_topics_are_made_and_read_by_one_consumer
        }
    };
}

/// Makes one `#[tokio::test]` of each case; the argument is an expression that
/// gives a [`Bed`](crate::conformance::Bed) and may await.
#[macro_export]
macro_rules! conformance {
    ($bed:expr) => {
        $crate::conformance_cases!($crate::conformance_tests, $bed);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ([$bed:expr] $($name:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::$name(&$bed).await;
            }
        )*
    };
}

macro_rules! list_cases {
    ([] $($name:ident),*) => {
        /// All cases by name.
        #[must_use]
        pub fn cases() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), |bed| Box::pin($name(bed)))),*]
        }
    };
}
crate::conformance_cases!(list_cases,);
