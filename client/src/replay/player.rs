//! Plays records by a tape: takes them from where they are read, passes over those that are not wanted, and hands each
//! out when it is due. One record is in hand at a time; what is read ahead lies in the source's memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use futures_core::Stream;
use quire_protocol::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::connection::lock;
use crate::consumer::{ConsumeError, ConsumedRecord};

use super::filter::Filter;
use super::tape::{Due, InvalidSpeed, Speed, Tape};

/// Records passed over in one go before others have their turn.
const PASSED_OVER_MAX: u32 = 512;

/// A record, or why there is none.
pub(super) type Played = Result<ConsumedRecord, ConsumeError>;

/// Hands out a source's records when they are due.
#[derive(Debug)]
pub(super) struct Player<S> {
    source: S,
    filter: Filter,
    deck: Arc<Deck>,
    next: Option<ConsumedRecord>,
    /// Made for the first wait, since only then there has to be a runtime.
    sleep: Option<Pin<Box<Sleep>>>,
    records_left: u64,
}

/// What a player shares with those who control it.
#[derive(Debug)]
struct Deck {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tape: Tape,
    /// The record that waits.
    next: Option<Timestamp>,
    handed_out: u64,
    read: u64,
    /// Woken when something changes that a waiting player must know.
    player: Option<Waker>,
}

/// Controls a replay, from wherever: every clone controls the same one.
#[derive(Debug, Clone)]
pub struct ReplayControl {
    deck: Arc<Deck>,
}

/// Where a replay stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplayPosition {
    /// The moment of the recording that is played now: between the record handed out last and the one that waits.
    /// `None` before the first.
    pub timestamp: Option<Timestamp>,
    /// Records handed out.
    pub handed_out: u64,
    /// Records read for that: those handed out, those that the filters passed over, and the one that waits.
    pub read: u64,
    /// How fast it plays.
    pub speed: Speed,
    /// Whether it stands still.
    pub is_paused: bool,
}

impl<S> Player<S> {
    /// Plays at most so many records.
    pub(super) fn new(source: S, tape: Tape, filter: Filter, records_max: u64) -> Player<S> {
        let state = State { tape, next: None, handed_out: 0, read: 0, player: None };
        Player {
            source,
            filter,
            deck: Arc::new(Deck { state: Mutex::new(state) }),
            next: None,
            sleep: None,
            records_left: records_max,
        }
    }

    pub(super) fn control(&self) -> ReplayControl {
        ReplayControl { deck: Arc::clone(&self.deck) }
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Hands out the record that waits if it is due; else sees to it that the task is woken when it is.
    fn poll_due(&mut self, timestamp: Timestamp, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let at = {
                let mut state = lock(&self.deck.state);
                let now = Instant::now().into_std();
                match state.tape.due(now, timestamp) {
                    Due::Now => {
                        state.tape.handed_out(now, timestamp);
                        state.handed_out += 1;
                        state.next = None;
                        return Poll::Ready(());
                    }
                    due => {
                        if !state.player.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                            state.player = Some(context.waker().clone());
                        }
                        match due {
                            Due::At(at) => at.into(),
                            _ => return Poll::Pending,
                        }
                    }
                }
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(context));
        }
    }
}

impl<S: Stream<Item = Played> + Unpin> Player<S> {
    /// Takes the next record that is wanted in hand; answers its timestamp.
    fn poll_next_wanted(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Timestamp, ConsumeError>>> {
        if let Some(record) = &self.next {
            return Poll::Ready(Some(Ok(record.timestamp)));
        }
        for _ in 0..PASSED_OVER_MAX {
            let record = match ready!(Pin::new(&mut self.source).poll_next(context)) {
                Some(Ok(record)) => record,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            let is_wanted = self.filter.is_met_by(&record);
            let mut state = lock(&self.deck.state);
            state.read += 1;
            if is_wanted {
                let timestamp = record.timestamp;
                state.next = Some(timestamp);
                drop(state);
                self.next = Some(record);
                return Poll::Ready(Some(Ok(timestamp)));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Stream<Item = Played> + Unpin> Stream for Player<S> {
    type Item = Played;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Played>> {
        let player = self.get_mut();
        if player.records_left == 0 {
            return Poll::Ready(None);
        }
        let timestamp = match ready!(player.poll_next_wanted(context)) {
            Some(Ok(timestamp)) => timestamp,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        ready!(player.poll_due(timestamp, context));
        player.records_left -= 1;
        Poll::Ready(player.next.take().map(Ok))
    }
}

impl ReplayControl {
    /// Stands still: nothing is handed out, and the recording does not go on.
    pub fn pause(&self) {
        self.change(|tape, now, _| tape.pause(now));
    }

    /// Goes on where it stood still. Steps not yet made are forgotten.
    pub fn resume(&self) {
        self.change(|tape, now, _| tape.resume(now));
    }

    /// Stands still, and hands out so many records more at once. The recording then stands at the last of them.
    pub fn step(&self, records: u64) {
        self.change(|tape, now, _| tape.step(now, records));
    }

    /// Plays at another speed from now on, also where it stands still.
    ///
    /// # Errors
    /// If the speed is not a finite number above 0; the one before stays.
    pub fn set_speed(&self, speed: Speed) -> Result<(), InvalidSpeed> {
        self.change(|tape, now, next| tape.set_speed(now, next, speed))
    }

    /// Where it stands.
    pub fn position(&self) -> ReplayPosition {
        let state = lock(&self.deck.state);
        ReplayPosition {
            timestamp: state.tape.position(Instant::now().into_std(), state.next),
            handed_out: state.handed_out,
            read: state.read,
            speed: state.tape.speed(),
            is_paused: state.tape.is_paused(),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tape, std::time::Instant, Option<Timestamp>) -> T) -> T {
        let mut state = lock(&self.deck.state);
        let next = state.next;
        let changed = change(&mut state.tape, Instant::now().into_std(), next);
        let player = state.player.take();
        drop(state);
        if let Some(player) = player {
            player.wake();
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use futures_util::{StreamExt, stream};
    use quire_protocol::{Offset, PartitionIndex};

    fn record(offset: u64, timestamp: i64) -> ConsumedRecord {
        ConsumedRecord {
            topic: "t".into(),
            partition: PartitionIndex(0),
            offset: Offset(offset),
            timestamp: Timestamp(timestamp),
            key: Some(if offset.is_multiple_of(1000) { "rare".into() } else { "common".into() }),
            value: None,
            headers: Vec::new(),
        }
    }

    /// Records at these times, all of them there at once.
    fn recorded(timestamps: impl IntoIterator<Item = i64>) -> stream::Iter<impl Iterator<Item = Played>> {
        let record = |(offset, timestamp)| Ok(record(offset, timestamp));
        stream::iter((0..).zip(timestamps).map(record))
    }

    fn player<S>(source: S, speed: Speed) -> Player<S> {
        Player::new(source, Tape::new(speed, None).expect("a speed"), Filter::default(), u64::MAX)
    }

    async fn next<S: Stream<Item = Played> + Unpin>(player: &mut Player<S>) -> Option<u64> {
        player.next().await.map(|played| played.expect("a record").offset.0)
    }

    /// Whether nothing more comes for a (virtual) day.
    async fn is_held<S: Stream<Item = Played> + Unpin>(player: &mut Player<S>) -> bool {
        tokio::time::timeout(Duration::from_secs(86_400), player.next()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_records_a_second_come_within_20_ms_of_their_time() {
        for (speed, factor) in [(Speed::Recorded, 1.0), (Speed::Times(10.0), 10.0), (Speed::Times(0.7), 0.7)]
        {
            let mut player = player(recorded(0..60_000), speed);
            let start = Instant::now();
            let mut errors = Vec::new();
            while let Some(offset) = next(&mut player).await {
                let due = start + Duration::from_secs_f64(offset as f64 / 1000.0 / factor);
                errors.push(Instant::now().max(due) - Instant::now().min(due));
            }
            errors.sort_unstable();
            assert_eq!(errors.len(), 60_000);
            let (p99, max) = (errors[59_400], errors[59_999]);
            println!("{speed:?}: p99 {p99:?}, max {max:?}");
            assert!(p99 < Duration::from_millis(20) && max < Duration::from_millis(20), "{p99:?}, {max:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_slow_for_a_while_gets_the_rest_on_time() {
        let mut player = player(recorded((0..100).map(|second| second * 1000)), Speed::Recorded);
        let start = Instant::now();
        for offset in 0..100 {
            assert_eq!(next(&mut player).await, Some(offset));
            let late = start.elapsed() - Duration::from_secs(offset);
            assert!(late < Duration::from_millis(5), "record {offset} is {late:?} late");
            tokio::time::sleep(Duration::from_millis(offset * 9)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_stalled_is_not_made_up_for_by_a_flood() {
        let stalled = stream::once(Box::pin(async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok(record(1, 1000))
        }));
        let source = recorded([0]).chain(stalled).chain(recorded([2000, 3000]));
        let mut player = player(Box::pin(source), Speed::Recorded);
        let mut came = Vec::new();
        let start = Instant::now();
        while next(&mut player).await.is_some() {
            came.push(start.elapsed().as_secs());
        }
        assert_eq!(came, [0, 600, 601, 602]);
    }

    #[tokio::test(start_paused = true)]
    async fn control_reaches_a_player_that_waits() {
        let mut player = player(recorded([0, 3_600_000, 7_200_000, 7_260_000, 7_320_000]), Speed::Recorded);
        let control = player.control();
        assert_eq!(control.position().timestamp, None);
        assert_eq!(next(&mut player).await, Some(0));
        let hurry = async {
            tokio::time::sleep(Duration::from_secs(1800)).await;
            assert_eq!(control.position().timestamp, Some(Timestamp(1_800_000)));
            control.set_speed(Speed::Times(1800.0)).expect("a speed");
        };
        let start = Instant::now();
        let (offset, ()) = tokio::join!(next(&mut player), hurry);
        assert_eq!((offset, start.elapsed().as_secs()), (Some(1), 1801));

        control.pause();
        assert!(is_held(&mut player).await && control.position().is_paused);
        assert_eq!(control.position().timestamp, Some(Timestamp(3_600_000)), "time stands still");
        control.step(1);
        assert_eq!(next(&mut player).await, Some(2));
        assert!(is_held(&mut player).await);
        let step = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            control.step(1);
        };
        assert_eq!(tokio::join!(next(&mut player), step).0, Some(3));
        control.set_speed(Speed::FlatOut).expect("a speed");
        assert!(is_held(&mut player).await, "paused at whatever speed");
        control.resume();
        assert_eq!(next(&mut player).await, Some(4));
        assert_eq!(next(&mut player).await, None);
        let position = control.position();
        assert_eq!((position.handed_out, position.read, position.is_paused), (5, 5, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_passed_over_is_counted_and_not_waited_for_by_itself() {
        let tape = Tape::new(Speed::Recorded, Some(Duration::from_secs(1))).expect("a speed");
        let filter = Filter { keys: vec!["rare".into()], ..Filter::default() };
        let mut player = Player::new(recorded((0..3000).map(|second| second * 1000)), tape, filter, u64::MAX);
        let start = Instant::now();
        let mut came = Vec::new();
        while let Some(offset) = next(&mut player).await {
            came.push((offset, start.elapsed().as_secs()));
        }
        assert_eq!(came, [(0, 0), (1000, 1), (2000, 2)]);
        assert_eq!((player.control().position().handed_out, player.control().position().read), (3, 3000));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_after_as_many_records_as_were_wanted() {
        let tape = Tape::new(Speed::FlatOut, None).expect("a speed");
        let mut player = Player::new(recorded(0..10), tape, Filter::default(), 2);
        let mut came = Vec::new();
        while let Some(offset) = next(&mut player).await {
            came.push(offset);
        }
        assert_eq!(came, [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_comes_at_once_and_the_record_behind_it_when_it_is_due() {
        let failure = ConsumeError::InvalidSettings("a partition is gone".into());
        let source = recorded([0]).chain(stream::iter([Err(failure.clone())])).chain(recorded([5000]));
        let mut player = player(Box::pin(source), Speed::Recorded);
        let start = Instant::now();
        assert_eq!(next(&mut player).await, Some(0));
        assert_eq!(player.next().await, Some(Err(failure)));
        assert_eq!(start.elapsed().as_secs(), 0);
        assert_eq!((next(&mut player).await, start.elapsed().as_secs()), (Some(0), 5));
    }
}
