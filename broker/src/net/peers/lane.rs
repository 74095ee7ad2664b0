//! What a connection between brokers is for, and how each kind is carried.
//!
//! Control connections are driven by a runtime of their own, so that no amount of bulk keeps a heartbeat waiting. The
//! listening side must know before the handshake where it is to be driven: the caller says so in the first byte of the
//! connection id it draws. Whoever lies there gains nothing, and is told off by the hello exchange.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionId, IdleTimeout, TransportConfig, VarInt};
use quire_protocol::limits;

use super::super::endpoint;
use crate::identity::random;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Lane {
    /// Requests: the metadata log's, heartbeats.
    Control = 0,
    /// Frames.
    Data = 1,
}

/// QUIC's longest; all but the first byte are random.
const CONNECTION_ID_LEN: usize = 20;

impl Lane {
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    /// The lane that a caller drew this id for. Anything that is not control is carried as data.
    pub(super) fn of(first_id: &ConnectionId) -> Lane {
        match first_id.first() {
            Some(first) if *first == Lane::Control as u8 => Lane::Control,
            _ => Lane::Data,
        }
    }

    fn connection_id(self) -> ConnectionId {
        let mut id = random::<CONNECTION_ID_LEN>();
        id[0] = self as u8;
        ConnectionId::new(&id)
    }

    /// How a connection is carried, with this many streams for the other side to open.
    pub(super) fn transport(self, streams: u32) -> TransportConfig {
        let mut transport = endpoint::transport();
        let idle_time = match self {
            Lane::Control => limits::PEER_CONTROL_IDLE_TIME_MAX,
            Lane::Data => limits::PEER_DATA_IDLE_TIME_MAX,
        };
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_idle_timeout(Some(IdleTimeout::try_from(idle_time).expect("a few seconds fit")))
            // Three pings may be lost before a silence is taken for the end.
            .keep_alive_interval(Some(idle_time / 4));
        transport
    }

    pub(super) fn streams_max(self) -> u32 {
        match self {
            Lane::Control => limits::PEER_REQUESTS_MAX,
            Lane::Data => limits::PEER_STREAMS_MAX,
        }
    }

    /// How a connection is made.
    pub(super) fn client_config(self, tls: Arc<QuicClientConfig>) -> ClientConfig {
        let mut config = ClientConfig::new(tls);
        config.transport_config(Arc::new(self.transport(0)));
        config.initial_dst_cid_provider(Arc::new(move || self.connection_id()));
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_told_by_the_id_drawn_for_it() {
        for lane in [Lane::Control, Lane::Data] {
            let id = lane.connection_id();
            assert_eq!((Lane::of(&id), id.len()), (lane, CONNECTION_ID_LEN));
            assert_ne!(id, lane.connection_id(), "the rest is drawn");
        }
    }
}
