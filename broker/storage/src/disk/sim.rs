//! A disk in memory that loses, tears and refuses what a real one loses, tears and refuses.
//!
//! ```text
//!   write ──► page cache ──sync_data──► device          a file's bytes and length
//!   rename ─► live names ──sync_dir───► stored names    directory entries
//! ```
//! [`SimDisk::crash`] is a loss of power: of what was not synced, any sectors and any directory changes survive, in any
//! order. [`SimDisk::kill`] is the end of the process alone: the page cache survives. Either way the locks fall, and
//! what the dead process had open answers [`Stopped`]. Everything random comes from one seed; a run that uses one
//! thread can be repeated exactly. Files are never mapped.

mod fault;
mod inode;
mod names;
mod rng;
#[cfg(test)]
mod tests;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::inode::{Inode, WriteOrder};
use self::names::{InodeId, Names};
use self::rng::Rng;
use super::{Disk, DiskFile, OpenMode};
use crate::mmap::Mapping;

pub use self::fault::{CrashOptions, Fault, Stopped, Survival};
pub use self::trace::{Counters, Event, Operation};

/// The simulated disk. Clones are handles of the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    rng: Rng,
    names: Names,
    inodes: BTreeMap<InodeId, Arc<Inode>>,
    /// How many handles of the living process have the file open.
    open: BTreeMap<InodeId, u64>,
    next_inode: u64,
    order: WriteOrder,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    /// Counts the processes that used the disk: handles of an earlier one are dead.
    process: u64,
    failing: Failing,
    is_stopped: bool,
    counters: Counters,
    trace: Vec<Event>,
}

/// Which operation of each kind is to fail, as a value of its counter.
#[derive(Debug, Clone, Default)]
struct Failing {
    syncs: BTreeSet<u64>,
    dir_syncs: BTreeSet<u64>,
    writes: BTreeSet<u64>,
    stop_at: Option<u64>,
    descriptors: Option<u64>,
}

impl SimDisk {
    /// An empty disk without a limit.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::from_state(State {
            rng: Rng::new(seed),
            names: Names::default(),
            inodes: BTreeMap::new(),
            open: BTreeMap::new(),
            next_inode: 0,
            order: WriteOrder::default(),
            locks: BTreeSet::new(),
            capacity: None,
            process: 0,
            failing: Failing::default(),
            is_stopped: false,
            counters: Counters::default(),
            trace: Vec::new(),
        })
    }

    /// A second disk in the same state, page cache included, that nobody uses: for looking at many ways in which this
    /// one could go on. Its chances are its own.
    pub fn fork(&self, seed: u64) -> SimDisk {
        let mut state = self.state().clone();
        state.rng = Rng::new(seed);
        state.trace.clear();
        state.end_process();
        SimDisk::from_state(state)
    }

    /// Sets how many bytes fit; `None`: any number. Files may already hold more.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Makes something go wrong.
    ///
    /// # Panics
    /// If the fault names no file.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state();
        let state = &mut *state;
        let counters = state.counters;
        match fault {
            Fault::WriteBackFails { path } => {
                let inode = state.linked(&path);
                state.fail_write_back(inode);
            }
            Fault::SyncFails { nth } => state.failing.syncs.extend([counters.syncs + nth]),
            Fault::SyncDirFails { nth } => state.failing.dir_syncs.extend([counters.dir_syncs + nth]),
            Fault::WriteFails { nth } => state.failing.writes.extend([counters.writes + nth]),
            Fault::FewDescriptors { count } => state.failing.descriptors = Some(count),
            Fault::ReadFails { path, range } => {
                let inode = state.linked(&path);
                state.inode_mut(inode).make_unreadable(range);
            }
            Fault::StopsAfter { operations } => {
                state.failing.stop_at = Some(counters.operations + operations + 1);
            }
        }
    }

    /// Takes back every fault that has not happened yet, and makes all bytes readable.
    pub fn heal(&self) {
        let mut state = self.state();
        state.failing = Failing::default();
        for inode in state.inodes.values_mut() {
            Arc::make_mut(inode).make_readable();
        }
    }

    /// Loses power. Only what was synced is certain to be there afterwards.
    pub fn crash(&self, options: &CrashOptions) {
        let mut state = self.state();
        let state = &mut *state;
        state.names.lose_power(options.names, &mut state.rng);
        for inode in state.inodes.values_mut().filter(|inode| !inode.is_clean()) {
            Arc::make_mut(inode).lose_power(options.data, &mut state.rng);
        }
        state.end_process();
    }

    /// Ends the process. What it wrote stays, and stays unsynced.
    pub fn kill(&self) {
        self.state().end_process();
    }

    /// Empties the page cache of what needs no write-back: reads see what the device holds, which is less than what
    /// was written if a sync failed.
    pub fn drop_caches(&self) {
        for inode in self.state().inodes.values_mut() {
            Arc::make_mut(inode).evict();
        }
    }

    /// Flips one bit (0 to 7) of the byte at `position` of a file, in the cache and on the device.
    ///
    /// # Panics
    /// If there is no such file, byte or bit.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8) {
        assert!(bit < 8, "a byte has 8 bits");
        let mut state = self.state();
        let inode = state.linked(path);
        let inode = state.inode_mut(inode);
        assert!(position < inode.len(), "{} has no byte {position}", path.display());
        inode.flip(position, bit);
    }

    /// What the disk did so far.
    pub fn counters(&self) -> Counters {
        self.state().counters
    }

    /// The operations since the last call, in order.
    pub fn take_trace(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().trace)
    }

    /// Whether [`Fault::StopsAfter`] has happened.
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    fn from_state(state: State) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation that changes names. One that the stop interrupts is done or not.
    fn change(
        &self,
        operation: Operation,
        apply: impl FnOnce(&mut State) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let ran = match state.begin()? {
            Step::Whole => apply(&mut state),
            Step::Interrupted if state.rng.coin() => apply(&mut state).and(Err(Stopped::error())),
            Step::Interrupted => Err(Stopped::error()),
        };
        state.record(operation, ran)
    }

    fn handle(&self, state: &mut State, inode: InodeId, path: &Path, mode: OpenMode) -> Arc<dyn DiskFile> {
        *state.open.entry(inode).or_default() += 1;
        let is_writable = mode != OpenMode::Read;
        let failures_told = AtomicU64::new(state.inode(inode).failures_told_at_open());
        let (disk, path, process) = (self.clone(), path.to_owned(), state.process);
        Arc::new(SimFile { disk, inode, path, is_writable, failures_told, process })
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.change(Operation::CreateDir(dir.to_owned()), |state| state.names.create_dir_all(dir))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_running()?;
        state.check_descriptors()?;
        state.names.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.state().check_descriptors()?;
        if mode == OpenMode::CreateNew {
            self.change(Operation::Create(path.to_owned()), |state| state.create_file(path))?;
        }
        let mut state = self.state();
        state.check_running()?;
        let inode = state.names.file(path)?;
        Ok(self.handle(&mut state, inode, path, mode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let operation = Operation::Rename(from.to_owned(), to.to_owned());
        self.change(operation, |state| state.names.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(Operation::Remove(path.to_owned()), |state| state.names.remove_file(path))
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(Operation::RemoveDir(dir.to_owned()), |state| state.names.remove_dir(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(Operation::SyncDir(dir.to_owned()), |state| {
            state.check_descriptors()?;
            state.counters.dir_syncs += 1;
            if state.failing.dir_syncs.contains(&state.counters.dir_syncs) {
                return Err(Errno::IO.into());
            }
            state.names.sync_dir(dir)?;
            state.forget_unreachable();
            Ok(())
        })
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state();
        state.check_running()?;
        Ok(state.free())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.change(Operation::Lock(path.to_owned()), |state| {
            if state.names.file(path).is_err() {
                state.create_file(path)?;
            }
            match state.locks.insert(path.to_owned()) {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            }
        })?;
        let process = self.state().process;
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned(), process }))
    }
}

/// What is left to be done of an operation.
enum Step {
    Whole,
    /// The process stops in the middle of it.
    Interrupted,
}

impl State {
    fn check_running(&self) -> io::Result<()> {
        if self.is_stopped { Err(Stopped::error()) } else { Ok(()) }
    }

    fn check_descriptors(&self) -> io::Result<()> {
        let in_use: u64 = self.open.values().sum();
        match self.failing.descriptors {
            Some(count) if in_use >= count => Err(Errno::MFILE.into()),
            _ => Ok(()),
        }
    }

    fn begin(&mut self) -> io::Result<Step> {
        self.check_running()?;
        self.counters.operations += 1;
        self.is_stopped = self.failing.stop_at == Some(self.counters.operations);
        Ok(if self.is_stopped { Step::Interrupted } else { Step::Whole })
    }

    fn record(&mut self, operation: Operation, ran: io::Result<()>) -> io::Result<()> {
        self.trace.push(Event { operation, succeeded: ran.is_ok() });
        ran
    }

    fn end_process(&mut self) {
        self.process += 1;
        self.is_stopped = false;
        self.failing.stop_at = None;
        self.locks.clear();
        self.open.clear();
        self.forget_unreachable();
    }

    fn create_file(&mut self, path: &Path) -> io::Result<()> {
        let inode = InodeId(self.next_inode);
        self.names.create_file(path, inode)?;
        self.next_inode += 1;
        self.inodes.insert(inode, Arc::default());
        Ok(())
    }

    fn inode(&self, inode: InodeId) -> &Inode {
        self.inodes.get(&inode).expect("a file that is open or has a name is kept")
    }

    fn inode_mut(&mut self, inode: InodeId) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&inode).expect("a file that is open or has a name is kept"))
    }

    /// The file of this name, which a test says is there.
    fn linked(&self, path: &Path) -> InodeId {
        self.names.file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn fail_write_back(&mut self, inode: InodeId) {
        let mut rng = self.rng.clone();
        self.inode_mut(inode).fail_write_back(&mut rng);
        self.rng = rng;
    }

    /// Bytes that still fit.
    fn free(&self) -> u64 {
        let Some(capacity) = self.capacity else {
            return u64::MAX;
        };
        capacity.saturating_sub(self.names.linked().map(|inode| self.inode(inode).len()).sum())
    }

    /// How far the file may reach: its length, and what is free behind it.
    fn end_max(&self, inode: InodeId) -> u64 {
        self.inode(inode).len().saturating_add(self.free())
    }

    fn write(&mut self, inode: InodeId, position: u64, bytes: &[u8]) {
        let mut order = self.order;
        self.inode_mut(inode).write(position, bytes, &mut order);
        self.order = order;
    }

    fn extend(&mut self, inode: InodeId, len: u64) {
        let mut order = self.order;
        self.inode_mut(inode).extend(len, &mut order);
        self.order = order;
    }

    fn forget_unreachable(&mut self) {
        let reachable: BTreeSet<_> = self.names.reachable().collect();
        self.inodes.retain(|inode, _| reachable.contains(inode) || self.open.contains_key(inode));
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: InodeId,
    path: PathBuf,
    is_writable: bool,
    /// Of how many failed write-backs of the file this handle was told.
    failures_told: AtomicU64,
    process: u64,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        state.check_running()?;
        if state.process == self.process { Ok(state) } else { Err(Stopped::error()) }
    }

    fn writable_state(&self) -> io::Result<MutexGuard<'_, State>> {
        if self.is_writable { self.state() } else { Err(Errno::BADF.into()) }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.inode(self.inode).len())
    }

    fn read_at(&self, position: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.state()?.inode(self.inode).read(position, buf).ok_or_else(|| Errno::IO.into())
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let len = bytes.len() as u64;
        let mut state = self.writable_state()?;
        let step = state.begin()?;
        state.counters.writes += 1;
        state.counters.bytes_written += len;
        let (kept, ran) = match step {
            Step::Interrupted => (state.rng.below(len + 1), Err(Stopped::error())),
            Step::Whole if state.failing.writes.contains(&state.counters.writes) => {
                (state.rng.below(len), Err(Errno::IO.into()))
            }
            Step::Whole => match state.end_max(self.inode).saturating_sub(position) {
                room if room < len => (room, Err(Errno::NOSPC.into())),
                _ => (len, Ok(())),
            },
        };
        state.write(self.inode, position, &bytes[..kept as usize]);
        state.record(Operation::Write(self.path.clone(), position..position + len), ran)
    }

    fn allocate(&self, end: u64) -> io::Result<()> {
        let mut state = self.writable_state()?;
        let ran = match state.begin()? {
            Step::Whole if end > state.end_max(self.inode) => Err(Errno::NOSPC.into()),
            Step::Whole => {
                state.extend(self.inode, end);
                Ok(())
            }
            Step::Interrupted => {
                if state.rng.coin() && end <= state.end_max(self.inode) {
                    state.extend(self.inode, end);
                }
                Err(Stopped::error())
            }
        };
        state.record(Operation::Allocate(self.path.clone(), end), ran)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let state = &mut *state;
        // A sync that the stop interrupts has covered nothing for certain: the same as none.
        let step = state.begin()?;
        state.counters.syncs += 1;
        let ran = match step {
            Step::Interrupted => Err(Stopped::error()),
            Step::Whole => {
                if state.failing.syncs.contains(&state.counters.syncs) {
                    state.fail_write_back(self.inode);
                }
                let inode = state.inode_mut(self.inode);
                let mut told = self.failures_told.load(Ordering::Relaxed);
                let has_failed = inode.tell_failures(&mut told);
                self.failures_told.store(told, Ordering::Relaxed);
                inode.sync();
                if has_failed { Err(Errno::IO.into()) } else { Ok(()) }
            }
        };
        state.record(Operation::Sync(self.path.clone()), ran)
    }

    fn map(&self, _len: u64) -> io::Result<Option<Mapping>> {
        Ok(None)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.process != self.process {
            return;
        }
        if let Some(count) = state.open.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.inode);
                state.forget_unreachable();
            }
        }
    }
}

/// A lock of the living process.
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    process: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.process == self.process {
            state.locks.remove(&self.path);
        }
    }
}
