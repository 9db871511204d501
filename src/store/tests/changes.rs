//! Changes that people ask for, beside sessions in use.

use super::*;
use crate::store::{ForgetError, ForgetWish, ImportError, ImportedMessage, ImportedSession, ImportedState, RowId};

fn wish(including_undelivered: bool) -> ForgetWish {
    ForgetWish { mac: Some(identity("s").mac), session_id: None, including_undelivered, including_open: true }
}

#[tokio::test]
async fn nothing_undelivered_is_forgotten_unless_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::open(&settings(directory.path()));
    let opened = lab.session("s").await;
    lab.write(write_of(&opened.handle, &["one", "two"])).await;
    assert!(matches!(lab.store.forget(wish(false)).await, Err(ForgetError::Undelivered(2))));
    let open = ForgetWish { including_open: false, ..wish(true) };
    assert!(matches!(lab.store.forget(open).await, Err(ForgetError::Open(1))));
    assert_eq!(lab.contents(&opened.handle).await, ["one", "two"]);
    let forgotten = lab.store.forget(wish(true)).await.unwrap();
    assert_eq!((forgotten.sessions, forgotten.messages, forgotten.undelivered, forgotten.log_truncated), (1, 2, 2, true));
    assert_eq!((lab.metrics.pending.get(), opened.handle.pending()), (0, 0));
    assert!(lab.contents(&opened.handle).await.is_empty());
}

#[tokio::test]
async fn a_forgotten_session_may_go_on_through_an_old_handle() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::open(&settings(directory.path()));
    let opened = lab.session("s").await;
    lab.write(write_of(&opened.handle, &["one"])).await;
    lab.store.forget(wish(true)).await.unwrap();
    assert_eq!(lab.store.snapshot(opened.handle.key).await.unwrap(), None);
    lab.write(write_of(&opened.handle, &["two"])).await;
    assert_eq!(lab.contents(&opened.handle).await, ["two"]);
    let again = lab.store.snapshot(opened.handle.key).await.unwrap().unwrap();
    assert_eq!(again.identity, identity("s"));
    assert_eq!((lab.metrics.pending.get(), opened.handle.pending()), (1, 1));
}

#[tokio::test]
async fn an_answer_that_comes_after_its_message_was_forgotten_is_not_counted() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::open(&settings(directory.path()));
    let opened = lab.session("s").await;
    lab.write(write_of(&opened.handle, &["one", "two"])).await;
    let pending = lab.store.pending(&opened.handle, 10, usize::MAX).await.unwrap();
    lab.store.forget(wish(true)).await.unwrap();
    assert!(opened.handle.has_forgotten(pending[0].row));
    lab.deliver(&opened.handle, pending[0].row, 1).await;
    assert_eq!((lab.metrics.delivered.get(), lab.metrics.pending.get()), (0, 0));
}

#[tokio::test]
async fn an_import_keeps_order_and_states_and_refuses_what_the_cursor_cannot_say() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::open(&settings(directory.path()));
    let one = |text: &str, state| ImportedMessage { message: message(text), state };
    let session = ImportedSession {
        identity: identity("old"),
        agent_id: None,
        client: None,
        started: NOW,
        ended: Some(NOW),
        end_reason: None,
        producer_dropped: 0,
        messages: vec![
            one("delivered", ImportedState::Done),
            one("rejected", ImportedState::Rejected("invalid".into(), None)),
            one("pending", ImportedState::Pending),
        ],
    };
    let done = lab.store.import(session.clone()).await.unwrap();
    assert_eq!((done.messages, done.pending, done.known), (3, 1, 0));
    let again = lab.store.import(session.clone()).await.unwrap();
    assert_eq!((again.messages, again.known), (0, 3));
    let opened = lab.session("old").await;
    assert_eq!(lab.contents(&opened.handle).await, ["pending"]);
    assert_eq!((opened.handle.pending(), lab.metrics.pending.get()), (1, 1));
    let states: Vec<_> = lab.store.transcript(opened.handle.key, RowId(0), 10).await.unwrap();
    let states: Vec<_> = states.iter().map(|message| message.state.as_str()).collect();
    assert_eq!(states, ["delivered", "rejected", "pending"]);
    let more = ImportedSession { messages: vec![one("late", ImportedState::Done)], ..session };
    assert!(matches!(lab.store.import(more).await, Err(ImportError::Busy)));
}

#[tokio::test]
async fn a_message_is_tried_again_behind_the_others_with_its_old_name() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::open(&settings(directory.path()));
    let opened = lab.session("s").await;
    lab.write(write_of(&opened.handle, &["bad", "good"])).await;
    let before = lab.store.pending(&opened.handle, 10, usize::MAX).await.unwrap();
    let rejection = crate::store::Rejection { reason: crate::store::RejectReason::Invalid, answer: None };
    let cursor = crate::store::Cursor { row: before[1].row, offset: 0, last_report: NOW };
    let passed = crate::store::Passed { delivered: 1, rejected: vec![(before[0].row, rejection)] };
    lab.store.advance(&opened.handle, cursor, passed);
    lab.store.cursor_follows(&opened.handle, 0).await;
    let done = lab.store.retry_rejected(vec![before[0].row, RowId(77)]).await.unwrap();
    assert_eq!((done.retried, done.missing, done.damaged), (1, 1, 0));
    let after = lab.store.pending(&opened.handle, 10, usize::MAX).await.unwrap();
    assert_eq!((after.len(), after[0].uuid, after[0].content.as_str()), (1, before[0].uuid, "bad"));
    assert!(after[0].row > before[1].row);
    assert_eq!((opened.handle.pending(), lab.metrics.pending.get()), (1, 1));
    assert_eq!(lab.store.drop_rejected(vec![before[0].row]).await.unwrap(), 0);
}
