//! The house rules that a tool can hold: who may name what, who may depend on whom,
//! and that the map in ARCHITECTURE.md shows what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust source file of ours with its path from the root, generated code left out.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | "generated" | "out") && !name.starts_with('.') {
                    walk(&path, found);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 40, "the source test found only {} files", found.len());
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// Code without comments and string contents do not matter here: a crate is used by
/// a path (`rdkafka::…`), so that is what we look for, outside comments.
fn names_crate(text: &str, name: &str) -> Option<usize> {
    let path = format!("{name}::");
    text.lines().position(|line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(&path).any(|(at, _)| {
            !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '"')
        }) || code.trim_start().starts_with(&format!("use {name};"))
    })
}

#[test]
fn only_their_modules_name_the_clients() {
    let rules: [(&str, &[&str]); 6] = [
        ("rdkafka", &["transport/src/kafka", "bench/"]),
        ("object_store", &["transport/src/objects"]),
        ("consulrs", &["engine/src/consul"]),
        ("kreuzberg", &["modules/parser/src/"]),
        ("pdf_extract", &["modules/parser/src/"]),
        ("cel", &["model/src/"]),
    ];
    let mut broken = Vec::new();
    for (name, text) in sources() {
        for (client, homes) in rules {
            if homes.iter().any(|home| name.starts_with(home)) {
                continue;
            }
            if let Some(line) = names_crate(&text, client) {
                broken.push(format!("{name}:{} names {client}, which only {homes:?} may", line + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn anyhow_stays_in_programs_and_in_tests() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let programs = ["cli/", "bench/", "tests/"];
        let allowed = programs.iter().any(|home| name.starts_with(home)) || name.contains("/tests/");
        if !allowed && names_crate(&text, "anyhow").is_some() {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "anyhow is named in {broken:?}");
}

#[test]
fn grpc_statuses_stay_where_grpc_is_spoken() {
    let homes = ["sdk/src/grpc", "sdk/src/attach", "engine/src/grpc", "cli/", "tests/", "proto/"];
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let at_home = homes.iter().any(|home| name.starts_with(home)) || name.contains("/tests/");
        if !at_home && (text.contains("tonic::Status") || text.contains("tonic::{Request, Response, Status")) {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "tonic::Status is named in {broken:?}");
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.trim_start().starts_with("//!")).map(|(name, _)| name).collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:?}");
}

/// Direct dependencies of each package of the workspace, as cargo resolves them.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let names = dependencies.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn only_the_wrappers_of_deny_toml_depend_on_what_they_wrap() {
    let rules: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let dependencies = dependencies();
    let mut broken = Vec::new();
    let denied = rules["bans"]["deny"].as_array().unwrap();
    assert!(denied.len() >= 5);
    for rule in denied {
        let name = rule["crate"].as_str().unwrap();
        let wrappers: Vec<_> = rule["wrappers"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        for (package, uses) in &dependencies {
            if uses.contains(name) && !wrappers.contains(&package.as_str()) {
                broken.push(format!("{package} depends on {name}: {}", rule["reason"].as_str().unwrap()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_depend_only_downwards() {
    let below: [(&str, &[&str]); 5] = [
        ("pipedoc-proto", &[]),
        ("pipedoc-model", &["pipedoc-proto"]),
        ("pipedoc-transport", &["pipedoc-model", "pipedoc-proto"]),
        ("pipedoc-telemetry", &["pipedoc-model", "pipedoc-proto"]),
        ("pipedoc-sdk", &["pipedoc-model", "pipedoc-proto", "pipedoc-transport", "pipedoc-telemetry"]),
    ];
    let dependencies = dependencies();
    for (package, allowed) in below {
        let ours: Vec<_> =
            dependencies[package].iter().filter(|name| name.starts_with("pipedoc")).map(String::as_str).collect();
        assert!(ours.iter().all(|name| allowed.contains(name) || *name == package), "{package} depends on {ours:?}");
    }
}

/// Paths in the code map of ARCHITECTURE.md: words in backquotes with a slash or an ending.
#[test]
fn the_map_shows_what_is_there() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for word in map.split('`').skip(1).step_by(2) {
        let is_path = word.contains('/') && !word.contains([' ', '<', '*', '$', ':', '{']) && !word.starts_with('/');
        if is_path && !root().join(word).exists() {
            missing.push(word);
        }
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md names paths that are not there: {missing:?}");
}

#[test]
fn every_crate_takes_versions_and_lints_from_the_root() {
    let root = root();
    for package in dependencies().keys() {
        let folder = match package.strip_prefix("pipedoc-") {
            None => "cli".to_owned(),
            Some(name) if root.join(name).is_dir() => name.to_owned(),
            Some(name) => format!("modules/{name}"),
        };
        let text = fs::read_to_string(root.join(&folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let lints = &manifest["lints"];
        if folder == "tests" {
            // Its own table, since `unwrap` is right everywhere in it; the rest must hold.
            assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("forbid"), "{folder}");
        } else {
            assert_eq!(lints["workspace"].as_bool(), Some(true), "{folder}");
        }
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(entries) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            for (name, entry) in entries {
                let from_root = entry.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(from_root, "{folder}: {name} must be `{name}.workspace = true`");
            }
        }
    }
}
