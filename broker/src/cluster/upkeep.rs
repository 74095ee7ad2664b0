//! What a cluster's broker keeps up with: where the others are, which certificates are void, and its own certificate.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::Image;
use quire_protocol::BrokerId;
use quire_protocol::rpc::peer::RenewRequest;

use super::service::{Signer, renew_anywhere};
use crate::config::HostPort;
use crate::controller::Metadata;
use crate::controller::raft::RaftMetadata;
use crate::net::authority::{self, PublicKey};
use crate::net::certificates::Identity;
use crate::net::membership;
use crate::net::peers::Peers;
use crate::net::peers::tls::{Revoked, broker_subject};
use crate::net::tls::BrokerCertificate;

/// How often it is looked whether the certificate is past half of its life.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// And again, if it could not be renewed.
const RENEWAL_RETRY_INTERVAL: Duration = Duration::from_secs(3600);
/// How long one broker may take to sign.
const SIGN_TIME_MAX: Duration = Duration::from_secs(10);

/// Follows the image: addresses, removed brokers, void certificates.
pub(super) async fn follow(metadata: RaftMetadata, peers: Peers, revoked: Arc<Revoked>) {
    let mut images = metadata.changes();
    let mut known = BTreeSet::new();
    loop {
        let image = images.borrow_and_update().clone();
        known = adopt(&image, &peers, &known);
        let serials: BTreeSet<_> = image.revoked().map(|serial| serial.to_vec()).collect();
        if revoked.replace(serials) {
            peers.close_revoked(&revoked);
        }
        if images.changed().await.is_err() {
            return;
        }
    }
}

/// Tells where brokers are, and forgets those that are none any more; gives those that are.
fn adopt(image: &Image, peers: &Peers, before: &BTreeSet<BrokerId>) -> BTreeSet<BrokerId> {
    let mut known = BTreeSet::new();
    for broker in image.brokers() {
        known.insert(broker.id);
        if broker.peer_port != 0 {
            let address = HostPort { host: broker.peer_host.clone(), port: broker.peer_port };
            peers.set_address(broker.id, address);
        }
    }
    before.difference(&known).for_each(|gone| peers.forget(*gone));
    known
}

/// What a certificate is renewed with.
pub(super) struct Renewal {
    pub(super) dir: PathBuf,
    pub(super) broker: BrokerId,
    pub(super) names: Vec<String>,
    pub(super) authority_pem: String,
    pub(super) certificate: Arc<BrokerCertificate>,
    pub(super) signer: Arc<Signer>,
    pub(super) peers: Peers,
    pub(super) metadata: RaftMetadata,
}

/// Renews the broker's certificate at half of its life, and when its names changed; here or wherever it can be signed.
pub(super) async fn renew(renewal: Renewal) {
    loop {
        let next = match renewal.renew_if_due().await {
            Ok(()) => RENEWAL_INTERVAL,
            Err(why) => {
                tracing::error!(
                    why,
                    "the broker's certificate can not be renewed; it is tried again in an hour"
                );
                RENEWAL_RETRY_INTERVAL
            }
        };
        tokio::time::sleep(next).await;
    }
}

impl Renewal {
    async fn renew_if_due(&self) -> Result<(), String> {
        // Nobody signs before the cluster has its authority.
        let mut images = self.metadata.changes();
        let known = images.wait_for(|image| image.authority().is_some()).await;
        known.map_err(|error| error.to_string())?;
        let (dir, passphrase) = (self.dir.clone(), None::<String>);
        let read = tokio::task::spawn_blocking(move || membership::open(&dir, passphrase.as_deref()));
        let member = read.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let subject = broker_subject(self.broker, &self.names);
        let authority = authority::name_of(&self.authority_pem).ok_or("the authority has no name")?;
        let current = &member.broker;
        let Some(why) = subject.refuse(&current.certificate_pem, &current.key_pem, &authority) else {
            return Ok(());
        };
        tracing::info!(why, "renewing the broker's certificate");
        let key = authority::new_key().map_err(|error| error.to_string())?;
        let public_key = PublicKey::of(&key).as_bytes().to_vec().into();
        let request = RenewRequest { public_key, names: self.names.clone() };
        let certificate_pem = match self.signer.renew(self.broker, request.clone()).await {
            Ok(signed) => signed,
            Err(_) => {
                let quorum = self.metadata.quorum();
                let others = quorum.voters.into_values().filter(|broker| *broker != self.broker);
                renew_anywhere(&self.peers, others, &request, SIGN_TIME_MAX).await?
            }
        };
        let identity = Identity { certificate_pem, key_pem: key.serialize_pem() };
        self.certificate.replace(&identity).map_err(|error| error.to_string())?;
        let dir = self.dir.clone();
        let kept = tokio::task::spawn_blocking(move || membership::keep_renewed(&dir, &identity));
        kept.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
