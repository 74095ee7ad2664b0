//! Acknowledged means on disk, watched from outside: the system calls of a real broker process under strace.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use quire_client::{NewTopic, PartitionIndex, Record};
use quire_tests::process::{BrokerProcess, can_trace, free_address};

const RECORDS: usize = 40;

/// One finished system call on a segment file.
#[derive(Debug)]
struct Call {
    is_sync: bool,
    begin: Duration,
    end: Duration,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
}

/// Reads lines such as `1234 1700000000.123456 fdatasync(7</data/0-0.log>) = 0 <0.000123>`. Calls that strace split
/// into "unfinished" and "resumed" are joined by their thread.
fn parse(trace: &str, topics: &Path) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished = std::collections::HashMap::new();
    for line in trace.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(begin)) =
            (words.next(), words.next().and_then(|word| word.parse::<f64>().ok()))
        else {
            continue;
        };
        let on_segment = line.contains(&*topics.to_string_lossy()) && line.contains(".log>");
        let is_sync = line.contains("fdatasync(") || line.contains("fdatasync resumed");
        if line.contains("<unfinished ...>") {
            if on_segment {
                unfinished.insert(thread.to_owned(), begin);
            }
            continue;
        }
        let begin = match line.contains(" resumed>") {
            true => match unfinished.remove(thread) {
                Some(begin) => begin,
                None => continue,
            },
            false if on_segment => begin,
            false => continue,
        };
        let took = line.rsplit_once('<').and_then(|(_, took)| took.trim_end_matches('>').parse::<f64>().ok());
        let succeeded = line.split(" = ").nth(1).is_some_and(|result| !result.starts_with('-'));
        if let Some(took) = took.filter(|_| succeeded) {
            let (begin, end) = (Duration::from_secs_f64(begin), Duration::from_secs_f64(begin + took));
            calls.push(Call { is_sync, begin, end });
        }
    }
    calls
}

/// The trace, once strace has written its last line; it ends a moment after the process it traced.
async fn finished_trace(path: &Path) -> Result<String> {
    for _ in 0..500 {
        let trace = std::fs::read_to_string(path)?;
        if trace.trim_end().ends_with("+++") {
            return Ok(trace);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("strace did not finish its trace")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledgement_arrives_before_fdatasync_covered_the_batch() -> Result<()> {
    if !can_trace() {
        println!(
            "skipped: no_acknowledgement_arrives_before_fdatasync_covered_the_batch (strace can not trace here)"
        );
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let trace = folder.path().join("trace");
    let trace_path = trace.to_str().context("a plain path")?;
    // -D: the broker is our child and strace its, so that signals reach the broker.
    let strace = [
        "strace",
        "-D",
        "-f",
        "-ttt",
        "-T",
        "-y",
        "-e",
        "trace=pwritev,pwrite64,fdatasync",
        "-o",
        trace_path,
    ];
    let mut broker = BrokerProcess::start(&data, free_address()?, &strace)?;
    let client = broker.client().await?;
    client.admin().create_topic(NewTopic::new("watched").partitions(1)).await?;

    let producer = client.producer().build();
    let mut sends = Vec::new();
    for counter in 0..RECORDS {
        let record = Record { value: Some(format!("{counter}").into()), ..Record::default() };
        let begin = now();
        producer.send_to("watched", PartitionIndex(0), record).await?;
        sends.push((begin, now()));
    }
    broker.stop()?;

    let calls = parse(&finished_trace(&trace).await?, &data.join("topics"));
    for (number, (sent, acknowledged)) in sends.iter().enumerate() {
        let covered = calls.iter().filter(|call| !call.is_sync && call.begin >= *sent).any(|write| {
            calls.iter().any(|sync| sync.is_sync && sync.begin >= write.end && sync.end <= *acknowledged)
        });
        ensure!(
            covered,
            "record {number}, sent {sent:?}, was acknowledged {acknowledged:?} with no sync between"
        );
    }
    Ok(())
}
