//! A broker's heartbeats to the active controller, on the control runtime, so that no load keeps them waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quire_engine::Time;
use quire_protocol::rpc::peer::{HeartbeatRequest, request, response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::pulse::{Outcome, Pulse, Standing};
use crate::controller::Metadata;
use crate::net::peers::Peers;

/// What heartbeats are sent with.
pub(super) struct Heartbeats {
    pub(super) metadata: Arc<dyn Metadata>,
    pub(super) peers: Peers,
    pub(super) interval: Duration,
    pub(super) session: Duration,
    /// The registration to speak for; none while there is none.
    pub(super) registration: watch::Receiver<Option<u64>>,
}

/// What others see of them, and can ask of them.
#[derive(Debug, Clone)]
pub(super) struct HeartbeatHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wants_drain: watch::Sender<bool>,
    standing: watch::Sender<Standing>,
    /// The last registration that the controller does not know as this broker's.
    stale: watch::Sender<Option<u64>>,
    is_heard: watch::Sender<bool>,
    /// The broker was removed, and that was said.
    is_removed: AtomicBool,
}

impl HeartbeatHandle {
    pub(super) fn new() -> HeartbeatHandle {
        let fenced = Standing { is_fenced: true, may_stop: false };
        let shared = Shared {
            wants_drain: watch::Sender::new(false),
            standing: watch::Sender::new(fenced),
            stale: watch::Sender::new(None),
            is_heard: watch::Sender::new(true),
            is_removed: AtomicBool::new(false),
        };
        HeartbeatHandle { shared: Arc::new(shared) }
    }

    /// Has leaderships move away; returns once the broker may stop.
    pub(super) async fn drain(&self) {
        self.shared.wants_drain.send_replace(true);
        let _ = self.shared.standing.subscribe().wait_for(|standing| standing.may_stop).await;
    }

    /// Whether the controller heard the broker within a session: if not, what it knows of the metadata may be old.
    pub(super) fn is_heard(&self) -> watch::Receiver<bool> {
        self.shared.is_heard.subscribe()
    }

    /// Returns once the controller takes the broker for there.
    pub(super) async fn unfenced(&self) {
        let _ = self.shared.standing.subscribe().wait_for(|standing| !standing.is_fenced).await;
    }

    /// Returns when this registration turns out to be superseded, or gone.
    pub(super) async fn stale(&self, registration: &watch::Sender<Option<u64>>) {
        let mut stale = self.shared.stale.subscribe();
        // The sender is this handle's own.
        let _ = stale.wait_for(|stale| stale.is_some() && *stale == *registration.borrow()).await;
        self.shared.stale.send_replace(None);
    }

    /// The controller does not know this registration as this broker's.
    pub(super) fn is_stale(&self, registration: u64) {
        self.shared.stale.send_replace(Some(registration));
    }
}

/// Sends heartbeats for as long as it is let run.
pub(super) async fn run(heartbeats: Heartbeats, handle: HeartbeatHandle) {
    let origin = Instant::now();
    let now = || Time::after_origin(origin.elapsed());
    let mut registration = heartbeats.registration.clone();
    let mut drain = handle.shared.wants_drain.subscribe();
    if registration.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut pulse = Pulse::new(now(), heartbeats.interval, heartbeats.session);
    let mut has_lapsed = false;
    loop {
        let due = pulse.deadline().expect("none is under way here");
        tokio::select! {
            () = tokio::time::sleep_until(origin + due.since(Time::ZERO)) => {}
            changed = drain.changed() => match changed {
                Ok(()) => pulse.hurry(now()),
                Err(_) => return,
            },
        }
        let sent = now();
        if !pulse.begin(sent) {
            continue;
        }
        let wants_drain = *drain.borrow_and_update();
        let outcome = heartbeats.send(pulse.patience(), wants_drain, &handle).await;
        pulse.ended(now(), sent, outcome);
        handle.shared.standing.send_if_modified(|shown| {
            let is_news = *shown != pulse.standing();
            *shown = pulse.standing();
            is_news
        });
        if pulse.has_lapsed(now()) != has_lapsed {
            has_lapsed = !has_lapsed;
            handle.shared.is_heard.send_replace(!has_lapsed);
            match has_lapsed {
                true => tracing::warn!(
                    session = ?heartbeats.session,
                    "no controller hears this broker: it may be fenced; what it has is served on"
                ),
                false => tracing::info!("the controller hears this broker"),
            }
        }
    }
}

impl Heartbeats {
    async fn send(&self, patience: Duration, wants_drain: bool, handle: &HeartbeatHandle) -> Outcome {
        let Some(epoch) = *self.registration.borrow() else { return Outcome::Lost };
        let quorum = self.metadata.quorum();
        let Some((_, controller)) = quorum.leader else { return Outcome::Elsewhere };
        let beat = HeartbeatRequest { broker_epoch: epoch, applied: quorum.applied, wants_drain };
        let body = request::Body::Heartbeat(beat);
        let answer = match self.peers.call(controller, body, patience).await {
            Ok(response::Body::Heartbeat(answer)) => answer,
            Ok(_) => return Outcome::Lost,
            Err(error) => {
                tracing::debug!(%error, "a heartbeat was lost");
                return Outcome::Lost;
            }
        };
        if answer.is_elsewhere {
            return Outcome::Elsewhere;
        }
        if answer.is_removed && !handle.shared.is_removed.swap(true, Ordering::Relaxed) {
            tracing::error!("this broker was removed from the cluster: it serves nothing any more, stop it");
        }
        if answer.is_stale {
            handle.is_stale(epoch);
            return Outcome::Lost;
        }
        Outcome::Accepted(Standing { is_fenced: answer.is_fenced, may_stop: answer.may_stop })
    }
}
