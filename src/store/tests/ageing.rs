//! Retention and the size limit: what leaves, what never leaves.

use super::*;
use crate::store::checkpoint;
use crate::store::retention::{self, Aim, Pass, Sweep};
use crate::store::writer::NextIds;

const DAY: i64 = 86_400_000;

/// The database of a closed store.
fn hand(settings: &StoreSettings) -> rusqlite::Connection {
    rusqlite::Connection::open(settings.directory.join("history.db")).unwrap()
}

fn run(connection: &rusqlite::Connection, aim: Aim, all_delivered: bool) -> (u64, u64) {
    let next = NextIds::read(connection).unwrap().unwrap();
    let mut pass = Pass::new(aim);
    let (mut deleted, mut expired) = (0, 0);
    loop {
        let stepped = retention::step(connection, &mut pass, all_delivered, next).unwrap();
        deleted += stepped.deleted;
        expired += stepped.expired.values().sum::<u64>();
        if stepped.finished {
            return (deleted, expired);
        }
    }
}

async fn filled(settings: &StoreSettings) -> (SessionKey, Vec<RowId>) {
    let lab = Lab::open(settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["one", "two", "three", "four"])).await;
    let rows: Vec<RowId> = lab.store.pending(&session, 9, 999).await.unwrap().iter().map(|message| message.row).collect();
    lab.deliver(&session, rows[0], 1).await;
    let rejection = Rejection { reason: RejectReason::Invalid, answer: None };
    let cursor = Cursor { row: rows[1], ..session.cursor() };
    lab.store.advance(&session, cursor, Passed::rejected(rows[1], rejection));
    lab.store.cursor_follows(&session, 0).await;
    lab.deliver(&session, rows[2], 1).await;
    let key = session.key;
    drop(session);
    lab.store.close().await;
    (key, rows)
}

fn ids(connection: &rusqlite::Connection) -> Vec<RowId> {
    let mut statement = connection.prepare("SELECT id FROM messages ORDER BY id").unwrap();
    statement.query_map([], |row| Ok(RowId(row.get(0)?))).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn only_delivered_messages_leave_by_age_or_for_room() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let (_, rows) = filled(&settings).await;
    let connection = hand(&settings);
    let young = Aim::age(UnixMillis(NOW.0 + DAY / 2), Duration::ZERO);
    assert_eq!(run(&connection, young, false), (0, 0), "keys of de-duplication live a day");
    let old = Aim::age(UnixMillis(NOW.0 + 2 * DAY), Duration::from_secs(86_400));
    assert_eq!(run(&connection, old, false), (2, 0));
    assert_eq!(ids(&connection), [rows[1], rows[3]], "rejected and pending ones stay");
    assert_eq!(run(&connection, Aim::Room, false), (0, 0));
    assert_eq!(run(&connection, Aim::Room, true), (1, 1), "without a Manager API the pending one leaves, counted");
    assert_eq!(ids(&connection), [rows[1]]);
}

/// A tool that ends the call is the last word of its session, and the uploader has no message that would take it along.
#[tokio::test]
async fn what_is_only_kept_leaves_though_no_cursor_passes_it() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["delivered", "pending"])).await;
    let kept = NewMessage { sendable: false, ..message("a tool") };
    lab.write(SessionWrite { messages: vec![kept], ..empty_write(&session) }).await;
    let row = lab.store.pending(&session, 9, 999).await.unwrap()[0].row;
    lab.deliver(&session, row, 1).await;
    drop(session);
    lab.store.close().await;
    let connection = hand(&settings);
    assert_eq!(run(&connection, Aim::age(UnixMillis(NOW.0 + 2 * DAY), Duration::ZERO), false), (2, 0));
    assert_eq!(ids(&connection), [RowId(row.0 + 1)], "the pending one stays");
}

/// So many that a step finds nothing else.
const MANY: usize = 1200;

/// A delivered session of another host, with messages that were taken in then.
fn said_elsewhere(recorded: &[UnixMillis]) -> ImportedSession {
    let done = |recorded: &UnixMillis| ImportedMessage {
        message: NewMessage { recorded: *recorded, ..message("old") },
        state: ImportedState::Done,
    };
    ImportedSession {
        identity: identity("b"),
        agent_id: None,
        client: None,
        started: recorded[0],
        ended: Some(recorded[0]),
        end_reason: None,
        producer_dropped: 0,
        messages: recorded.iter().map(done).collect(),
    }
}

/// The database of a store with such messages imported between many young ones.
async fn imported_among_young_ones(recorded: &[UnixMillis]) -> (tempfile::TempDir, rusqlite::Connection) {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &vec!["young"; MANY])).await;
    assert_eq!(lab.store.import(said_elsewhere(recorded)).await.unwrap().messages, recorded.len() as u64);
    lab.write(write_of(&session, &vec!["young"; MANY])).await;
    drop(session);
    lab.store.close().await;
    let connection = hand(&settings);
    (directory, connection)
}

#[tokio::test]
async fn an_old_message_leaves_that_was_imported_behind_young_ones() {
    let (_directory, connection) = imported_among_young_ones(&[UnixMillis(NOW.0 - 60 * DAY)]).await;
    let by_age = Aim::age(UnixMillis(NOW.0 + DAY), Duration::from_secs(30 * 86_400));
    assert_eq!(run(&connection, by_age, false), (1, 0));
    let mut pass = Pass::new(by_age);
    assert!(retention::step(&connection, &mut pass, false, NextIds::read(&connection).unwrap().unwrap()).unwrap().finished);
}

#[tokio::test]
async fn an_imported_message_that_was_still_too_young_at_the_first_pass_leaves_in_its_time() {
    let ages = [UnixMillis(NOW.0 - 60 * DAY), UnixMillis(NOW.0 - 20 * DAY)];
    let (_directory, connection) = imported_among_young_ones(&ages).await;
    let by_age = |days: i64| Aim::age(UnixMillis(NOW.0 + days * DAY), Duration::from_secs(30 * 86_400));
    assert_eq!(run(&connection, by_age(1), false), (1, 0));
    assert_eq!(run(&connection, by_age(11), false), (1, 0));
    // Now all stand in order again.
    let mut pass = Pass::new(by_age(12));
    assert!(retention::step(&connection, &mut pass, false, NextIds::read(&connection).unwrap().unwrap()).unwrap().finished);
}

#[tokio::test]
async fn messages_of_a_clock_that_was_ahead_keep_nothing_here_that_came_after_them() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let ahead = NewMessage { recorded: UnixMillis(NOW.0 + 365 * DAY), ..message("ahead") };
    lab.write(SessionWrite { messages: vec![ahead; MANY], ..empty_write(&session) }).await;
    lab.write(write_of(&session, &["said when the clock was right again"])).await;
    let last = lab.store.pending(&session, 2 * MANY, usize::MAX).await.unwrap().last().unwrap().row;
    lab.deliver(&session, last, MANY as u64 + 1).await;
    drop(session);
    lab.store.close().await;
    let connection = hand(&settings);
    assert_eq!(run(&connection, Aim::age(UnixMillis(NOW.0 + 31 * DAY), Duration::from_secs(30 * 86_400)), false), (1, 0));
}

#[tokio::test]
async fn row_ids_are_never_used_again_after_the_youngest_rows_left() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let (key, rows) = filled(&settings).await;
    let connection = hand(&settings);
    run(&connection, Aim::Room, true);
    connection.execute("DELETE FROM rejected", []).unwrap();
    run(&connection, Aim::Room, true);
    connection.execute("DELETE FROM cursors", []).unwrap();
    connection.execute("DELETE FROM sessions", []).unwrap();
    assert!(ids(&connection).is_empty());
    checkpoint::now(&connection, "TRUNCATE").unwrap();
    drop(connection);
    let lab = Lab::open(&settings);
    let session = lab.session("b").await.handle;
    lab.write(write_of(&session, &["new"])).await;
    assert!(lab.store.pending(&session, 1, 1).await.unwrap()[0].row > rows[3]);
    assert!(session.key > key);
}

#[tokio::test]
async fn an_empty_session_leaves_a_day_after_its_end_and_its_stream_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.store.bind_stream(&session, "s", NOW).await.unwrap();
    let ended = Lifecycle::Ended { reason: None, dropped: 0 };
    lab.write(SessionWrite { lifecycle: Some(ended), ..empty_write(&session) }).await;
    lab.session("open").await;
    drop(session);
    lab.store.close().await;
    let connection = hand(&settings);
    let next = NextIds::read(&connection).unwrap().unwrap();
    let sweep = |now: i64| {
        let living = crate::store::directory::Directory::default();
        let mut next_step = Some(Sweep::default());
        while let Some(step) = next_step {
            next_step = retention::sweep(&connection, &living, step, UnixMillis(now), next).unwrap();
        }
        let count = |table: &str| -> i64 {
            connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        (count("sessions"), count("streams"))
    };
    assert_eq!(sweep(NOW.0 + DAY / 2), (2, 1));
    assert_eq!(sweep(NOW.0 + 2 * DAY), (1, 0), "the open one stays");
}

#[tokio::test]
async fn at_the_size_limit_delivered_history_leaves_first_and_then_intake_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_bytes: 2 << 20, ..settings(directory.path()) };
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let text = "x".repeat(4000);
    let batch: Vec<&str> = std::iter::repeat_n(text.as_str(), 50).collect();
    for _ in 0..20 {
        assert_eq!(lab.write(write_of(&session, &batch)).await, Settled::Durable, "delivered history makes room");
        let last = lab.store.pending(&session, 999, usize::MAX).await.unwrap().last().unwrap().row;
        lab.deliver(&session, last, 50).await;
    }
    assert!(lab.metrics.messages_pruned.get() > 300);
    assert!(!lab.store.health().full);
    let mut accepted = 0;
    while lab.write(write_of(&session, &batch)).await == Settled::Durable {
        accepted += 50;
        assert!(accepted < 2000, "never full");
    }
    eventually("it is known as full", || lab.store.health().full).await;
    assert_eq!(session.pending(), accepted, "nothing undelivered has left");
    assert_eq!(lab.metrics.skipped.sum(), 50);
    let (mut delivered, mut last) = (0, RowId(0));
    while delivered < accepted {
        let page = lab.store.pending(&session, 200, usize::MAX).await.unwrap();
        delivered += page.len() as u64;
        last = page.last().unwrap().row;
        lab.deliver(&session, last, page.len() as u64).await;
    }
    assert!(last > RowId(0));
    eventually("there is room again", || !lab.store.health().full).await;
    assert_eq!(lab.write(write_of(&session, &["fits"])).await, Settled::Durable);
}
