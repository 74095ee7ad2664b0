//! Group commit in virtual time: producers that wait for each record share syncs, without a timer.

use quire_storage::disk::Operation;

use super::*;

const RECORDS: usize = 6400;
const TICK: Duration = Duration::from_micros(10);

/// Producers with one record in flight each; in every tick one of those that wait for nothing sends its next.
struct Load {
    rig: Rig,
    streams: Vec<Stream>,
    /// Those without a record in flight, the one that waits longest first.
    free: VecDeque<usize>,
    sent: usize,
    answered: usize,
}

impl Load {
    fn new(producers: usize) -> Load {
        Load {
            rig: Rig::warm(TopicConfig::default()),
            streams: (0..producers).map(|_| Stream::new(Acks::All)).collect(),
            free: (0..producers).collect(),
            sent: 0,
            answered: 0,
        }
    }

    fn find(&self, is_meant: impl Fn(JobKind) -> bool) -> Option<usize> {
        self.rig.job_kinds().into_iter().position(is_meant)
    }

    fn send(&mut self) {
        if self.sent == RECORDS {
            return;
        }
        if let Some(producer) = self.free.pop_front() {
            self.rig.produce(&self.streams[producer], "one in flight");
            self.sent += 1;
        }
    }

    fn take_answers(&mut self) {
        for (producer, stream) in self.streams.iter_mut().enumerate() {
            for outcome in stream.outcomes() {
                outcome.expect("a healthy disk");
                self.free.push_back(producer);
                self.answered += 1;
            }
        }
    }

    /// Runs until everything is answered, with syncs that take so many ticks and everything else at once. Syncs of the
    /// disk a record.
    fn run(mut self, sync_ticks: usize) -> f64 {
        self.rig.disk.take_trace();
        let mut sync_end = None;
        for tick in 0.. {
            while let Some(at) = self.find(|kind| kind != JobKind::Sync) {
                self.rig.run(at);
            }
            if sync_end == Some(tick) {
                let sync = self.find(|kind| kind == JobKind::Sync).expect("it is under way");
                self.rig.run(sync);
                sync_end = None;
            }
            self.take_answers();
            if self.answered == RECORDS {
                break;
            }
            self.send();
            if sync_end.is_none() && self.find(|kind| kind == JobKind::Sync).is_some() {
                sync_end = Some(tick + sync_ticks);
            }
            self.rig.advance(TICK);
            assert!(tick < RECORDS * (sync_ticks + 2), "the load makes progress");
        }
        let trace = self.rig.disk.take_trace();
        let syncs = trace.iter().filter(|event| matches!(event.operation, Operation::Sync(_))).count();
        syncs as f64 / RECORDS as f64
    }
}

#[test]
fn sixty_four_producers_with_one_record_in_flight_each_share_syncs() {
    let shared = Load::new(64).run(16);
    assert!(shared < 0.1, "{shared} syncs a record where each takes as long as 16 arrivals");
    let all = Load::new(64).run(64);
    assert!(all < 0.04, "{all} syncs a record where all others arrive during each");
}

#[test]
fn a_producer_alone_waits_for_a_sync_of_its_own() {
    let alone = Load::new(1).run(16);
    assert!(alone >= 1.0, "{alone} syncs a record: something was acknowledged without one");
}
