//! Where a group begins in partitions in which it has no offset.

use regex::Regex;

use super::Bed;
use super::tools::*;
use crate::log::{Start, Subscription};

/// Topics `<word>.<suffix>`, by pattern.
fn pattern(group: &str, word: &str, start: Start) -> Subscription {
    let patterns = vec![Regex::new(&format!(r"{word}\.[a-z]+")).unwrap()];
    Subscription::Group { group: group.to_owned(), topics: Vec::new(), patterns, start }
}

fn named(word: &str, suffix: &str) -> pipedoc_model::names::Topic {
    pipedoc_model::names::Topic::new(&format!("{word}.{suffix}")).unwrap()
}

fn sorted(reader: &Reader) -> Vec<String> {
    let mut values = reader.values();
    values.sort();
    values
}

pub async fn latest_holds_only_for_what_was_there_before_the_group(bed: &dyn Bed) {
    let log = bed.open().await;
    let word = fresh("latest");
    let (early, late) = (named(&word, "early"), named(&word, "late"));
    log.ensure_topic(&spec(&early, 1)).await.unwrap();
    send(&*log, numbered(&early, 0, 0..3)).await;
    let mut reader = Reader::open(bed, &*log, pattern(&fresh("g"), &word, Start::Latest)).await;
    reader.until("the end of what was there", |reader| reader.ended.len() == 1).await;
    assert!(reader.records.is_empty(), "it was to begin at the end");
    send(&*log, vec![record(&early, 0, "new")]).await;
    reader.until("what came since", |reader| reader.values() == ["new"]).await;

    // Another process makes a topic and a partition, and writes before anybody reads.
    let other = bed.open().await;
    other.ensure_topic(&spec(&late, 1)).await.unwrap();
    other.ensure_topic(&spec(&early, 2)).await.unwrap();
    send(&*other, vec![record(&late, 0, "late"), record(&early, 1, "grown")]).await;
    reader.until("later ones from their start", |reader| reader.records.len() >= 3).await;
    assert_eq!(sorted(&reader), ["grown", "late", "new"]);
    reader.close().await;
}

pub async fn latest_is_where_the_group_began_not_each_member(bed: &dyn Bed) {
    let log = bed.open().await;
    let word = fresh("began");
    let (early, late) = (named(&word, "early"), named(&word, "late"));
    log.ensure_topic(&spec(&early, 2)).await.unwrap();
    send(&*log, [numbered(&early, 0, 0..3), numbered(&early, 1, 0..3)].concat()).await;
    let group = fresh("g");
    let mut first = Reader::open(bed, &*log, pattern(&group, &word, Start::Latest)).await;
    first.until("both ends", |reader| reader.ended.len() == 2).await;
    // It ends before it has committed anything; what comes then is not lost on the next.
    first.close().await;
    log.ensure_topic(&spec(&late, 1)).await.unwrap();
    send(&*log, vec![record(&early, 0, "meanwhile"), record(&early, 1, "as well"), record(&late, 0, "late")]).await;
    let mut second = Reader::open(bed, &*bed.open().await, pattern(&group, &word, Start::Latest)).await;
    second.until("what came while nobody was there", |reader| reader.records.len() >= 3).await;
    second.until("all ends", |reader| reader.ended.len() == 3).await;
    assert_eq!(sorted(&second), ["as well", "late", "meanwhile"]);
    second.close().await;
}
