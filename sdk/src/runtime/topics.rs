//! What is known of the topics a step writes to, asked of the log now and then.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::headers::Headers;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{self, Log, TopicInfo};
use pipedoc_transport::size;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// How long an answer is good for. Topics only grow, so an old answer does no harm.
const FRESH: Duration = Duration::from_secs(30);

/// Topics, as last asked for.
pub(crate) struct Topics {
    log: Arc<dyn Log>,
    known: Mutex<FxHashMap<Topic, (Arc<TopicInfo>, Instant)>>,
}

impl Topics {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, known: Mutex::default() }
    }

    /// A topic; `None` when it does not exist.
    pub(crate) async fn get(&self, topic: &Topic) -> log::Result<Option<Arc<TopicInfo>>> {
        let now = Instant::now();
        if let Some((info, asked)) = self.known.lock().get(topic)
            && now.duration_since(*asked) < FRESH
        {
            return Ok(Some(Arc::clone(info)));
        }
        let info = self.log.topic(topic).await?.map(Arc::new);
        if let Some(info) = &info {
            self.known.lock().insert(topic.clone(), (Arc::clone(info), now));
        }
        Ok(info)
    }

    /// How large a record the topic takes; what is not known is taken as Kafka's default.
    pub(crate) async fn limit(&self, topic: &Topic) -> usize {
        limit_of(self.get(topic).await.ok().flatten().as_deref())
    }

    /// The same, asked of the log anew; `None` when the topic does not exist.
    ///
    /// # Errors
    /// When the log cannot tell.
    pub(crate) async fn limit_now(&self, topic: &Topic) -> log::Result<Option<usize>> {
        self.forget(topic);
        Ok(self.get(topic).await?.map(|info| limit_of(Some(info.as_ref()))))
    }

    /// What is known of a topic is not trusted any more: it is asked for anew.
    pub(crate) fn forget(&self, topic: &Topic) {
        self.known.lock().remove(topic);
    }

    /// Checks a record before it is sent. `info` is what is known of its topic.
    ///
    /// # Errors
    /// Permanent: it is too large for its topic.
    pub(crate) fn check_size(
        &self,
        topic: &Topic,
        info: Option<&TopicInfo>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &Headers,
    ) -> Result<()> {
        let limit = limit_of(info);
        let Some(size) = size::above(limit, key, value, headers) else { return Ok(()) };
        Err(Error::permanent(log::Error::RecordTooLarge { topic: topic.clone(), size, limit }).with_kind("too-large"))
    }
}

/// What was found out about topics, for work that ends before an answer gets old: it is
/// forgotten by whatever waits.
#[derive(Default)]
pub(crate) struct Facts(Vec<(Topic, Arc<TopicInfo>)>);

impl Facts {
    /// What is known of a topic, if anything. Asked for once, unless nothing is known.
    pub(crate) async fn of(&mut self, topics: &Topics, topic: &Topic) -> Option<&TopicInfo> {
        let at = match self.0.iter().position(|(known, _)| known == topic) {
            Some(at) => at,
            None => {
                self.0.push((topic.clone(), topics.get(topic).await.ok().flatten()?));
                self.0.len() - 1
            }
        };
        self.0.get(at).map(|(_, info)| info.as_ref())
    }

    /// Trusts none of it any more.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

fn limit_of(info: Option<&TopicInfo>) -> usize {
    let limit = info.and_then(|info| info.settings.max_message_bytes);
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(size::DEFAULT_LIMIT)
}
