//! Control messages: round trips, strangers' bytes, and fields from newer versions.

use proptest::prelude::*;
use prost::Message;
use quire_protocol::rpc::control::{
    CreateTopicRequest, DescribeTopicsRequest, Error, HelloRequest, HelloResponse, ListOffsetsRequest,
    PartitionPosition, Position, Request, Response, position::At, request, response,
};
use quire_protocol::rpc::{InvalidRequest, PROTOCOL_VERSION, decode_request, metadata::MetadataRecord};
use quire_protocol::{ErrorCode, limits};

fn request(body: request::Body) -> Request {
    Request { body: Some(body) }
}

fn hello() -> Request {
    request(request::Body::Hello(HelloRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        client_name: "quire".into(),
        client_version: "0.1.0".into(),
    }))
}

fn any_request() -> impl Strategy<Value = Request> {
    let create =
        ("\\PC{0,40}", any::<[u32; 2]>(), proptest::collection::btree_map("\\PC{0,9}", "\\PC{0,9}", 0..5))
            .prop_map(|(name, [partitions, replicas], config)| {
                let validate_only = partitions % 2 == 0;
                request::Body::CreateTopic(CreateTopicRequest {
                    name,
                    partitions,
                    replicas,
                    config,
                    validate_only,
                })
            });
    let describe = (proptest::collection::vec("\\PC{0,20}", 0..20), any::<bool>()).prop_map(
        |(names, with_log_state)| {
            request::Body::DescribeTopics(DescribeTopicsRequest { names, with_log_state })
        },
    );
    let at = prop_oneof![
        Just(At::Beginning(true)),
        Just(At::End(true)),
        any::<i64>().prop_map(At::Timestamp),
        any::<u64>().prop_map(At::Offset),
        any::<u64>().prop_map(At::BeforeEnd),
    ];
    let position = (any::<u32>(), at).prop_map(|(partition, at)| PartitionPosition {
        partition,
        position: Some(Position { at: Some(at) }),
    });
    let offsets =
        (any::<[u8; 16]>(), proptest::collection::vec(position, 0..20)).prop_map(|(id, partitions)| {
            request::Body::ListOffsets(ListOffsetsRequest {
                topic_id: id.to_vec(),
                partitions,
                with_ages: false,
            })
        });
    prop_oneof![create, describe, offsets].prop_map(request)
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in any_request()) {
        prop_assert_eq!(decode_request(&request.encode_to_vec()), Ok(request));
    }

    #[test]
    fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_request(&bytes);
        let _ = Response::decode(bytes.as_slice());
        let _ = MetadataRecord::decode(bytes.as_slice());
    }

    #[test]
    fn a_damaged_request_is_a_request_or_an_error(
        request in any_request(),
        at: proptest::sample::Index,
        byte: u8,
    ) {
        let mut bytes = request.encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode_request(&bytes);
    }
}

#[test]
fn hello_survives_the_wire_and_fits_its_limit() {
    let bytes = hello().encode_to_vec();
    assert!(bytes.len() <= limits::HELLO_BYTES_MAX);
    assert_eq!(decode_request(&bytes), Ok(hello()));
    let response = Response {
        body: Some(response::Body::Hello(HelloResponse {
            version: PROTOCOL_VERSION,
            cluster_id: "c".into(),
            broker_id: 1,
            broker_version: "0.1.0".into(),
            principal: "client".into(),
        })),
    };
    assert_eq!(Response::decode(response.encode_to_vec().as_slice()), Ok(response));
}

#[test]
fn fields_of_a_newer_version_are_skipped() {
    let mut inner =
        HelloRequest { version_min: 1, version_max: 9, ..HelloRequest::default() }.encode_to_vec();
    // Field 100, a string of three bytes.
    inner.extend_from_slice(&[0xa2, 0x06, 3, b'n', b'e', b'w']);
    let known = HelloRequest::decode(inner.as_slice()).expect("unknown fields are skipped");
    assert_eq!((known.version_min, known.version_max), (1, 9));

    let newer = [0xa2, 0x06, 0];
    assert_eq!(decode_request(&newer), Ok(Request { body: None }), "a request this version does not know");
}

#[test]
fn a_request_for_too_much_at_once_is_refused() {
    let names = vec![String::new(); limits::RPC_REQUEST_ITEMS_MAX];
    let describe = DescribeTopicsRequest { names, with_log_state: false };
    let bytes = request(request::Body::DescribeTopics(describe)).encode_to_vec();
    assert_eq!(decode_request(&bytes), Err(InvalidRequest::TooManyItems));

    let long = vec![0; limits::RPC_BYTES_MAX + 1];
    assert_eq!(decode_request(&long), Err(InvalidRequest::TooLong(long.len())));
}

#[test]
fn the_largest_topic_is_listed_in_one_request() {
    let partitions = (0..limits::TOPIC_PARTITIONS_MAX)
        .map(|partition| PartitionPosition {
            partition,
            position: Some(Position { at: Some(At::Timestamp(i64::MIN)) }),
        })
        .collect();
    let list = ListOffsetsRequest { topic_id: vec![0; 16], partitions, with_ages: false };
    assert!(decode_request(&request(request::Body::ListOffsets(list)).encode_to_vec()).is_ok());
}

#[test]
fn an_error_keeps_its_code() {
    for code in ErrorCode::ALL {
        assert_eq!(Error::new(*code, "why").error_code(), *code);
    }
    assert_eq!(Error { code: 70_000, message: String::new() }.error_code(), ErrorCode::Internal);
}
