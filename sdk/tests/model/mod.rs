//! A simple model of what a step promises, held against the real runtime.
//!
//! [`world`] is the model: which record is open, which is closed, what is at
//! work. [`watched`] stands between the runtime and the log: it tells the model
//! what is read, written and committed, and breaks things on demand. [`actor`]
//! is the module under it, [`scenario`] what is made to happen.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what helps a test fails with it")]

pub mod actor;
pub mod scenario;
pub mod seeded;
pub mod watched;
pub mod world;
