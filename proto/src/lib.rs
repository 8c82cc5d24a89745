//! The messages and services of `pipedoc.v1`, and their JSON form.
//!
//! Knows nothing of topics, pipelines or modules: only what stands in the
//! `.proto` files. The generated code is committed; `tests/drift.rs` regenerates
//! it and compares (`PIPEDOC_REGENERATE=1 cargo test -p pipedoc-proto` writes it).

pub mod json;

/// Package `pipedoc.v1`, generated from `proto/pipedoc/v1/*.proto`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::pedantic)]
    include!("generated/pipedoc.v1.rs");
}

pub use v1::PipeDoc;

/// The compiled descriptors of all our `.proto` files and what they import, as
/// an encoded `google.protobuf.FileDescriptorSet`: for gRPC reflection and for
/// the JSON mapping.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
