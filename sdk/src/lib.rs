//! The SDK: what authors write modules against, and the runtime that moves
//! documents through them.
//!
//! ```no_run
//! use pipedoc_sdk::prelude::*;
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     /// What to put before the title.
//!     prefix: String,
//! }
//!
//! struct Greeter {
//!     prefix: String,
//! }
//!
//! impl Module for Greeter {
//!     type Config = Config;
//!     const NAME: &'static str = "greeter";
//!
//!     async fn open(config: Config, _step: &Step) -> Result<Self> {
//!         Ok(Self { prefix: config.prefix })
//!     }
//!
//!     async fn process(&self, mut doc: PipeDoc, _step: &Step) -> Result<Output> {
//!         doc.title = format!("{} {}", self.prefix, doc.title);
//!         Ok(doc.into())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     pipedoc_sdk::main::<Greeter>()
//! }
//! ```
//!
//! With the feature `mimalloc`, which is on by default, the whole program allocates
//! by mimalloc, its C libraries too: a record on Kafka passes through dozens of
//! small allocations of librdkafka, made on one thread and freed on another. A
//! program with an allocator of its own leaves the feature out.

pub mod application;
pub mod attach;
mod batches;
pub mod check;
pub mod connector;
pub mod error;
pub mod event;
pub mod factory;
pub mod grpc;
pub mod harness;
pub mod instance;
pub mod layers;
pub mod module;
pub mod output;
pub mod prelude;
pub mod process;
pub mod progress;
pub mod record;
mod runtime;
pub mod secrets;
pub mod testing;
pub mod units;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// What authors need of other crates, so that their Cargo.toml names the SDK alone.
pub use check::check;
pub use process::{connector_main, main, record_main};
pub use {bytes, pipedoc_model as model, pipedoc_proto as proto, schemars, serde, serde_json, tokio, tower};
