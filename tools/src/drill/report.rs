//! What a drill found, for people and for programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::availability::percentile;
use super::chaos::Done;
use super::checks::{Property, Verdict};
use crate::output::{Palette, thousands};
use crate::time::show_took;

/// What a drill found.
#[derive(Debug)]
pub struct Report {
    /// The options that do the same again.
    pub again: String,
    /// The seed.
    pub seed: u32,
    /// Brokers.
    pub brokers: u32,
    /// How long the load lasted.
    pub duration: Duration,
    /// What the history says.
    pub verdict: Verdict,
    /// How many replicas were read one by one and compared, if they were.
    pub replicas_read: Option<u32>,
    /// The faults, in order.
    pub faults: Vec<Done>,
    /// What else went wrong, each in a sentence.
    pub failures: Vec<String>,
    /// Where everything is kept, if it is.
    pub kept: Option<PathBuf>,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    verdict: &'static str,
    sent: u64,
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    read_back: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    replicas_read: Option<u32>,
    violations: serde_json::Map<String, serde_json::Value>,
    unavailable_ms: UnavailableJson,
    lag_ms_max: u64,
    seed: u32,
    brokers: u32,
    duration_seconds: f64,
    faults: Vec<FaultJson<'a>>,
    failures: &'a [String],
    kept: Option<&'a Path>,
}

#[derive(Serialize)]
struct UnavailableJson {
    p50: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
}

#[derive(Serialize)]
struct FaultJson<'a> {
    at_ms: u64,
    what: &'a str,
    unavailable_ms: u64,
    resumed: bool,
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl Report {
    /// Whether every property held, writes came back each time, and nothing else went wrong.
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean()
            && self.failures.is_empty()
            && self.faults.iter().all(|fault| fault.has_resumed)
    }

    /// One object.
    pub fn json(&self) -> impl Serialize + '_ {
        let violations = Property::ALL.iter().map(|property| {
            (property.name().replace([' ', '-'], "_"), serde_json::Value::from(self.verdict.count(*property)))
        });
        let outages = self.outages();
        let percentile = |share| percentile(&outages, share).map(millis);
        ReportJson {
            verdict: if self.is_clean() { "clean" } else { "unclean" },
            sent: self.verdict.sent,
            acknowledged: self.verdict.acknowledged,
            unknown: self.verdict.unknown,
            refused: self.verdict.refused,
            read_back: self.verdict.read_back,
            lost: self.verdict.lost(),
            duplicated: self.verdict.duplicated(),
            reordered: self.verdict.reordered(),
            replicas_read: self.replicas_read,
            violations: violations.collect(),
            unavailable_ms: UnavailableJson {
                p50: percentile(0.5),
                p99: percentile(0.99),
                max: percentile(1.0),
            },
            lag_ms_max: millis(self.verdict.lag_max),
            seed: self.seed,
            brokers: self.brokers,
            duration_seconds: self.duration.as_secs_f64(),
            faults: self.faults.iter().map(FaultJson::new).collect(),
            failures: &self.failures,
            kept: self.kept.as_deref(),
        }
    }

    /// The page.
    pub fn page(&self, palette: Palette) -> String {
        let verdict = &self.verdict;
        let word = match self.is_clean() {
            true => palette.good("clean"),
            false => palette.bad("NOT clean"),
        };
        let count = |name: &str, number: u64| match number {
            0 => format!("{name} 0"),
            _ => palette.bad(&format!("{name} {}", thousands(number))).into_owned(),
        };
        let mut page = format!(
            "\n{}  {word}\n acknowledged {}   read back {}   {}   {}   {}{}\n",
            palette.bold("VERDICT"),
            thousands(verdict.acknowledged),
            thousands(verdict.read_back),
            count("lost", verdict.lost()),
            count("duplicated", verdict.duplicated()),
            count("out of order", verdict.reordered()),
            match self.replicas_read {
                Some(_) => {
                    format!("   {}", count("replicas differ", verdict.count(Property::ReplicaDivergence)))
                }
                None => String::new(),
            },
        );
        let outages = self.outages();
        if let (Some(p50), Some(p99), Some(max)) =
            (percentile(&outages, 0.5), percentile(&outages, 0.99), outages.last())
        {
            let show = [p50, p99, *max].map(show_took);
            page.push_str(&format!(" unavailable  p50 {}   p99 {}   max {}\n", show[0], show[1], show[2]));
        }
        if verdict.unknown + verdict.refused > 0 {
            let (unknown, refused) = (thousands(verdict.unknown), thousands(verdict.refused));
            page.push_str(&format!(" not acknowledged  outcome unknown {unknown}   refused {refused}\n"));
        }
        for property in verdict.violated() {
            page.push_str(&format!(" {}\n", count(property.name(), verdict.count(property))));
            verdict.examples(property).iter().for_each(|example| page.push_str(&format!("   {example}\n")));
        }
        for fault in self.faults.iter().filter(|fault| !fault.has_resumed) {
            page.push_str(&format!(
                " {}\n",
                palette.bad(&format!("writes did not resume after: {}", fault.what))
            ));
        }
        self.failures.iter().for_each(|failure| page.push_str(&format!(" {}\n", palette.bad(failure))));
        if let Some(kept) = &self.kept {
            page.push_str(&format!("Kept, with history, logs and data:  {}\n", kept.display()));
        }
        page.push_str(&format!("Again, the same schedule:  quire drill {}\n", self.again));
        page
    }

    fn outages(&self) -> Vec<Duration> {
        let mut outages: Vec<Duration> = self.faults.iter().map(|fault| fault.unavailable).collect();
        outages.sort_unstable();
        outages
    }
}

impl FaultJson<'_> {
    fn new(fault: &Done) -> FaultJson<'_> {
        FaultJson {
            at_ms: millis(fault.at),
            what: &fault.what,
            unavailable_ms: millis(fault.unavailable),
            resumed: fault.has_resumed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::checks::check;
    use crate::drill::history::Operation;

    fn report(lines: &str) -> Report {
        let history: Vec<Operation> = lines.lines().map(|line| line.parse().expect("a history")).collect();
        let fault = Done {
            at: Duration::from_secs(10),
            what: "kill -9 broker 1 (leader of 3)".to_owned(),
            unavailable: Duration::from_millis(710),
            has_resumed: true,
        };
        Report {
            again: "--kill-leader --seed 0x5eed1f2a".to_owned(),
            seed: 0x5eed_1f2a,
            brokers: 3,
            duration: Duration::from_secs(45),
            verdict: check(&history),
            replicas_read: Some(24),
            faults: vec![fault],
            failures: Vec::new(),
            kept: None,
        }
    }

    const SENT: &str = "0 0 1 invoke send 00000000000000000000000000000007-0 1:1\n\
                        1 9 1 ok send 00000000000000000000000000000007-0 1:1 at 0\n";
    const READ: &str = "2 9 200 ok poll final 00000000000000000000000000000007-0 0=1:1\n";

    #[test]
    fn a_clean_page_is_short_and_says_how_to_do_it_again() {
        let report = report(&format!("{SENT}{READ}"));
        assert_eq!(
            report.page(Palette::PLAIN),
            "\nVERDICT  clean\n acknowledged 1   read back 1   lost 0   duplicated 0   out of order 0   \
             replicas differ 0\n \
             unavailable  p50 0.71 s   p99 0.71 s   max 0.71 s\n\
             Again, the same schedule:  quire drill --kill-leader --seed 0x5eed1f2a\n"
        );
        let json = serde_json::to_value(report.json()).expect("it is JSON");
        assert_eq!((&json["verdict"], &json["lost"]), (&"clean".into(), &0.into()));
        assert_eq!(json["unavailable_ms"]["p99"], 710);
        assert_eq!(json["seed"], 0x5eed_1f2a_u32);
    }

    #[test]
    fn what_is_lost_is_named() {
        let report = report(SENT);
        assert!(!report.is_clean());
        let page = report.page(Palette::PLAIN);
        assert!(page.contains("VERDICT  NOT clean") && page.contains("lost 1"), "{page}");
        assert!(page.contains("offset 0: 1:1 was acknowledged; read up to 0"), "{page}");
        let json = serde_json::to_value(report.json()).expect("it is JSON");
        assert_eq!((&json["lost"], &json["violations"]["unseen"]), (&1.into(), &1.into()));
    }
}
