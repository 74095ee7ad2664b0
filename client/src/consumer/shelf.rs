//! What fetchers have read and the consumer has not: one shelf for each partition, under one lock that is taken once a
//! slice and not once a record.
//!
//! The other way go requests: where to read, and how much of what was handed over is used up, which becomes credit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::Waker;

use quire_protocol::stream::Start;
use quire_protocol::{BrokerId, Offset};
use tokio::sync::Notify;

use crate::connection::lock;

use super::ConsumeError;
use super::frames::Slice;

/// Counts the requests to one partition's fetcher; what belongs to an earlier one is dropped.
pub(super) type Generation = u64;

/// Everything between the fetchers and one consumer.
#[derive(Debug)]
pub(super) struct Shelves {
    state: Mutex<State>,
    /// Only ever grows.
    requests: RwLock<Vec<Arc<RequestBox>>>,
}

#[derive(Debug)]
struct State {
    shelves: Vec<Shelf>,
    /// Shelves with something new, each once.
    changed: VecDeque<usize>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Shelf {
    generation: Generation,
    slices: VecDeque<Slice>,
    status: Status,
    high_watermark: Offset,
    /// The broker that it is read from.
    source: Option<BrokerId>,
    is_listed: bool,
}

/// What is to be expected behind the slices of a shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    /// More.
    Reading,
    /// Nothing at the moment: everything up to the high watermark has been read.
    CaughtUp,
    /// Nothing: the partition has been read to where it was to be read to.
    Ended,
    /// This error.
    Failed(ConsumeError),
}

/// What a shelf gave.
#[derive(Debug)]
pub(super) enum Taken {
    Slice(Slice),
    /// No slice; this is what is to be expected.
    Nothing(Status),
}

#[derive(Debug)]
struct RequestBox {
    request: Mutex<Request>,
    changed: Notify,
}

/// What a fetcher is to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub generation: Generation,
    /// Where to read from; `None` is not to read.
    pub start: Option<Start>,
    /// Bytes of this generation's slices that are used up.
    pub released: u64,
}

impl Shelves {
    /// One shelf for each start.
    pub(super) fn new(starts: impl IntoIterator<Item = (Option<Start>, Offset)>) -> Shelves {
        let state = State { shelves: Vec::new(), changed: VecDeque::new(), waker: None };
        let shelves = Shelves { state: Mutex::new(state), requests: RwLock::default() };
        for (start, high_watermark) in starts {
            shelves.add(start, high_watermark);
        }
        shelves
    }

    /// One shelf more; its place.
    pub(super) fn add(&self, start: Option<Start>, high_watermark: Offset) -> usize {
        let request = Mutex::new(Request { generation: 0, start, released: 0 });
        let shelf = Shelf {
            generation: 0,
            slices: VecDeque::new(),
            status: if start.is_some() { Status::Reading } else { Status::Ended },
            high_watermark,
            source: None,
            is_listed: false,
        };
        let mut requests = self.requests.write().unwrap_or_else(PoisonError::into_inner);
        requests.push(Arc::new(RequestBox { request, changed: Notify::new() }));
        lock(&self.state).shelves.push(shelf);
        requests.len() - 1
    }

    fn box_of(&self, place: usize) -> Arc<RequestBox> {
        Arc::clone(&self.requests.read().unwrap_or_else(PoisonError::into_inner)[place])
    }

    // The fetchers' side.

    pub(super) fn request(&self, place: usize) -> Request {
        *lock(&self.box_of(place).request)
    }

    /// Waits until the request may have changed.
    pub(super) async fn request_changed(&self, place: usize) {
        self.box_of(place).changed.notified().await;
    }

    /// Puts down a slice; `false` if it is no longer wanted.
    pub(super) fn put(&self, place: usize, generation: Generation, slice: Slice) -> bool {
        self.update(place, generation, |shelf| shelf.slices.push_back(slice))
    }

    /// Says what is to be expected behind the slices; `false` if nobody wants to know any more.
    pub(super) fn set_status(&self, place: usize, generation: Generation, status: Status) -> bool {
        self.update(place, generation, |shelf| shelf.status = status)
    }

    /// Takes note of the high watermark.
    pub(super) fn set_high_watermark(&self, place: usize, high_watermark: Offset) {
        lock(&self.state).shelves[place].high_watermark = high_watermark;
    }

    /// Takes note of the broker that is read from.
    pub(super) fn set_source(&self, place: usize, source: Option<BrokerId>) {
        lock(&self.state).shelves[place].source = source;
    }

    /// The broker that was last read from.
    pub(super) fn source(&self, place: usize) -> Option<BrokerId> {
        lock(&self.state).shelves[place].source
    }

    fn update(&self, place: usize, generation: Generation, change: impl FnOnce(&mut Shelf)) -> bool {
        let mut state = lock(&self.state);
        let shelf = &mut state.shelves[place];
        if shelf.generation != generation {
            return false;
        }
        change(shelf);
        state.list(place);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    // The consumer's side.

    /// The next shelf with something new; if there is none, `waker` is woken when there is.
    pub(super) fn next_changed(&self, waker: &Waker) -> Option<usize> {
        let mut state = lock(&self.state);
        match state.changed.pop_front() {
            Some(place) => {
                state.shelves[place].is_listed = false;
                Some(place)
            }
            None => {
                if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    state.waker = Some(waker.clone());
                }
                None
            }
        }
    }

    /// Takes the oldest slice. If more remain, the shelf is listed as changed again, behind all others.
    pub(super) fn take(&self, place: usize) -> Taken {
        let mut state = lock(&self.state);
        let shelf = &mut state.shelves[place];
        match shelf.slices.pop_front() {
            Some(slice) => {
                if !shelf.slices.is_empty() || shelf.status != Status::Reading {
                    state.list(place);
                }
                Taken::Slice(slice)
            }
            None => Taken::Nothing(shelf.status.clone()),
        }
    }

    /// Returns the memory of a slice.
    pub(super) fn release(&self, place: usize, generation: Generation, bytes: usize) {
        let request = self.box_of(place);
        let mut current = lock(&request.request);
        if current.generation == generation {
            current.released += bytes as u64;
            request.changed.notify_one();
        }
    }

    /// Has the partition read from another place, or no longer, and drops what was read of it.
    pub(super) fn restart(&self, place: usize, start: Option<Start>) -> Generation {
        let request = self.box_of(place);
        let mut state = lock(&self.state);
        let shelf = &mut state.shelves[place];
        shelf.generation += 1;
        shelf.slices.clear();
        shelf.status = if start.is_some() { Status::Reading } else { Status::Ended };
        let generation = shelf.generation;
        *lock(&request.request) = Request { generation, start, released: 0 };
        request.changed.notify_one();
        generation
    }

    pub(super) fn high_watermark(&self, place: usize) -> Offset {
        lock(&self.state).shelves[place].high_watermark
    }

    /// Bytes on all shelves.
    pub(super) fn bytes(&self) -> usize {
        let state = lock(&self.state);
        state.shelves.iter().flat_map(|shelf| &shelf.slices).map(|slice| slice.frames.len()).sum()
    }
}

impl State {
    fn list(&mut self, place: usize) {
        if !std::mem::replace(&mut self.shelves[place].is_listed, true) {
            self.changed.push_back(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_protocol::frame::Chain;

    fn slice(bytes: usize) -> Slice {
        Slice { frames: vec![0; bytes].into(), next_offset: Offset(1), chain: Chain::START, links: 0 }
    }

    fn shelves(count: usize) -> Shelves {
        Shelves::new((0..count).map(|_| (Some(Start::Beginning), Offset(0))))
    }

    fn next(shelves: &Shelves) -> Option<usize> {
        shelves.next_changed(Waker::noop())
    }

    #[test]
    fn shelves_with_slices_take_turns() {
        let shelves = shelves(2);
        for place in [0, 0, 1, 0] {
            assert!(shelves.put(place, 0, slice(10)));
        }
        let mut turns = Vec::new();
        while let Some(place) = next(&shelves) {
            assert!(matches!(shelves.take(place), Taken::Slice(_)));
            turns.push(place);
        }
        assert_eq!(turns, [0, 1, 0, 0]);
        assert!(matches!(shelves.take(0), Taken::Nothing(Status::Reading)));
    }

    #[test]
    fn the_end_is_seen_behind_the_last_slice() {
        let shelves = shelves(1);
        shelves.put(0, 0, slice(10));
        shelves.set_status(0, 0, Status::Ended);
        assert_eq!(next(&shelves), Some(0));
        assert!(matches!(shelves.take(0), Taken::Slice(_)));
        assert_eq!(next(&shelves), Some(0), "there is still its end to be seen");
        assert!(matches!(shelves.take(0), Taken::Nothing(Status::Ended)));
        assert_eq!(next(&shelves), None);
    }

    #[test]
    fn a_restart_drops_what_was_read_and_what_is_still_on_its_way() {
        let shelves = shelves(1);
        shelves.put(0, 0, slice(10));
        let generation = shelves.restart(0, Some(Start::End));
        assert_eq!(shelves.bytes(), 0);
        assert!(!shelves.put(0, 0, slice(10)), "an older generation's slice");
        shelves.release(0, 0, 10);
        assert_eq!(shelves.request(0).released, 0, "credit of an older generation");
        assert!(shelves.put(0, generation, slice(10)));
        shelves.release(0, generation, 10);
        assert_eq!(shelves.request(0).released, 10);
    }
}
