//! How fast a replica that is not in sync is sent what it lacks.

use bytes::Bytes;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};

use super::suspects::{OTHER, asked, replicated};
use super::*;

const BYTES_PER_SECOND: u64 = 100_000;
/// What the leader of a replica without a pace may send ahead.
const CREDIT: u64 = limits::FETCH_CREDIT_BYTES_MAX as u64;

fn paced() -> TopicConfig {
    TopicConfig { catch_up_bytes_per_second: Some(BYTES_PER_SECOND), ..TopicConfig::default() }
}

/// A leader's frames, of about 50 kB each.
fn frames(count: usize) -> Vec<Bytes> {
    let mut rig = Rig::new(TopicConfig::default());
    let stream = Stream::new(Acks::All);
    for _ in 0..count {
        rig.produce(&stream, &"x".repeat(50_000));
        rig.run_all();
    }
    let slice = rig.handle().reader().read(Offset::ZERO, usize::MAX, Offset(count as u64), Residency::Any);
    let mut frames = Vec::new();
    for mut rest in slice.expect("all is there").frames {
        while !rest.is_empty() {
            frames.push(rest.split_to(FrameHeader::parse(&rest).expect("whole frames").frame_len()));
        }
    }
    frames
}

struct Follower {
    rig: Rig,
    uplink: Arc<Uplink>,
    slot: u32,
}

impl Follower {
    /// A replica that has nothing yet, whose leader has accepted that it follows and may send nothing so far.
    fn start(config: TopicConfig) -> Follower {
        let mut rig = Rig::unopened(SimDisk::new(2), config.clone(), LeaderEpoch(1));
        rig.shared.configure(Arc::new(replicated(Some(OTHER), 1, false)), Arc::new(config));
        rig.open();
        let uplink = rig.shard.take_outgoing().into_iter().find_map(|outgoing| match outgoing {
            Outgoing::Connect(uplink) => Some(uplink),
            _ => None,
        });
        let uplink = uplink.expect("it follows");
        rig.apply(Event::LinkUp { leader: OTHER });
        let asked = asked(&uplink).expect("it asks");
        assert_eq!(asked.credit, 0, "what may be sent at once is to be earned too");
        let slot = asked.slot;
        let mut follower = Follower { rig, uplink, slot };
        let (from, high_watermark, log_start) = (Offset::ZERO, Offset::ZERO, Offset::ZERO);
        follower.told(LeaderMessage::Accepted { slot, from, high_watermark, log_start }, Vec::new());
        follower
    }

    fn told(&mut self, message: LeaderMessage, frames: Vec<Bytes>) {
        self.rig.apply(Event::Told { leader: OTHER, message, frames: Fetched(frames) });
        self.rig.run_all();
    }

    /// The leader sends these frames; how many bytes they are.
    fn fetch(&mut self, frames: &[Bytes]) -> u64 {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let (high_watermark, log_start) = (Offset::ZERO, Offset::ZERO);
        let (slot, length) = (self.slot, bytes as u32);
        self.told(LeaderMessage::Frames { slot, length, high_watermark, log_start }, frames.to_vec());
        bytes as u64
    }

    /// What the leader was told since the last look that it may send on.
    fn granted(&self) -> u64 {
        let credit = |message| match message {
            FollowerMessage::Progress(vector) => vector.iter().map(|entry| u64::from(entry.credit)).sum(),
            _ => 0,
        };
        self.uplink.take().into_iter().map(credit).sum()
    }

    fn configure(&mut self, is_counted: bool, config: TopicConfig) {
        let assignment = Arc::new(replicated(Some(OTHER), 1, is_counted));
        self.rig.apply(Event::Configure { partition: PARTITION, assignment, config: Arc::new(config) });
        self.rig.run_all();
    }
}

#[test]
fn a_copy_takes_as_long_as_its_pace_wants() {
    let frames = frames(8);
    let mut follower = Follower::start(paced());
    let began = follower.rig.now.time;
    let (sent, mut granted, mut rounds) = (CREDIT + follower.fetch(&frames), follower.granted(), 0);
    assert_eq!(granted, 0, "nothing is earned yet");
    while granted < sent {
        let due = follower.rig.shard.deadline().expect("it waits to go on");
        assert!(due > follower.rig.now.time, "the shard would spin");
        follower.rig.advance(due.since(follower.rig.now.time));
        follower.rig.round([]);
        follower.rig.run_all();
        granted += follower.granted();
        rounds += 1;
        let earned = follower.rig.now.time.since(began).as_micros() as u64 * BYTES_PER_SECOND / 1_000_000;
        assert!(granted <= earned + 1, "{granted} bytes where {earned} are earned");
    }
    let took = follower.rig.now.time.since(began);
    let expected = Duration::from_micros(sent * 1_000_000 / BYTES_PER_SECOND);
    assert!(took >= expected && took < expected + Duration::from_millis(200), "{took:?} for {sent} bytes");
    assert!(rounds <= 2 * (sent / (BYTES_PER_SECOND / 10)), "{rounds} words to the leader");
}

#[test]
fn who_is_in_sync_or_has_no_pace_goes_on_at_once() {
    let frames = frames(9);
    for (is_counted, config) in [(true, paced()), (false, TopicConfig::default())] {
        let mut follower = Follower::start(paced());
        let sent = CREDIT + follower.fetch(&frames[..8]);
        assert_eq!(follower.granted(), 0);
        follower.configure(is_counted, config);
        let sent = sent + follower.fetch(&frames[8..]);
        assert_eq!(follower.granted(), sent);
    }
}
