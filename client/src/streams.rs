//! The streams that a connection has for partitions. A broker permits a number of streams, and requests need some of
//! them: partitions share the others.
//!
//! A producer waits for a stream, and another partition's worker gives up its own once nothing is unanswered on it: a
//! producer may have more partitions than there are streams. A consumer keeps its stream for as long as it reads, so
//! that waiting would be for nothing: one too many is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quire_protocol::limits;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::config::ClientConfig;

/// Ended streams that a broker may not have replaced yet: QUIC announces new ones by the eighth, to save packets.
const UNANNOUNCED_MAX: u32 = limits::STREAMS_MAX / 8;
/// Most streams that are always there and not left to requests.
pub(crate) const PARTITION_STREAMS_MAX: usize =
    (limits::STREAMS_MAX - UNANNOUNCED_MAX - limits::STREAMS_FOR_REQUESTS) as usize;
/// Streams that consumers leave to producers, who can share them; at most half of all.
const LEFT_TO_PRODUCERS: usize = 96;

/// Partitions that a client with these settings may consume at once from one broker.
pub(crate) fn consume_max(config: &ClientConfig) -> usize {
    let all = config.partition_streams.clamp(2, PARTITION_STREAMS_MAX);
    all - LEFT_TO_PRODUCERS.min(all / 2)
}

/// One connection's streams for partitions.
#[derive(Debug)]
pub(crate) struct StreamPool {
    all: Arc<Semaphore>,
    consume: Arc<Semaphore>,
    consume_max: usize,
    /// Openings that wait for a stream.
    waiting: AtomicUsize,
    /// Streams that are about to be given up for them.
    promised: AtomicUsize,
    /// Told when another opening waits; whoever has been idle longest hears of it first.
    wanted: Notify,
}

/// The right to one stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    _all: OwnedSemaphorePermit,
    _consume: Option<OwnedSemaphorePermit>,
}

/// A stream is given up for an opening that waits. Held until that is done.
#[derive(Debug)]
pub(crate) struct Promise(Arc<StreamPool>);

impl StreamPool {
    pub(crate) fn new(config: &ClientConfig) -> Arc<StreamPool> {
        let all = config.partition_streams.clamp(2, PARTITION_STREAMS_MAX);
        let consume_max = consume_max(config);
        Arc::new(StreamPool {
            all: Arc::new(Semaphore::new(all)),
            consume: Arc::new(Semaphore::new(consume_max)),
            consume_max,
            waiting: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            wanted: Notify::new(),
        })
    }

    /// Waits for a stream to produce on.
    pub(crate) async fn for_producing(&self) -> StreamPermit {
        StreamPermit { _all: self.acquire().await, _consume: None }
    }

    /// A stream to consume; waits at most for producers to give one up.
    ///
    /// # Errors
    /// If consumers have all they may; how many that is.
    pub(crate) async fn for_consuming(&self) -> Result<StreamPermit, usize> {
        let consume = Arc::clone(&self.consume).try_acquire_owned().map_err(|_| self.consume_max)?;
        Ok(StreamPermit { _all: self.acquire().await, _consume: Some(consume) })
    }

    /// Resolves when a stream is to be given up: whoever waits for this has one that it can do without. Dropping the
    /// future promises nothing.
    pub(crate) async fn asked_for(self: &Arc<Self>) -> Promise {
        loop {
            let wanted = self.wanted.notified();
            if let Some(promise) = self.promise() {
                return promise;
            }
            wanted.await;
        }
    }

    async fn acquire(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.all).try_acquire_owned() {
            Ok(permit) => return permit,
            Err(TryAcquireError::NoPermits) => {}
            Err(TryAcquireError::Closed) => unreachable!("nobody closes it"),
        }
        let _waiting = Waiting::new(self);
        Arc::clone(&self.all).acquire_owned().await.expect("nobody closes it")
    }

    /// One stream for each opening that waits, and no more.
    fn promise(self: &Arc<Self>) -> Option<Promise> {
        let waiting = self.waiting.load(Ordering::Acquire);
        let one_more = |promised| (promised < waiting).then_some(promised + 1);
        self.promised.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Promise(Arc::clone(self)))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.promised.fetch_sub(1, Ordering::AcqRel);
        // Another may have taken the stream, and whoever asked meanwhile was told that one is promised.
        if self.0.waiting.load(Ordering::Acquire) > 0 {
            self.0.wanted.notify_one();
        }
    }
}

/// Counts an opening that waits, for as long as it does.
struct Waiting<'a>(&'a StreamPool);

impl Waiting<'_> {
    fn new(pool: &StreamPool) -> Waiting<'_> {
        pool.waiting.fetch_add(1, Ordering::AcqRel);
        pool.wanted.notify_one();
        Waiting(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn pool(partition_streams: usize) -> Arc<StreamPool> {
        StreamPool::new(&ClientConfig { partition_streams, ..ClientConfig::default() })
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_stream_that_another_gives_up() {
        let pool = pool(2);
        let (first, _second) = (pool.for_producing().await, pool.for_producing().await);
        let (mut one, mut other) = (Box::pin(pool.asked_for()), Box::pin(pool.asked_for()));
        assert!((&mut one).now_or_never().is_none(), "nobody waits");
        assert!((&mut other).now_or_never().is_none());
        let mut third = Box::pin(pool.for_producing());
        assert!((&mut third).now_or_never().is_none());
        let promise = (&mut one).now_or_never().expect("one is asked for");
        assert!((&mut other).now_or_never().is_none(), "and one only");
        drop((first, promise));
        let third = (&mut third).now_or_never().expect("given up for it");
        assert!((&mut other).now_or_never().is_none());
        drop(third);
    }

    #[tokio::test]
    async fn a_stream_that_went_to_another_is_asked_for_again() {
        let pool = pool(2);
        let (first, _second) = (pool.for_producing().await, pool.for_producing().await);
        let mut idle = Box::pin(pool.asked_for());
        assert!((&mut idle).now_or_never().is_none());
        let mut third = Box::pin(pool.for_producing());
        assert!((&mut third).now_or_never().is_none());
        let promise = pool.asked_for().now_or_never().expect("one is asked for");
        drop(first);
        let _third = (&mut third).now_or_never().expect("given up for it");
        let mut fourth = Box::pin(pool.for_producing());
        assert!((&mut fourth).now_or_never().is_none());
        assert!((&mut idle).now_or_never().is_none(), "a promise is still under way");
        drop(promise);
        assert!((&mut idle).now_or_never().is_some(), "which was not for the fourth");
    }

    #[tokio::test]
    async fn an_opening_that_gave_up_waits_no_more() {
        let pool = pool(2);
        let _held = [pool.for_producing().await, pool.for_producing().await];
        let mut waiting = Box::pin(pool.for_producing());
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        assert!(pool.asked_for().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_consumer_too_many_is_refused_at_once_and_waits_for_producers_only() {
        let pool = pool(3);
        let produce = [pool.for_producing().await, pool.for_producing().await];
        let _consume = pool.for_consuming().await.expect("one is free");
        let mut another = Box::pin(pool.for_consuming());
        assert!((&mut another).now_or_never().is_none(), "a producer has it");
        drop(produce);
        let _another = another.await.expect("consumers may have two");
        assert_eq!(pool.for_consuming().now_or_never().expect("at once").expect_err("a third"), 2);
        assert!(pool.for_producing().now_or_never().is_some(), "producers keep theirs");
    }
}
