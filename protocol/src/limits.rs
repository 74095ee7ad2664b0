//! Every limit of the product, together, and checked against each other at compile time.
//!
//! A length read from outside is held against one of these before anything is allocated for it.

use std::time::Duration;

/// Largest record batch, header included, that any topic's `max.message.bytes` may allow (bytes).
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Default of `max.message.bytes`: largest batch a topic accepts; one record of 1 MiB fits (bytes).
pub const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024 + 4096;
/// Batch size at which a producer sends without waiting (bytes of encoded records).
pub const BATCH_BYTES_TARGET: usize = 256 * 1024;
/// Most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 1_000_000;
/// Most bytes one batch may decompress to, however small it is compressed.
pub const BATCH_DECOMPRESSED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most headers on one record.
pub const RECORD_HEADERS_MAX: usize = 1024;

/// Largest control message (bytes).
pub const RPC_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Control messages being read or answered for one connection (bytes): a small part of what there is for all, so that a
/// client that stalls keeps nobody else waiting.
pub const RPC_CONNECTION_BYTES: usize = 2 * RPC_BYTES_MAX;
/// Most fields of one control request, and so most names or partitions it asks for.
pub const RPC_REQUEST_ITEMS_MAX: usize = 16 * 1024;
/// Largest control message before the hello exchange (bytes).
pub const HELLO_BYTES_MAX: usize = 4096;
/// Longest error text on a stream (bytes).
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// Longest topic name (bytes), as in Kafka.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Most partitions of one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;
/// Most replicas of one partition.
pub const REPLICAS_MAX: usize = 16;
/// Most partitions on one broker.
pub const BROKER_PARTITIONS_MAX: u32 = 20_000;

/// Batches a producer may have unacknowledged on one produce stream.
pub const PRODUCE_WINDOW_BATCHES: u32 = 64;
/// Producers that one partition remembers. One that appended nothing for [`PRODUCER_IDLE_TIME`] makes place for another.
pub const PRODUCERS_PER_PARTITION: usize = 1024;
/// A producer that appended nothing for so long resends nothing any more: of its batches only the last is remembered.
pub const PRODUCER_IDLE_TIME: Duration = Duration::from_secs(600);
/// A producer that appended nothing for so long is forgotten.
pub const PRODUCER_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of batches received and not yet acknowledged, broker-wide, by default.
pub const PRODUCE_MEMORY_BYTES_DEFAULT: usize = 256 * 1024 * 1024;
/// One connection may receive batches into at most one part in so many of the broker's produce memory at once: a client
/// that stalls in the middle of batches keeps nobody else from producing. A producer of default size fits.
pub const PRODUCE_MEMORY_SHARES: usize = 4;
/// Largest credit one consume stream may hold (bytes).
pub const CONSUME_CREDIT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most bytes read from a log at once for one consumer (one frame may exceed it).
pub const READ_BYTES_MAX: usize = 1024 * 1024;
/// What the disk is asked for ahead of a consumer that reads old data in order (bytes). It lies in the page cache, which
/// the kernel takes back when it has other use for it.
pub const READ_AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Calls that ask the disk ahead, under way at once, broker-wide.
pub const READ_AHEADS: usize = 16;
/// What reads from the disk brought into memory and no client has taken yet, broker-wide, by default (bytes).
pub const COLD_READ_MEMORY_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Lookups of a time under way at once, broker-wide. Each holds a batch and what it decompresses to.
pub const TIME_LOOKUPS_MAX: usize = 2;

/// Connections from clients that a broker holds at once, by default.
pub const CONNECTIONS_MAX_DEFAULT: usize = 4096;
/// Handshakes under way at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Streams a client may have open at once on one connection.
pub const STREAMS_MAX: u32 = 4096;
/// Of these, streams that a client keeps for requests, whatever its partitions need.
pub const STREAMS_FOR_REQUESTS: u32 = 96;
/// Streams permitted before the hello exchange.
pub const STREAMS_BEFORE_HELLO: u32 = 4;
/// Streams permitted right after it; the more are in use, the more are permitted, up to [`STREAMS_MAX`]. QUIC keeps some
/// 70 bytes for each.
pub const STREAMS_AT_FIRST: u32 = 64;
/// Control messages being read or answered, broker-wide (bytes).
pub const RPC_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// From the end of the handshake to the end of the hello exchange.
pub const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// From a stream's first byte to the end of its header, of a control message, or of one batch.
pub const MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a produce stream waits for memory before it is refused.
pub const PRODUCE_MEMORY_WAIT_MAX: Duration = Duration::from_millis(500);
/// Reads from the disk that one connection's consumers may have in hand at once, so that a client that takes nothing
/// holds a small part of the memory for them: of pages that must stay, or of heap where files are not mapped.
pub const COLD_READS_PER_CONNECTION: usize = 4;
/// How long a consumer may leave frames that it gave credit for in the broker's hands.
pub const CONSUME_STALL_MAX: Duration = Duration::from_secs(60);

/// Largest UDP payload sent and accepted (bytes): segmentation offload sends ten at once, which must fit 64 KiB.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 6500;
/// Socket buffers asked of the kernel, each way (bytes).
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// What one stream may have received and not yet read (bytes).
pub const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// What one connection may have received and not yet read (bytes).
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Least that one connection may have sent and not yet seen acknowledged (bytes): enough for a LAN, and so little that it
/// stays in a processor's caches, where more costs a quarter of the throughput.
pub const SEND_WINDOW_BYTES_MIN: u64 = 1024 * 1024;
/// Most of it, on long paths (bytes).
pub const SEND_WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What a sender may put on the path before it learnt anything about it (bytes); made for a LAN.
pub const CONGESTION_WINDOW_INITIAL_BYTES: u64 = 1024 * 1024;
/// Round-trip time assumed before the first measurement; a lost handshake packet costs three of these.
pub const RTT_INITIAL: Duration = Duration::from_millis(50);
/// A connection on which nothing arrives for so long is closed.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// A connection with nothing else to send sends a ping so often.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(8);
/// A client closes a connection on which nothing arrives for so long, by default: sooner than a broker, since its
/// records wait for their delivery meanwhile, and a broker that was killed says nothing.
pub const CLIENT_IDLE_TIME_MAX: Duration = Duration::from_secs(10);

/// Frames that leaders sent and that are not appended yet, broker-wide, by default (bytes).
pub const REPLICA_MEMORY_BYTES: usize = 128 * 1024 * 1024;
/// Least that a leader may send ahead for one partition (bytes).
pub const FETCH_CREDIT_BYTES_MIN: usize = 64 * 1024;
/// Least that a topic may allow its replicas to fetch in a second while they are not in sync (bytes).
pub const CATCH_UP_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// Most that a leader may send ahead for one partition (bytes).
pub const FETCH_CREDIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most partitions that one progress vector of a follower tells of; what is more goes into the next.
pub const PROGRESS_ENTRIES_MAX: usize = 4096;
/// A follower further behind than this leaves the in-sync replicas, by default.
pub const REPLICA_LAG_DEFAULT: Duration = Duration::from_secs(5);
/// A leader whose proposal of other in-sync replicas was refused or lost makes the next one so much later.
pub const IN_SYNC_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// A leader tells the chain of one partition after the other to each follower's stream this far apart: a stream of 1,000
/// partitions has all of them compared within 20 minutes.
pub const CHAIN_TOLD_INTERVAL: Duration = Duration::from_secs(1);
/// The first pause before a leader whose replicate stream was lost is asked again; it doubles.
pub const REDIAL_PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest of these pauses.
pub const REDIAL_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A follower that was refused asks again so much later, unless the metadata changes before.
pub const FOLLOW_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Largest message between brokers, beside the frames they replicate (bytes).
pub const PEER_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests of one broker that are being read on one connection (bytes), so that one that stalls keeps only itself waiting.
pub const PEER_CONNECTION_BYTES: usize = 4 * PEER_MESSAGE_BYTES_MAX;
/// From the first byte of a message between brokers to its last.
pub const PEER_MESSAGE_TIME_MAX: Duration = Duration::from_secs(5);
/// From the first packet to another broker to the end of the hello exchange.
pub const PEER_CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause before another broker is tried again, after the first failure; it doubles with each.
pub const PEER_RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest such pause: how late a broker that is back is found.
pub const PEER_RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A control connection on which nothing arrives for so long is closed. Short, since the older a silence, the longer QUIC
/// waits before it tries again: a new connection is there sooner.
pub const PEER_CONTROL_IDLE_TIME_MAX: Duration = Duration::from_secs(2);
/// A data connection on which nothing arrives for so long is closed.
pub const PEER_DATA_IDLE_TIME_MAX: Duration = Duration::from_secs(5);
/// Requests that one broker may have under way at another.
pub const PEER_REQUESTS_MAX: u32 = 64;
/// Streams that one broker may have open on a data connection: one for each of its shards, and those that catch up.
pub const PEER_STREAMS_MAX: u32 = 512;
/// Data connections to one broker; a connection's work runs on about one core.
pub const PEER_DATA_CONNECTIONS: usize = 2;
/// Connections from one broker held at once, those of its last process among them.
pub const PEER_CONNECTIONS_OF_ONE_MAX: usize = 16;
/// Connections from all brokers held at once.
pub const PEER_CONNECTIONS_MAX: usize = 1024;
/// Largest message of a broker that asks to join, and of the answer (bytes).
pub const JOIN_BYTES_MAX: usize = 64 * 1024;
/// From the first packet of a broker that asks to join to its answer: the cluster's metadata has to take it.
pub const JOIN_TIME_MAX: Duration = Duration::from_secs(20);
/// Brokers that may ask one broker to join, one right after the other.
pub const JOINS_AT_ONCE: u32 = 16;
/// Then one may ask again after so long each.
pub const JOIN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a join token can be used, by default.
pub const TOKEN_AGE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Host names and addresses in one broker's certificate.
pub const CERTIFICATE_NAMES_MAX: usize = 64;

/// Events waiting for one shard.
pub const SHARD_QUEUE_EVENTS: usize = 4096;
/// Events one shard applies before it flushes.
pub const SHARD_ROUND_EVENTS: usize = 1024;
/// Requests waiting for the metadata log.
pub const METADATA_QUEUE_REQUESTS: usize = 256;
/// Largest snapshot of the cluster's metadata that is read (bytes): a partition takes some 50.
pub const METADATA_SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest principal that is given a right (bytes).
pub const PRINCIPAL_BYTES_MAX: usize = 256;
/// Most rights that a cluster keeps.
pub const ACLS_MAX: usize = 4096;
/// Most tokens that a cluster keeps, used ones included until they expire.
pub const TOKENS_MAX: usize = 1024;
/// Longest time that a token can be used.
pub const TOKEN_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Largest sealed authority (bytes).
pub const AUTHORITY_BYTES_MAX: usize = 64 * 1024;
/// Longest serial number of a certificate (bytes), as in RFC 5280.
pub const CERTIFICATE_SERIAL_BYTES_MAX: usize = 20;
/// Most certificates that are revoked.
pub const REVOKED_CERTIFICATES_MAX: usize = 65_536;
/// Producer ids that a broker is given at once.
pub const PRODUCER_ID_BLOCK: u64 = 1000;
/// A broker that is not heard of for so long is fenced, by default.
pub const BROKER_SESSION_DEFAULT: Duration = Duration::from_secs(1);
/// A broker says so often that it is there, by default.
pub const BROKER_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);
/// A preferred leader that came back leads again after so long, by default.
pub const LEADER_RETURN_DEFAULT: Duration = Duration::from_secs(60);
/// Partitions that go back to preferred leaders at once.
pub const LEADER_RETURN_PARTITIONS: usize = 32;
/// How long after some went back others may.
pub const LEADER_RETURN_INTERVAL: Duration = Duration::from_secs(1);
/// A segment of a cluster's metadata log is sealed at this size (bytes): what a snapshot made needless goes by segments.
pub const METADATA_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// How long a change of the metadata may take, until its outcome is unknown.
pub const PROPOSE_TIME_MAX: Duration = Duration::from_secs(10);

/// Voters of the metadata log; every other node of it only follows.
pub const CONTROLLERS_MAX: usize = 3;
/// The metadata log's leader is heard from this often.
pub const RAFT_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// A voter that did not hear from the leader for a time from here on asks for an election.
pub const RAFT_ELECTION_TIME_MIN: Duration = Duration::from_millis(500);
/// See [`RAFT_ELECTION_TIME_MIN`]. For so long after they heard from a leader, voters elect no other, and only then does the
/// time to an election begin: a leader is missed for 1.2 s before it is replaced, which is more than a broker's session.
pub const RAFT_ELECTION_TIME_MAX: Duration = Duration::from_millis(700);
/// A snapshot takes the place of the metadata log after so many entries.
pub const RAFT_SNAPSHOT_ENTRIES: u64 = 4096;
/// Entries sent to another node at once (bytes); one entry may exceed it.
pub const RAFT_APPEND_BYTES: usize = 1024 * 1024;
/// One piece of a snapshot on its way to another node (bytes).
pub const RAFT_SNAPSHOT_PIECE_BYTES: usize = 1024 * 1024;
/// How long a node may take to answer to one piece of a snapshot: the last one is answered when all is on its disk.
pub const RAFT_SNAPSHOT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a node that asks to join waits for each answer.
pub const RAFT_JOIN_TIME_MAX: Duration = Duration::from_secs(3);
/// Most fields of one message of the metadata log, down to the fields of its entries.
pub const RAFT_MESSAGE_ITEMS_MAX: usize = 256 * 1024;
/// Syncs and other file jobs under way at once.
pub const FLUSHERS: usize = 16;
/// Logs being opened, recovered or closed at once, beside the file jobs of those that are open.
pub const OPENERS: usize = 16;
/// Largest sync that a shard's thread does itself, with nothing else to do (bytes).
pub const LONE_SYNC_BYTES_MAX: u64 = 128 * 1024;
/// One that took longer than this shows a slow disk.
pub const LONE_SYNC_TIME_MAX: Duration = Duration::from_millis(2);
/// How long flushers do all syncs then.
pub const LONE_SYNC_PAUSE: Duration = Duration::from_secs(1);

/// Longest group id (bytes).
pub const GROUP_ID_BYTES_MAX: usize = 255;
/// Longest member id (bytes).
pub const GROUP_MEMBER_ID_BYTES_MAX: usize = 128;
/// Longest instance id, rack, client name or host of a member (bytes).
pub const GROUP_TEXT_BYTES_MAX: usize = 255;
/// Groups that one partition of the internal topic keeps.
pub const GROUPS_MAX: usize = 16 * 1024;
/// What one partition of the internal topic keeps of all its groups, as it is in memory (bytes): half a million offsets, or
/// members of as much text. While there is more, no member joins and nothing is committed that was not before.
pub const GROUPS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most members of one group.
pub const GROUP_MEMBERS_MAX: usize = 1000;
/// Most topics that one member subscribes to.
pub const GROUP_TOPICS_MAX: usize = 256;
/// Most partitions that a group may have when a member joins or subscribes: of all topics that its members subscribe to.
pub const GROUP_PARTITIONS_MAX: usize = 32 * 1024;
/// Most partitions that one group has offsets of.
pub const GROUP_OFFSETS_MAX: usize = 32 * 1024;
/// Longest text that is kept with a committed offset (bytes), as in Kafka.
pub const COMMIT_METADATA_BYTES_MAX: usize = 4096;
/// A member that is silent for so long has left its group, by default.
pub const GROUP_SESSION_DEFAULT: Duration = Duration::from_secs(10);
/// Shortest session that a member may ask for.
pub const GROUP_SESSION_MIN: Duration = Duration::from_secs(1);
/// Longest session that a member may ask for.
pub const GROUP_SESSION_MAX: Duration = Duration::from_secs(30 * 60);
/// A member that was asked to give up partitions and does not for so long is removed, by default.
pub const GROUP_REBALANCE_DEFAULT: Duration = Duration::from_secs(60);
/// Longest time for it that a member may ask for. The shortest is its session.
pub const GROUP_REBALANCE_MAX: Duration = Duration::from_secs(60 * 60);
/// A member says so often that it is there; more often if a third of its session is less.
pub const GROUP_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// The same while partitions change hands, so that they are not without owner for long.
pub const GROUP_HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// An empty group's offsets are kept for so long, by default.
pub const OFFSETS_RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Offsets that are too old are looked for this often.
pub const OFFSETS_EXPIRY_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Appends that a group coordinator has under way at once on its partition; what is decided meanwhile goes into the next.
pub const GROUP_APPENDS_MAX: usize = 4;
/// An append of a group coordinator with so many bytes takes no further decision (bytes); one decision may exceed it.
pub const GROUP_APPEND_BYTES: usize = 1024 * 1024;
/// Appends of a group coordinator that wait for others; while so many do, it takes no request.
pub const GROUP_QUEUED_APPENDS_MAX: usize = 4;

/// A broker that may open fewer files than this says so: each partition in use has one open.
pub const DESCRIPTORS_MIN: u64 = 4096;

/// Smallest segment (bytes).
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
/// Default segment (bytes).
pub const SEGMENT_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;
/// Largest segment (bytes); positions within one fit 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes written last, to all logs together, that are taken to be in the page cache still.
pub const RECENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Of these, most that are one log's (bytes).
pub const LOG_RECENT_BYTES: u64 = 64 * 1024 * 1024;
/// Segments mapped at once, broker-wide (vm.max_map_count is 65,530).
pub const MAPS_MAX: usize = 32_768;
/// Most segments in one partition's manifest.
pub const SEGMENTS_MAX: usize = 65_536;
/// One offset-index and one time-index entry for about this many bytes of log.
pub const INDEX_INTERVAL_BYTES: u64 = 16 * 1024;
/// Most entries of one segment's index; behind the last one it is only sparser.
pub const INDEX_ENTRIES_MAX: usize = 1024 * 1024;
/// Most leaderships that one partition remembers; older ones are forgotten first.
pub const LEADER_EPOCHS_MAX: usize = 65_536;
/// Keys whose last offsets compaction holds in memory at once, for one partition of each shard: at 25 bytes a key 25 MiB. Of
/// a log with more new keys a part is compacted at a time.
pub const COMPACTION_KEYS_MAX: usize = (1 << 20) / 8 * 7;
/// Bytes of segments that compaction reads a second, broker-wide: what it writes is less.
pub const COMPACTION_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;
/// An active segment smaller than this (bytes) is not sealed only so that compaction reaches it.
pub const COMPACTION_SEAL_BYTES_MIN: u64 = 1024 * 1024;
/// Compaction begins only if the disk has room for all that it reads and this much more (bytes): appends go on meanwhile.
pub const COMPACTION_DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// A log whose compaction found no room, or no descriptors, is left alone for so long.
pub const COMPACTION_RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// Longest snapshot of what one partition knows of its producers (bytes).
pub const PRODUCER_SNAPSHOT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A checkpoint after about this many synced bytes, so that recovery reads no more (bytes).
pub const CHECKPOINT_INTERVAL_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of records a producer buffers before `send` waits, by default.
pub const PRODUCER_MEMORY_BYTES_DEFAULT: usize = 64 * 1024 * 1024;
/// Bytes of frames a consumer buffers over all its partitions, by default.
pub const CONSUMER_MEMORY_BYTES_DEFAULT: usize = 32 * 1024 * 1024;
/// Longest line that `quire produce` reads: the largest batch in base64 or escaped, with room to spare (bytes).
pub const INPUT_LINE_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// Records that `quire produce` parses ahead of the producer.
pub const INPUT_RECORDS_AHEAD: usize = 1024;
/// Bytes of records that `quire produce` parses ahead of the producer.
pub const INPUT_BYTES_AHEAD: usize = INPUT_LINE_BYTES_MAX;
/// Records that `quire produce` has handed over and not yet seen acknowledged.
pub const PRODUCE_OUTSTANDING_RECORDS: usize = 65_536;
/// Smallest credit a consumer grants one partition (bytes).
pub const CONSUMER_CREDIT_BYTES_MIN: u64 = 4 * 1024;

/// Requests that wait for one coordinator of groups; it takes no more meanwhile. Also those that wait for its log.
pub const GROUP_REQUESTS_MAX: usize = 1024;
/// A coordinator's answer that takes longer is not waited for: what was asked may have been done or not. Longer than it takes
/// for a follower that is gone to leave the in-sync replicas.
pub const GROUP_ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// A list of groups does not wait for a coordinator that takes longer: it is named as one that does not answer.
pub const GROUP_LIST_TIME_MAX: Duration = Duration::from_secs(1);
/// Partitions of the internal topic that groups are kept in: so many coordinators share them. A group's name is mapped to
/// one of them for ever.
pub const OFFSETS_PARTITIONS: u32 = 16;
/// Segment of the internal topic that groups are kept in (bytes): small, as only sealed ones are compacted, and a new
/// coordinator reads all of it.
pub const OFFSETS_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

const _: () = {
    assert!(MESSAGE_BYTES_DEFAULT <= BATCH_BYTES_MAX);
    assert!(BATCH_BYTES_TARGET <= MESSAGE_BYTES_DEFAULT);
    assert!(BATCH_BYTES_MAX <= BATCH_DECOMPRESSED_BYTES_MAX);
    assert!(BATCH_BYTES_MAX as u64 <= CONSUME_CREDIT_BYTES_MAX);
    assert!(HELLO_BYTES_MAX <= RPC_BYTES_MAX);
    assert!(RAFT_APPEND_BYTES < RPC_BYTES_MAX && RAFT_SNAPSHOT_PIECE_BYTES < RPC_BYTES_MAX);
    assert!(RAFT_HEARTBEAT_INTERVAL.as_millis() * 3 < RAFT_ELECTION_TIME_MIN.as_millis());
    assert!(RAFT_ELECTION_TIME_MIN.as_millis() < RAFT_ELECTION_TIME_MAX.as_millis());
    assert!(SEGMENT_BYTES_MIN <= METADATA_SEGMENT_BYTES);
    assert!(BATCH_BYTES_MAX < INPUT_LINE_BYTES_MAX && INPUT_LINE_BYTES_MAX <= INPUT_BYTES_AHEAD);
    assert!(INPUT_BYTES_AHEAD <= u32::MAX as usize);
    assert!(TOPIC_PARTITIONS_MAX as usize <= RPC_REQUEST_ITEMS_MAX);
    assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_DEFAULT && SEGMENT_BYTES_DEFAULT <= SEGMENT_BYTES_MAX);
    assert!(SEGMENT_BYTES_MAX + (BATCH_BYTES_MAX as u64) < u32::MAX as u64);
    assert!(TOPIC_PARTITIONS_MAX <= BROKER_PARTITIONS_MAX);
    assert!(
        FETCH_CREDIT_BYTES_MIN <= FETCH_CREDIT_BYTES_MAX && FETCH_CREDIT_BYTES_MAX <= REPLICA_MEMORY_BYTES
    );
    assert!(BATCH_BYTES_MAX <= PRODUCE_MEMORY_BYTES_DEFAULT);
    assert!(BATCH_BYTES_MAX <= COLD_READ_MEMORY_BYTES_DEFAULT);
    assert!(PRODUCER_IDLE_TIME.as_secs() < PRODUCER_EXPIRY.as_secs());
    assert!(PRODUCER_MEMORY_BYTES_DEFAULT <= PRODUCE_MEMORY_BYTES_DEFAULT / PRODUCE_MEMORY_SHARES);
    assert!(BATCH_BYTES_TARGET <= PRODUCER_MEMORY_BYTES_DEFAULT);
    assert!(SEND_WINDOW_BYTES_MIN <= SEND_WINDOW_BYTES_MAX);
    assert!(STREAMS_BEFORE_HELLO < STREAMS_AT_FIRST && STREAMS_AT_FIRST <= STREAMS_MAX);
    assert!(2 * STREAMS_FOR_REQUESTS < STREAMS_MAX);
    assert!(RPC_BYTES_MAX <= RPC_CONNECTION_BYTES && RPC_CONNECTION_BYTES <= RPC_MEMORY_BYTES);
    // Hello is bounded by its connection alone.
    assert!(HELLO_BYTES_MAX * STREAMS_BEFORE_HELLO as usize <= RPC_CONNECTION_BYTES);
    assert!(UDP_PAYLOAD_BYTES_MAX as u32 * 10 < 64 * 1024);
    assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
    assert!(KEEP_ALIVE_INTERVAL.as_millis() * 3 < IDLE_TIME_MAX.as_millis());
    assert!(HELLO_BYTES_MAX <= PEER_MESSAGE_BYTES_MAX && PEER_MESSAGE_BYTES_MAX <= PEER_CONNECTION_BYTES);
    assert!(PEER_RETRY_PAUSE_MIN.as_millis() <= PEER_RETRY_PAUSE_MAX.as_millis());
    assert!(PEER_CONNECT_TIME_MAX.as_millis() < PEER_CONTROL_IDLE_TIME_MAX.as_millis());
    assert!(2 * PEER_DATA_CONNECTIONS + 2 <= PEER_CONNECTIONS_OF_ONE_MAX);
    assert!(PEER_CONNECTIONS_OF_ONE_MAX <= PEER_CONNECTIONS_MAX);
    assert!(CLIENT_IDLE_TIME_MAX.as_millis() <= IDLE_TIME_MAX.as_millis());
    assert!(MAPS_MAX < 65_530);
    assert!(BROKER_HEARTBEAT_INTERVAL.as_millis() * 3 < BROKER_SESSION_DEFAULT.as_millis());
    assert!(GROUP_SESSION_MIN.as_millis() <= GROUP_SESSION_DEFAULT.as_millis());
    assert!(GROUP_SESSION_DEFAULT.as_millis() <= GROUP_REBALANCE_DEFAULT.as_millis());
    assert!(GROUP_SESSION_MAX.as_millis() <= GROUP_REBALANCE_MAX.as_millis());
    assert!(GROUP_HEARTBEAT_INTERVAL_MIN.as_millis() * 3 < GROUP_SESSION_MIN.as_millis());
    assert!(GROUP_REBALANCE_MAX.as_millis() <= u32::MAX as u128);
    assert!(REPLICA_LAG_DEFAULT.as_millis() < GROUP_ANSWER_TIME_MAX.as_millis());
    assert!(GROUP_LIST_TIME_MAX.as_millis() < GROUP_ANSWER_TIME_MAX.as_millis());
    // All the offsets of a group fit one batch as tombstones: a key has 25 bytes and the group id.
    assert!(GROUP_OFFSETS_MAX * (GROUP_ID_BYTES_MAX + 64) + GROUP_APPEND_BYTES <= BATCH_BYTES_MAX);
    // What a batch holds at most: what was decided before, and the targets of a whole group.
    assert!(RPC_BYTES_MAX + GROUP_APPEND_BYTES + GROUP_PARTITIONS_MAX * 64 <= BATCH_BYTES_MAX);
    assert!(LOG_RECENT_BYTES <= RECENT_BYTES);
    // Asked again half-way, it is still ahead of the next read.
    assert!(READ_AHEAD_BYTES / 2 > READ_BYTES_MAX as u64);
};
