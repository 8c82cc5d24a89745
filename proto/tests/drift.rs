//! The committed code is what the `.proto` files say.

#![allow(clippy::unwrap_used, reason = "a test says with a panic that it failed")]

use std::path::{Path, PathBuf};
use std::{env, fs};

const FILES: [&str; 5] = ["document", "processor", "gateway", "control", "intake"];

/// Generates the code into `out`, without `protoc`.
fn generate(out: &Path) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = FILES.iter().map(|name| root.join(format!("pipedoc/v1/{name}.proto"))).collect();
    let mut compiler = protox::Compiler::new([&root]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_files(&files).unwrap();
    let set = compiler.file_descriptor_set();
    // Comments stay out of the descriptors: nobody reads them there.
    let mut bare = compiler.file_descriptor_set();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptors.bin"), prost_types_encode(&bare)).unwrap();
    tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".")
        .build_client(true)
        .build_server(true)
        .compile_fds(set)
        .unwrap();
}

fn prost_types_encode(set: &impl prost::Message) -> Vec<u8> {
    set.encode_to_vec()
}

#[test]
fn committed_code_matches_the_proto_files() {
    let committed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    if env::var_os("PIPEDOC_REGENERATE").is_some() {
        fs::create_dir_all(&committed).unwrap();
        generate(&committed);
        let _ = fs::remove_file(committed.join("google.protobuf.rs"));
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for name in ["pipedoc.v1.rs", "descriptors.bin"] {
        let (ours, new) = (fs::read(committed.join(name)), fs::read(fresh.path().join(name)));
        assert!(
            ours.unwrap() == new.unwrap(),
            "{name} is stale; run PIPEDOC_REGENERATE=1 cargo test -p pipedoc-proto --test drift"
        );
    }
}
