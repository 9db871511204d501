//! The file of the log: how long it stays, and what it counts for at the size limit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::*;

/// So many messages of 4 kB are taken in and delivered.
async fn fill_and_deliver(lab: &Lab, session: &Arc<SessionHandle>, messages: usize) {
    let text = "x".repeat(4000);
    let batch: Vec<&str> = std::iter::repeat_n(text.as_str(), 50).collect();
    for _ in 0..messages / 50 {
        assert_eq!(lab.write(write_of(session, &batch)).await, Settled::Durable);
        let last = lab.store.pending(session, 999, usize::MAX).await.unwrap().last().unwrap().row;
        lab.deliver(session, last, 50).await;
    }
}

fn log_of(settings: &StoreSettings) -> File {
    File::open(settings.directory.join("history.db-wal")).unwrap()
}

/// Cutting it costs everybody a stall, and each group a second flush until it has its length again.
#[tokio::test]
async fn the_file_of_the_log_is_not_cut_whenever_it_starts_anew() {
    const LOG_BYTES: u64 = 2 << 20;
    let place = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_bytes: 8 * LOG_BYTES, ..settings(place.path()) };
    let started = Instant::now();
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let log = log_of(&settings);
    // How often it has started anew stands in its header.
    let round = || {
        let mut sequence = [0; 4];
        log.read_exact_at(&mut sequence, 12).map_or(0, |()| u32::from_be_bytes(sequence))
    };
    let (text, first, mut length, mut cuts) = ("x".repeat(2000), round(), 0, 0);
    while round() < first + 4 {
        assert_eq!(lab.write(write_of(&session, &[&text])).await, Settled::Durable);
        let now = log.metadata().unwrap().len();
        cuts += u64::from(now < length && now < 2 * LOG_BYTES);
        length = now;
    }
    assert!(cuts <= started.elapsed().as_secs() / 60, "{cuts} cuts in four rounds");
}

#[tokio::test]
async fn a_long_file_of_the_log_is_emptied_before_history_leaves_for_room() {
    let place = tempfile::tempdir().unwrap();
    let roomy = StoreSettings { max_bytes: 256 << 20, ..settings(place.path()) };
    let small = StoreSettings { max_bytes: 16 << 20, ..roomy.clone() };
    let lab = Lab::open(&roomy);
    let session = lab.session("a").await.handle;
    fill_and_deliver(&lab, &session, 3000).await;
    let log = log_of(&small);
    assert!(log.metadata().unwrap().len() > 8 << 20);
    assert_eq!(lab.store.reconfigure(&small), Vec::<&str>::new());
    eventually("it is emptied", || log.metadata().unwrap().len() == 0).await;
    eventually("there is room", || lab.store.health().used_bytes < small.max_bytes).await;
    assert_eq!(lab.metrics.messages_pruned.get(), 0);
}

#[tokio::test]
async fn no_history_leaves_for_a_log_that_somebody_reads() {
    let place = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_bytes: 16 << 20, ..settings(place.path()) };
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    fill_and_deliver(&lab, &session, 100).await;
    let reader = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM messages").unwrap();
    let (mut accepted, text) = (0, "x".repeat(4000));
    while lab.write(write_of(&session, &[&text])).await == Settled::Durable {
        accepted += 1;
        assert!(accepted < 4000, "never full");
    }
    assert_eq!((lab.metrics.messages_pruned.get(), session.pending()), (0, accepted));
    reader.execute_batch("COMMIT").unwrap();
    eventually("there is room again", || !lab.store.health().full).await;
    assert_eq!(lab.write(write_of(&session, &["fits"])).await, Settled::Durable);
    assert_eq!(lab.metrics.messages_pruned.get(), 0);
}
