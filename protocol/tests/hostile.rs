//! Every decoder against mutated inputs, under an allocation cap: no panic, and no more memory than input pays for.
//!
//! Each target is a plain function over bytes. The corpus is the frozen encodings and what follows from them; mutations
//! are seeded, so that a failure names its seed and repeats.

use std::alloc::System;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cap::Cap;
use prost::Message;
use quire_protocol::batch::{BatchHeader, Compression, Records};
use quire_protocol::frame::{FrameHeader, FrameSeed};
use quire_protocol::ids::{PartitionIndex, TopicId, TopicPartition};
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::rpc::{decode_request, metadata::MetadataRecord};
use quire_protocol::stream::{Answer, ConsumeHeader, ProduceHeader, StreamKind};
use quire_protocol::{batch, frame, limits};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Mutated inputs a target, unless its time is over first.
const MUTATIONS: u64 = 100_000;
/// Bounds one target's share of the test's time on a slow machine.
const TIME_MAX: Duration = Duration::from_secs(4);
const INPUT_BYTES_MAX: usize = 4096;

/// How much a target may allocate beyond what is allocated before it.
type Budget = fn(usize) -> usize;

/// What any decoder may use: proportional to what the sender paid for.
const PROPORTIONAL: Budget = |input| 4 * input + 1024 * 1024;
/// What decompression may use: its cap, a doubling on the way there, and the decoder's window.
const DECOMPRESSION: Budget = |input| 4 * input + 2 * limits::BATCH_DECOMPRESSED_BYTES_MAX + 32 * 1024 * 1024;

#[test]
fn decoders_survive_what_strangers_send() {
    // One test, since the allocator counts for the whole process.
    let corpus = corpus();
    attack("batch header", header, PROPORTIONAL, &corpus);
    attack("frame", frame, PROPORTIONAL, &corpus);
    attack("records", records, PROPORTIONAL, &corpus);
    attack("stream messages", stream_messages, PROPORTIONAL, &corpus);
    attack("replicate messages", replicate_messages, PROPORTIONAL, &corpus);
    attack("requests", requests, PROPORTIONAL, &corpus);
    large_requests();
    long_lists();
    attack("metadata records", metadata_records, PROPORTIONAL, &corpus);
    attack("compressed records", compressed_records, DECOMPRESSION, &corpus);
}

fn header(input: &[u8]) {
    let _ = BatchHeader::parse(input);
    let _ = BatchHeader::check(input);
}

fn frame(input: &[u8]) {
    let partition = TopicPartition { topic: TopicId([0x10; 16]), partition: PartitionIndex(5) };
    let _ = FrameHeader::parse(input);
    let _ = FrameHeader::check(FrameSeed::new(partition), input);
}

/// Records that a faulty producer sealed: whatever the header says, the body is read as it is.
fn records(input: &[u8]) {
    read_records(input, Some(Compression::None));
}

fn compressed_records(input: &[u8]) {
    read_records(input, None);
    for number in 1..=4 {
        let compression = Compression::from_number(number).expect("Kafka's four");
        let _ = compression.decompress(input.get(batch::HEADER_LEN..).unwrap_or(input));
    }
}

fn read_records(input: &[u8], compression: Option<Compression>) {
    let Ok(mut header) = BatchHeader::parse(input) else { return };
    header.compression = compression.unwrap_or(header.compression);
    let Ok(records) = Records::open(&header, &Bytes::copy_from_slice(input)) else { return };
    for record in records {
        let Ok(record) = record else { return };
        assert!(record.headers.len() <= limits::RECORD_HEADERS_MAX);
    }
}

fn stream_messages(input: &[u8]) {
    let Some((&tag, rest)) = input.split_first() else { return };
    if let Ok(length) = Answer::body_len(tag) {
        let body = rest.get(..length).unwrap_or(rest);
        if let Ok(text) = Answer::text_len(tag, body) {
            let text = rest.get(length..).map_or(&[][..], |rest| &rest[..text.min(rest.len())]);
            let _ = Answer::decode(tag, body, text);
        }
    }
    let _ = input.first_chunk().map(|prefix| StreamKind::from_prefix(*prefix));
    let _ = input.first_chunk().map(ProduceHeader::decode);
    let _ = input.first_chunk().map(ProduceHeader::decode_numbered);
    let _ = input.first_chunk().map(ConsumeHeader::decode);
}

fn replicate_messages(input: &[u8]) {
    let Some((&tag, rest)) = input.split_first() else { return };
    if let Ok(length) = FollowerMessage::body_len(tag) {
        let body = rest.get(..length).unwrap_or(rest);
        if let Ok(entries) = FollowerMessage::entries_len(tag, body) {
            let entries = rest.get(length..).map_or(&[][..], |rest| &rest[..entries.min(rest.len())]);
            let _ = FollowerMessage::decode(tag, body, entries);
        }
    }
    if let Ok(length) = LeaderMessage::body_len(tag) {
        let _ = LeaderMessage::decode(tag, rest.get(..length).unwrap_or(rest));
    }
}

fn requests(input: &[u8]) {
    let _ = decode_request(input);
}

/// A body of empty elements, two bytes each, as many as are allowed and as many as fit.
fn large_requests() {
    const NAMES: (u8, u8) = (0x1a, 0x0a);
    const POSITIONS: (u8, u8) = (0x3a, 0x12);
    for (request, element) in [NAMES, POSITIONS] {
        for count in [limits::RPC_REQUEST_ITEMS_MAX - 1, limits::RPC_BYTES_MAX / 2 - 8] {
            let mut input = vec![request];
            prost::encoding::encode_varint(2 * count as u64, &mut input);
            input.extend([element, 0].repeat(count));
            run(&format!("field {request:#x} with {count} elements"), requests, PROPORTIONAL, &input);
            assert_eq!(decode_request(&input).is_ok(), count < limits::RPC_REQUEST_ITEMS_MAX);
        }
    }
}

/// Lists of numbers, packed and not, as long as is allowed and as long as fit.
fn long_lists() {
    let fields = |number: u32, body: &[u8]| {
        let mut out = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
        prost::encoding::encode_varint(body.len() as u64, &mut out);
        out.extend_from_slice(body);
        out
    };
    let max = limits::GROUP_PARTITIONS_MAX;
    for path in [&[23, 1][..], &[24, 3], &[31, 13, 2], &[33, 2, 2], &[36, 3, 2]] {
        let (last, outer) = path.split_last().expect("a path has a field");
        for count in [max, max + 1, limits::RPC_BYTES_MAX / 2 - 64] {
            let packed = fields(*last, &vec![1; count]);
            let each = [*last as u8 * 8, 1].repeat(count);
            for (list, is_packed) in [(packed, true), (each, false)] {
                let input = outer.iter().rev().fold(list, |body, number| fields(*number, &body));
                run(&format!("{count} numbers at {path:?}"), requests, PROPORTIONAL, &input);
                // Those that stand in the body itself, and are not packed, are fields like others.
                let fits = count <= max && (is_packed || path.len() > 2);
                assert_eq!(decode_request(&input).is_ok(), fits, "{count} numbers at {path:?}, {is_packed}");
            }
        }
    }
}

fn metadata_records(input: &[u8]) {
    let _ = MetadataRecord::decode(input);
}

/// Runs a target over the corpus and seeded mutations of it, and holds every run against the budget.
fn attack(name: &str, target: fn(&[u8]), budget: Budget, corpus: &[(String, Vec<u8>)]) {
    for (file, input) in corpus {
        run(&format!("{name}: {file}"), target, budget, input);
    }
    let start = Instant::now();
    for seed in 0..MUTATIONS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
        let input = mutate(&mut random, corpus);
        run(&format_args!("{name}: seed {seed}"), target, budget, &input);
        if seed % 64 == 0 && start.elapsed() > TIME_MAX {
            println!("{name}: {seed} mutated inputs in {TIME_MAX:?}");
            return;
        }
    }
    println!("{name}: {MUTATIONS} mutated inputs in {:?}", start.elapsed());
}

/// The allocator only knows its highest mark ever. Up to there nothing can be told, but no run below its own budget
/// lifts the mark beyond what the next one may use, as long as budgets grow from target to target.
fn run(name: &dyn std::fmt::Display, target: fn(&[u8]), budget: Budget, input: &[u8]) {
    let (before, mark) = (ALLOCATOR.allocated(), ALLOCATOR.max_allocated());
    target(input);
    let peak = ALLOCATOR.max_allocated();
    let used = if peak > mark { peak - before } else { 0 };
    assert!(
        used <= budget(input.len()),
        "{name}: {used} bytes allocated for {}: {:02x?}",
        input.len(),
        &input[..input.len().min(256)]
    );
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("testdata is there")
        .map(|entry| entry.expect("testdata is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .collect();
    files.sort();
    let mut corpus: Vec<_> = files.iter().map(|path| (path.display().to_string(), read_hex(path))).collect();
    assert!(corpus.len() >= 15, "the frozen encodings are the corpus");
    // A batch without its frame, and bytes that claim much with little.
    let inner = |(name, bytes): &(String, Vec<u8>)| {
        name.contains("frame-").then(|| (format!("{name} inside"), bytes[frame::HEADER_LEN..].to_vec()))
    };
    let batches: Vec<_> = corpus.iter().filter_map(inner).collect();
    corpus.extend(batches);
    corpus.push(("many names".into(), [&[0x1a, 0xfe, 0x1f][..], &[0x0a, 0].repeat(2047)].concat()));
    corpus.push(("many positions".into(), [&[0x3a, 0xfe, 0x1f][..], &[0x12, 0].repeat(2047)].concat()));
    corpus.push(("all ones".into(), vec![0xff; 256]));
    corpus.push(("all zeros".into(), vec![0; 256]));
    corpus
}

fn read_hex(path: &PathBuf) -> Vec<u8> {
    let text = fs::read_to_string(path).expect("a frozen encoding is text");
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn mutate(random: &mut Random, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(4) {
        mutate_once(random, &mut input, corpus);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn mutate_once(random: &mut Random, input: &mut Vec<u8>, corpus: &[(String, Vec<u8>)]) {
    let at = random.below(input.len().max(1)).min(input.len());
    let width = [1, 2, 4, 8][random.below(4)].min(input.len() - at);
    let extremes =
        [0u64, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
    match random.below(8) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.next() as u8,
        2 => {
            let value = extremes[random.below(extremes.len())].to_be_bytes();
            input[at..at + width].copy_from_slice(&value[8 - width..]);
        }
        3 => {
            let value = extremes[random.below(extremes.len())].to_le_bytes();
            input[at..at + width].copy_from_slice(&value[..width]);
        }
        4 => input.truncate(at),
        5 => drop(input.drain(at..at + width)),
        6 => {
            let copied = input[at..].to_vec();
            input.extend_from_slice(&copied);
        }
        _ => {
            let other = &corpus[random.below(corpus.len())].1;
            input.splice(at..at, other[random.below(other.len())..].iter().copied());
        }
    }
}

/// xorshift64*: enough to choose mutations, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
