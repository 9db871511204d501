//! The single steps of a message's way: `cargo bench --bench micro` (`-- decode` for some of them). They point at what
//! grew slow; what counts is the whole way, which `pipeline` measures. `TMPDIR` chooses the disk of the store.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "it prints figures and may fail loudly")]

use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use chat_historyd::config::{Durability, StoreSettings};
use chat_historyd::intake::lines::Lines;
use chat_historyd::manager_api::{Answer, BodyEnd, Report, TimeUnit, classify, encode};
use chat_historyd::observe::Metrics;
use chat_historyd::protocol::{ChatType, DecodeOptions, MacAddress, SessionId, SessionIdentity, UnixMillis, decode};
use chat_historyd::store::{Cursor, NewMessage, Passed, RowId, SessionHandle, SessionWrite, Store, WriterEpoch};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use uuid::Uuid;

const SESSIONS: usize = 50;

const MESSAGE: &str = r#"{"type":"message","seq":1000000042,"chat_type":1,"content":"the quick brown fox tells the child a story about a friendly dragon who likes tea & biscuits, and then asks what it would like to hear next because there is plenty of time until dinner is ready","timestamp":1758701973.25}"#;

const ITEM: &str = r#"{"type":"conversation_item_added","item":{"id":"item_b6cae2d52cf2","type":"message","role":"user","content":["tell me something about the tiger please, and about the dragon that likes tea & biscuits"],"interrupted":false,"transcript_confidence":0.97,"extra":{},"metrics":{"transcription_delay":0.1987,"on_user_turn_completed_delay":6.847899999229412e-05},"created_at":1795332578.646901,"hash":null},"created_at":1795332578.85,"seq":23}"#;

const NOW: UnixMillis = UnixMillis(1_795_400_000_000);

fn main() {
    divan::main();
}

#[divan::bench]
fn split_100_lines(bencher: Bencher<'_, '_>) {
    let block = format!("{MESSAGE}\n").repeat(100);
    bencher.counter(ItemsCount::new(100_usize)).counter(BytesCount::new(block.len())).bench_local(|| {
        let mut lines = Lines::new(4 << 20);
        let mut found = 0;
        for read in block.as_bytes().chunks(8 * 1024) {
            lines.read_target().put_slice(read);
            while let Some(line) = lines.next_line() {
                black_box(&line);
                found += 1;
            }
        }
        found
    });
}

#[divan::bench(args = ["message", "LiveKit item"])]
fn decode_line(bencher: Bencher<'_, '_>, which: &str) {
    let line = if which == "message" { MESSAGE } else { ITEM };
    bencher.bench_local(|| decode(black_box(line.as_bytes()), &DecodeOptions::at(NOW, false)).unwrap());
}

#[divan::bench(args = ["plain", "html"])]
fn encode_report(bencher: Bencher<'_, '_>, which: &str) {
    let plain = "the quick brown fox tells the child a story about a friendly dragon ".repeat(3);
    let content = if which == "html" { plain.replace("brown", "<b>brown</b>  &") } else { plain };
    bencher.bench_local(|| {
        let report = Report {
            mac: MacAddress::from_octets([2, 0, 0, 0, 0, 1]),
            session_id: "d3746a02-1111-2222-3333-444455556666_6825ddba3978",
            chat_type: ChatType::User,
            content: black_box(&content),
            audio: None,
            time: NOW,
            unit: TimeUnit::Milliseconds,
        };
        encode(&report, true)
    });
}

#[divan::bench(args = [r#"{"code":0,"msg":"success","data":true}"#, r#"{"code":500,"msg":"server error","data":null}"#])]
fn verdict(bencher: Bencher<'_, '_>, body: &str) {
    bencher.bench_local(|| {
        classify(&Answer { status: 200, body: black_box(body.as_bytes()), end: BodyEnd::Complete, retry_after: None })
    });
}

/// Appends durable messages, so many in flight at once.
#[divan::bench(args = [1, 5, 64, 512], max_time = 2)]
fn append_in_groups_of(bencher: Bencher<'_, '_>, group: usize) {
    let opened = OpenedStore::new();
    let mut next = 0;
    bencher
        .counter(ItemsCount::new(group))
        .with_inputs(|| {
            next += group;
            let numbers = next - group..next;
            numbers.map(|number| opened.write(number)).collect::<Vec<_>>()
        })
        .bench_local_values(|writes| {
            opened.runtime.block_on(async {
                let mut settled = Vec::with_capacity(group);
                for (write, done) in writes {
                    opened.store.append(write).await;
                    settled.push(done);
                }
                for done in settled {
                    done.await.unwrap();
                }
            });
        });
}

/// One cursor, durable.
#[divan::bench(max_time = 2)]
fn cursor_update(bencher: Bencher<'_, '_>) {
    let opened = OpenedStore::new();
    let mut row = 0;
    bencher.bench_local(|| {
        row += 1;
        let cursor = Cursor { row: RowId(row), offset: 0, last_report: NOW };
        opened.store.advance(&opened.sessions[0], cursor, Passed::default());
        opened.runtime.block_on(opened.store.cursor_follows(&opened.sessions[0], 0));
    });
}

struct OpenedStore {
    runtime: Runtime,
    store: Store,
    sessions: Vec<Arc<SessionHandle>>,
    _directory: tempfile::TempDir,
}

impl OpenedStore {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let settings = StoreSettings {
            directory: directory.path().join("state"),
            durability: Durability::Fsync,
            retention: Duration::from_secs(30 * 86_400),
            max_bytes: 4 << 30,
            shelf_bytes: 8 << 20,
        };
        let store = Store::open(&settings, Arc::new(Metrics::default())).unwrap();
        let sessions = runtime.block_on(async {
            let mut sessions = Vec::new();
            for number in 0..SESSIONS {
                let session_id = SessionId::new(&format!("room-{number}")).unwrap();
                let identity = SessionIdentity { mac: MacAddress::from_octets([2, 0, 0, 0, 0, 1]), session_id };
                sessions.push(store.open_session(&identity, NOW).await.unwrap().handle);
            }
            sessions
        });
        Self { runtime, store, sessions, _directory: directory }
    }

    fn write(&self, number: usize) -> (SessionWrite, oneshot::Receiver<()>) {
        let (settled, done) = oneshot::channel();
        let write = SessionWrite {
            session: Arc::clone(&self.sessions[number % SESSIONS]),
            epoch: WriterEpoch::default(),
            messages: vec![NewMessage {
                uuid: Uuid::now_v7(),
                chat_type: ChatType::User,
                content: "x".repeat(200),
                time: NOW,
                recorded: NOW,
                event_id: None,
                interrupted: false,
                uncommitted: false,
                sendable: true,
                audio: None,
                extra: None,
            }],
            hold: Vec::new(),
            release: Vec::new(),
            stream: None,
            lifecycle: None,
            recorded: NOW,
            on_settled: Some(Box::new(move |_| {
                // The bench may have ended.
                let _ = settled.send(());
            })),
        };
        (write, done)
    }
}
