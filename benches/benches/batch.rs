//! Encoding and decoding of record batches: the cost per record that client and broker pay in memory.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quire_benches::payload::incompressible;
use quire_engine::producer::ProducerStates;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, ProducerIdentity, Record, Records};
use quire_protocol::frame::{Chain, Digest, FrameHeader, FrameSeed, Placement};
use quire_protocol::limits::BATCH_BYTES_TARGET;
use quire_protocol::{
    LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicId,
    TopicPartition,
};

const RECORD_SIZES: [usize; 2] = [100, 1024];

fn build(record: &Record) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    while builder.encoded_len() < BATCH_BYTES_TARGET {
        builder.push(record, Timestamp(0)).expect("the record fits");
    }
    builder.finish().expect("nothing to compress")
}

fn record(size: usize) -> Record {
    Record { value: Some(incompressible(size, 7)), ..Record::default() }
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode 256 KiB batch");
    for size in RECORD_SIZES {
        let record = record(size);
        let count = BatchHeader::parse(&build(&record)).expect("just built").record_count;
        group.throughput(Throughput::Elements(count.into()));
        group.bench_with_input(BenchmarkId::from_parameter(size), &record, |b, record| {
            b.iter(|| build(record))
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("check and decode 256 KiB batch");
    for size in RECORD_SIZES {
        let batch = build(&record(size));
        let count = BatchHeader::parse(&batch).expect("just built").record_count;
        group.throughput(Throughput::Elements(count.into()));
        group.bench_with_input(BenchmarkId::from_parameter(size), &batch, |b, batch| {
            b.iter(|| {
                let header = BatchHeader::check(batch).expect("intact");
                for record in Records::open(&header, batch).expect("not compressed") {
                    black_box(record.expect("well formed"));
                }
            });
        });
    }
    group.finish();
}

fn frame(c: &mut Criterion) {
    let seed = FrameSeed::new(TopicPartition { topic: TopicId([1; 16]), partition: PartitionIndex(0) });
    let mut batch = build(&record(1024)).to_vec();
    let header = BatchHeader::check(&batch).expect("intact");
    let mut group = c.benchmark_group("frame 256 KiB batch");
    group.throughput(Throughput::Bytes(batch.len() as u64));
    for digest in [Digest::Crc32c, Digest::Blake3] {
        let placement = Placement {
            base_offset: Offset(0),
            leader_epoch: LeaderEpoch(0),
            append_time: Timestamp(0),
            durable_floor: Offset(0),
            digest,
        };
        group.bench_function(format!("seal, chain over {digest:?}"), |b| {
            b.iter(|| FrameHeader::seal(seed, &Chain::START, placement, &header, black_box(&mut batch)));
        });
        let sealed = FrameHeader::seal(seed, &Chain::START, placement, &header, &mut batch);
        let bytes = [sealed.encode().as_slice(), &batch].concat();
        group.bench_function(format!("check, chain over {digest:?}"), |b| {
            b.iter(|| FrameHeader::check(seed, black_box(&bytes)).expect("intact"));
        });
    }
    group.finish();
}

fn numbered(seed: FrameSeed, id: ProducerId) -> (BatchHeader, FrameHeader) {
    let producer = ProducerIdentity { id, epoch: ProducerEpoch(0) };
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(&record(100), Timestamp(0)).expect("the record fits");
    let batch = builder.finish_numbered(Some((producer, Sequence(0)))).expect("nothing to compress");
    let header = BatchHeader::check(&batch).expect("just built");
    let placement = Placement {
        base_offset: Offset(0),
        leader_epoch: LeaderEpoch(0),
        append_time: Timestamp(0),
        durable_floor: Offset(0),
        digest: Digest::Crc32c,
    };
    let frame = FrameHeader::seal(seed, &Chain::START, placement, &header, &mut batch.to_vec());
    (header, frame)
}

/// What a shard does for a batch so that it is never appended twice, and what a checkpoint stores of it. The client writes
/// its numbers into a header that it writes anyway.
fn idempotence(c: &mut Criterion) {
    let seed = FrameSeed::new(TopicPartition { topic: TopicId([1; 16]), partition: PartitionIndex(0) });
    let mut group = c.benchmark_group("idempotence");
    for producers in [1, 1000] {
        let mut states = ProducerStates::default();
        let mut batches: Vec<_> = (0..producers).map(|id| numbered(seed, ProducerId(id))).collect();
        let mut appended = 0;
        let mut append = |states: &mut ProducerStates| {
            let (header, frame) = &mut batches[(appended % producers) as usize];
            header.base_sequence = (appended / producers) as i32;
            frame.base_offset = Offset(appended);
            let numbering = header.numbering().expect("it has one").expect("it is numbered");
            states.admit(Timestamp(0), &numbering).expect("it is the next");
            states.appended(&numbering, frame);
            states.settle();
            appended += 1;
        };
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("a batch of one of {producers}"), |b| {
            b.iter(|| append(&mut states));
        });
        (0..producers * 64).for_each(|_| append(&mut states));
        group.bench_function(format!("what a checkpoint stores of {producers}"), |b| {
            b.iter(|| states.encode())
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode, frame, idempotence);
criterion_main!(benches);
