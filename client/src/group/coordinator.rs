//! The way to a group's coordinator: looked up, kept until it is another, asked again while that may help.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{BrokerId, ErrorCode};
use tokio::time::sleep_until;

use crate::Client;
use crate::connection::lock;
use crate::error::Error;
use crate::retry::{Jitter, Retry};

/// The coordinator of one group.
#[derive(Debug)]
pub(crate) struct Coordinator {
    client: Client,
    group: String,
    known: Mutex<Option<BrokerId>>,
}

impl Coordinator {
    pub(crate) fn new(client: Client, group: String) -> Coordinator {
        Coordinator { client, group, known: Mutex::new(None) }
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// One attempt: asks the coordinator, which is looked up first if it is not known.
    ///
    /// # Errors
    /// If there is none at the moment, it can not be reached, or it refuses. What was known of it is forgotten where that
    /// may be why.
    pub(crate) async fn ask(&self, what: &'static str, body: request::Body) -> Result<response::Body, Error> {
        let known = *lock(&self.known);
        let broker = match known {
            Some(broker) => broker,
            None => self.find().await?,
        };
        let answer = async { self.client.metadata().broker(broker).await?.rpc(what, body).await }.await;
        // One that reads its log may be one that does not know yet that it is another by now.
        let may_be_another = |error: &Error| {
            let code = error.code();
            code.is_none_or(|code| matches!(code, ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoading))
        };
        if answer.as_ref().is_err_and(may_be_another) {
            lock(&self.known).take_if(|known| *known == broker);
        }
        answer
    }

    /// As [`Coordinator::ask`], again for so long while what failed may come right.
    ///
    /// # Errors
    /// The last attempt's.
    pub(crate) async fn ask_within(
        &self,
        time: Duration,
        what: &'static str,
        body: request::Body,
    ) -> Result<response::Body, Error> {
        let begun = Instant::now();
        let mut retry = Retry::new(self.client.brokers().config().backoff, Jitter::from_entropy());
        loop {
            let error = match self.ask(what, body.clone()).await {
                Err(error) if error.is_retriable() => error,
                answered => return answered,
            };
            let due = retry.failed(Instant::now());
            if due.duration_since(begun) > time {
                return Err(error);
            }
            tracing::debug!(group = self.group, %error, what, "asking the coordinator again");
            sleep_until(due.into()).await;
        }
    }

    /// Any broker knows. One that can not say yet is asked again by the caller.
    async fn find(&self) -> Result<BrokerId, Error> {
        let body =
            request::Body::FindCoordinator(control::FindCoordinatorRequest { group: self.group.clone() });
        let (answer, connection) = self.client.brokers().ask("find coordinator", body).await?;
        let response::Body::FindCoordinator(found) = answer else {
            return Err(connection.protocol("it answered another request than find coordinator"));
        };
        let broker = BrokerId(found.broker_id);
        *lock(&self.known) = Some(broker);
        Ok(broker)
    }
}

/// The error for an answer of another kind.
pub(crate) fn unexpected(what: &str) -> Error {
    Error::Protocol {
        address: "the coordinator".into(),
        why: format!("it answered another request than {what}"),
    }
}
