//! The HTTP face, off unless `status.http_listen` is set: `/metrics`, `/healthz` and `/readyz`.
//!
//! Promises: it only reads; at most `AT_ONCE` connections, each for one request, at most `HEAD_PATIENCE` until it is there and
//! `PATIENCE` in all; nothing of a request's body is read. Refuses: other methods than GET and HEAD, other paths, and to hold
//! up anything else.
//! `/healthz` asks whether the core tasks go round: what a supervisor restarts for. `/readyz` asks whether messages are
//! taken in durably; a closed gate is told, yet no reason to send producers away, for nothing is lost meanwhile.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{error, info};

use super::Metrics;
use super::logging::escape_controls;
use super::prometheus;
use super::status::Overview;
use crate::intake::Intake;
use crate::upload::UploadStatus;

/// Connections served at once; more are told so and closed.
const AT_ONCE: usize = 32;

/// Time until a request is there: who says nothing keeps the place of somebody who would.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);

/// Time a connection gets in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time the core tasks get to go round.
const ROUND: Duration = Duration::from_secs(5);

/// Between two tries to listen on an address that is taken.
const AGAIN: Duration = Duration::from_secs(5);

/// The most of a request's head that is read.
const HEAD_BYTES: usize = 16 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";

/// To whoever comes when all places are taken.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 25\r\nretry-after: 2\r\nconnection: close\r\n\r\ntoo many ask: come again\n";

/// What is asked.
#[derive(Clone)]
pub struct Face {
    /// How everything is.
    pub overview: Overview,
    /// The accept loop.
    pub intake: Intake,
}

/// Listens, if it can; one line when it cannot, one when it can again.
pub async fn listen(address: SocketAddr, metrics: &Metrics) -> Option<TcpListener> {
    let failed_before = metrics.http_missing.get() > 0;
    let listening = TcpListener::bind(address).await;
    metrics.http_missing.set(u64::from(listening.is_err()));
    match &listening {
        Ok(_) if failed_before => info!(%address, "status.http_listen is served now"),
        Err(error) if !failed_before => {
            error!(
                %address, %error,
                "cannot listen on status.http_listen: nobody can look there until it works, all else goes on (free the address, or choose another port)"
            );
        }
        _ => {}
    }
    listening.ok()
}

/// Serves until the task is dropped. An address that cannot be listened on is tried again: a look at the daemon is never
/// worth the daemon.
pub async fn serve(mut listener: Option<TcpListener>, address: SocketAddr, face: Face) {
    let listener = loop {
        if let Some(listener) = listener.take() {
            break listener;
        }
        tokio::time::sleep(AGAIN).await;
        listener = listen(address, &face.overview.metrics).await;
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next try may have better luck, a spin would not.
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            let _ = stream.try_write(NO_ROOM);
            continue;
        };
        let face = face.clone();
        tokio::spawn(async move {
            let _ = timeout(PATIENCE, converse(stream, &face)).await;
            drop(permit);
        });
    }
}

async fn converse(stream: TcpStream, face: &Face) -> Result<(), hyper::Error> {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, face).await) });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, face: &Face) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => {
            let status = face.overview.json().await;
            text(StatusCode::OK, prometheus::CONTENT_TYPE, prometheus::render(&status))
        }
        "/healthz" => judged(&face.ailments().await, &[]),
        "/readyz" => judged(&face.obstacles().await, &face.remarks().await),
        "/" => text(StatusCode::OK, TEXT, "chat-historyd: /metrics /healthz /readyz\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /healthz and /readyz\n".to_owned()),
    }
}

impl Face {
    /// Core tasks that do not go round.
    async fn ailments(&self) -> Vec<String> {
        let Overview { store, deliveries, .. } = &self.overview;
        let (store, uploader, intake) = tokio::join!(
            timeout(ROUND, store.heartbeat()),
            timeout(ROUND, deliveries.heartbeat()),
            timeout(ROUND, self.intake.heartbeat()),
        );
        // On the way out, tasks end one by one: that is no ailment.
        let leaving = self.overview.stopping.is_cancelled();
        let well = [
            ("the store's writer", store == Ok(true)),
            ("the uploader", uploader.is_ok_and(|round| round.is_ok() || leaving)),
            ("the accept loop", leaving || intake.is_ok_and(|round| round.is_ok())),
        ];
        well.iter().filter(|(_, well)| !well).map(|(what, _)| format!("{what} makes no progress")).collect()
    }

    /// Why messages are not taken in durably.
    async fn obstacles(&self) -> Vec<String> {
        let mut obstacles = self.ailments().await;
        if self.overview.stopping.is_cancelled() {
            obstacles.push("the daemon is stopping".to_owned());
        }
        if self.overview.metrics.socket_missing.get() > 0 {
            obstacles.push(
                "no producer can connect: the events socket is not at its path (systemctl restart chat-historyd.socket chat-historyd.service)"
                    .to_owned(),
            );
        }
        let health = self.overview.store.health();
        if let Some(failing) = health.failing {
            obstacles.push(format!(
                "the store has not been writable for {} s: {} (messages are kept in memory, without ack)",
                failing.since.elapsed().as_secs(),
                failing.what
            ));
            if failing.refused > 0 {
                obstacles.push(format!(
                    "the shelf in memory had no room for {} messages: they were refused (store.shelf_bytes)",
                    failing.refused
                ));
            }
        }
        if health.full {
            obstacles.push("the store is full of undelivered messages, or of a log that somebody reads for long: new ones are refused (store.max_bytes)".to_owned());
        }
        obstacles
    }

    /// What an operator wants to know although messages are taken in.
    async fn remarks(&self) -> Vec<String> {
        match self.overview.upload().await {
            Some(UploadStatus { closed: Some((kind, reason, _)), .. }) => {
                vec![format!("the gate is closed, messages wait: {kind}: {reason}")]
            }
            Some(UploadStatus { configured: false, .. }) => {
                vec!["no manager_api.url is set: history is only kept here".to_owned()]
            }
            // An uploader that does not answer stands among the obstacles.
            _ => Vec::new(),
        }
    }
}

/// 200 `ok` without obstacles, 503 with them; both with what there is to say, a line each.
fn judged(obstacles: &[String], remarks: &[String]) -> Response<Full<Bytes>> {
    let (status, word) = if obstacles.is_empty() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok") };
    let mut lines = vec![word.to_owned()];
    // A line each, whatever stands in a path.
    lines.extend(obstacles.iter().chain(remarks).map(|line| escape_controls(line).into_owned()));
    text(status, TEXT, lines.join("\n") + "\n")
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
