//! The simulated disk's directories: what is seen, and what a loss of power leaves.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::Survival;
use super::rng::Rng;

/// A file's number, its own for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InodeId(pub(super) u64);

/// Every name on the disk. The root, `/` and the empty path, is always there.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// What everyone sees.
    live: BTreeMap<PathBuf, Entry>,
    /// What survives a loss of power for certain.
    stored: BTreeMap<PathBuf, Entry>,
    /// What was done since, in order.
    pending: Vec<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(InodeId),
}

/// A change and the directories whose sync it still waits for.
#[derive(Debug, Clone)]
struct Pending {
    change: Change,
    dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
enum Change {
    Add { path: PathBuf, entry: Entry },
    Rename { from: PathBuf, to: PathBuf, entry: Entry },
    Remove { path: PathBuf, entry: Entry },
}

impl Names {
    pub(super) fn create_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        if is_root(dir) || self.live.get(dir) == Some(&Entry::Dir) {
            return Ok(());
        }
        self.create_dir_all(parent(dir))?;
        self.add(dir, Entry::Dir)
    }

    pub(super) fn create_file(&mut self, path: &Path, inode: InodeId) -> io::Result<()> {
        self.check_dir(parent(path))?;
        self.add(path, Entry::File(inode))
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<InodeId> {
        match self.live.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_dir(dir)?;
        let names = self.children(dir).filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.file(from)?;
        self.check_dir(parent(to))?;
        if from == to {
            return Ok(());
        }
        if self.live.get(to) == Some(&Entry::Dir) || is_root(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut dirs = vec![parent(from).to_owned(), parent(to).to_owned()];
        dirs.dedup();
        let entry = Entry::File(inode);
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), entry }, dirs);
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let entry = Entry::File(self.file(path)?);
        self.change(Change::Remove { path: path.to_owned(), entry }, vec![parent(path).to_owned()]);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        if is_root(dir) || self.children(dir).next().is_some() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let change = Change::Remove { path: dir.to_owned(), entry: Entry::Dir };
        self.change(change, vec![parent(dir).to_owned()]);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        for pending in std::mem::take(&mut self.pending) {
            let Pending { change, mut dirs } = pending;
            dirs.retain(|waited_for| waited_for != dir);
            match dirs.is_empty() {
                true => apply(&mut self.stored, &change),
                false => self.pending.push(Pending { change, dirs }),
            }
        }
        Ok(())
    }

    /// Power is lost: changes that were not synced survive up to some point, or any of them that still make sense.
    pub(super) fn lose_power(&mut self, survival: Survival, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len() as u64;
        let (prefix, odds) = match survival {
            Survival::Nothing => (0, 0),
            Survival::Everything => (count, 0),
            // A journal replays up to its last whole transaction.
            Survival::Random if rng.coin() => (rng.below(count + 1), 0),
            Survival::Random => (0, rng.below(9)),
        };
        for (at, Pending { change, .. }) in pending.into_iter().enumerate() {
            if (at as u64) < prefix || rng.below(8) < odds {
                apply(&mut self.stored, &change);
            }
        }
        // A directory that is lost takes along what is in it, however synced. Parents sort before children.
        for (path, entry) in std::mem::take(&mut self.stored) {
            let dir = parent(&path);
            if is_root(dir) || self.stored.get(dir) == Some(&Entry::Dir) {
                self.stored.insert(path, entry);
            }
        }
        self.live = self.stored.clone();
    }

    /// Files that have a name now.
    pub(super) fn linked(&self) -> impl Iterator<Item = InodeId> {
        self.live.values().filter_map(Entry::inode)
    }

    /// Files that have a name now, or may have one after a loss of power.
    pub(super) fn reachable(&self) -> impl Iterator<Item = InodeId> {
        let pending = self.pending.iter().filter_map(|pending| pending.change.entry().inode());
        self.linked().chain(self.stored.values().filter_map(Entry::inode)).chain(pending)
    }

    fn add(&mut self, path: &Path, entry: Entry) -> io::Result<()> {
        if is_root(path) || self.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(Change::Add { path: path.to_owned(), entry }, vec![parent(path).to_owned()]);
        Ok(())
    }

    fn change(&mut self, change: Change, dirs: Vec<PathBuf>) {
        apply(&mut self.live, &change);
        self.pending.push(Pending { change, dirs });
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        match self.live.get(dir) {
            _ if is_root(dir) => Ok(()),
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn children<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        self.live.keys().filter(move |path| parent(path) == dir)
    }
}

impl Entry {
    fn inode(&self) -> Option<InodeId> {
        match self {
            Entry::Dir => None,
            Entry::File(inode) => Some(*inode),
        }
    }
}

impl Change {
    fn entry(&self) -> Entry {
        match self {
            Change::Add { entry, .. } | Change::Rename { entry, .. } | Change::Remove { entry, .. } => *entry,
        }
    }
}

/// Makes a change, unless what it builds on is not there: then it is lost with that.
fn apply(names: &mut BTreeMap<PathBuf, Entry>, change: &Change) {
    match change {
        Change::Add { path, entry } => {
            names.entry(path.clone()).or_insert(*entry);
        }
        Change::Rename { from, to, entry } if names.get(from) == Some(entry) => {
            names.remove(from);
            names.insert(to.clone(), *entry);
        }
        Change::Remove { path, entry } if names.get(path) == Some(entry) => {
            names.remove(path);
        }
        Change::Rename { .. } | Change::Remove { .. } => {}
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}
