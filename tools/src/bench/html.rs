//! The report as a page: one file of HTML that needs no network and no script, in light, in dark and on paper.
//!
//! One report is shown in full (`single`), several beside each other (`comparison`). What is drawn is SVG
//! (`plot`, `timeline`, `distribution`, `bars`), once for wide pages and once for narrow ones. The reports
//! themselves are in the page as JSON, so that it can be compared again (`embedded`).

mod bars;
mod charts;
mod comparison;
mod distribution;
mod plot;
mod scale;
mod single;
mod svg;
mod tables;
mod timeline;

use std::path::Path;

use svg::escape;

use super::report::Report;
use super::{Missing, title};
use crate::failure::Failure;

const STYLE: &str = include_str!("html/style.css");
const DATA_BEGIN: &str = "<script type=\"application/json\" id=\"quire-bench\">";
const DATA_END: &str = "</script>";

/// The page of one report, or of several beside each other in their order; `missing` is what was to be measured too.
///
/// # Panics
/// If there is no report.
pub fn render(reports: &[Report], missing: &[Missing]) -> String {
    let (title, body) = match reports {
        [] => panic!("a page is of one report or more"),
        [report] => (report.title.clone(), single::page(report, missing)),
        reports => (comparison::title(reports), comparison::page(reports, missing)),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"quire bench {version}\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\
         <footer>Made by <code>quire bench</code> {version}. The data is in this file: \
         <code>quire bench compare THIS.html OTHER.json</code> reads it again.</footer>\n\
         {DATA_BEGIN}{data}{DATA_END}\n</body>\n</html>\n",
        version = env!("CARGO_PKG_VERSION"),
        title = escape(&title),
        data = data(reports),
    )
}

/// Writes the page to a file.
///
/// # Errors
/// If the file can not be written.
pub fn write(path: &Path, reports: &[Report], missing: &[Missing]) -> Result<(), Failure> {
    std::fs::write(path, render(reports, missing)).map_err(|error| Failure::file(path, &error))
}

/// The JSON that a page made by [`render`] carries; `None` if it is no such page.
pub fn embedded(page: &str) -> Option<&str> {
    let begin = page.find(DATA_BEGIN)? + DATA_BEGIN.len();
    let length = page[begin..].find(DATA_END)?;
    Some(&page[begin..begin + length])
}

/// What one has to know before one reads a figure, under its heading; nothing where there is nothing to say.
fn callout(heading: &str, said: &[String]) -> String {
    if said.is_empty() {
        return String::new();
    }
    let said = said.iter().map(|line| format!("<p>{}</p>", escape(line)));
    format!(
        "<div class=\"callout\"><p><b class=\"warn\">{heading}</b></p>{}</div>\n",
        said.collect::<String>()
    )
}

/// What was to be measured beside this, and why it was not.
fn not_measured(missing: &[Missing]) -> String {
    let said = missing.iter().map(|Missing { settings, why }| format!("{}: {why}", title::of(settings)));
    callout("Not measured", &said.collect::<Vec<_>>())
}

/// The reports as JSON in which nothing can end the element that holds it.
fn data(reports: &[Report]) -> String {
    let json = serde_json::to_string(reports).expect("a report is numbers and text, which JSON can hold");
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{LatencyKind, Run};
    use crate::bench::sample;

    fn five() -> Report {
        sample::report("T", &[100.0, 105.0, 110.0, 115.0, 120.0])
    }

    fn page_of(reports: &[Report]) -> String {
        render(reports, &[])
    }

    /// The part of a page that begins with that heading, up to the next.
    fn section<'a>(page: &'a str, heading: &str) -> &'a str {
        let begin = page.find(&format!("<h2>{heading}</h2>")).unwrap_or_else(|| panic!("no {heading}"));
        let rest = &page[begin + 4..];
        &rest[..rest.find("<h2>").unwrap_or(rest.len())]
    }

    #[test]
    fn nothing_is_fetched_and_nothing_runs() {
        for reports in [vec![five()], vec![five(), five()], vec![five(); 9]] {
            let page = page_of(&reports);
            for outside in
                ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<link", "<iframe", "onload"]
            {
                let data = embedded(&page).expect("it carries its data");
                assert!(!page.replace(data, "").contains(outside), "{outside}");
            }
            assert_eq!(page.matches("<script").count(), 1, "the data alone");
        }
    }

    #[test]
    fn every_repetition_is_drawn_and_listed() {
        let page = page_of(&[five()]);
        let throughput = section(&page, "Throughput");
        // Once for wide pages and once for narrow ones.
        assert_eq!(throughput.matches("class=\"line c0 faint\"").count(), 2 * 4);
        assert_eq!(throughput.matches("class=\"line c0\"").count(), 2);
        assert!(throughput.contains("strong line: repetition 3, the median; faint: the other 4"));
        let percentiles = section(&page, "Latency until acknowledged");
        assert!(percentiles.matches("class=\"line c0 faint\"").count() >= 2 * 4);
        let listed = section(&page, "Every repetition");
        for rate in ["100/s", "105/s", "110/s", "115/s", "120/s"] {
            assert!(listed.contains(&format!("<td class=\"number\">{rate}</td>")), "{rate}: {listed}");
        }
        assert_eq!(listed.matches("<tr class=\"median\">").count(), 1);
    }

    #[test]
    fn the_headline_is_a_median_with_its_spread() {
        let page = page_of(&[five()]);
        assert!(page.contains("<div class=\"figure\">110 <span>records/s</span></div>"), "{page}");
        assert!(page.contains("<p>100/s – 120/s</p>"));
        assert!(page.contains("medians of 5 repetitions"));
        assert!(page_of(&[sample::report("T", &[1.0])]).contains("one repetition: no spread is known"));
    }

    #[test]
    fn text_of_others_can_not_break_out() {
        let evil = "</script><script>alert(1)</script><b title=\"x\">&'";
        let mut report = five();
        report.title = evil.to_owned();
        report.machine.cpu = evil.to_owned();
        report.settings.broker = Some(evil.to_owned());
        report.settings.sync = evil.to_owned();
        report.version = evil.to_owned();
        for reports in [vec![report.clone()], vec![five(), report.clone()], vec![report; 8]] {
            let page = page_of(&reports);
            assert!(!page.contains("<script>") && !page.contains("<b title"), "{page}");
            assert_eq!(page.matches("</script>").count(), 1);
            let back: Vec<Report> =
                serde_json::from_str(embedded(&page).expect("it is there")).expect("JSON");
            assert_eq!(back, reports, "and the data is as it was");
        }
    }

    #[test]
    fn what_is_not_clean_stands_at_the_top() {
        let mut report = five();
        report.summary.is_clean = Some(false);
        report.summary.failed = 12;
        let found = report.runs[1].verification.as_mut().expect("it was verified");
        (found.is_clean, found.lost, found.reordered) = (false, 3, 1_500);
        let page = page_of(&[report.clone()]);
        assert!(page.contains("✗ verification found faults") && page.contains("✗ 12 records failed"));
        assert!(section(&page, "Every repetition").contains("3 lost, 1,500 out of order"));
        assert!(page_of(&[five(), report]).contains("<b class=\"bad\">verification found faults</b>"));
    }

    #[test]
    fn what_latencies_wait_for_and_what_was_not_measured_is_said_before_the_figures() {
        let missing = Missing { settings: sample::settings(), why: "<the disk is full>".to_owned() };
        for reports in [vec![five()], vec![five(), five()], vec![five(); 8]] {
            let page = render(&reports, std::slice::from_ref(&missing));
            let figures = page.find("<h2>").expect("headings");
            let above = &page[..figures];
            assert!(above.contains("flat out: ") && above.contains("in flight on average"), "{above}");
            assert!(above.contains("Not measured") && above.contains("&lt;the disk is full&gt;"), "{above}");
            assert!(!page_of(&reports).contains("Not measured"));
        }
    }

    #[test]
    fn a_latency_says_from_which_instant_it_counts() {
        let mut report = five();
        assert!(page_of(&[report.clone()]).contains("not corrected for coordinated omission"));
        report.runs.iter_mut().for_each(|run| run.latencies[0].is_corrected = true);
        assert!(page_of(&[report]).contains("wanted the record sent, however late it was"));
    }

    #[test]
    fn differences_are_claimed_only_beyond_the_spread() {
        let slow = sample::report("slow", &[100.0, 110.0, 120.0]);
        let fast = sample::report("fast", &[200.0, 220.0, 240.0]);
        let alike = sample::report("alike", &[118.0, 122.0, 130.0]);
        let page = page_of(&[slow, fast, alike]);
        let figures = section(&page, "Every figure");
        assert!(figures.contains("<small class=\"good\">2.00× better</small>"), "{figures}");
        assert!(figures.contains("<small class=\"\">1.11× within spread</small>"), "{figures}");
        assert!(section(&page, "At a glance").contains(">≈ 1.11×</text>"));
    }

    #[test]
    fn the_command_to_run_it_again_is_broken_only_between_flags() {
        let page = page_of(&[five()]);
        let text = crate::bench::setting::command(&five().settings);
        let shown =
            page.split("<pre>").nth(1).and_then(|rest| rest.split("</pre>").next()).expect("it is there");
        assert!(shown.starts_with("<span>quire bench produce</span> <span>--producers 1</span> "), "{shown}");
        assert_eq!(shown.replace("<span>", "").replace("</span>", ""), text);
    }

    #[test]
    fn settings_and_machines_that_differ_are_told() {
        let mut other = five();
        other.settings.sync = "interval".to_owned();
        other.machine.cores = 64;
        let page = page_of(&[five(), other]);
        assert!(page.contains("<h1>Sync: always beside interval</h1>"), "{page}");
        assert!(page.contains("Compare with care") && page.contains("the machines differ: cores in use"));
        assert!(section(&page, "Settings that differ").contains("<td>always</td><td>interval</td>"));
    }

    #[test]
    fn many_reports_are_bars_by_what_sets_them_apart() {
        let sizes = [100, 1_024, 4_096, 16_384, 32_768, 65_536, 131_072];
        let reports = sizes.map(|size| {
            let mut report = five();
            report.settings.record_size = size.to_string();
            report.settings.record_size_mean = f64::from(size);
            report
        });
        let page = page_of(&reports);
        let glance = section(&page, "At a glance");
        assert!(glance.contains("G  131,072 B") && glance.contains("Produced, bytes"), "{glance}");
        assert!(!page.contains("<h2>Throughput</h2>"), "seven lines on each other tell nothing");
    }

    /// What a report may lack, or hold too much of, and still be shown.
    #[test]
    fn odd_reports_have_a_page_too() {
        let bare = Run {
            latencies: Vec::new(),
            timeline: Vec::new(),
            broker: None,
            produced: None,
            ..sample::run(1.0)
        };
        let mut nothing = five();
        nothing.runs = vec![bare];
        let mut empty_seconds = five();
        empty_seconds.runs.iter_mut().flat_map(|run| &mut run.timeline).for_each(|second| {
            (second.produced_records, second.acknowledgement_p50_us, second.acknowledgement_p99_us) =
                (0, None, None);
        });
        let mut absurd = five();
        for run in &mut absurd.runs {
            run.seconds = f64::MAX;
            run.latencies[0].max_us = f64::MAX;
            run.latencies[0].min_us = -1.0;
            run.latencies[0].buckets.iter_mut().for_each(|bucket| bucket.count = u64::MAX);
            run.timeline[0].at = -5.0;
            run.timeline[2].at = 1e300;
            run.timeline[2].broker_memory_bytes = Some(u64::MAX);
        }
        absurd.started_at = i64::MAX;
        let mut only_end_to_end = five();
        only_end_to_end.runs.iter_mut().for_each(|run| run.latencies[0].kind = LatencyKind::EndToEnd);
        for report in [nothing, empty_seconds, absurd, only_end_to_end] {
            for reports in [vec![report.clone()], vec![five(), report.clone()], vec![report; 8]] {
                let page = page_of(&reports);
                assert!(!page.contains("NaN") && !page.contains("inf\""), "{page}");
            }
        }
    }
}
