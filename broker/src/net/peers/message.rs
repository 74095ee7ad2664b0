//! One request and one response on a stream of a control connection: what the stream is, a length, the message.

use bytes::Bytes;
use prost::Message;
use quinn::{RecvStream, SendStream};
use quire_protocol::limits;
use quire_protocol::rpc::peer::{self, response};
use quire_protocol::stream::{PREFIX_LEN, StreamKind};

use super::PeerError;

/// A message as it is sent, behind the stream's prefix.
pub(super) fn encode(request: &peer::Request) -> Result<Vec<u8>, PeerError> {
    let length = request.encoded_len();
    if length > limits::PEER_MESSAGE_BYTES_MAX {
        return Err(PeerError::TooLong(length));
    }
    let mut bytes = Vec::with_capacity(PREFIX_LEN + 4 + length);
    bytes.extend_from_slice(&StreamKind::Rpc.prefix());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    request.encode(&mut bytes).expect("a vector grows as needed");
    Ok(bytes)
}

pub(super) fn encode_response(response: &peer::Response) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + response.encoded_len());
    bytes.extend_from_slice(&(response.encoded_len() as u32).to_le_bytes());
    response.encode(&mut bytes).expect("a vector grows as needed");
    bytes
}

/// Sends a request and reads its response; says in words why that failed.
pub(super) async fn exchange(
    send: &mut SendStream,
    recv: &mut RecvStream,
    request: Vec<u8>,
) -> Result<response::Body, String> {
    send.write_chunk(Bytes::from(request)).await.map_err(|error| error.to_string())?;
    let _ = send.finish();
    let bytes = read(recv, limits::PEER_MESSAGE_BYTES_MAX).await?;
    let response = peer::Response::decode(bytes).map_err(|error| format!("it is malformed: {error}"))?;
    response.body.ok_or_else(|| "it answers with something this version does not know".to_owned())
}

/// Reads the length that stands before a message, held against `bytes_max`.
pub(super) async fn read_length(recv: &mut RecvStream, bytes_max: usize) -> Result<usize, String> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.map_err(|error| error.to_string())?;
    match u32::from_le_bytes(length) as usize {
        length if length <= bytes_max => Ok(length),
        length => Err(format!("a message of {length} bytes exceeds the limit of {bytes_max}")),
    }
}

/// Reads the rest of a message.
pub(super) async fn read_body(recv: &mut RecvStream, length: usize) -> Result<Bytes, String> {
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
    Ok(Bytes::from(bytes))
}

async fn read(recv: &mut RecvStream, bytes_max: usize) -> Result<Bytes, String> {
    let length = read_length(recv, bytes_max).await?;
    read_body(recv, length).await
}
