//! Says what is waited for where that takes long: who waits in silence looks as if nothing went on.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::connection::lock;
use crate::error::Error;

/// How long is waited without a word.
const SILENT_TIME_MAX: Duration = Duration::from_secs(2);

/// What stood in the way last.
#[derive(Debug, Default)]
pub(crate) struct Hindrance(Mutex<Option<Error>>);

impl Hindrance {
    pub(crate) fn set(&self, error: &Error) {
        *lock(&self.0) = Some(error.clone());
    }

    fn told(&self) -> String {
        match &*lock(&self.0) {
            Some(error) => format!("{error}. {}", error.advice()),
            None => "no answer yet".to_owned(),
        }
    }
}

/// Does the work. After two seconds a warning in the log says what it waits for, and again whenever something else stands in
/// the way, at most every two seconds. `what` is said first: what can not be done yet.
pub(crate) async fn with_warnings<T>(what: &str, hindrance: &Hindrance, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = warn(what, hindrance, SILENT_TIME_MAX) => match never {},
    }
}

/// The warnings of [`with_warnings`], for what is done in several pieces: for as long as this is polled.
pub(crate) async fn warnings(what: String, hindrance: Arc<Hindrance>) -> Infallible {
    warn(&what, &hindrance, SILENT_TIME_MAX).await
}

async fn warn(what: &str, hindrance: &Hindrance, every: Duration) -> Infallible {
    let mut told = String::new();
    loop {
        tokio::time::sleep(every).await;
        let now = hindrance.told();
        if now != told {
            tracing::warn!("{what}: {now}");
            told = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use tokio::sync::Notify;
    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// Takes down every warning.
    #[derive(Default)]
    struct Log {
        lines: Mutex<Vec<String>>,
        changed: Notify,
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, "{value:?}").expect("a string takes everything");
        }
    }

    struct Subscriber(Arc<Log>);

    impl tracing::Subscriber for Subscriber {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            lock(&self.0.lines).push(line.0);
            self.0.changed.notify_one();
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test]
    async fn what_is_waited_for_is_said_once_for_each_cause() {
        let log = Arc::new(Log::default());
        let _logging = tracing::subscriber::set_default(Subscriber(Arc::clone(&log)));
        let hindrance = Hindrance::default();
        let gone = |address: &str| Error::Unreachable { address: address.into(), why: "gone".into() };
        let work = async {
            log.changed.notified().await;
            for address in ["a:1", "a:1", "b:1"] {
                hindrance.set(&gone(address));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            while lock(&log.lines).len() < 3 {
                log.changed.notified().await;
            }
        };
        tokio::select! {
            () = work => {}
            never = warn("not yet", &hindrance, Duration::from_millis(5)) => match never {},
        }
        let lines = lock(&log.lines);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "not yet: no answer yet");
        assert!(lines[1].starts_with("not yet: no broker answers at a:1: gone. Check "), "{lines:?}");
        assert!(lines[2].contains("b:1"), "{lines:?}");
    }
}
