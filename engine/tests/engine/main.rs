//! What engines promise, seen from outside: over gRPC, in the folder, in the log.

// Helpers of tests may panic as tests do; clippy allows it only in functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod apply;
mod backlog;
mod bed;
mod crash;
mod folder;
mod gateway;
mod history;
mod intake;
mod loss;
mod resume;
mod several;
mod status;
mod store;
