//! The processes of a run and what is done to them, drawn from a seed: they are killed,
//! frozen beyond their session and woken, visited by others that leave again, and their
//! log is killed with them or under them.
//!
//! What is drawn depends on the seed alone; whom it hits, also on who is well then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::sqlite;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::chain::{PLACES, STEPS, URL, leave};
use crate::system::worker;

/// Processes that stay well whatever is done to the others.
const LEAST_WELL: usize = 3;
/// Longer than the session on every log.
const BEYOND_SESSION: Duration = Duration::from_secs(9);
/// How long somebody in the middle of a write is looked for.
const SEARCH: Duration = Duration::from_secs(5);
/// Beyond the clients' sessions, their transactions and the time they give a call.
const OUTAGE: Duration = Duration::from_secs(30);

/// The log under the processes.
pub enum Ground<'a> {
    /// The file in the run's folder.
    Sqlite,
    /// A broker that nobody else uses.
    Kafka(&'a mut Kafka),
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9`.
    Kill,
    /// The same in the middle of a write to the log's file.
    KillWriting,
    /// All at once, as when a machine goes down.
    KillAll,
    /// SIGSTOP for longer than a session lasts, then SIGCONT.
    Freeze,
    /// Another instance of a step joins, and leaves or is killed after a while.
    Visit,
    /// The broker is stopped or killed, and started again.
    Broker,
}

/// A fault with what is chosen of it.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    fault: Fault,
    pick: usize,
    share: f64,
    gently: bool,
    /// How long to wait before.
    pub pause: Duration,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub kills: usize,
    /// Of them, those in the middle of a write.
    pub writing: usize,
    pub stops: usize,
    /// Times that somebody joined or left as it should.
    pub rebalances: usize,
    pub restarts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Well,
    /// Killed; starts again then.
    Down(Instant),
    /// Frozen; wakes up then.
    Frozen(Instant),
    /// Beside the others until then; leaves gently or is killed.
    Visiting(Instant, bool),
    /// Told to leave.
    Leaving,
    /// A visitor's empty place.
    Away,
}

struct Member {
    slot: usize,
    life: u64,
    state: State,
    process: Option<Process>,
}

/// The processes.
pub struct Crew {
    folder: PathBuf,
    url: String,
    members: Vec<Member>,
    random: StdRng,
    kinds: Vec<Fault>,
    deck: Vec<Fault>,
    /// Longest wait before a fault, in milliseconds: groups on Kafka take longer to find
    /// themselves again, and who never works cannot fail at it.
    longest: u64,
    /// Half of the broker's restarts take longer than it needs, by so much at most.
    longest_outage: Duration,
    pub counts: Counts,
}

impl Crew {
    /// Starts two processes of each step. In a long run kinds of faults come as often
    /// as they are worth it, otherwise each once.
    pub fn start(folder: &Path, url: &str, ground: &Ground<'_>, seed: u64, is_long: bool) -> Self {
        let (special, longest) = match ground {
            Ground::Sqlite => (Fault::KillWriting, 3000),
            Ground::Kafka(_) => (Fault::Broker, 8000),
        };
        let mut kinds = vec![special, Fault::Kill, Fault::Freeze, Fault::Visit];
        if is_long {
            kinds.extend([Fault::Kill, Fault::Kill, Fault::KillAll, Fault::Freeze, Fault::Visit, Fault::Visit]);
            kinds.extend((special == Fault::KillWriting).then_some([special; 3]).into_iter().flatten());
        }
        let member = |slot| Member { slot, life: 0, state: State::Away, process: None };
        let mut crew = Self {
            folder: folder.to_owned(),
            url: url.to_owned(),
            members: (0..STEPS.len() * PLACES).map(member).collect(),
            random: StdRng::seed_from_u64(seed),
            kinds,
            deck: Vec::new(),
            longest,
            longest_outage: if is_long { OUTAGE } else { Duration::ZERO },
            counts: Counts::default(),
        };
        for at in 0..crew.members.len() {
            if !crew.members[at].is_visitor() {
                crew.begin(at, State::Well);
            }
        }
        crew
    }

    /// Draws the next fault.
    pub fn draw(&mut self) -> Draw {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let fault = self.deck.pop().unwrap_or(Fault::Kill);
        Draw {
            fault,
            pick: self.random.random_range(0..1000),
            share: self.random.random(),
            gently: self.random.random(),
            pause: Duration::from_millis(self.random.random_range(300..self.longest)),
        }
    }

    /// Does what was drawn; says what it was, or nothing when there is nobody well
    /// enough to have it done to now.
    pub fn strike(&mut self, draw: Draw, ground: &mut Ground<'_>) -> Option<String> {
        let Draw { fault, pick, share, gently, .. } = draw;
        let now = Instant::now();
        let well: Vec<usize> = (0..self.members.len()).filter(|at| self.members[*at].state == State::Well).collect();
        let later = |least: f64, more: f64| now + Duration::from_secs_f64(least + more * share);
        if well.len() <= LEAST_WELL {
            return None;
        }
        let victim = well[pick % well.len()];
        match (fault, ground) {
            (Fault::Broker, Ground::Kafka(kafka)) => {
                let how = if gently { "stopped" } else { "killed" };
                let away = self.longest_outage.mul_f64((share * 2.0 - 1.0).max(0.0));
                tokio::task::block_in_place(|| {
                    if gently {
                        kafka.stop();
                    } else {
                        kafka.kill();
                    }
                    std::thread::sleep(away);
                    kafka.restart();
                });
                self.counts.restarts += 1;
                Some(format!("broker {how} and started again, {:.1?}", now.elapsed()))
            }
            (Fault::KillAll, _) => {
                for at in 0..self.members.len() {
                    self.kill(at, later(0.1, 3.0));
                }
                Some("kill -9 of all".to_owned())
            }
            (Fault::Freeze, _) => {
                let member = &mut self.members[victim];
                member.process.as_ref()?.stop();
                let until = later(BEYOND_SESSION.as_secs_f64(), 4.0);
                member.state = State::Frozen(until);
                self.counts.stops += 1;
                Some(format!("SIGSTOP of {} for {:.1?}", member.name(), until - now))
            }
            (Fault::Visit, _) => {
                let away: Vec<usize> =
                    (0..self.members.len()).filter(|at| self.members[*at].state == State::Away).collect();
                let guest = *away.get(pick % away.len().max(1))?;
                let until = later(2.0, 8.0);
                self.begin(guest, State::Visiting(until, gently));
                self.counts.rebalances += 1;
                Some(format!("{} joins for {:.1?}", self.members[guest].name(), until - now))
            }
            (Fault::KillWriting, _) => {
                let found = tokio::task::block_in_place(|| self.stopped_writing(&well));
                let victim = found.unwrap_or(victim);
                self.counts.writing += usize::from(found.is_some());
                self.kill(victim, later(0.0, 8.0));
                let when = if found.is_some() { " in the middle of a write" } else { "" };
                Some(format!("kill -9 of {}{when}", self.members[victim].name()))
            }
            (Fault::Kill | Fault::Broker, _) => {
                self.kill(victim, later(0.0, 8.0));
                Some(format!("kill -9 of {}", self.members[victim].name()))
            }
        }
    }

    /// Does what is due: starts, wakes, sees off.
    ///
    /// # Panics
    /// When a process has ended that nobody told to.
    pub fn tick(&mut self) {
        let is_due = |due: Instant| due <= Instant::now();
        for at in 0..self.members.len() {
            match self.members[at].state {
                State::Down(until) if is_due(until) => self.begin(at, State::Well),
                State::Frozen(until) if is_due(until) => {
                    let member = &mut self.members[at];
                    member.process.iter().for_each(|process| process.signal("CONT"));
                    member.state = State::Well;
                }
                State::Visiting(until, true) if is_due(until) => {
                    let member = &mut self.members[at];
                    std::fs::write(self.folder.join(leave(member.slot, member.life)), "").unwrap();
                    member.state = State::Leaving;
                    self.counts.rebalances += 1;
                }
                State::Visiting(until, false) if is_due(until) => self.kill(at, until),
                State::Leaving => {
                    let member = &mut self.members[at];
                    if let Some(process) = member.process.as_mut()
                        && !process.is_running()
                    {
                        assert!(process.wait(SEARCH).success(), "{}", process.output());
                        member.state = State::Away;
                    }
                }
                State::Well | State::Visiting(..) => {
                    let member = &mut self.members[at];
                    let name = member.name();
                    if let Some(process) = member.process.as_mut() {
                        assert!(process.is_running(), "{name} ended by itself:\n{}", process.output());
                    }
                }
                State::Down(_) | State::Frozen(_) | State::Away => {}
            }
        }
    }

    /// Whether somebody is not well, or does not stay.
    pub fn is_disturbed(&self) -> bool {
        !self.members.iter().all(|member| matches!(member.state, State::Well | State::Away))
    }

    /// Waits for the end of all, who were told that all is done.
    pub fn wait(&mut self, limit: Duration) {
        let stay = self.members.iter_mut().filter(|member| member.state == State::Well);
        for process in stay.filter_map(|member| member.process.as_mut()) {
            assert!(process.wait(limit).success(), "{}", process.output());
        }
    }

    fn begin(&mut self, at: usize, state: State) {
        let member = &mut self.members[at];
        member.life += 1;
        member.state = state;
        let process = worker::start("chaos", &self.folder, member.slot, member.life, &[(URL, &self.url)]);
        member.process = Some(process);
    }

    /// Kills a process if there is one; it starts again then, unless it is a visitor.
    fn kill(&mut self, at: usize, again: Instant) {
        let member = &mut self.members[at];
        if matches!(member.state, State::Down(_) | State::Away) {
            return;
        }
        member.process.iter_mut().for_each(Process::kill);
        self.counts.kills += 1;
        member.state = if member.is_visitor() { State::Away } else { State::Down(again) };
    }

    /// One of them, stopped while it holds the lock under which the log's file is written.
    fn stopped_writing(&self, well: &[usize]) -> Option<usize> {
        let log = worker::log_file(&self.folder);
        let end = Instant::now() + SEARCH;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            let Some(writer) = sqlite::writer(&log) else { continue };
            let id = |at: &usize| self.members[*at].process.as_ref().map(Process::id);
            let Some(at) = well.iter().copied().find(|at| id(at) == Some(writer)) else { continue };
            let Some(process) = self.members[at].process.as_ref() else { continue };
            if sqlite::stop_if(process, &log, true) {
                return Some(at);
            }
        }
        None
    }
}

impl Member {
    /// Whether its place is one for those who come and go.
    fn is_visitor(&self) -> bool {
        self.slot % PLACES == PLACES - 1
    }

    fn name(&self) -> String {
        format!("{}-{}", STEPS[self.slot / PLACES], self.slot % PLACES)
    }
}
