//! One setting: its name found in the table, its value read.

use super::{Client, Entry, Kind, Place, SETTINGS, Scope, holds_secret, is_secret, rules};
use crate::text::nearest_names;

/// librdkafka's own name of a setting, and its value as librdkafka takes it; or
/// what is wrong.
pub(super) fn read(client: Client, place: Place, name: &str, found: &str) -> Result<(&'static str, String), String> {
    let (name, found) = rules::from_java(client, name, found)?;
    if name == rules::MAX_POLL_RECORDS {
        return if client == Client::Consumer {
            Ok((rules::MAX_POLL_RECORDS, number(found.trim(), 1, 100_000)?))
        } else {
            Err("is a setting of consumers".to_owned())
        };
    }
    if name == rules::CONNECTIONS {
        return if client == Client::Producer {
            Ok((rules::CONNECTIONS, number(found.trim(), 1, 64)?))
        } else {
            Err("is a setting of producers".to_owned())
        };
    }
    let Some(entry) = SETTINGS.iter().find(|entry| entry.name == name) else {
        return Err(unknown(&name));
    };
    if let Some(reason) = rules::forbidden(entry, place) {
        return Err(format!("is not to be set: {reason}"));
    }
    match (entry.scope, client) {
        (Scope::Producer, Client::Consumer) => {
            return Err("is a setting of producers, which a consumer does not know".to_owned());
        }
        (Scope::Consumer, Client::Producer) => {
            return Err("is a setting of consumers, which a producer does not know".to_owned());
        }
        _ => {}
    }
    let canonical = entry.alias_of.unwrap_or(entry.name);
    let unexpanded = matches!(place, Place::Step { .. }) && holds_secret(&found);
    let value = if unexpanded { found } else { value(entry, canonical, &found)? };
    Ok((canonical, value))
}

/// Which clients know a setting by this name; `None` when none does.
pub(super) fn scope(name: &str) -> Option<Scope> {
    if name == rules::MAX_POLL_RECORDS {
        return Some(Scope::Consumer);
    }
    if name == rules::CONNECTIONS {
        return Some(Scope::Producer);
    }
    let entry = SETTINGS.iter().find(|entry| entry.name == name);
    entry.map(|entry| entry.scope).or_else(|| rules::java_scope(name))
}

fn unknown(name: &str) -> String {
    let known = SETTINGS.iter().filter(|entry| entry.kind != Kind::Callback).map(|entry| entry.name);
    let near = nearest_names(name, known.chain([rules::MAX_POLL_RECORDS, rules::CONNECTIONS]), 3);
    if near.is_empty() {
        "is no setting that librdkafka knows; its CONFIGURATION.md lists all".to_owned()
    } else {
        format!("is no setting that librdkafka knows; did you mean {}?", near.join(", "))
    }
}

fn value(entry: &Entry, canonical: &str, found: &str) -> Result<String, String> {
    // Secrets are taken as they are, blanks and all.
    let text = if is_secret(canonical) { found } else { found.trim() };
    if let Some(special) = rules::special(canonical, text) {
        return special;
    }
    match entry.kind {
        Kind::Number(from, to) => number(text, from, to),
        Kind::Decimal(from, to) => match text.parse::<f64>() {
            Ok(number) if number >= from as f64 && number <= to as f64 => Ok(text.to_owned()),
            _ => Err(format!("found {text:?}, expected a number from {from} to {to}")),
        },
        Kind::Switch => match text.to_ascii_lowercase().as_str() {
            word @ ("true" | "false") => Ok(word.to_owned()),
            _ => Err(format!("found {text:?}, expected true or false")),
        },
        Kind::OneOf(words) => match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
            Some(word) => Ok((*word).to_owned()),
            None => Err(format!("found {text:?}, expected one of {}", words.join(", "))),
        },
        Kind::Flags(words) => match text.split(',').find(|flag| !words.contains(&flag.trim())) {
            None => Ok(text.to_owned()),
            Some(flag) => Err(format!("found {flag:?}, expected some of {}", words.join(", "))),
        },
        Kind::Text => Ok(text.to_owned()),
        Kind::Callback => Err("is a function of the program and has no text form".to_owned()),
    }
}

fn number(text: &str, from: i64, to: i64) -> Result<String, String> {
    match text.parse::<i64>() {
        Ok(number) if (from..=to).contains(&number) => Ok(number.to_string()),
        _ => Err(format!("found {text:?}, expected a whole number from {from} to {to}")),
    }
}
