//! Reads everything back and accounts for every record: content, order, gaps, duplicates, and the chain to its end.

use std::collections::{BTreeMap, HashMap};

use quire_client::{Chain, Client, Offset, Position};

use super::load::produce::LoadProducer;
use super::payload::{Contents, Stamp};
use super::report::Verification;
use crate::failure::Failure;

/// What producers know of the records they handed over.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    producers: Vec<Entry>,
    /// The newest acknowledged record of each partition, and the chain up to its batch.
    chains: BTreeMap<u32, (Offset, Chain)>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Sequences are below it.
    next_sequence: u64,
    /// Those that were not acknowledged: they may be there or not.
    failed: Vec<u64>,
}

impl Ledger {
    /// What these producers know.
    pub fn of(producers: &[LoadProducer]) -> Ledger {
        let mut ledger = Ledger::default();
        for producer in producers {
            let account = producer.account();
            ledger
                .producers
                .push(Entry { next_sequence: producer.next_sequence(), failed: account.failed.clone() });
            for (partition, newest) in &account.chains {
                let known = ledger.chains.entry(*partition).or_insert(*newest);
                if newest.0 > known.0 {
                    *known = *newest;
                }
            }
        }
        ledger
    }
}

/// Checks record by record.
#[derive(Debug)]
struct Checker<'a> {
    contents: &'a Contents,
    ledger: &'a Ledger,
    /// One bit for each sequence of each producer: whether it was seen.
    seen: Vec<Vec<u64>>,
    /// The newest sequence seen of each producer in each partition.
    newest: HashMap<(u32, u32), u64>,
    found: Verification,
}

impl<'a> Checker<'a> {
    fn new(contents: &'a Contents, ledger: &'a Ledger) -> Checker<'a> {
        let bits = |entry: &Entry| vec![0; entry.next_sequence.div_ceil(64) as usize];
        Checker {
            contents,
            ledger,
            seen: ledger.producers.iter().map(bits).collect(),
            newest: HashMap::new(),
            found: Verification::default(),
        }
    }

    /// The next record of a partition.
    fn see(&mut self, partition: u32, key: Option<&[u8]>, value: &[u8]) {
        self.found.records += 1;
        let known = Stamp::decode(value).filter(|stamp| {
            let entry = self.ledger.producers.get(stamp.producer as usize);
            entry.is_some_and(|entry| stamp.sequence < entry.next_sequence)
        });
        let Some(stamp) = known.filter(|stamp| self.contents.is_intact(*stamp, key, value)) else {
            self.found.altered += 1;
            return;
        };
        let word = &mut self.seen[stamp.producer as usize][(stamp.sequence / 64) as usize];
        let bit = 1 << (stamp.sequence % 64);
        if *word & bit != 0 {
            self.found.duplicated += 1;
            return;
        }
        *word |= bit;
        let newest = self.newest.entry((stamp.producer, partition)).or_insert(stamp.sequence);
        if stamp.sequence < *newest {
            self.found.reordered += 1;
        }
        *newest = stamp.sequence.max(*newest);
    }

    /// What is acknowledged and was not seen is lost.
    fn finish(mut self) -> Verification {
        for (entry, seen) in self.ledger.producers.iter().zip(&self.seen) {
            let is_seen = |sequence: u64| seen[(sequence / 64) as usize] & (1 << (sequence % 64)) != 0;
            let unseen = (0..entry.next_sequence).filter(|sequence| !is_seen(*sequence)).count();
            let excused = entry.failed.iter().filter(|sequence| !is_seen(**sequence)).count();
            self.found.lost += (unseen - excused) as u64;
        }
        let Verification { lost, duplicated, reordered, altered, .. } = self.found;
        self.found.is_clean = [lost, duplicated, reordered, altered] == [0; 4];
        self.found
    }
}

/// Reads the whole topic from its beginning.
///
/// # Errors
/// If it can not be read to its end: also if a checksum or the chain does not hold.
pub async fn read_back(
    client: &Client,
    topic: &str,
    contents: &Contents,
    ledger: &Ledger,
) -> Result<Verification, Failure> {
    let mut consumer =
        client.consumer().topic(topic).from(Position::Beginning).until(Position::End).build().await?;
    let mut checker = Checker::new(contents, ledger);
    while let Some(record) = consumer.next().await {
        let record = record.map_err(|error| Failure::from(error).context("reading everything back"))?;
        checker.see(record.partition.0, record.key.as_deref(), record.value.as_deref().unwrap_or_default());
    }
    let mut found = checker.finish();
    for read in consumer.chains() {
        found.chain_links += read.links;
        let acknowledged = ledger.chains.get(&read.partition.0);
        // A batch that failed for its producer may still stand behind the last one that was acknowledged.
        let ends_there = acknowledged.filter(|(offset, _)| offset.0 + 1 == read.next_offset.0);
        found.is_clean &= ends_there.is_none_or(|(_, chain)| read.chain == Some(*chain));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::payload::{ContentSettings, Phase, RecordMaker};
    use super::*;
    use quire_client::{Compression, Record};

    const PRODUCERS: u32 = 2;
    const EACH: u64 = 100;

    fn contents() -> Arc<Contents> {
        Arc::new(Contents::new(&ContentSettings {
            seed: 1,
            size: "50..90".parse().expect("a size"),
            keys: 5,
            compression: Compression::None,
            batch_bytes: 1024,
            partitions: 2,
        }))
    }

    fn ledger() -> Ledger {
        let entry = Entry { next_sequence: EACH, failed: Vec::new() };
        Ledger { producers: vec![entry; PRODUCERS as usize], chains: BTreeMap::new() }
    }

    /// Every record with its partition, as a broker would give them back.
    fn records(contents: &Arc<Contents>) -> Vec<(u32, Record)> {
        let mut maker = RecordMaker::new(Arc::clone(contents));
        let all = (0..EACH).flat_map(|sequence| (0..PRODUCERS).map(move |producer| (producer, sequence)));
        all.map(|(producer, sequence)| {
            let stamp = Stamp { producer, phase: Phase::Measured, sequence, time_ns: 5 };
            ((sequence % 2) as u32, maker.make(stamp).0)
        })
        .collect()
    }

    fn check(ledger: &Ledger, change: impl FnOnce(&mut Vec<(u32, Record)>)) -> Verification {
        let contents = contents();
        let mut records = records(&contents);
        change(&mut records);
        let mut checker = Checker::new(&contents, ledger);
        for (partition, record) in &records {
            checker.see(*partition, record.key.as_deref(), record.value.as_deref().expect("it has one"));
        }
        checker.finish()
    }

    fn flip(record: &mut Record, at: usize) {
        let mut value = record.value.take().expect("it has one").to_vec();
        value[at] ^= 1;
        record.value = Some(value.into());
    }

    #[test]
    fn what_is_all_there_is_clean() {
        let found = check(&ledger(), |_| {});
        assert_eq!(found, Verification { records: 200, is_clean: true, ..Verification::default() });
    }

    #[test]
    fn a_lost_record_is_found_unless_nobody_was_promised_it() {
        let found = check(&ledger(), |records| drop(records.remove(100)));
        assert_eq!((found.lost, found.records, found.is_clean), (1, 199, false));
        let mut excused = ledger();
        excused.producers[0].failed = vec![50];
        assert!(check(&excused, |records| drop(records.remove(100))).is_clean);
        assert!(check(&excused, |_| {}).is_clean, "it may be there all the same");
    }

    #[test]
    fn a_duplicate_is_found_whether_it_was_excused_or_not() {
        let found = check(&ledger(), |records| records.push(records[7].clone()));
        assert_eq!((found.duplicated, found.is_clean), (1, false));
    }

    #[test]
    fn two_records_in_the_wrong_order_are_found_in_one_partition_only() {
        // Records 0 and 4 are producer 0's first two in partition 0; 0 and 1 are two producers'.
        let found = check(&ledger(), |records| records.swap(0, 4));
        assert_eq!((found.reordered, found.is_clean), (1, false));
        assert!(check(&ledger(), |records| records.swap(0, 1)).is_clean);
        assert!(check(&ledger(), |records| records.swap(0, 2)).is_clean, "of two partitions");
    }

    #[test]
    fn an_altered_byte_key_length_or_stamp_is_found() {
        let alter = |change: fn(&mut Record)| check(&ledger(), |records| change(&mut records[3].1));
        for found in [
            alter(|record| flip(record, 40)),
            alter(|record| flip(record, 8)),
            alter(|record| flip(record, 7)),
            alter(|record| record.key = Some("other".into())),
            alter(|record| record.value = Some(record.value.as_ref().expect("it has one").slice(..49))),
            alter(|record| record.value = Some("short".into())),
        ] {
            assert_eq!((found.altered, found.lost, found.is_clean), (1, 1, false), "{found:?}");
        }
    }

    #[test]
    fn a_record_that_nobody_sent_is_found() {
        let mut shorter = ledger();
        shorter.producers[1].next_sequence -= 1;
        assert_eq!(check(&shorter, |_| {}).altered, 1);
        shorter.producers.pop();
        assert_eq!(check(&shorter, |_| {}).altered, 100);
    }
}
