//! Topics and a group's offsets, from outside.

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, OutgoingRecord, TopicSettings, TopicSpec};

pub async fn a_topic_grows_and_never_shrinks(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = fresh_topic("grow");
    assert_eq!(log.topic(&topic).await.unwrap(), None);
    let missing = log.ends(&topic).await;
    assert!(matches!(&missing, Err(Error::UnknownTopic { topic: named }) if *named == topic), "{missing:?}");

    let settings = TopicSettings { compact: Some(true), retention_ms: Some(86_400_000), ..TopicSettings::default() };
    let made = log.ensure_topic(&TopicSpec { settings, ..spec(&topic, 2) }).await.unwrap();
    assert_eq!((made.partitions, made.settings.compact, made.settings.retention_ms), (2, Some(true), Some(86_400_000)));
    assert!(made.settings.retention_bytes.is_some() && made.settings.max_message_bytes.is_some(), "all are known");
    assert!(other.topics().await.unwrap().contains(&topic));
    let mut reader = Reader::open(bed, &*other, in_group(&fresh("g"), &[&topic])).await;
    reader.until("both partitions", |reader| reader.assigned.len() == 2).await;

    // Settings not named stay as they are.
    let grown = log.ensure_topic(&spec(&topic, 3)).await.unwrap();
    assert_eq!((grown.partitions, &grown.settings), (3, &made.settings));
    assert_eq!(other.topic(&topic).await.unwrap(), Some(grown));
    reader.until("the new partition too", |reader| reader.assigned.len() == 3).await;
    let delivered = send(&*log, vec![OutgoingRecord { key: Some("k".into()), ..record(&topic, 2, "v") }]).await;
    assert_eq!(delivered[0].partition, 2);
    reader.until("a record of the new partition", |reader| reader.records.len() == 1).await;

    let shrunk = log.ensure_topic(&spec(&topic, 1)).await;
    assert!(matches!(shrunk, Err(Error::PartitionsShrink { found: 3, wanted: 1, .. })), "{shrunk:?}");
    reader.close().await;
}

pub async fn a_deleted_topic_is_gone(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "delete", 1).await;
    send(&*log, numbered(&topic, 0, 0..3)).await;
    log.delete_topic(&topic).await.unwrap();
    log.delete_topic(&topic).await.expect("missing is no error");
    let deadline = tokio::time::Instant::now() + bed.patience();
    while log.topic(&topic).await.unwrap().is_some() {
        assert!(tokio::time::Instant::now() < deadline, "{topic} is still there");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!log.topics().await.unwrap().contains(&topic));
}

pub async fn offsets_are_set_only_while_a_group_is_empty(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "set", 2).await;
    let group = fresh("g");
    let delivered = send(&*log, numbered(&topic, 0, 0..10)).await;
    let commit = |n: usize| Commit { source: at(&topic, 0), offset: delivered[n].offset, metadata: "set".into() };
    assert!(log.group_offsets(&group).await.unwrap().is_empty());
    let nowhere = Commit { source: at(&topic, 7), ..commit(1) };
    let refused = log.set_group_offsets(&group, &[commit(1), nowhere]).await;
    assert!(matches!(refused, Err(Error::UnknownPartition { .. })), "{refused:?}");
    assert!(log.group_offsets(&group).await.unwrap().is_empty(), "all or nothing");
    log.set_group_offsets(&group, &[commit(7)]).await.unwrap();
    let offsets = log.group_offsets(&group).await.unwrap();
    assert_eq!(offsets.len(), 1);
    assert_eq!(
        (offsets[&at(&topic, 0)].offset, offsets[&at(&topic, 0)].metadata.as_str()),
        (delivered[7].offset, "set")
    );

    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("the last three", |reader| reader.records.len() == 3).await;
    let refused = log.set_group_offsets(&group, &[commit(2)]).await;
    assert!(matches!(refused, Err(Error::GroupNotEmpty { members: 1.., .. })), "{refused:?}");
    reader.close().await;

    let deadline = tokio::time::Instant::now() + bed.patience();
    while let Err(error) = log.set_group_offsets(&group, &[commit(2)]).await {
        assert!(matches!(error, Error::GroupNotEmpty { .. }), "{error:?}");
        assert!(tokio::time::Instant::now() < deadline, "the group does not become empty");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(log.group_offsets(&group).await.unwrap()[&at(&topic, 0)].offset, delivered[2].offset);
}

pub async fn commit_metadata_has_a_limit(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "metadata", 1).await;
    let group = fresh("g");
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("the partition", |reader| !reader.assigned.is_empty()).await;
    let commit = |length: usize| Commit { source: at(&topic, 0), offset: 0, metadata: "m".repeat(length) };
    let refused = reader.consumer.commit(vec![commit(4097)]).await;
    assert!(matches!(refused, Err(Error::MetadataTooLarge { size: 4097, .. })), "{refused:?}");
    reader.consumer.commit(vec![commit(4096)]).await.unwrap();
    assert_eq!(log.group_offsets(&group).await.unwrap()[&at(&topic, 0)].metadata.len(), 4096);
    reader.close().await;
}
