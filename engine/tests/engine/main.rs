//! What engines promise, seen from outside: over gRPC, in the folder, in the log.

mod apply;
mod bed;
mod folder;
mod gateway;
mod intake;
mod several;
mod status;
mod store;
mod suite;
