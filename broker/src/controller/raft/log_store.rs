//! The journal as the engine sees it: entries are there as soon as they are handed over, and durable when it is told.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::LogIdOf;
use openraft::{LogState, OptionalSend, RaftLogReader};
use prost::Message;
use quire_protocol::limits;
use quire_protocol::rpc::raft as wire;
use tokio::sync::oneshot;

use super::journal::{Command, Contents, Done, JournalHandle, gone};
use super::types::{Entry, Types, Vote};
use super::wire as convert;

/// The log of this node.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    state: Arc<Mutex<State>>,
    journal: JournalHandle,
}

#[derive(Debug)]
struct State {
    contents: Contents,
    vote: Option<Vote>,
}

impl LogStore {
    pub(super) fn new(journal: JournalHandle, contents: Contents, vote: Option<Vote>) -> LogStore {
        LogStore { state: Arc::new(Mutex::new(State { contents, vote })), journal }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    async fn write(&self, record: wire::JournalRecord) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Write { records: vec![record], done: Done::Caller(done) };
        self.journal.send(command).await?;
        is_done.await.map_err(|_| gone())?
    }

    /// The entries of a range, the first of them whatever its length, and no more bytes than that.
    fn entries(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Vec<Entry> {
        let state = self.state();
        let (start, end) = (range.start_bound().cloned(), range.end_bound().cloned());
        let is_empty = match (start, end) {
            (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            _ => false,
        };
        if is_empty {
            return Vec::new();
        }
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        for (entry, len) in state.contents.entries.range((start, end)).map(|(_, entry)| entry) {
            bytes = bytes.saturating_add(*len);
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        taken
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.entries(range, usize::MAX))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.entries(start..end, limits::RAFT_APPEND_BYTES))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.state();
        let contents = &state.contents;
        Ok(LogState { last_purged_log_id: contents.purged, last_log_id: contents.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, is_done) = oneshot::channel();
        self.journal.send(Command::Vote { vote: *vote, done }).await?;
        is_done.await.map_err(|_| gone())??;
        self.state().vote = Some(*vote);
        Ok(())
    }

    /// Written with what is appended next: until then a restart only has to hear of it again.
    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        self.state().contents.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<Types>>, io::Error> {
        Ok(self.state().contents.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut state = self.state();
            let committed = state.contents.committed.as_ref().map(convert::from_log_id);
            for entry in entries {
                let stored = convert::from_entry(&entry);
                let len = stored.encoded_len();
                state.contents.append(entry, len).map_err(io::Error::other)?;
                let body = Some(wire::journal_record::Body::Appended(stored));
                records.push(wire::JournalRecord { body, committed });
            }
        }
        self.journal.send(Command::Write { records, done: Done::Engine(callback) }).await
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        self.state().contents.truncate(last.as_ref());
        let cut = wire::Truncated { last: last.as_ref().map(convert::from_log_id) };
        let body = Some(wire::journal_record::Body::Truncated(cut));
        self.write(wire::JournalRecord { body, committed: None }).await
    }

    async fn purge(&mut self, last: LogIdOf<Types>) -> Result<(), io::Error> {
        self.state().contents.purge(last);
        let body = Some(wire::journal_record::Body::Purged(convert::from_log_id(&last)));
        self.write(wire::JournalRecord { body, committed: None }).await
    }
}
