//! Whether intake feels that old history leaves: `cargo bench --bench retention`. 1 000 000 delivered messages of 40 days
//! ago are pruned by age (the first pass begins a minute after the start) while single messages are appended and their
//! acks are timed. Fails when the 99th percentile is 50 ms or more. `RETENTION_ROWS` changes the number of messages.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_wrap,
    reason = "it prints figures and may fail loudly"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_historyd::clock::wall_clock;
use chat_historyd::config::{Durability, StoreSettings};
use chat_historyd::observe::Metrics;
use chat_historyd::protocol::{ChatType, MacAddress, SessionId, SessionIdentity, UnixMillis};
use chat_historyd::store::checksum::{RowFields, of_message};
use chat_historyd::store::{NewMessage, SessionWrite, Store, WriterEpoch};
use tokio::sync::oneshot;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_millis(50);

fn main() {
    let rows = std::env::var("RETENTION_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(measure(rows));
}

fn identity() -> SessionIdentity {
    SessionIdentity { mac: MacAddress::from_octets([2, 0, 0, 0, 0, 1]), session_id: SessionId::new("room").unwrap() }
}

/// Old messages, as the store would have written them.
fn fill(settings: &StoreSettings, rows: u64) {
    let old = wall_clock().0 - 40 * 86_400_000;
    let mut connection = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    let transaction = connection.transaction().unwrap();
    {
        let sql = "INSERT INTO messages VALUES (?1, 1, ?2, 1, 0, ?3, ?3, ?4, NULL, NULL, NULL, ?5)";
        let mut insert = transaction.prepare(sql).unwrap();
        let content = "x".repeat(200);
        for id in 1..=rows as i64 {
            let row = RowFields {
                id,
                session: 1,
                uuid: &[7; 16],
                chat_type: 1,
                flags: 0,
                time_ms: old,
                recorded_ms: old,
                content: &content,
                event_id: None,
                extra: None,
                audio: None,
            };
            insert.execute((id, row.uuid, old, row.content, of_message(&row))).unwrap();
        }
    }
    transaction.execute("INSERT INTO cursors VALUES (1, ?1, 0, 0)", [rows as i64]).unwrap();
    transaction.commit().unwrap();
}

async fn measure(rows: u64) {
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        directory: directory.path().join("state"),
        durability: Durability::Fsync,
        retention: Duration::from_secs(30 * 86_400),
        max_bytes: 8 << 30,
        shelf_bytes: 8 << 20,
    };
    let store = Store::open(&settings, Arc::default()).unwrap();
    store.open_session(&identity(), wall_clock()).await.unwrap();
    store.close().await;
    fill(&settings, rows);

    let metrics = Arc::new(Metrics::default());
    let store = Store::open(&settings, Arc::clone(&metrics)).unwrap();
    let session = store.open_session(&identity(), wall_clock()).await.unwrap().handle;
    println!("{rows} old messages; the first pass begins in a minute");
    while metrics.messages_pruned.get() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    let mut acks = Vec::new();
    while metrics.messages_pruned.get() < rows {
        let (tell, told) = oneshot::channel();
        let write = SessionWrite {
            session: Arc::clone(&session),
            epoch: WriterEpoch::default(),
            messages: vec![message()],
            hold: Vec::new(),
            release: Vec::new(),
            stream: None,
            lifecycle: None,
            recorded: wall_clock(),
            on_settled: Some(Box::new(move |_| {
                let _ = tell.send(());
            })),
        };
        let asked = Instant::now();
        store.append(write).await;
        told.await.unwrap();
        acks.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    acks.sort_unstable();
    let at = |permille: usize| acks[(acks.len() * permille / 1000).min(acks.len() - 1)];
    println!(
        "pruned in {took:?}; {} acks meanwhile: median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}",
        acks.len(),
        at(500),
        at(990),
        at(999),
        acks[acks.len() - 1],
    );
    store.close().await;
    assert!(at(990) < LIMIT, "intake waited for retention");
}

fn message() -> NewMessage {
    NewMessage {
        uuid: Uuid::now_v7(),
        chat_type: ChatType::User,
        content: "x".repeat(200),
        time: UnixMillis(0),
        recorded: wall_clock(),
        event_id: None,
        interrupted: false,
        uncommitted: false,
        sendable: true,
        audio: None,
        extra: None,
    }
}
