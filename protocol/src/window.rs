//! How much one connection may have on the way.

use std::time::Duration;

use crate::limits::{SEND_WINDOW_BYTES_MAX, SEND_WINDOW_BYTES_MIN};

/// What one connection may have sent and not yet seen acknowledged (bytes): a gigabyte a second over a path with this
/// round trip, from [`SEND_WINDOW_BYTES_MIN`] to [`SEND_WINDOW_BYTES_MAX`].
pub fn send_window_bytes(rtt: Duration) -> u64 {
    // A gigabyte a second is a byte a nanosecond.
    let in_flight = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
    in_flight.clamp(SEND_WINDOW_BYTES_MIN, SEND_WINDOW_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_has_more_on_the_way_and_none_without_bound() {
        assert_eq!(send_window_bytes(Duration::ZERO), SEND_WINDOW_BYTES_MIN);
        assert_eq!(send_window_bytes(Duration::from_micros(200)), SEND_WINDOW_BYTES_MIN, "a LAN");
        assert_eq!(send_window_bytes(Duration::from_millis(5)), 5_000_000, "1 GB/s");
        assert_eq!(send_window_bytes(Duration::from_millis(100)), SEND_WINDOW_BYTES_MAX);
        assert_eq!(send_window_bytes(Duration::MAX), SEND_WINDOW_BYTES_MAX);
    }
}
