//! A broker in a process of its own, as `quire broker` runs one, and a client of it in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use quire_broker::Broker;
use quire_client::{Client, NewTopic, Profile};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::child::{self, Child, Role};

/// How a client reaches the broker.
#[derive(Debug, Serialize, Deserialize)]
struct Reached {
    address: SocketAddr,
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

/// What a child does whose role is a broker.
pub(crate) async fn serve(data: &Path) -> Result<()> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let broker = Broker::builder().data_dir(data).listen(listen).start().await?;
    let credentials = broker.credentials();
    child::ready(&Reached {
        address: broker.address(),
        authority_pem: credentials.authority_pem,
        certificate_pem: credentials.certificate_pem,
        key_pem: credentials.key_pem,
    })
    .await?;
    broker.shutdown().await;
    Ok(())
}

/// A broker process with everything default, and a connected client.
#[derive(Debug)]
pub struct BrokerProcess {
    /// Connected to the broker, and to nothing else.
    pub client: Client,
    child: Child,
    data: TempDir,
}

impl BrokerProcess {
    /// Starts a broker on an empty directory in `dir` and connects to it. The directory goes when this is dropped.
    ///
    /// # Errors
    /// If the broker does not start.
    pub async fn start(dir: &Path) -> Result<BrokerProcess> {
        BrokerProcess::start_on(tempfile::tempdir_in(dir)?).await
    }

    async fn start_on(data: TempDir) -> Result<BrokerProcess> {
        let (child, reached) = Child::start::<Reached>(&Role::Broker(data.path().to_owned()))?;
        let profile = Profile::new(reached.address.to_string())
            .authority_pem(reached.authority_pem)
            .identity_pem(reached.certificate_pem, reached.key_pem);
        let client = Client::connect_with(profile).await?;
        Ok(BrokerProcess { client, child, data })
    }

    /// Stops the broker in order and starts another one on the same data.
    ///
    /// # Errors
    /// If the broker does not stop cleanly, or does not start again.
    pub async fn restart(self) -> Result<BrokerProcess> {
        let BrokerProcess { client, child, data } = self;
        client.close().await;
        child.stop()?;
        BrokerProcess::start_on(data).await
    }

    /// Stops the broker in order and removes its data.
    ///
    /// # Errors
    /// If the broker does not stop cleanly.
    pub async fn stop(self) -> Result<()> {
        self.client.close().await;
        self.child.stop()
    }

    /// A topic with one replica and everything else default but its `sync`.
    ///
    /// # Errors
    /// As the broker answers.
    pub async fn topic(&self, name: &str, partitions: u32, sync: &str) -> Result<()> {
        let topic = NewTopic::new(name).partitions(partitions).config("sync", sync);
        self.client.admin().create_topic(topic).await?;
        Ok(())
    }

    /// The broker's process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Processor time of the broker so far.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        self.child.cpu()
    }

    /// Every segment file, in the order of their names.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn segments(&self) -> Result<Vec<PathBuf>> {
        let mut segments = Vec::new();
        collect_segments(&self.data.path().join("topics"), &mut segments)?;
        segments.sort();
        Ok(segments)
    }
}

fn collect_segments(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_segments(&entry.path(), into)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "log") {
            into.push(entry.path());
        }
    }
    Ok(())
}
