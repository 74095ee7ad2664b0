//! Consumers at work: all of them together, until they are done, are told to end, or one fails.

use std::time::Duration;

use quire_client::ConsumeError;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use super::consume::{Arrivals, Counting, LoadConsumer};
use crate::failure::Failure;

/// A record that was acknowledged and has not come to its consumer for so long counts as failed.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(10);

type Ended = Result<Result<(), ConsumeError>, JoinError>;

/// Consumers at work. They end when it is dropped.
#[derive(Debug)]
pub struct Reading {
    tasks: JoinSet<Result<(), ConsumeError>>,
    over: watch::Sender<bool>,
}

/// Nobody reads yet.
impl Default for Reading {
    fn default() -> Reading {
        Reading { tasks: JoinSet::new(), over: watch::Sender::new(false) }
    }
}

impl Reading {
    /// They read from the beginning, and wait for what is yet to come.
    ///
    /// # Errors
    /// If the topic can not be read.
    pub async fn follow(&mut self, consumers: &[LoadConsumer], counting: Counting) -> Result<(), Failure> {
        for load in consumers {
            let (load, consumer, mut over) = (load.clone(), load.open(true).await?, self.over.subscribe());
            self.tasks.spawn(async move { load.run(consumer, counting, &mut over).await });
        }
        Ok(())
    }

    /// They read once from the beginning to the end.
    pub fn read_once(&mut self, consumers: &[LoadConsumer]) {
        for load in consumers {
            let (load, mut over) = (load.clone(), self.over.subscribe());
            self.tasks
                .spawn(async move { load.run(load.open(false).await?, Counting::Every, &mut over).await });
        }
    }

    /// They read from the beginning to the end, again and again.
    pub fn read_on(&mut self, consumers: &[LoadConsumer]) {
        for load in consumers {
            let (load, mut over) = (load.clone(), self.over.subscribe());
            self.tasks.spawn(async move {
                while !*over.borrow() {
                    load.run(load.open(false).await?, Counting::Every, &mut over).await?;
                }
                Ok(())
            });
        }
    }

    /// Waits for one to fail; for ever if none does. Dropping the future loses nothing.
    pub async fn failed(&mut self) -> Failure {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(failure) = outcome(ended) {
                return failure;
            }
        }
        std::future::pending().await
    }

    /// Waits until so many records have arrived, and gives how many of them have not, though none came for long.
    ///
    /// # Errors
    /// If a partition can not be read any further.
    pub async fn await_arrivals(&mut self, arrivals: &Arrivals, count: u64) -> Result<u64, Failure> {
        loop {
            let then = arrivals.count();
            let reached = tokio::select! {
                reached = timeout(ARRIVAL_TIME_MAX, arrivals.reach(count)) => reached,
                failed = self.failed() => return Err(failed),
            };
            if reached.is_ok() || arrivals.count() == then {
                return Ok(count.saturating_sub(arrivals.count()));
            }
        }
    }

    /// Lets them read for so long, and ends them.
    ///
    /// # Errors
    /// If a partition can not be read any further.
    pub async fn until(mut self, length: Duration) -> Result<(), Failure> {
        match timeout(length, self.failed()).await {
            Ok(failed) => Err(failed),
            Err(_) => self.end().await,
        }
    }

    /// Tells them to end, and waits for it.
    ///
    /// # Errors
    /// If a partition can not be read any further.
    pub async fn end(self) -> Result<(), Failure> {
        self.over.send_replace(true);
        self.finish().await
    }

    /// Waits for them to be done.
    ///
    /// # Errors
    /// If a partition can not be read any further.
    pub async fn finish(mut self) -> Result<(), Failure> {
        while let Some(ended) = self.tasks.join_next().await {
            outcome(ended)?;
        }
        Ok(())
    }
}

fn outcome(ended: Ended) -> Result<(), Failure> {
    match ended {
        Ok(read) => Ok(read?),
        Err(error) => Err(Failure::failed(format!("a consumer ended: {error}"))),
    }
}
