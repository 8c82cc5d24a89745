//! Watches a run from outside: what its processes have used by when, and how far
//! the output could be read by when. The spans that count are cut out afterwards,
//! so that nothing needs to be told to an arm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use parking_lot::Mutex;

use super::bed::Bed;
use crate::cpu;

/// How often it is looked; between two looks, use is taken to be even.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was seen in one look.
#[derive(Debug, Clone)]
struct Look {
    /// Milliseconds since the Unix epoch.
    at: f64,
    /// CPU time of the arm's process, in seconds.
    client: f64,
    /// CPU time of the broker, in seconds; 0 where there is none.
    server: f64,
    /// Ends of the output's partitions.
    ends: Vec<i64>,
}

/// A watch that runs, on a thread of its own.
pub struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What a watch has seen.
#[derive(Debug)]
pub struct Seen(Vec<Look>);

impl Watch {
    /// Begins to watch a process and what serves the log.
    pub fn start(bed: Arc<dyn Bed>, client: u32, topic: String) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (looks.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let ends = bed.ends(&topic)?;
                let look = Look {
                    at: now(),
                    client: cpu::of_process(client)?.as_secs_f64(),
                    server: bed.server().map(cpu::of_process).transpose()?.unwrap_or_default().as_secs_f64(),
                    ends,
                };
                kept.lock().push(look);
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(())
        });
        Self { looks, stop, thread }
    }

    /// Whether it still watches; it ends by itself only when a process has ended.
    pub fn is_on(&self) -> bool {
        !self.thread.is_finished()
    }

    /// How far each partition of the output goes.
    pub fn ends(&self) -> Vec<i64> {
        self.looks.lock().last().map(|look| look.ends.clone()).unwrap_or_default()
    }

    /// How many records the output holds, with what else takes an offset.
    pub fn arrived(&self) -> u64 {
        u64::try_from(self.ends().iter().sum::<i64>()).unwrap_or(0)
    }

    /// Ends it; gives what it has seen.
    ///
    /// # Errors
    /// When a process could not be watched any more.
    pub fn end(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the watch panicked"))?.context("watching a run")?;
        Ok(Seen(std::mem::take(&mut self.looks.lock())))
    }
}

impl Seen {
    /// CPU time of arm and broker, in seconds, between two times in milliseconds
    /// since the Unix epoch.
    pub fn used(&self, from: f64, to: f64) -> (f64, f64) {
        let client = |look: &Look| look.client;
        let server = |look: &Look| look.server;
        (self.at(to, client) - self.at(from, client), self.at(to, server) - self.at(from, server))
    }

    /// When the output could first be read up to these ends: behind transactions
    /// that is later than when its records were appended.
    pub fn readable(&self, ends: &[i64]) -> Option<f64> {
        let all = |look: &&Look| look.ends.iter().zip(ends).all(|(end, wanted)| end >= wanted);
        self.0.iter().find(all).map(|look| look.at)
    }

    /// A figure at a time, between the looks before and after.
    fn at(&self, time: f64, figure: impl Fn(&Look) -> f64) -> f64 {
        let after = self.0.partition_point(|look| look.at < time);
        match (after.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(after)) {
            (Some(before), Some(after)) => {
                let share = (time - before.at) / (after.at - before.at);
                figure(before) + share * (figure(after) - figure(before))
            }
            (Some(only), None) | (None, Some(only)) => figure(only),
            (None, None) => 0.0,
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_between_looks_is_taken_to_be_even() {
        let look = |at, client, end| Look { at, client, server: 2.0 * client, ends: vec![end] };
        let seen = Seen(vec![look(100.0, 1.0, 5), look(200.0, 2.0, 9), look(300.0, 2.5, 10)]);
        let (client, server) = seen.used(150.0, 300.0);
        assert!((client - 1.0).abs() < 1e-9 && (server - 2.0).abs() < 1e-9, "{client} {server}");
        assert_eq!(seen.readable(&[10]), Some(300.0));
        assert_eq!(seen.readable(&[11]), None);
    }
}
