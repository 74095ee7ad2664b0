//! The sample's totals: departures and delays, per carrier and altogether.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is read of one departure's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Departure<'a> {
    /// The airline, two characters.
    pub carrier: &'a str,
    /// Minutes late; negative when early.
    pub delay_min: i64,
}

/// Departures counted and their delays summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many departed.
    pub departures: u64,
    /// Their delays, summed (minutes; early ones count negative).
    pub delay_min: i64,
    /// The latest of them (minutes).
    pub delay_min_max: i64,
}

impl Tally {
    /// Minutes of delay per departure; 0 where there is none.
    pub fn mean_delay_min(&self) -> f64 {
        if self.departures == 0 { 0.0 } else { self.delay_min as f64 / self.departures as f64 }
    }

    fn add(&mut self, delay_min: i64) {
        self.delay_min_max = if self.departures == 0 { delay_min } else { self.delay_min_max.max(delay_min) };
        self.departures += 1;
        self.delay_min += delay_min;
    }
}

/// Tallies of every carrier seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    carriers: BTreeMap<String, Tally>,
    all: Tally,
}

impl Totals {
    /// Counts one departure, given its record's value.
    ///
    /// # Errors
    /// If the value is not a departure.
    pub fn add(&mut self, value: &[u8]) -> Result<(), serde_json::Error> {
        let departure: Departure<'_> = serde_json::from_slice(value)?;
        self.all.add(departure.delay_min);
        match self.carriers.get_mut(departure.carrier) {
            Some(tally) => tally.add(departure.delay_min),
            None => {
                let mut tally = Tally::default();
                tally.add(departure.delay_min);
                self.carriers.insert(departure.carrier.to_owned(), tally);
            }
        }
        Ok(())
    }

    /// All carriers together.
    pub fn all(&self) -> Tally {
        self.all
    }

    /// Each carrier's tally, most departures first.
    pub fn by_departures(&self) -> Vec<(&str, Tally)> {
        let mut carriers: Vec<_> =
            self.carriers.iter().map(|(name, tally)| (name.as_str(), *tally)).collect();
        carriers.sort_by_key(|(name, tally)| (std::cmp::Reverse(tally.departures), *name));
        carriers
    }
}

/// Fewer departures than this say little about a carrier.
const FEW_DEPARTURES: u64 = 20;
/// A delay that is worth a word (minutes).
const VERY_LATE_MIN: i64 = 180;

/// What a reader should know before believing a mean: few departures, of which one decides.
pub fn remark(tally: Tally) -> Option<String> {
    let few = tally.departures < FEW_DEPARTURES;
    let one_decides = tally.delay_min_max >= VERY_LATE_MIN && tally.delay_min_max * 2 > tally.delay_min;
    (few && one_decides)
        .then(|| format!("{} flights, one of them {} late", tally.departures, hours(tally.delay_min_max)))
}

fn hours(minutes: i64) -> String {
    format!("{} h {} min", minutes / 60, minutes % 60)
}

/// What the sample, or the whole year, adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Departures.
    pub departures: u64,
    /// Minutes of delay, summed.
    pub delay_min: i64,
}

/// `config/samples/flights.ndjson.gz`
pub const SAMPLE: Expected = Expected { departures: 11_045, delay_min: 72_532 };
/// Departures of the sample on [`ONE_DAY`].
pub const ONE_DAY_DEPARTURES: u64 = 908;
/// The day that the demo finds by time (UTC).
pub const ONE_DAY: &str = "2013-01-08";

impl Expected {
    /// Whether `tally` is what was expected.
    pub fn is_met_by(&self, tally: Tally) -> bool {
        tally.departures == self.departures && tally.delay_min == self.delay_min
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_input::{LineFormat, RecordInput};
    use crate::{demo, time};

    fn value(carrier: &str, delay: i64) -> String {
        format!(r#"{{"carrier":"{carrier}","flight":1,"delay_min":{delay}}}"#)
    }

    #[test]
    fn carriers_are_ordered_by_departures_then_name() {
        let mut totals = Totals::default();
        for (carrier, delay) in [("UA", 3), ("AA", -5), ("UA", 4), ("DL", 0)] {
            totals.add(value(carrier, delay).as_bytes()).expect("a departure");
        }
        let order: Vec<_> = totals.by_departures().into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["UA", "AA", "DL"]);
        assert_eq!(totals.all(), Tally { departures: 4, delay_min: 2, delay_min_max: 4 });
        assert_eq!(totals.by_departures()[0].1.mean_delay_min(), 3.5);
        assert!(totals.add(b"{}").is_err());
    }

    #[test]
    fn only_few_flights_with_one_very_late_get_a_remark() {
        let late = Tally { departures: 13, delay_min: 1492, delay_min_max: 1301 };
        assert_eq!(remark(late).as_deref(), Some("13 flights, one of them 21 h 41 min late"));
        assert_eq!(remark(Tally { departures: 500, ..late }), None);
        assert_eq!(remark(Tally { departures: 14, delay_min: 28, delay_min_max: 102 }), None);
    }

    #[test]
    fn the_embedded_sample_adds_up_to_what_the_demo_expects() {
        let input = RecordInput::new("sample".into(), LineFormat::Ndjson, demo::sample());
        let day = time::parse(ONE_DAY).expect("a date").0;
        let (mut totals, mut on_the_day) = (Totals::default(), 0);
        for record in input {
            let record = record.expect("every line of the sample is a record").record;
            totals.add(record.value.as_deref().expect("a value")).expect("a departure");
            let timestamp = record.timestamp.expect("a timestamp").0;
            on_the_day += u64::from((day..day + 86_400_000).contains(&timestamp));
        }
        assert!(SAMPLE.is_met_by(totals.all()), "{:?}", totals.all());
        assert_eq!(on_the_day, ONE_DAY_DEPARTURES);
        assert_eq!(totals.by_departures().len(), 15);
    }
}
