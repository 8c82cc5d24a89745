//! Files that settings name: certificates and keys. What is wrong with them is told
//! with setting and file, before a client is made: librdkafka names the one or the
//! other, and stops at the first.
//!
//! Knows nothing of what is in them; that is the library's to say.

use std::fs::File;
use std::path::Path;

use pipedoc_model::kafka::{Finding, ProcessSettings};
use pipedoc_model::problem::Problem;

/// Settings that name a file.
const FILES: [&str; 5] =
    ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location", "ssl.crl.location"];

/// Settings with a file's password.
const PASSWORDS: [(&str, &str); 2] =
    [("ssl.key.location", "ssl.key.password"), ("ssl.keystore.location", "ssl.keystore.password")];

/// All files that cannot be read, each under its setting.
pub(super) fn unreadable(settings: &ProcessSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in FILES {
        for settings in [&settings.common, &settings.consumer, &settings.producer] {
            let Some(path) = settings.get(name) else { continue };
            if let Some(message) = wrong(name, path) {
                findings.push(Finding { name: name.to_owned(), message });
            }
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

fn wrong(name: &str, path: &str) -> Option<String> {
    // librdkafka's word for looking in the usual places.
    if name == "ssl.ca.location" && path == "probe" {
        return None;
    }
    let found = File::open(Path::new(path)).and_then(|file| file.metadata());
    match found {
        Err(error) => Some(format!("file {path} cannot be read: {error}")),
        // Of authorities there may be a folder.
        Ok(found) if found.is_dir() && name != "ssl.ca.location" => {
            Some(format!("{path} is a folder, expected a file"))
        }
        Ok(_) => None,
    }
}

/// What is wrong with a client that the library refuses to make, with the file that
/// it speaks of. `set` gives a setting's value.
pub(super) fn blamed<'a>(set: impl Fn(&str) -> Option<&'a str>, said: String) -> Problem {
    let mut named = FILES.into_iter().filter(|name| said.contains(name));
    let Some((name, path)) = named.find_map(|name| Some((name, set(name)?))) else {
        return Problem { message: said, ..Problem::default() };
    };
    // `ssl.key.location failed: error:1C800064:Provider routines::bad decrypt`
    let said = said.rsplit_once("failed: ").map_or(said.as_str(), |(_, reason)| reason);
    let hint = match PASSWORDS.into_iter().find(|(of, _)| *of == name) {
        Some((_, password)) if set(password).is_some() => format!("check the file and {password}"),
        Some((_, password)) => format!("check the file; if it has a password, {password} gives it"),
        None => "expected certificates in PEM".to_owned(),
    };
    let message = format!("file {path} cannot be used: {said}; {hint}");
    Problem { field: name.to_owned(), message, ..Problem::default() }
}
