//! Many topics at once.

use std::collections::BTreeSet;

use futures::StreamExt;
use pipedoc_model::names::Topic;
use regex::Regex;

use super::Bed;
use super::tools::*;
use crate::log::{Start, Subscription};

const TOPICS: usize = 1000;

pub async fn a_thousand_topics_are_made_and_read_by_one_consumer(bed: &dyn Bed) {
    let log = bed.open().await;
    let word = fresh("many");
    let topics: Vec<Topic> = (0..TOPICS).map(|n| Topic::new(&format!("{word}.t{n}")).unwrap()).collect();
    let began = tokio::time::Instant::now();
    let making = futures::stream::iter(&topics).for_each_concurrent(32, |topic| {
        let log = &log;
        async move {
            log.ensure_topic(&spec(topic, 1)).await.expect("a new topic");
        }
    });
    tokio::time::timeout(2 * bed.patience(), making).await.expect("a thousand topics are made in time");
    let made = began.elapsed();
    let found = log.topics().await.unwrap();
    assert_eq!(found.iter().filter(|topic| topic.as_str().starts_with(&word)).count(), TOPICS);
    send(&*log, topics.iter().map(|topic| record(topic, 0, topic.as_str().to_owned())).collect()).await;
    let sent = began.elapsed() - made;

    let subscription = Subscription::Group {
        group: fresh("g"),
        topics: Vec::new(),
        patterns: vec![Regex::new(&format!(r"{word}\.t[0-9]+")).unwrap()],
        start: Start::Earliest,
    };
    let mut reader = Reader::open(bed, &*log, subscription).await;
    reader.until("a record of each topic", |reader| reader.records.len() >= TOPICS).await;
    reader.until("the end of each topic", |reader| reader.ended.len() == TOPICS).await;
    let values: BTreeSet<String> = reader.values().into_iter().collect();
    assert_eq!(values, topics.iter().map(ToString::to_string).collect());
    assert_eq!(reader.records.len(), TOPICS, "nothing came twice");
    eprintln!("{TOPICS} topics: made in {made:?}, written in {sent:?}, read after {:?}", began.elapsed() - made - sent);

    // One more record among all of them is not searched for long.
    send(&*log, vec![record(&topics[TOPICS / 2], 0, "late")]).await;
    let late = tokio::time::Instant::now();
    reader.until("a late record", |reader| reader.records.len() > TOPICS).await;
    assert!(late.elapsed() < bed.patience() / 3, "a late record took {:?}", late.elapsed());
    reader.close().await;
}
