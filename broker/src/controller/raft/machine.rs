//! What the log's engine applies entries to, and takes snapshots of: the controller, in memory. A restarted node has it
//! from its snapshot and what was committed since.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::LogIdOf;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use quire_engine::controller::Image;
use quire_engine::controller::proposals::Leadership;

use super::driver::SharedDriver;
use super::files::Files;
use super::types::{Decision, LogId, Snapshot, SnapshotMeta, StoredMembership, Types, term_of};
use super::wire::{self as convert, Captured};

/// The newest snapshot, in memory and on disk.
type Newest = Arc<Mutex<Option<Snapshot>>>;

/// The controller as the engine sees it.
#[derive(Debug)]
pub(crate) struct StateMachine {
    driver: SharedDriver,
    files: Files,
    newest: Newest,
}

impl StateMachine {
    /// One that has applied nothing; the engine gives it `snapshot` back, and the entries behind it.
    pub(super) fn new(driver: SharedDriver, files: Files, snapshot: Option<Snapshot>) -> StateMachine {
        StateMachine { driver, files, newest: Arc::new(Mutex::new(snapshot)) }
    }
}

/// A snapshot as it was stored or sent.
pub(super) fn read_snapshot(bytes: Bytes) -> Result<Snapshot, convert::Malformed> {
    let captured = convert::to_captured(&bytes)?;
    Ok(Snapshot { meta: captured.meta, snapshot: bytes })
}

/// Keeps a snapshot unless a newer one is kept already: one that was long in the making must not take the place of one
/// that came from the leader meanwhile. Blocks on the disk.
fn keep(files: &Files, newest: &Newest, snapshot: Snapshot) -> io::Result<()> {
    let mut newest = newest.lock().expect("nobody panics while holding it");
    if newest.as_ref().is_some_and(|kept| kept.meta.last_log_id >= snapshot.meta.last_log_id) {
        return Ok(());
    }
    files.store_snapshot(&snapshot.snapshot)?;
    *newest = Some(snapshot);
    Ok(())
}

async fn keep_blocking(files: &Files, newest: &Newest, snapshot: Snapshot) -> io::Result<()> {
    let (files, newest) = (files.clone(), Arc::clone(newest));
    let kept = tokio::task::spawn_blocking(move || keep(&files, &newest, snapshot)).await;
    kept.map_err(|_| io::Error::other("the snapshot's thread is gone"))?
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<Types>>, StoredMembership), io::Error> {
        let (last, membership, ..) = self.driver.lock().expect("nobody panics while holding it").state();
        Ok((last, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let (decision, membership) = match entry.payload {
                EntryPayload::Normal(Decision(decision)) => (Some(Arc::unwrap_or_clone(decision)), None),
                EntryPayload::Membership(membership) => (None, Some(membership)),
                EntryPayload::Blank => (None, None),
            };
            {
                let mut driver = self.driver.lock().expect("nobody panics while holding it");
                if let Some(membership) = membership {
                    driver.set_membership(StoredMembership::new(Some(entry.log_id), membership));
                }
                let leadership = Leadership(term_of(&entry.log_id));
                driver.commit(entry.log_id, leadership, decision).map_err(|conflict| {
                    let what = format!("entry {} contradicts those before it: {conflict}", entry.log_id);
                    io::Error::other(what)
                })?;
            }
            // Without an answer whoever waits would wait for ever.
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (last, membership, position, image) =
            self.driver.lock().expect("nobody panics while holding it").state();
        let meta = SnapshotMeta { last_log_id: last, last_membership: membership };
        let (files, newest) = (self.files.clone(), Arc::clone(&self.newest));
        Builder { meta, position, image, files, newest }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let captured = convert::to_captured(&snapshot).map_err(io::Error::other)?;
        let image = Image::decode_snapshot(&captured.image).map_err(io::Error::other)?;
        if captured.meta != *meta {
            return Err(io::Error::other("the snapshot is another than was announced"));
        }
        let stored = Snapshot { meta: captured.meta, snapshot };
        keep_blocking(&self.files, &self.newest, stored).await?;
        let mut driver = self.driver.lock().expect("nobody panics while holding it");
        driver.install(meta.last_log_id, meta.last_membership.clone(), captured.position, Arc::new(image));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.newest.lock().expect("nobody panics while holding it").clone())
    }
}

/// A snapshot in the making: the state when it was asked for.
#[derive(Debug)]
pub(crate) struct Builder {
    meta: SnapshotMeta,
    position: quire_engine::controller::proposals::Position,
    image: Arc<Image>,
    files: Files,
    newest: Newest,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let image = Bytes::from(self.image.encode_snapshot());
        let captured = Captured { meta: self.meta.clone(), position: self.position, image };
        let bytes = Bytes::from(convert::from_captured(&captured).encode_to_vec());
        let snapshot = Snapshot { meta: captured.meta, snapshot: bytes };
        keep_blocking(&self.files, &self.newest, snapshot.clone()).await?;
        Ok(snapshot)
    }
}

/// Whether a snapshot's end lies before what was purged: the entries in between are in neither.
pub(super) fn leaves_a_hole(snapshot: Option<&LogId>, purged: Option<&LogId>) -> bool {
    purged.is_some_and(|purged| snapshot.is_none_or(|last| last.index < purged.index))
}
