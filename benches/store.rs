//! How fast the store takes messages: `cargo bench --bench store`. Groups of 5, 64 and 512 messages of 200 bytes over 50
//! sessions, with both durabilities, in a temporary directory (`TMPDIR` chooses the disk).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "it prints figures and may fail loudly"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chat_historyd::config::{Durability, StoreSettings};
use chat_historyd::observe::Metrics;
use chat_historyd::protocol::{ChatType, MacAddress, SessionId, SessionIdentity, UnixMillis};
use chat_historyd::store::{NewMessage, SessionHandle, SessionWrite, Store, WriterEpoch};
use tokio::sync::Notify;
use uuid::Uuid;

const SESSIONS: usize = 50;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        for durability in [Durability::Os, Durability::Fsync] {
            for (group, rounds) in [(5, 2_000), (64, 1_000), (512, 2_000)] {
                measure(durability, group, rounds).await;
            }
        }
    });
}

async fn measure(durability: Durability, group: usize, rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        directory: directory.path().join("state"),
        durability,
        retention: Duration::from_secs(30 * 86_400),
        max_bytes: 4 << 30,
        shelf_bytes: 8 << 20,
    };
    let metrics = Arc::new(Metrics::default());
    let store = Store::open(&settings, Arc::clone(&metrics)).unwrap();
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let session_id = SessionId::new(&format!("room-{number}")).unwrap();
        let identity = SessionIdentity { mac: MacAddress::from_octets([2, 0, 0, 0, 0, 1]), session_id };
        sessions.push(store.open_session(&identity, UnixMillis(0)).await.unwrap().handle);
    }
    let (settled, all_settled) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (mut waiting, mut worst) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        // Made outside the clock: the store is measured, not the text.
        let writes: Vec<_> = (0..group)
            .map(|number| write(&sessions[(round * group + number) % SESSIONS], group, &settled, &all_settled))
            .collect();
        let started = Instant::now();
        for write in writes {
            store.append(write).await;
        }
        all_settled.notified().await;
        settled.store(0, Ordering::Relaxed);
        waiting += started.elapsed();
        worst = worst.max(started.elapsed());
    }
    let rows = (group * rounds) as f64;
    println!(
        "{durability:?} groups of {group:>3}: {:>7.0} rows/s, {:>5.2} µs a row, longest round {worst:?}, {:.1} rows a commit",
        rows / waiting.as_secs_f64(),
        waiting.as_secs_f64() * 1e6 / rows,
        rows / metrics.commits.get() as f64,
    );
    store.close().await;
    drop(sessions);
    if group == 512 {
        reopen(&settings).await;
    }
}

/// What a start with a long backlog costs.
async fn reopen(settings: &StoreSettings) {
    let started = Instant::now();
    let metrics = Arc::new(Metrics::default());
    let store = Store::open(settings, Arc::clone(&metrics)).unwrap();
    let opened = started.elapsed();
    let (mut after, mut sessions) = (None, 0);
    loop {
        let page = store.backlog(after, 1000).await.unwrap();
        let Some(last) = page.last() else { break };
        (after, sessions) = (Some(last.handle.key), sessions + page.len());
    }
    let pending = metrics.pending_at_start.get();
    println!("reopened with {pending} pending in {opened:?}; backlog of {sessions} sessions after {:?}", started.elapsed());
    store.close().await;
}

fn write(session: &Arc<SessionHandle>, group: usize, settled: &Arc<AtomicUsize>, all_settled: &Arc<Notify>) -> SessionWrite {
    let (settled, all_settled) = (Arc::clone(settled), Arc::clone(all_settled));
    SessionWrite {
        session: Arc::clone(session),
        epoch: WriterEpoch::default(),
        messages: vec![NewMessage {
            uuid: Uuid::now_v7(),
            chat_type: ChatType::User,
            content: "x".repeat(200),
            time: UnixMillis(0),
            recorded: UnixMillis(0),
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
        recorded: UnixMillis(0),
        on_settled: Some(Box::new(move |_| {
            if settled.fetch_add(1, Ordering::Relaxed) + 1 == group {
                all_settled.notify_one();
            }
        })),
    }
}
