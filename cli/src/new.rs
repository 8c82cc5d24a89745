//! `pipedoc new module`: a folder with a module that compiles and a test that passes.
//!
//! The SDK is a path into a checkout: there is no published version to name.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use pipedoc_model::names::ModuleName;

use crate::args::NewModuleArgs;
use crate::exit::Refused;
use crate::show::say;

/// What a new module is made of: file name and text, `{…}` to be filled in.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("templates/module/Cargo.toml.in")),
    ("src/lib.rs", include_str!("templates/module/src/lib.rs.in")),
    ("src/main.rs", include_str!("templates/module/src/main.rs.in")),
    ("README.md", include_str!("templates/module/README.md.in")),
    (".gitignore", "target/\n.pipedoc/\n"),
];

/// Runs the command.
pub fn module(args: &NewModuleArgs) -> anyhow::Result<ExitCode> {
    let name = ModuleName::new(&args.name)?;
    if !name.as_str().starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err(Refused(format!("module name {name:?} begins with a digit, which a crate's name cannot")).into());
    }
    let checkout = find_checkout(args.sdk.as_deref())?;
    let folder = PathBuf::from(name.as_str());
    if folder.exists() {
        return Err(Refused(format!("{} exists already; choose another name or remove it", folder.display())).into());
    }
    for (file, template) in FILES {
        let path = folder.join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        std::fs::write(&path, fill(template, &name, &checkout)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    // The versions that the SDK was tested with; cargo drops what the module does not need.
    let lock = checkout.join("Cargo.lock");
    if lock.is_file() {
        std::fs::copy(&lock, folder.join("Cargo.lock")).with_context(|| format!("copying {}", lock.display()))?;
    }
    say!("made {name}; next:\n  cd {name}\n  cargo test\n  cargo run -- --help");
    Ok(ExitCode::SUCCESS)
}

fn fill(template: &str, name: &ModuleName, checkout: &Path) -> anyhow::Result<String> {
    let sdk = checkout.join("sdk");
    let sdk = sdk.to_str().ok_or_else(|| Refused(format!("{} is no UTF-8 path", sdk.display())))?;
    Ok(template
        .replace("{name}", name.as_str())
        .replace("{crate}", &name.as_str().replace('-', "_"))
        .replace("{type}", &camel_case(name.as_str()))
        .replace("{sdk}", &sdk.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn camel_case(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    });
    words.collect()
}

/// The checkout whose SDK is used: as given, else around the current folder, else
/// around the running binary.
fn find_checkout(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        let given = std::path::absolute(given)?;
        // Both the checkout and its `sdk` folder are understood.
        let candidates = [Some(given.as_path()), given.parent()];
        return candidates.into_iter().flatten().find(|folder| is_checkout(folder)).map(Path::to_owned).ok_or_else(
            || {
                Refused(format!(
                    "{} is no PipeDoc checkout: there is no sdk/Cargo.toml of pipedoc-sdk in it",
                    given.display()
                ))
                .into()
            },
        );
    }
    let binary = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let places = [std::env::current_dir().ok(), binary];
    let found = places.iter().flatten().flat_map(|place| place.ancestors()).find(|folder| is_checkout(folder));
    found.map(Path::to_owned).ok_or_else(|| {
        Refused(
            "no PipeDoc checkout is around the current folder or this binary, and the SDK is not published; \
             name a checkout with --sdk PATH or PIPEDOC_SDK"
                .into(),
        )
        .into()
    })
}

fn is_checkout(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("sdk/Cargo.toml")).is_ok_and(|text| text.contains("name = \"pipedoc-sdk\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_types() {
        assert_eq!(camel_case("shout"), "Shout");
        assert_eq!(camel_case("title-case2"), "TitleCase2");
    }
}
