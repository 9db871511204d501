//! A store that cannot be written: somebody else's lock stands for every refusal of the disk, because a test can take it
//! and let it go. Real full and read-only disks follow in `disk`.

use super::*;

/// Keeps the store from writing until it is dropped.
struct Obstacle {
    hand: rusqlite::Connection,
}

impl Obstacle {
    fn put(settings: &StoreSettings) -> Self {
        let hand = rusqlite::Connection::open(settings.directory.join("history.db")).unwrap();
        hand.busy_timeout(Duration::from_secs(5)).unwrap();
        hand.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self { hand }
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        self.hand.execute_batch("ROLLBACK").unwrap();
    }
}

async fn works_again(lab: &Lab) {
    eventually("the store works again", || lab.store.health().failing.is_none()).await;
}

#[tokio::test]
async fn while_the_disk_fails_messages_are_readable_and_settled_by_delivery_then_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["stored"])).await;

    let obstacle = Obstacle::put(&settings);
    let mut first = lab.send(write_of(&session, &["shelved 1"])).await;
    let second = lab.send(write_of(&session, &["shelved 2"])).await;
    eventually("both stand on the shelf", || lab.store.health().shelf_messages == 2).await;
    assert!(lab.store.health().failing.is_some());
    assert!(first.try_recv().is_err(), "what is only in memory must not be acknowledged");
    assert_eq!(lab.contents(&session).await, ["stored", "shelved 1", "shelved 2"]);
    assert_eq!((session.pending(), lab.metrics.pending.get()), (3, 3));

    let rows: Vec<RowId> = lab.store.pending(&session, 9, 999).await.unwrap().iter().map(|message| message.row).collect();
    lab.deliver(&session, rows[1], 2).await;
    assert_eq!(first.await.unwrap(), Settled::Durable);
    assert_eq!(lab.contents(&session).await, ["shelved 2"]);

    drop(obstacle);
    assert_eq!(second.await.unwrap(), Settled::Durable);
    works_again(&lab).await;
    assert_eq!(lab.store.health().shelf_bytes, 0);
    assert_eq!(lab.contents(&session).await, ["shelved 2"]);
    lab.store.clone().close().await;
    let key = session.key;
    drop((session, lab));

    let lab = Lab::open(&settings);
    let all = lab.store.transcript(key, RowId(0), 99).await.unwrap();
    let seen: Vec<_> = all.iter().map(|message| (message.content.as_str(), message.state == MessageState::Delivered)).collect();
    assert_eq!(seen, [("stored", true), ("shelved 1", true), ("shelved 2", false)]);
}

/// As the uploader waits for them: one is always on its way, so one is written when the store works again, with nothing else.
#[tokio::test]
async fn cursors_are_told_of_before_while_and_after_the_store_fails() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    lab.write(write_of(&session, &["stored"])).await;
    let row = lab.store.pending(&session, 9, 999).await.unwrap()[0].row;
    let _ = lab.store.arrivals().take();
    let moves = async || {
        lab.store.advance(&session, Cursor { row, offset: 0, last_report: NOW }, Passed::default());
        let told = async {
            while !session.is_settled() {
                lab.store.arrivals().changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("the mailbox tells of it");
    };
    moves().await;
    let obstacle = Obstacle::put(&settings);
    while lab.store.health().failing.is_none() {
        moves().await;
    }
    drop(obstacle);
    while lab.store.health().failing.is_some() {
        moves().await;
    }
    moves().await;
}

#[tokio::test]
async fn sessions_streams_and_held_transcripts_live_on_the_shelf_until_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let old = lab.session("old").await.handle;
    let kept = held("kept");
    lab.write(SessionWrite { hold: vec![kept.clone()], stream: Some(("t".into(), 5)), ..empty_write(&old) }).await;

    let obstacle = Obstacle::put(&settings);
    let session = lab.session("new").await.handle;
    assert!(Arc::ptr_eq(&session, &lab.session("new").await.handle));
    assert_eq!(lab.store.bind_stream(&session, "s", NOW).await.unwrap(), StreamStand::durable(0));
    assert!(matches!(lab.store.bind_stream(&session, "t", NOW).await, Err(BindError::Taken(_))));
    assert_eq!(lab.store.bind_stream(&old, "t", NOW).await.unwrap(), StreamStand::durable(5));
    let (gone, stays) = (held("gone"), held("stays"));
    let mut holding = lab.send(SessionWrite { hold: vec![gone.clone(), stays.clone()], ..empty_write(&session) }).await;
    let emitted = NewMessage { uuid: gone.uuid, event_id: Some("i".into()), ..message("gone") };
    let write = SessionWrite {
        messages: vec![emitted],
        release: vec![gone.uuid],
        stream: Some(("s".into(), 7)),
        ..empty_write(&session)
    };
    let emitting = lab.send(write).await;
    eventually("it stands on the shelf", || lab.store.health().shelf_messages == 1).await;
    let in_memory_alone = StreamStand { settled: 0, taken: 7 };
    assert_eq!(lab.store.bind_stream(&session, "s", NOW).await.unwrap(), in_memory_alone);
    let opened = lab.session("new").await;
    assert_eq!((opened.held, opened.event_ids), (vec![stays.clone()], vec!["i".to_owned()]));
    assert_eq!(lab.session("old").await.held, std::slice::from_ref(&kept));
    let row = lab.store.pending(&session, 9, 999).await.unwrap()[0].row;
    lab.deliver(&session, row, 1).await;
    lab.store.heartbeat().await;
    assert!(holding.try_recv().is_err(), "a held transcript is nowhere but in memory");
    let ended = Lifecycle::Ended { reason: Some("idle".into()), dropped: 2 };
    let ending = lab.send(SessionWrite { lifecycle: Some(ended), ..empty_write(&session) }).await;
    lab.store.heartbeat().await;
    let snapshot = lab.store.snapshot(session.key).await.unwrap().unwrap();
    assert_eq!((snapshot.held.len(), snapshot.producer_dropped, snapshot.end_reason.as_deref()), (1, 2, Some("idle")));
    drop(obstacle);
    assert_eq!((holding.await.unwrap(), emitting.await.unwrap()), (Settled::Durable, Settled::Durable));
    assert_eq!(ending.await.unwrap(), Settled::Durable);
    works_again(&lab).await;
    assert_eq!(lab.metrics.held.get(), 2);
    lab.store.clone().close().await;
    drop((session, old, opened.handle, lab));

    let lab = Lab::open(&settings);
    assert_eq!(lab.session("new").await.held, [stays]);
    assert_eq!(lab.metrics.held_at_start.get(), 2);
    let session = lab.session("new").await.handle;
    assert_eq!(lab.store.bind_stream(&session, "s", NOW).await.unwrap(), StreamStand::durable(7));
}

#[tokio::test]
async fn a_full_shelf_refuses_a_whole_epoch_and_lets_delivered_messages_go_first() {
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings { shelf_bytes: 4096, ..settings(directory.path()) };
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let obstacle = Obstacle::put(&settings);
    let epoch = WriterEpoch::default();
    let big = "x".repeat(1500);
    let write = |text: &str| SessionWrite { epoch: epoch.clone(), ..write_of(&session, &[text]) };
    let first = lab.send(write(&big)).await;
    assert_eq!(lab.write(write(&"y".repeat(3000))).await, Settled::Overloaded(NoRoom::Shelf));
    assert!(epoch.is_refused());
    assert_eq!(lab.write(write("small")).await, Settled::Overloaded(NoRoom::Earlier), "no hole in the order of an epoch");
    assert_eq!(lab.metrics.skipped.sum(), 2);
    let row = lab.store.pending(&session, 9, 9999).await.unwrap()[0].row;
    lab.deliver(&session, row, 1).await;
    assert_eq!(first.await.unwrap(), Settled::Durable);
    // The delivered one makes room.
    let second = lab.send(write_of(&session, &["y".repeat(2000).as_str()])).await;
    eventually("the next one has its place", || lab.metrics.archive_dropped.get() == 1).await;
    assert_eq!((lab.metrics.pending.get(), session.pending()), (1, 1));
    drop(obstacle);
    assert_eq!(second.await.unwrap(), Settled::Durable);
    works_again(&lab).await;
    assert_eq!(lab.write(write_of(&session, &["after"])).await, Settled::Durable);
    assert_eq!(lab.contents(&session).await.len(), 2);
}

#[tokio::test]
async fn what_was_never_acknowledged_and_cannot_be_written_at_the_end_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let lab = Lab::open(&settings);
    let session = lab.session("a").await.handle;
    let obstacle = Obstacle::put(&settings);
    let outcome = lab.send(write_of(&session, &["one", "two"])).await;
    eventually("they stand on the shelf", || lab.store.health().shelf_messages == 2).await;
    assert_eq!(lab.store.clone().close().await, CloseReport { messages_lost: 2 });
    assert!(outcome.await.is_err(), "never acknowledged");
    drop(obstacle);
}
