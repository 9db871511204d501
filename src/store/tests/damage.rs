//! Whatever stands where the database should be: the store opens, and what was whole is kept aside.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn aside(settings: &StoreSettings) -> usize {
    fs::read_dir(settings.directory.join("corrupt")).map_or(0, |entries| entries.filter_map(Result::ok).count())
}

async fn still_works(lab: &Lab) {
    let session = lab.session("fresh").await.handle;
    assert_eq!(lab.write(write_of(&session, &["hello"])).await, Settled::Durable);
    assert_eq!(lab.contents(&session).await, ["hello"]);
}

#[tokio::test]
async fn any_rubbish_in_place_of_the_database_is_set_aside() {
    let rubbish: [(&str, Vec<u8>); 4] = [
        ("text", b"this is no database at all, but it is long enough to look at".repeat(200)),
        ("zeros", vec![0; 64 << 10]),
        ("one byte", vec![b'S']),
        ("a torn header", b"SQLite format 3\0\x10\x00".to_vec()),
    ];
    for (name, bytes) in rubbish {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        fs::create_dir(&settings.directory).unwrap();
        fs::write(settings.directory.join("history.db"), &bytes).unwrap();
        let lab = Lab::open(&settings);
        assert_eq!((aside(&settings), lab.metrics.stores_salvaged.get()), (1, 1), "{name}");
        still_works(&lab).await;
    }
}

#[tokio::test]
async fn a_foreign_database_is_set_aside_whole() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    fs::create_dir(&settings.directory).unwrap();
    let foreign = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)").unwrap();
    drop(foreign);
    let lab = Lab::open(&settings);
    still_works(&lab).await;
    let place = fs::read_dir(settings.directory.join("corrupt")).unwrap().next().unwrap().unwrap().path();
    let theirs = rusqlite::Connection::open(place.join("history.db")).unwrap();
    assert_eq!(theirs.query_row("SELECT a FROM theirs", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    assert!(!place.join("unfinished").exists());
}

#[tokio::test]
async fn a_symlink_is_never_followed() {
    for name in ["history.db", "history.db-wal", "history.db-shm"] {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        fs::create_dir(&settings.directory).unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, settings.directory.join(name)).unwrap();
        let lab = Lab::open(&settings);
        still_works(&lab).await;
        lab.store.clone().close().await;
        assert_eq!(fs::read(&victim).unwrap(), b"precious", "{name}");
    }
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    fs::create_dir(&settings.directory).unwrap();
    fs::set_permissions(&settings.directory, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(directory.path().join("elsewhere"), settings.directory.join("lock")).unwrap();
    assert!(matches!(Store::open(&settings, Arc::default()), Err(StoreError::File { .. })));
}

#[tokio::test]
async fn a_database_of_a_newer_daemon_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    Lab::open(&settings).store.close().await;
    let hand = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    hand.execute_batch("CREATE TABLE invention (a); PRAGMA user_version = 2").unwrap();
    drop(hand);
    let error = Store::open(&settings, Arc::default()).err().unwrap();
    assert!(matches!(error, StoreError::NewerSchema { found: 2, .. }), "{error}");
    assert_eq!(aside(&settings), 0);
}

#[tokio::test]
async fn a_garbled_version_is_damage_and_no_newer_daemon() {
    for garbling in ["PRAGMA user_version = 9", "PRAGMA user_version = -5", "PRAGMA application_id = 7", "DROP TABLE held"] {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        Lab::open(&settings).store.close().await;
        let hand = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
        hand.execute_batch(garbling).unwrap();
        drop(hand);
        let lab = Lab::open(&settings);
        assert_eq!(aside(&settings), 1, "{garbling}");
        still_works(&lab).await;
    }
}

#[tokio::test]
async fn a_salvage_that_a_kill_cut_short_is_done_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    Lab::open(&settings).store.close().await;
    let place = settings.directory.join("corrupt/20260101T000000Z");
    fs::create_dir_all(&place).unwrap();
    fs::rename(settings.directory.join("history.db"), place.join("history.db")).unwrap();
    fs::write(place.join("unfinished"), b"").unwrap();
    fs::write(settings.directory.join("history.db.salvage"), b"half done").unwrap();
    let lab = Lab::open(&settings);
    assert_eq!(lab.metrics.stores_salvaged.get(), 1);
    assert!(!place.join("unfinished").exists() && !settings.directory.join("history.db.salvage").exists());
    still_works(&lab).await;
}

#[tokio::test]
async fn damage_that_appears_while_the_daemon_runs_stops_neither_intake_nor_living_cursors() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let text = "x".repeat(2000);
    for _ in 0..50 {
        lab.write(write_of(&session, &[&text])).await;
    }
    let first = lab.store.pending(&session, 1, 1).await.unwrap()[0].row;
    lab.deliver(&session, first, 1).await;
    let hand = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    hand.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(hand);
    let database = fs::OpenOptions::new().write(true).open(settings.directory.join("history.db")).unwrap();
    // Every page but the first, so that the next read of any of them meets it.
    let len = database.metadata().unwrap().len();
    for page in 1..len / 4096 {
        std::os::unix::fs::FileExt::write_all_at(&database, &[0xA5; 4096], page * 4096).unwrap();
    }
    let other = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    drop(other);
    // Whatever these two meet, nothing is lost that was taken.
    let _ = lab.store.backlog(None, 10).await;
    let mut number = 0;
    while lab.metrics.stores_salvaged.get() == 0 && number < 100 {
        let _ = lab.store.pending(&session, 100, usize::MAX).await;
        let _ = lab.store.snapshot(session.key).await;
        // Also who begins while nobody can say what is known of whom is taken.
        let name = format!("new {number}");
        let (settled, new) = tokio::join!(lab.write(write_of(&session, &["during"])), lab.session(&name));
        assert_eq!(settled, Settled::Durable);
        assert_eq!(lab.write(write_of(&new.handle, &["first"])).await, Settled::Durable);
        number += 1;
    }
    assert_eq!(lab.metrics.stores_salvaged.get(), 1);
    eventually("the store works again", || lab.store.health().failing.is_none()).await;
    assert_eq!(lab.write(write_of(&session, &["after"])).await, Settled::Durable);
    let contents = lab.contents(&session).await;
    assert_eq!(contents.last().map(String::as_str), Some("after"));
    assert_eq!(session.cursor().row, first);
    let again = lab.session("a").await.handle;
    assert!(Arc::ptr_eq(&session, &again), "a living session keeps its key through a salvage");
}

#[tokio::test]
async fn what_was_just_said_survives_damage_that_leaves_nothing_of_it_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let (session, old) = (lab.session("a").await.handle, lab.session("old").await.handle);
    lab.write(write_of(&old, &["before"])).await;
    lab.write(write_of(&session, &["one", "two"])).await;
    let with_audio = NewMessage { audio: Some(vec![7; 100_000]), ..message("three") };
    lab.write(SessionWrite { messages: vec![with_audio], ..empty_write(&session) }).await;
    let row = lab.store.pending(&session, 9, 999).await.unwrap()[2].row;
    assert_eq!(lab.store.audio(row).await.unwrap().map(|audio| audio.len()), Some(100_000));
    let hand = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
    hand.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(hand);
    let database = fs::OpenOptions::new().write(true).open(settings.directory.join("history.db")).unwrap();
    let garbled = vec![0xA5; usize::try_from(database.metadata().unwrap().len()).unwrap() - 2048];
    std::os::unix::fs::FileExt::write_all_at(&database, &garbled, 2048).unwrap();
    for _ in 0..100 {
        let _ = lab.store.backlog(None, 10).await;
        assert_eq!(lab.write(write_of(&old, &["during"])).await, Settled::Durable);
        if lab.metrics.stores_salvaged.get() > 0 {
            break;
        }
    }
    eventually("the store works again", || lab.metrics.stores_salvaged.get() == 1 && lab.store.health().failing.is_none()).await;
    assert_eq!(lab.contents(&session).await, ["one", "two", "three"]);
    assert_eq!(session.pending(), 3);
    assert_eq!(lab.metrics.rejected.get(RejectReason::Damaged), 0);
    assert_eq!(lab.store.audio(row).await.unwrap(), None, "the sound is lost, the words are not");
}

#[tokio::test]
async fn a_living_session_whose_row_is_lost_does_not_give_way_to_one_that_left() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let left = lab.session("left").await.handle.key;
    let session = lab.session("a").await.handle;
    let path = settings.directory.join("history.db");
    let hand = rusqlite::Connection::open(&path).unwrap();
    // All that a damaged store may still show of an identity: the session that bore it before.
    hand.execute("DELETE FROM sessions WHERE id = ?1", [left.0]).unwrap();
    hand.execute("UPDATE sessions SET id = ?1, ended_ms = 1 WHERE id = ?2", [left.0, session.key.0]).unwrap();
    hand.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(hand);
    let database = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&database, &[0xA5; 100], 0).unwrap();
    for _ in 0..100 {
        let _ = lab.store.backlog(None, 10).await;
        assert_eq!(lab.write(write_of(&session, &["said"])).await, Settled::Durable);
        if lab.metrics.stores_salvaged.get() > 0 {
            break;
        }
    }
    eventually("the store works again", || lab.metrics.stores_salvaged.get() == 1 && lab.store.health().failing.is_none()).await;
    lab.write(write_of(&session, &["the last"])).await;
    let (key, said) = (session.key, lab.contents(&session).await);
    drop(session);
    lab.store.close().await;
    let lab = Lab::open(&settings);
    let opened = lab.session("a").await;
    assert_eq!((opened.handle.key, opened.was_ended), (key, false));
    assert_eq!(lab.contents(&opened.handle).await, said);
}

#[tokio::test]
async fn readable_messages_survive_damage_with_their_order_and_are_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["one", "two", "three"])).await;
    let rows: Vec<RowId> = lab.store.pending(&session, 9, 999).await.unwrap().iter().map(|message| message.row).collect();
    drop(session);
    lab.store.close().await;
    let database = fs::OpenOptions::new().write(true).open(settings.directory.join("history.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&database, &[0; 100], 0).unwrap();
    let lab = Lab::open(&settings);
    assert_eq!((lab.metrics.messages_salvaged.get(), lab.metrics.pending_at_start.get()), (3, 3));
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["four"])).await;
    let pending = lab.store.pending(&session, 9, 999).await.unwrap();
    assert_eq!(pending.iter().map(|message| message.content.as_str()).collect::<Vec<_>>(), ["one", "two", "three", "four"]);
    assert_eq!(pending.iter().take(3).map(|message| message.row).collect::<Vec<_>>(), rows);
}

#[tokio::test]
async fn an_imported_session_that_was_delivered_is_not_sent_again_after_a_salvage() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let one = |hours: i64, sendable, state| ImportedMessage {
        message: NewMessage { time: UnixMillis(NOW.0 + hours * 3_600_000), sendable, ..message("said") },
        state,
    };
    let session = ImportedSession {
        identity: identity("old"),
        agent_id: None,
        client: None,
        started: NOW,
        ended: Some(NOW),
        end_reason: None,
        producer_dropped: 0,
        messages: vec![
            one(0, true, ImportedState::Done),
            // Neither was ever reported.
            one(1, true, ImportedState::Rejected("invalid".into(), None)),
            one(2, false, ImportedState::Done),
        ],
    };
    assert_eq!(lab.store.import(session).await.unwrap().messages, 3);
    lab.store.close().await;
    let database = fs::OpenOptions::new().write(true).open(settings.directory.join("history.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&database, &[0; 100], 0).unwrap();
    let lab = Lab::open(&settings);
    assert_eq!((lab.metrics.messages_salvaged.get(), lab.metrics.cursors_lost.get()), (3, 0));
    assert_eq!(lab.metrics.pending_at_start.get(), 0);
}
