//! Hears of changes by blocking queries: one on the head, one on the inbox's keys.
//!
//! An index is good for asking again and for nothing else: it may go backwards
//! when Consul's servers are restored, and is then asked for anew from the
//! beginning. (Consul API, "Blocking Queries".) Servers that lost their data between
//! two queries may even stand at the same index again, so what was read counts too.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Client, Indexed};
use super::error::Failure;

/// Shortest and longest pause after a query that failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Shortest time between two queries that found news, so that a busy prefix does
/// not make us ask without end.
const GATHER: Duration = Duration::from_millis(50);

/// Watches until it is dropped.
pub(super) struct Watcher {
    changes: watch::Sender<u64>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Watcher {
    /// Watches a key, and the keys below a prefix.
    pub(super) fn start(client: &Arc<Client>, head: String, inbox: String) -> Self {
        let changes = watch::Sender::new(0);
        let (one, other) = (Arc::clone(client), Arc::clone(client));
        let watch_head = keep_asking(changes.clone(), move |after| {
            let (client, head) = (Arc::clone(&one), head.clone());
            async move { client.read(&head, after).await }
        });
        let watch_inbox = keep_asking(changes.clone(), move |after| {
            let (client, inbox) = (Arc::clone(&other), inbox.clone());
            async move { client.keys(&inbox, after).await }
        });
        let tasks = [tokio::spawn(watch_head), tokio::spawn(watch_inbox)].map(AbortOnDropHandle::new);
        Self { changes, _tasks: tasks }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

async fn keep_asking<F, T>(changes: watch::Sender<u64>, ask: impl Fn(Option<u64>) -> F)
where
    F: Future<Output = Result<Indexed<T>, Failure>>,
    T: PartialEq,
{
    let mut asking = Asking::default();
    loop {
        match ask(asking.after).await {
            Ok(answer) => {
                if asking.answered(answer) {
                    changes.send_modify(|count| *count = count.wrapping_add(1));
                    tokio::time::sleep(GATHER).await;
                }
            }
            Err(failure) => {
                if asking.failures == 0 {
                    // Whoever looks now learns that it is away, and looks until it is back.
                    changes.send_modify(|count| *count = count.wrapping_add(1));
                }
                let pause = asking.failed();
                tracing::debug!(%failure, ?pause, "Consul is asked again after a pause");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Where a chain of blocking queries stands.
#[derive(Debug)]
struct Asking<T> {
    /// Index to wait beyond; none: ask at once.
    after: Option<u64>,
    /// What was read last.
    read: Option<T>,
    failures: u32,
}

impl<T> Default for Asking<T> {
    fn default() -> Self {
        Self { after: None, read: None, failures: 0 }
    }
}

impl<T: PartialEq> Asking<T> {
    /// Takes an answer in; tells whether there may be news.
    fn answered(&mut self, Indexed { value, index }: Indexed<T>) -> bool {
        self.failures = 0;
        let differs = self.read.as_ref() != Some(&value);
        self.read = Some(value);
        let before = self.after;
        // Index 0 means that the server had none; asking with it would not block.
        self.after = Some(index.max(1));
        match before {
            // Servers were restored: what the new index stands for is unknown.
            Some(before) if index < before => {
                self.after = None;
                true
            }
            Some(before) => index > before || differs,
            None => true,
        }
    }

    /// Takes a failure in; tells how long to pause.
    fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // A server that comes back empty would wait until it has reached the old index.
        self.after = None;
        let (shortest, longest) = PAUSE;
        let pause = (shortest * 2u32.saturating_pow(self.failures.min(8) - 1)).min(longest);
        // Many engines must not come back in step.
        pause.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(value: &str, index: u64) -> Indexed<&str> {
        Indexed { value, index }
    }

    #[test]
    fn an_index_that_goes_backwards_is_asked_for_anew_and_is_news() {
        let mut asking = Asking::default();
        assert!(asking.answered(answer("head", 40)));
        assert_eq!(asking.after, Some(40));
        assert!(!asking.answered(answer("head", 40)), "the waiting time has passed");
        assert!(asking.answered(answer("head", 41)));
        assert!(asking.answered(answer("head", 7)), "another state, older or not");
        assert_eq!(asking.after, None);
        assert!(asking.answered(answer("head", 7)));
        assert_eq!(asking.after, Some(7));
    }

    #[test]
    fn servers_that_came_back_empty_at_the_same_index_are_news() {
        let mut asking = Asking::default();
        assert!(asking.answered(answer("head", 14)));
        assert!(asking.answered(answer("", 14)));
        assert!(!asking.answered(answer("", 14)));
    }

    #[test]
    fn what_may_have_been_missed_while_it_was_away_is_news() {
        let mut asking = Asking::default();
        asking.answered(answer("head", 40));
        for _ in 0..20 {
            assert!(asking.failed() <= PAUSE.1);
        }
        assert!(asking.answered(answer("head", 40)));
        assert!(!asking.answered(answer("head", 40)));
    }
}
