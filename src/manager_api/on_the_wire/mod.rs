//! The client against a scripted TCP server: every way in which a connection can go wrong, byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod answers;
mod requests;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Attempt, ManagerApi, Verdict};
use crate::config::{ManagerApiSettings, OnLongContent, ReportTimeUnit, Secret, SecretSource};

/// The answer of success, whole.
const SUCCESS: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{\"code\":0,\"data\":true}";

/// Long enough never to be reached where it should not be.
const LONG: Duration = Duration::from_secs(20);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(120);

fn settings(url: &str) -> ManagerApiSettings {
    ManagerApiSettings {
        url: Some(format!("{url}/toy")),
        secret: Some(SecretSource::Inline(Secret::new("s3cret".to_owned()))),
        timeout: LONG,
        connect_timeout: LONG,
        report_time_unit: ReportTimeUnit::Auto,
        max_content: None,
        on_long_content: OnLongContent::Split,
        escape_html: true,
        send_audio: false,
        send_tools: false,
        ca_file: None,
        proxy: None,
    }
}

fn client(url: &str, timeout: Duration) -> ManagerApi {
    ManagerApi::new(&ManagerApiSettings { timeout, ..settings(url) }).unwrap()
}

async fn report(api: &ManagerApi, key: &str) -> Attempt {
    api.report(Bytes::from_static(br#"{"content":"Hello"}"#), key).await
}

/// What became of one report to a server that does `script` with its first connection.
async fn attempt<F, Fut>(timeout: Duration, script: F) -> Attempt
where
    F: Fn(TcpStream, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let server = Server::start(script).await;
    report(&client(&server.url, timeout), "key").await
}

/// A server that gives every connection, with its number, to a script.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(stream, number));
            }
        });
        Self { url, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// One request as it came: head (lower case names as sent) and body. `None` at the end of the connection.
struct Received {
    head: String,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut request = Received { head, body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

/// Reads a request, writes `answer` and closes.
async fn answer_once(mut stream: TcpStream, answer: &[u8]) {
    if read_request(&mut stream).await.is_some() {
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
        // Read until the client closes too, so that no reset overtakes the answer.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}

/// Never returns: what a server that hangs does.
async fn hang<T>(held: T) {
    std::future::pending::<()>().await;
    drop(held);
}

fn is_later(verdict: &Verdict, ambiguous: bool) -> bool {
    matches!(verdict, Verdict::Later { ambiguous: found, .. } if *found == ambiguous)
}
