//! The other end: a minimal HTTP/1.1 server with keep-alive on a thread of its own, which checks order, loss and
//! duplicates of every session as the reports arrive.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::text::{Clock, mark};

const STORED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n{\"code\":0,\"msg\":\"success\",\"data\":true}";
const FAILED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 35\r\n\r\n{\"code\":500,\"msg\":\"no\",\"data\":null}";
const UNKNOWN: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

/// Reports that go here are read like all others, so that they cost as much, and not judged.
pub const UNCHECKED: &str = "/limit/report";

/// What the sink saw since [`Sink::expect`].
#[derive(Default)]
pub struct Books {
    /// The next number of each session.
    next: Vec<u64>,
    expected: u64,
    latency: Duration,
    /// One report of so many fails; 0: none.
    fails_one_of: u64,
    requests: u64,
    /// Messages stored.
    pub stored: u64,
    /// Numbers that were passed over when a later one came: loss or disorder.
    pub skipped: u64,
    /// Numbers that came again.
    pub repeated: u64,
    /// From the write on the socket to the arrival here, in nanoseconds.
    pub latencies: Vec<u64>,
    /// Moments of the first and the last stored message.
    pub first: u64,
    pub last: u64,
}

/// A running sink.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    books: Mutex<Books>,
    complete: Notify,
    clock: Clock,
    /// Whether reports wait before they are looked at: an API that hangs.
    held: watch::Sender<bool>,
}

impl Sink {
    pub fn start(clock: Clock) -> Self {
        let shared =
            Arc::new(Shared { books: Mutex::default(), complete: Notify::new(), clock, held: watch::Sender::new(false) });
        let (tell, told) = std::sync::mpsc::channel();
        let serving = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    tell.send(listener.local_addr().unwrap()).unwrap();
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        let shared = Arc::clone(&serving);
                        tokio::spawn(async move {
                            // A client that goes away is no failure.
                            let _ = serve(stream, &shared).await;
                        });
                    }
                });
            })
            .unwrap();
        Self { address: told.recv().unwrap(), shared }
    }

    /// Starts new books: so many messages.
    pub fn expect(&self, sessions: usize, messages: u64, latency: Duration, fails_one_of: u64) {
        *self.shared.books.lock().unwrap() =
            Books { next: vec![0; sessions], expected: messages, latency, fails_one_of, ..Books::default() };
    }

    /// From now on reports wait, or go on.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// Waits for everything expected, and a little longer for what should not come; `None`: too late.
    pub async fn complete(&self, limit: Duration) -> Option<Books> {
        tokio::time::timeout(limit, self.shared.complete.notified()).await.ok()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some(std::mem::take(&mut *self.shared.books.lock().unwrap()))
    }

    pub fn stored(&self) -> u64 {
        self.shared.books.lock().unwrap().stored
    }
}

impl Books {
    fn receive(&mut self, body: &[u8], now: u64) -> &'static [u8] {
        self.requests += 1;
        if self.fails_one_of > 0 && self.requests.is_multiple_of(self.fails_one_of) {
            return FAILED;
        }
        let Some(mark) = mark(body) else { return FAILED };
        let next = &mut self.next[mark.session];
        if mark.number < *next {
            self.repeated += 1;
            return STORED;
        }
        self.skipped += mark.number - *next;
        *next = mark.number + 1;
        self.stored += 1;
        if self.stored == 1 {
            self.first = now;
        }
        self.last = now;
        if mark.nanos > 0 {
            self.latencies.push(now - mark.nanos);
        }
        STORED
    }

    /// Messages a second between the first and the last.
    pub fn rate(&self) -> f64 {
        (self.stored - 1) as f64 / ((self.last - self.first) as f64 / 1e9)
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = bytes::BytesMut::with_capacity(16 * 1024);
    let mut held = shared.held.subscribe();
    loop {
        while let Some((head, length)) = request(&buffer) {
            // Cheap when nobody holds: a look at a flag.
            let _ = held.wait_for(|held| !held).await;
            let answer = if buffer.starts_with(b"POST /limit/") {
                let _books = shared.books.lock().unwrap();
                black_box((mark(&buffer[head..head + length]), shared.clock.nanos()));
                STORED
            } else if buffer.starts_with(b"POST ") {
                let mut books = shared.books.lock().unwrap();
                let answer = books.receive(&buffer[head..head + length], shared.clock.nanos());
                if books.stored == books.expected {
                    books.expected = u64::MAX;
                    shared.complete.notify_one();
                }
                answer
            } else {
                UNKNOWN
            };
            let latency = shared.books.lock().unwrap().latency;
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            stream.write_all(answer).await?;
            let _ = buffer.split_to(head + length);
        }
        buffer.reserve(8 * 1024);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Lengths of the head and the body of a request that is there as a whole.
fn request(buffer: &[u8]) -> Option<(usize, usize)> {
    let end = buffer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = &buffer[..end];
    let name = b"content-length: ";
    let length = head.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name)).map_or(0, |at| {
        head[at + name.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
    });
    (buffer.len() >= end + 4 + length).then_some((end + 4, length))
}
