//! What each setting of bare quinn gives, one changed at a time: the evidence for what the other benches stand beside.

use anyhow::Result;
use quire_benches::bare_quic::{BareQuic, Direction, Tuning};
use quire_benches::child;
use quire_benches::series::Spread;
use quire_benches::unit::Unit;

/// As the `quire` binary has it; for the bare operations too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BYTES: u64 = 1 << 30;
const RUNS: usize = 5;

fn variants() -> Vec<(&'static str, Tuning, u64)> {
    let tuned = Tuning::default;
    vec![
        ("as tuned", tuned(), 1),
        ("datagrams of 1452 bytes", Tuning { datagram_bytes: 1452, ..tuned() }, 1),
        ("datagrams of 4000 bytes", Tuning { datagram_bytes: 4000, ..tuned() }, 1),
        ("datagrams of 9000 bytes", Tuning { datagram_bytes: 9000, ..tuned() }, 1),
        ("no offload", Tuning { offload: false, ..tuned() }, 1),
        ("no offload, 65,000 bytes", Tuning { datagram_bytes: 65_000, offload: false, ..tuned() }, 1),
        ("initial window of 12 KiB", Tuning { congestion_window_bytes: 12 << 10, ..tuned() }, 1),
        ("send window of 512 KiB", Tuning { send_window_bytes: 512 << 10, ..tuned() }, 1),
        ("send window of 2 MiB", Tuning { send_window_bytes: 2 << 20, ..tuned() }, 1),
        ("send window of 8 MiB", Tuning { send_window_bytes: 8 << 20, ..tuned() }, 1),
        ("stream window of 1 MiB", Tuning { stream_window_bytes: 1 << 20, ..tuned() }, 1),
        ("acknowledgements as quinn has them", Tuning { acknowledged_together: 0, ..tuned() }, 1),
        ("acknowledgements of 40 packets", Tuning { acknowledged_together: 40, ..tuned() }, 1),
        ("system's socket buffers", Tuning { socket_buffer_bytes: 0, ..tuned() }, 1),
        ("writes of 64 KiB", Tuning { write_bytes: 64 << 10, ..tuned() }, 1),
        ("writes of 1 MiB", Tuning { write_bytes: 1 << 20, ..tuned() }, 1),
        ("one thread a process", Tuning { single_thread: true, ..tuned() }, 1),
        ("8 streams", tuned(), 8),
    ]
}

fn main() -> Result<()> {
    if child::serve_if_child()? {
        return Ok(());
    }
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for (name, tuning, streams) in variants() {
        if !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        let runtime = child::runtime(tuning.single_thread)?;
        let rates = runtime.block_on(async {
            let bare = BareQuic::start(&tuning).await?;
            let (mut up, mut down) = (Vec::new(), Vec::new());
            bare.transfer(Direction::Up, BYTES / 4, streams).await?;
            bare.transfer(Direction::Down, BYTES / 4, streams).await?;
            for _ in 0..RUNS {
                up.push(BYTES as f64 / bare.transfer(Direction::Up, BYTES, streams).await?.as_secs_f64());
                down.push(BYTES as f64 / bare.transfer(Direction::Down, BYTES, streams).await?.as_secs_f64());
            }
            anyhow::Ok([up, down])
        })?;
        let show = |rates: &Vec<f64>| {
            let s = Spread::of(rates.iter().copied()).expect("there were runs");
            let show = |v| Unit::BytesPerSecond.show(v);
            format!("{} ({} to {})", show(s.median), show(s.low), show(s.high))
        };
        println!("{name:<36} up {:<40} down {}", show(&rates[0]), show(&rates[1]));
    }
    Ok(())
}
