//! The end of a partition: told each time it is reached, also behind transactions.

use super::Bed;
use super::tools::*;
use crate::log::{Start, Subscription, TransactionalConfig};

pub async fn the_end_of_a_partition_is_told_each_time(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "end", 1).await;
    let mut reader = Reader::open(bed, &*log, in_group(&fresh("g"), &[&topic])).await;
    reader.until("the end of an empty partition", |reader| !reader.ended.is_empty()).await;
    assert_eq!(reader.ended[&at(&topic, 0)], 0);
    for round in 1..=3 {
        let told = reader.ends_told;
        let delivered = send(&*log, numbered(&topic, 0, 0..7)).await;
        let end = delivered[6].offset + 1;
        reader.until("the end again", |reader| reader.ended.get(&at(&topic, 0)) == Some(&end)).await;
        assert_eq!(reader.records.len(), 7 * round);
        assert!(reader.ends_told > told);
    }
    reader.close().await;
}

pub async fn the_end_is_told_behind_transactions(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "end", 1).await;
    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 0..3)).await.unwrap();
    transactional.commit().await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 3..5)).await.unwrap();
    transactional.abort().await.unwrap();

    let alone = Subscription::Assigned(vec![(at(&topic, 0), Start::Earliest)]);
    let mut reader = Reader::open(bed, &*log, alone).await;
    reader.until("the end", |reader| !reader.ended.is_empty()).await;
    assert_eq!(reader.values(), ["0", "1", "2"], "all of it was handed out before the end was told");
    let end = log.ends(&topic).await.unwrap()[0].end;
    assert_eq!(reader.ended[&at(&topic, 0)], end, "the position counts what is not handed out");

    // Going on from there, nothing is missed.
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 5..6)).await.unwrap();
    transactional.commit().await.unwrap();
    let alone = Subscription::Assigned(vec![(at(&topic, 0), Start::At(end))]);
    let mut next = Reader::open(bed, &*log, alone).await;
    next.until("the next record", |reader| reader.values() == ["5"]).await;
    assert!(next.gone.is_empty());
    next.close().await;
    reader.close().await;
}
