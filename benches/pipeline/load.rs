//! The load generator: K connections, S sessions, as fast as accepted or at a fixed rate, and what the acks say.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::text::{Clock, FIRST_SEQ, Line, mac, session_id};

/// Lines handed to the kernel at once in a flood.
const CHUNK: u64 = 64;

/// Streams so far: each load is one of its own, also for a daemon that has had another.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// A producer: one connection with the sessions it serves.
struct Producer {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    lines: Vec<Line>,
}

/// Connects, and binds each connection to its session, unless it serves several.
async fn connect(socket: &Path, connections: usize, sessions: usize) -> Vec<Producer> {
    let mut producers = Vec::new();
    let load = STREAMS.fetch_add(1, Ordering::Relaxed);
    for connection in 0..connections {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let own: Vec<usize> = (0..sessions).filter(|session| session % connections == connection).collect();
        let bound = own.len() == 1;
        if bound {
            let (mac, id) = (mac(own[0]), session_id(own[0]));
            let start = format!(
                "{{\"type\":\"session_start\",\"mac_address\":\"{mac}\",\"session_id\":\"{id}\",\"stream\":\"bench-{}-{load}-{connection}\"}}\n",
                std::process::id()
            );
            stream.write_all(start.as_bytes()).await.unwrap();
            let mut ready = [0; 512];
            let length = stream.read(&mut ready).await.unwrap();
            assert!(ready[..length].starts_with(b"{\"type\":\"ready\""), "{}", String::from_utf8_lossy(&ready[..length]));
        }
        let (reader, writer) = stream.into_split();
        producers.push(Producer { reader, writer, lines: own.into_iter().map(|session| Line::new(session, !bound)).collect() });
    }
    producers
}

/// Reads the next acks; answers how many lines are acked by now.
async fn acked(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> u64 {
    loop {
        assert!(reader.read_buf(buffer).await.unwrap() > 0, "the daemon hung up");
        let Some(end) = buffer.iter().rposition(|&byte| byte == b'\n') else { continue };
        let last = buffer[..end].rsplit(|&byte| byte == b'\n').next().unwrap();
        let text = String::from_utf8_lossy(last).into_owned();
        let seq = text.strip_prefix("{\"type\":\"ack\",\"seq\":").and_then(|rest| rest.trim_end_matches('}').parse::<u64>().ok());
        let seq = seq.unwrap_or_else(|| panic!("no ack: {text}"));
        buffer.drain(..=end);
        return seq - FIRST_SEQ + 1;
    }
}

/// As fast as accepted; returns the time from the first write to the last ack.
pub async fn flood(socket: &Path, connections: usize, sessions: usize, messages: u64) -> Duration {
    let producers = connect(socket, connections, sessions).await;
    let each = messages / sessions as u64;
    let started = Instant::now();
    let mut work = JoinSet::new();
    for Producer { mut reader, mut writer, mut lines } in producers {
        let total = each * lines.len() as u64;
        let all_acked = Arc::new(Notify::new());
        let acks_read = Arc::clone(&all_acked);
        work.spawn(async move {
            let mut chunk = Vec::new();
            let (mut seq, mut number) = (0, 0);
            while number < each {
                let until = each.min(number + CHUNK);
                for line in &mut lines {
                    chunk.clear();
                    for number in number..until {
                        line.patch(seq, number, 0);
                        chunk.extend_from_slice(&line.bytes);
                        seq += 1;
                    }
                    writer.write_all(&chunk).await.unwrap();
                }
                number = until;
            }
            // Kept open until all is acked.
            all_acked.notified().await;
        });
        work.spawn(async move {
            let mut buffer = Vec::new();
            while acked(&mut reader, &mut buffer).await < total {}
            acks_read.notify_one();
        });
    }
    work.join_all().await;
    started.elapsed()
}

/// At a fixed rate, every line a write of its own; returns the times from write to ack in nanoseconds.
pub async fn paced(socket: &Path, clock: Clock, connections: usize, rate: u64, time: Duration) -> Vec<u64> {
    let mut writers = Vec::new();
    let mut readers = JoinSet::new();
    let total = rate * time.as_secs();
    let each = total / connections as u64;
    for Producer { mut reader, writer, mut lines } in connect(socket, connections, connections).await {
        let written: Arc<Mutex<VecDeque<u64>>> = Arc::default();
        writers.push((writer, lines.remove(0), Arc::clone(&written)));
        readers.spawn(async move {
            let (mut buffer, mut waits, mut known) = (Vec::new(), Vec::new(), 0);
            while known < each {
                let now_acked = acked(&mut reader, &mut buffer).await;
                let now = clock.nanos();
                let mut written = written.lock().unwrap();
                waits.extend(written.drain(..usize::try_from(now_acked - known).unwrap()).map(|then| now - then));
                known = now_acked;
            }
            waits
        });
    }
    let started = tokio::time::Instant::now();
    let mut sent = 0;
    for number in 0..each {
        for (writer, line, written) in &mut writers {
            let due = started + Duration::from_nanos(sent * 1_000_000_000 / rate);
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            let now = clock.nanos();
            line.patch(number, number, now);
            written.lock().unwrap().push_back(now);
            writer.write_all(&line.bytes).await.unwrap();
            sent += 1;
            if sent.is_multiple_of(16) {
                tokio::task::yield_now().await;
            }
        }
    }
    readers.join_all().await.concat()
}
