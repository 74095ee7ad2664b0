//! The bare QUIC connection that other bars stand beside: it has to be good, or they mean nothing.

use anyhow::Result;
use quire_benches::bare_quic::{BareQuic, Direction, Tuning};
use quire_benches::child;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::{Unit, counted};

pub fn measurements() -> Vec<Measurement> {
    let of = |streams: u64| {
        let names = [format!("bare-quic-up-{streams}"), format!("bare-quic-down-{streams}")];
        Measurement::new(names.clone(), move |settings| measure(settings, streams, &names))
    };
    vec![of(1), of(8)]
}

fn measure(settings: &Settings, streams: u64, names: &[String]) -> Result<Vec<Row>> {
    let tuning = Tuning::default();
    let bytes = settings.bytes;
    let (mut up, mut down) = (Pairs::default(), Pairs::default());
    child::runtime(tuning.single_thread)?.block_on(async {
        let bare = BareQuic::start(&tuning).await?;
        for _ in 0..settings.pairs {
            for (direction, pairs) in [(Direction::Up, &mut up), (Direction::Down, &mut down)] {
                let took = bare.transfer(direction, bytes, streams).await?;
                pairs.push(Pair { quire: bytes as f64 / took.as_secs_f64(), bare: None });
            }
        }
        anyhow::Ok(())
    })?;
    let row = |name: &String, way: &str, pairs| Row {
        name: name.clone(),
        title: format!(
            "bare quinn {way}, {}, TLS 1.3 AES-128-GCM, {}-byte datagrams, {} a run",
            counted(streams, "stream"),
            tuning.datagram_bytes,
            bytesize::ByteSize(bytes),
        ),
        bare: "it is bare itself".to_owned(),
        unit: Unit::BytesPerSecond,
        pairs,
        bar: Bar::AtLeast(1.5e9),
        notes: Vec::new(),
    };
    Ok(vec![row(&names[0], "to the child", up), row(&names[1], "from the child", down)])
}
