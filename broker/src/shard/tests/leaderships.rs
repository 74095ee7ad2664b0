//! A leadership that ends, and what becomes of batches that were not answered in it.

use quire_engine::replication::Replica;
use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage, Progress};

use super::*;
use crate::handlers::replicate::feed::{Feed, Next, Requests};

const OTHER: BrokerId = BrokerId(1);
const THIRD: BrokerId = BrokerId(2);

/// Led by this broker, which is in sync with one other.
fn led(leader_epoch: u32, replicas: &[BrokerId]) -> Assignment {
    let mut assignment = Assignment::alone(BrokerId(0), LeaderEpoch(leader_epoch));
    let replica = Replica { broker_epoch: 1, is_eligible: true };
    assignment.membership.replicas.extend(replicas.iter().map(|broker| (*broker, replica)));
    assignment.membership.in_sync.insert(OTHER);
    assignment.membership.partition_epoch = leader_epoch;
    assignment
}

fn follow(leader_epoch: u32, last_epoch: u32, end: Offset) -> Follow {
    Follow {
        slot: 1,
        partition: PARTITION,
        leader_epoch: LeaderEpoch(leader_epoch),
        broker_epoch: 1,
        last_epoch: Some(LeaderEpoch(last_epoch)),
        end,
        credit: 1 << 20,
    }
}

impl Rig {
    /// Leads three replicas, of which one is in sync with it and says nothing; its log has space.
    fn leading_three() -> Rig {
        let mut rig = Rig::warm(TopicConfig::default());
        rig.assign(led(2, &[OTHER, THIRD]));
        rig
    }

    fn assign(&mut self, assignment: Assignment) {
        let config = self.shared.config();
        self.apply(Event::Configure { partition: PARTITION, assignment: Arc::new(assignment), config });
        self.run_all();
    }

    /// The other replica follows, and has everything on disk.
    fn follows_with_all(&mut self, leader_epoch: u32, last_epoch: u32) {
        let link = Arc::new(Downlink::new(OTHER));
        let end = self.handle().reader().end_offset();
        self.apply(Event::Follow { link: Arc::clone(&link), follow: follow(leader_epoch, last_epoch, end) });
        let ends = quire_engine::replication::Progress { log_end: end, durable_end: end };
        let entries = vec![SlotProgress { partition: PARTITION, slot: 1, ends }];
        self.apply(Event::Progress { link, entries });
    }
}

/// A replica that moves away ends the leadership. All that its leader had not acknowledged yet was reported as lost then, by the
/// very leader that went on to commit it.
#[test]
fn who_leads_on_acknowledges_what_it_appended_before() {
    let mut rig = Rig::leading_three();
    let (mut stream, mut other) = (Stream::new(Acks::All), Stream::new(Acks::All));
    let late = rig.request(&stream, "third");
    rig.produce(&stream, "first");
    rig.produce(&other, "second");
    rig.run_all();
    rig.assign(led(3, &[OTHER]));
    assert!(rig.handle().standing().is_leading);
    // Its stream is of the leadership before: it is refused, and that waits behind what the stream was not told yet.
    rig.apply(late);
    rig.follows_with_all(2, 2);
    assert_eq!((stream.outcomes(), other.outcomes()), (vec![], vec![]), "nobody follows in this leadership");
    rig.follows_with_all(3, 2);
    assert_eq!(stream.outcomes(), [Ok(1), Err(ErrorCode::FencedLeaderEpoch)]);
    assert_eq!(other.outcomes(), [Ok(2)]);
    assert_eq!((rig.read(), rig.memory_in_use()), (vec![0, 1, 2], 0));
    let mut next = Stream::new(Acks::All);
    rig.produce(&next, "third");
    rig.run_all();
    rig.follows_with_all(3, 3);
    assert_eq!(next.outcomes(), [Ok(3)]);
}

#[test]
fn what_waits_for_space_when_a_leadership_ends_is_refused_once_and_in_its_turn() {
    let mut rig = Rig::leading_three();
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "appended");
    rig.run_all();
    rig.disk.set_capacity(Some(300_000));
    let late = rig.request(&stream, "late");
    rig.produce(&stream, &"x".repeat(400_000));
    rig.produce(&stream, "behind it");
    assert_eq!(rig.handle().reader().end_offset(), Offset(2), "they wait for space");
    rig.assign(led(3, &[OTHER]));
    rig.apply(late);
    assert_eq!(stream.outcomes(), []);
    rig.follows_with_all(3, 2);
    let refused = Err(ErrorCode::FencedLeaderEpoch);
    assert_eq!(stream.outcomes(), [Ok(1), refused, refused], "and what came after that is not awaited");
    assert_eq!(rig.memory_in_use(), 0);
}

/// Another registration may have been in between: nobody says that the log is what it was to others.
#[test]
fn what_was_appended_in_another_registration_is_not_acknowledged() {
    let mut rig = Rig::leading_three();
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "first");
    rig.run_all();
    let mut anew = led(3, &[OTHER]);
    anew.broker_epoch = 2;
    rig.assign(anew);
    assert_eq!(stream.outcomes(), [Err(ErrorCode::LeadershipLost)]);
}

#[test]
fn what_another_leads_on_with_is_lost_here() {
    let mut rig = Rig::leading_three();
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "first");
    rig.run_all();
    let mut elsewhere = led(3, &[OTHER]);
    elsewhere.leader = Some(OTHER);
    rig.assign(elsewhere);
    assert_eq!(stream.outcomes(), [Err(ErrorCode::LeadershipLost)]);
}

/// A follower that is to be sent nothing at once, since its topic is copied at a pace, was never answered.
#[test]
fn a_follower_without_credit_is_answered_and_sent_nothing_before_it_grants_some() {
    let mut rig = Rig::leading_three();
    rig.produce(&Stream::new(Acks::All), "first");
    rig.run_all();
    let link = Arc::new(Downlink::new(OTHER));
    let (mut requests, mut feed) = (Requests::new(Arc::clone(&link)), Feed::new(link));
    let mut heard = |rig: &mut Rig, message| {
        let events = requests.take(message, 1, |_| 0).expect("it follows one partition");
        events.into_iter().for_each(|(_, event)| rig.apply(event));
        rig.run_all();
        feed.take(|_| Some(rig.handle()));
        std::iter::from_fn(|| feed.next()).collect::<Vec<_>>()
    };
    let asked = Follow { credit: 0, last_epoch: None, ..follow(2, 1, Offset::ZERO) };
    let sent = heard(&mut rig, FollowerMessage::Follow(asked));
    let accepted = |next: &Next| matches!(next, Next::Send { message: LeaderMessage::Accepted { .. }, .. });
    assert!(sent.len() == 1 && accepted(&sent[0]), "{sent:?}");
    let ends = (Offset::ZERO, Offset::ZERO);
    let granted = Progress { slot: asked.slot, credit: 10_000, log_end: ends.0, durable_end: ends.1 };
    let sent = heard(&mut rig, FollowerMessage::Progress(vec![granted]));
    let frames = |next: &Next| matches!(next, Next::Send { message: LeaderMessage::Frames { .. }, .. });
    assert!(sent.iter().any(frames), "{sent:?}");
}

/// What was accepted and not sent yet when the leadership ended was sent on in the next one, for which nobody had compared logs.
#[test]
fn what_was_accepted_in_one_leadership_is_not_sent_in_the_next() {
    let mut rig = Rig::leading_three();
    let link = Arc::new(Downlink::new(OTHER));
    link.grant([(1, 1 << 20)].into_iter());
    rig.apply(Event::Follow { link: Arc::clone(&link), follow: follow(2, 1, Offset(1)) });
    rig.produce(&Stream::new(Acks::All), "second");
    rig.run_all();
    rig.assign(led(3, &[OTHER]));
    let mut feed = Feed::new(link);
    feed.take(|_| Some(rig.handle()));
    let sent = std::iter::from_fn(|| feed.next()).map(|next| match next {
        Next::Send { message, .. } => message,
        other => panic!("{other:?}"),
    });
    let sent: Vec<_> = sent.collect();
    assert!(matches!(sent[0], LeaderMessage::Accepted { from: Offset(1), .. }), "{sent:?}");
    assert_eq!(sent[1..], [LeaderMessage::Refused { slot: 1, code: ErrorCode::NotLeader }]);
}
