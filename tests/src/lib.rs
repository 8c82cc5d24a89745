//! The test bed: starts the real servers and processes that whole-system tests
//! need, and leaves none of them behind.
//!
//! The tests themselves are one binary, `tests/system.rs`; what they need in
//! common lies here. The bed knows how servers are started and stopped, and
//! nothing of what is tested with them.

pub mod bed;
