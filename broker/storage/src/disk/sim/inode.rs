//! One file of the simulated disk: what the page cache shows, and what the device holds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::Survival;
use super::rng::Rng;

/// What a device writes whole or not at all (bytes).
const SECTOR_LEN: usize = 512;

type Sector = Arc<[u8; SECTOR_LEN]>;

/// A file's content. Sectors that are in no map are zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// Length that reads see (bytes).
    len: u64,
    /// What reads see: the page cache.
    cached: BTreeMap<u64, Sector>,
    /// Length that the device knows (bytes).
    stored_len: u64,
    /// What the device holds.
    stored: BTreeMap<u64, Sector>,
    /// Every content a sector had since it was last clean, in write order: the device may hold any of them.
    dirty: BTreeMap<u64, Vec<(WriteOrder, Sector)>>,
    /// Every length the file had since its length was last clean.
    dirty_lens: Vec<(WriteOrder, u64)>,
    /// Whether a sync failed, so that the cache may show what the device does not hold.
    is_diverged: bool,
    /// Counts failed write-backs.
    failures: u64,
    /// Whether someone was told of the last failed write-back.
    is_failure_told: bool,
    /// Bytes that the device can not read.
    unreadable: Vec<Range<u64>>,
}

/// Counts sector writes and length changes over the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct WriteOrder(u64);

impl WriteOrder {
    fn next(&mut self) -> WriteOrder {
        self.0 += 1;
        *self
    }
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Copies at most `buf.len()` bytes from `position` on; `None` if the device can not read them.
    pub(super) fn read(&self, position: u64, buf: &mut [u8]) -> Option<usize> {
        let len = self.len.saturating_sub(position).min(buf.len() as u64);
        let range = position..position + len;
        if self.unreadable.iter().any(|bad| bad.start < range.end && range.start < bad.end) {
            return None;
        }
        for (number, within, part) in sectors(&range) {
            let to = &mut buf[part];
            match self.cached.get(&number) {
                Some(sector) => to.copy_from_slice(&sector[within]),
                None => to.fill(0),
            }
        }
        Some(len as usize)
    }

    pub(super) fn write(&mut self, position: u64, bytes: &[u8], order: &mut WriteOrder) {
        let range = position..position + bytes.len() as u64;
        for (number, within, part) in sectors(&range) {
            let sector = self.cached.entry(number).or_insert_with(zeros);
            Arc::make_mut(sector)[within].copy_from_slice(&bytes[part]);
            self.dirty.entry(number).or_default().push((order.next(), Arc::clone(sector)));
        }
        if !bytes.is_empty() {
            self.extend(range.end, order);
        }
    }

    /// Makes the file at least `len` bytes long.
    pub(super) fn extend(&mut self, len: u64, order: &mut WriteOrder) {
        if len > self.len {
            self.len = len;
            self.dirty_lens.push((order.next(), len));
        }
    }

    /// A successful sync.
    pub(super) fn sync(&mut self) {
        self.store_dirty(|versions| versions.last().cloned());
        self.dirty_lens.clear();
        self.stored_len = self.len;
    }

    /// A write-back that fails, as on Linux: some sectors arrive, the others count as clean though the device does not
    /// hold them, so that no later sync writes them.
    pub(super) fn fail_write_back(&mut self, rng: &mut Rng) {
        self.is_diverged = true;
        self.failures += 1;
        self.is_failure_told = false;
        self.store_dirty(|versions| versions.last().filter(|_| rng.coin()).cloned());
    }

    /// What a handle opened now has been told of: all, but for a last failure that nobody was told of yet.
    pub(super) fn failures_told_at_open(&self) -> u64 {
        if self.is_failure_told { self.failures } else { self.failures.saturating_sub(1) }
    }

    /// Tells a handle of failed write-backs, of which it was `told` so far; whether that is news. Each handle hears of
    /// a failure once, and then never again.
    pub(super) fn tell_failures(&mut self, told: &mut u64) -> bool {
        let is_news = *told < self.failures;
        *told = self.failures;
        self.is_failure_told |= is_news;
        is_news
    }

    /// Clean sectors leave the page cache: reads see what the device holds.
    pub(super) fn evict(&mut self) {
        self.cached.retain(|number, _| self.dirty.contains_key(number));
        for (number, sector) in &self.stored {
            self.cached.entry(*number).or_insert_with(|| Arc::clone(sector));
        }
    }

    /// Whether the device holds what the cache shows.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.dirty_lens.is_empty() && !self.is_diverged
    }

    /// Power is lost: what was not synced survives in part, or not at all.
    pub(super) fn lose_power(&mut self, survival: Survival, rng: &mut Rng) {
        match survival {
            Survival::Nothing => self.dirty.clear(),
            Survival::Everything => self.sync(),
            Survival::Random if rng.coin() => self.keep_prefix(rng),
            Survival::Random => self.keep_subset(rng),
        }
        self.dirty_lens.clear();
        self.len = self.stored_len;
        self.cut_stored();
        self.cached = self.stored.clone();
        self.is_diverged = false;
    }

    /// Flips a bit, wherever the byte is held.
    pub(super) fn flip(&mut self, position: u64, bit: u8) {
        let (number, within) = (position / SECTOR_LEN as u64, (position % SECTOR_LEN as u64) as usize);
        for sectors in [&mut self.cached, &mut self.stored] {
            Arc::make_mut(sectors.entry(number).or_insert_with(zeros))[within] ^= 1 << bit;
        }
        for (_, sector) in self.dirty.get_mut(&number).into_iter().flatten() {
            Arc::make_mut(sector)[within] ^= 1 << bit;
        }
    }

    pub(super) fn make_unreadable(&mut self, range: Range<u64>) {
        self.unreadable.push(range);
    }

    pub(super) fn make_readable(&mut self) {
        self.unreadable.clear();
    }

    /// The device went through the writes in order, and got this far.
    fn keep_prefix(&mut self, rng: &mut Rng) {
        let orders = self.dirty.values().flatten().map(|(order, _)| *order);
        let orders: Vec<_> = orders.chain(self.dirty_lens.iter().map(|(order, _)| *order)).collect();
        let (Some(first), Some(last)) = (orders.iter().min(), orders.iter().max()) else {
            return;
        };
        let cut = WriteOrder(first.0 - 1 + rng.below(last.0 - first.0 + 2));
        self.store_dirty(|versions| versions.iter().rev().find(|(order, _)| *order <= cut).cloned());
        if let Some((_, len)) = self.dirty_lens.iter().rev().find(|(order, _)| *order <= cut) {
            self.stored_len = *len;
        }
    }

    /// The device wrote sectors in any order, each with any content it had.
    fn keep_subset(&mut self, rng: &mut Rng) {
        let odds = rng.below(9);
        self.store_dirty(|versions| {
            let is_kept = rng.below(8) < odds;
            versions.get(rng.below(versions.len() as u64) as usize).filter(|_| is_kept).cloned()
        });
        let at = rng.below(self.dirty_lens.len() as u64 + 1) as usize;
        if let Some((_, len)) = self.dirty_lens.get(at) {
            self.stored_len = *len;
        }
    }

    /// Moves of each dirty sector the version that `choose` gives to the device.
    fn store_dirty(
        &mut self,
        mut choose: impl FnMut(&[(WriteOrder, Sector)]) -> Option<(WriteOrder, Sector)>,
    ) {
        for (number, versions) in std::mem::take(&mut self.dirty) {
            if let Some((_, sector)) = choose(&versions) {
                self.stored.insert(number, sector);
            }
        }
    }

    /// Forgets what the device holds behind the file's end: it reads as zeros when the file grows again.
    fn cut_stored(&mut self) {
        let (last, within) =
            (self.stored_len / SECTOR_LEN as u64, (self.stored_len % SECTOR_LEN as u64) as usize);
        if let Some(sector) = self.stored.get_mut(&last) {
            Arc::make_mut(sector)[within..].fill(0);
        }
        self.stored.split_off(&(last + 1));
    }
}

/// The sectors that a range touches: number, bytes within the sector, bytes within the range.
fn sectors(range: &Range<u64>) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> + use<> {
    let Range { start, end } = *range;
    let len = SECTOR_LEN as u64;
    (start / len..end.div_ceil(len)).filter(move |_| start < end).map(move |number| {
        let (from, to) = (start.max(number * len), end.min((number + 1) * len));
        let within = (from - number * len) as usize..(to - number * len) as usize;
        (number, within, (from - start) as usize..(to - start) as usize)
    })
}

fn zeros() -> Sector {
    Arc::new([0; SECTOR_LEN])
}
