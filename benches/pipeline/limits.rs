//! What the road itself allows: `reqwest` alone and plain `hyper` alone, with the same bodies, headers and number of
//! requests in flight, against the same sink, each on two threads of its own, as the daemon does. And what the two things
//! cost that every message must have, a request and a sync, where each is alone on its way.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use nix::time::ClockId;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};

use crate::daemon::cpu_micros;
use crate::sink::UNCHECKED;
use crate::text::body;

const THREADS: &str = "limit";
const AUTHORIZED: &str = "Bearer benchmark";
const JSON: &str = "application/json; charset=utf-8";
const KEY: &str = "01920000-0000-7000-8000-000000000000";

/// Requests a second and CPU time of the client a request.
#[derive(Clone, Copy)]
pub struct Limit {
    pub rate: f64,
    pub cpu_micros: f64,
}

/// Which client.
#[derive(Clone, Copy)]
pub enum Client {
    Reqwest,
    Hyper,
}

/// Sends so many requests with so many in flight.
pub fn measure(client: Client, sink: SocketAddr, in_flight: usize, requests: u64) -> Limit {
    // A thread of its own, for the caller's drives a runtime already.
    std::thread::spawn(move || send(client, sink, in_flight, requests)).join().unwrap()
}

fn send(client: Client, sink: SocketAddr, in_flight: usize, requests: u64) -> Limit {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(THREADS).enable_all().build().unwrap();
    let left = Arc::new(AtomicU64::new(requests));
    // The daemon has its client, too, when it is measured.
    let http = reqwest_client();
    let (cpu, started) = (cpu_of_threads(), Instant::now());
    let work: Vec<_> = match client {
        Client::Reqwest => {
            (0..in_flight).map(|task| runtime.spawn(reqwest_alone(http.clone(), sink, body(task), Arc::clone(&left)))).collect()
        }
        Client::Hyper => (0..in_flight).map(|task| runtime.spawn(hyper_alone(sink, body(task), Arc::clone(&left)))).collect(),
    };
    runtime.block_on(async {
        for task in work {
            task.await.unwrap();
        }
    });
    let elapsed = started.elapsed();
    Limit { rate: requests as f64 / elapsed.as_secs_f64(), cpu_micros: (cpu_of_threads() - cpu) / requests as f64 }
}

fn one_more(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

async fn reqwest_alone(http: reqwest::Client, sink: SocketAddr, body: Bytes, left: Arc<AtomicU64>) {
    let url = reqwest::Url::parse(&format!("http://{sink}{UNCHECKED}")).unwrap();
    while one_more(&left) {
        report(&http, &url, &body).await;
    }
}

fn reqwest_client() -> reqwest::Client {
    // As the daemon does; no TLS is spoken here, but the client wants one to be there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().http1_only().tcp_nodelay(true).build().unwrap()
}

async fn report(http: &reqwest::Client, url: &reqwest::Url, body: &Bytes) {
    let request = http.post(url.clone()).header(CONTENT_TYPE, JSON).header(ACCEPT, "application/json");
    let request = request.header(AUTHORIZATION, AUTHORIZED).header("idempotency-key", KEY).body(body.clone());
    let mut response = request.send().await.unwrap();
    while response.chunk().await.unwrap().is_some() {}
}

/// The CPU time of `reqwest` for one request, so many a second, on one thread.
pub fn lone_request(sink: SocketAddr, a_second: u64, requests: u64) -> f64 {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (http, body) = (reqwest_client(), body(0));
            let url = reqwest::Url::parse(&format!("http://{sink}{UNCHECKED}")).unwrap();
            report(&http, &url, &body).await;
            let mut pace = tokio::time::interval(Duration::from_secs(1) / u32::try_from(a_second).unwrap());
            let before = cpu_of_this_thread();
            for _ in 0..requests {
                pace.tick().await;
                report(&http, &url, &body).await;
            }
            (cpu_of_this_thread() - before) / requests as f64
        })
    };
    std::thread::spawn(work).join().unwrap()
}

/// The CPU time of a write of three pages and its sync, so many a second, on blocks that the file has already.
pub fn lone_sync(directory: &Path, a_second: u64, syncs: u64) -> f64 {
    const PAGES: [u8; 3 * 4096] = [1; 3 * 4096];
    const PLACES: u64 = 64;
    let file = fs::File::create(directory.join("log")).unwrap();
    let write = |at: u64| {
        file.write_all_at(&PAGES, at % PLACES * PAGES.len() as u64).unwrap();
        file.sync_data().unwrap();
    };
    (0..PLACES).for_each(write);
    let (before, started) = (cpu_of_this_thread(), Instant::now());
    for at in 0..syncs {
        let due = started + Duration::from_nanos(at * 1_000_000_000 / a_second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        write(at);
    }
    (cpu_of_this_thread() - before) / syncs as f64
}

/// CPU time of the calling thread, in microseconds.
pub fn cpu_of_this_thread() -> f64 {
    Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap()).as_secs_f64() * 1e6
}

async fn hyper_alone(sink: SocketAddr, body: Bytes, left: Arc<AtomicU64>) {
    let stream = tokio::net::TcpStream::connect(sink).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let host = sink.to_string();
    while one_more(&left) {
        let request = hyper::Request::post(UNCHECKED).header("host", &host).header(CONTENT_TYPE, JSON);
        let request = request.header(ACCEPT, "application/json").header(AUTHORIZATION, AUTHORIZED).header("idempotency-key", KEY);
        sender.ready().await.unwrap();
        let response = sender.send_request(request.body(Full::new(body.clone())).unwrap()).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    connection.abort();
}

/// CPU time of the clients' threads that are alive.
fn cpu_of_threads() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&format!("({THREADS})"))).map(|stat| cpu_micros(&stat)).sum()
}
