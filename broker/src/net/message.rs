//! Reading fixed-size messages within their deadline, and answering with an error.

use quinn::{RecvStream, SendStream};
use quire_protocol::ErrorCode;
use quire_protocol::limits;
use quire_protocol::stream::{Answer, StreamError};
use tokio::time::timeout;

use super::connection::close_code;
use crate::error::RequestError;

/// Reads a stream's header; `None` if the client ended the stream or is gone.
pub(crate) async fn read_header<const N: usize>(
    recv: &mut RecvStream,
) -> Result<Option<[u8; N]>, RequestError> {
    let mut header = [0; N];
    match timeout(limits::MESSAGE_TIME_MAX, recv.read_exact(&mut header)).await {
        Ok(Ok(())) => Ok(Some(header)),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(too_slow("the stream's header")),
    }
}

/// Ends a stream with an error. The client's side is stopped, so that nothing more is received for it.
pub(crate) async fn fail(send: &mut SendStream, recv: &mut RecvStream, error: &RequestError) {
    let mut bytes = Vec::with_capacity(64 + error.message.len());
    Answer::Failure(error.clone().into()).encode(&mut bytes);
    let _ = recv.stop(close_code(error.code));
    // Whoever does not read the error does not get it.
    match timeout(limits::MESSAGE_TIME_MAX, send.write_all(&bytes)).await {
        Ok(Ok(())) => {
            let _ = send.finish();
        }
        _ => {
            let _ = send.reset(close_code(error.code));
        }
    }
}

/// The error for bytes that are no message of the protocol.
pub(crate) fn malformed(error: &StreamError) -> RequestError {
    let code = match error {
        StreamError::Version(_) => ErrorCode::UnsupportedVersion,
        _ => ErrorCode::InvalidRequest,
    };
    RequestError::new(code, error.to_string())
}

/// The error for a client that began a message and did not end it in time.
pub(crate) fn too_slow(what: &str) -> RequestError {
    RequestError::new(
        ErrorCode::TimedOut,
        format!("{what} did not come within {:?}", limits::MESSAGE_TIME_MAX),
    )
}
