//! The admin server: metrics, health, and what topics there are, over HTTP and read-only.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::context::Context;
use crate::metadata::{self, LogState};
use crate::process;
use crate::shard::PartitionState;
use crate::shutdown::Stopping;

/// How often histograms are folded into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What the routes answer from.
#[derive(Clone)]
struct Admin {
    context: Arc<Context>,
    ready: Arc<AtomicBool>,
}

/// A listener that is bound, so that its address is known and taken before anything else starts.
pub(crate) struct AdminListener(TcpListener);

impl AdminListener {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<AdminListener> {
        TcpListener::bind(address).await.map(AdminListener)
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until it is told to end, which is after the broker has stopped: health is looked at meanwhile, too.
    /// `ready` is set once clients are served.
    pub(crate) async fn serve(self, context: Arc<Context>, ready: Arc<AtomicBool>, mut end: Stopping) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/topics", get(topics))
            .with_state(Admin { context, ready });
        let served = axum::serve(self.0, router).with_graceful_shutdown(async move { end.requested().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the admin server failed");
        }
    }
}

/// Keeps histograms small until the broker stops, whether anybody asks for metrics or not.
pub(crate) async fn upkeep(context: Arc<Context>) {
    let mut stopping = context.stopping.clone();
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => context.metrics.upkeep(),
            () = stopping.requested() => return,
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    observe(&admin.context);
    let text = admin.context.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Sets the gauges that are looked up rather than counted.
fn observe(context: &Context) {
    let partitions = context.partitions.all();
    let states = context.partitions.states();
    let count = |is_meant: fn(&PartitionState) -> bool| states.iter().filter(|state| is_meant(state)).count();
    let impaired = count(|state| !matches!(state, PartitionState::Online | PartitionState::Opening));
    let corrupt =
        count(|state| matches!(state, PartitionState::Corrupt { .. } | PartitionState::Lost { .. }));
    let bytes: u64 = partitions.iter().map(|partition| partition.reader().size_bytes()).sum();
    let metrics = &context.metrics;
    metrics.partitions.set(partitions.len() as f64);
    metrics.partitions_impaired.set(impaired as f64);
    metrics.partitions_corrupt.set(corrupt as f64);
    metrics.log_bytes.set(bytes as f64);
    metrics.shard_queue_events.set(context.partitions.queued() as f64);
    metrics.streams.set(context.streams.count() as f64);
    metrics.connections.set(context.connections.count() as f64);
    metrics.process_cpu_seconds.set(process::cpu_seconds());
    if let Some(memory) = process::memory() {
        metrics.process_memory.set(memory.resident as f64);
        metrics.process_anonymous_memory.set(memory.anonymous as f64);
    }
    metrics.produce_memory_free.set(context.memory.produce.available_permits() as f64);
}

/// The process answers, and nothing has happened that only starting it again mends.
async fn healthz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.context.metadata.quorum().has_failed {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the metadata log failed: start the broker again\n"),
        false => (StatusCode::OK, "ok\n"),
    }
}

/// Clients are served.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.context.stopping.is_requested() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    match admin.ready.load(Ordering::Acquire) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
    }
}

#[derive(Serialize)]
struct TopicView {
    name: String,
    id: String,
    replicas: u32,
    config: std::collections::BTreeMap<String, String>,
    partitions: Vec<PartitionView>,
}

#[derive(Serialize)]
struct PartitionView {
    partition: u32,
    leader: Option<u32>,
    leader_epoch: u32,
    log_start_offset: u64,
    high_watermark: u64,
    log_end_offset: u64,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorView>,
}

#[derive(Serialize)]
struct ErrorView {
    code: &'static str,
    message: String,
}

async fn topics(State(admin): State<Admin>) -> Json<Vec<TopicView>> {
    let image = admin.context.metadata.image();
    let mut topics: Vec<_> = image.topics().collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let views = topics.into_iter().map(|topic| {
        let described = metadata::describe(topic, &admin.context.partitions, LogState::Included);
        TopicView {
            name: described.name,
            id: topic.id.to_string(),
            replicas: described.replicas,
            config: described.config.into_iter().collect(),
            partitions: described.partitions.into_iter().map(partition_view).collect(),
        }
    });
    Json(views.collect())
}

fn partition_view(partition: quire_protocol::rpc::control::Partition) -> PartitionView {
    PartitionView {
        partition: partition.index,
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        log_start_offset: partition.log_start_offset,
        high_watermark: partition.high_watermark,
        log_end_offset: partition.log_end_offset,
        size_bytes: partition.size_bytes,
        error: partition
            .error
            .map(|error| ErrorView { code: error.error_code().name(), message: error.message }),
    }
}
