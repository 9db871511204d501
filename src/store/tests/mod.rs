//! The store's behaviour from outside, and what its tests share.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod ageing;
mod basics;
mod changes;
mod damage;
mod disk;
mod faults;
mod log;
mod model;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::config::{Durability, StoreSettings};
use crate::observe::Metrics;
use crate::protocol::{ChatType, MacAddress, SessionId, SessionIdentity, UnixMillis};

pub(super) const NOW: UnixMillis = UnixMillis(1_758_701_973_000);

pub(super) fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        directory: directory.join("state"),
        durability: Durability::Os,
        retention: Duration::from_secs(30 * 86_400),
        max_bytes: 2 << 30,
        shelf_bytes: 8 << 20,
    }
}

/// An open store, and the books.
pub(super) struct Lab {
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
}

impl Lab {
    pub(super) fn open(settings: &StoreSettings) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self { store: Store::open(settings, Arc::clone(&metrics)).unwrap(), metrics }
    }

    pub(super) async fn session(&self, name: &str) -> OpenedSession {
        self.store.open_session(&identity(name), NOW).await.unwrap()
    }

    /// Appends and waits for the outcome.
    pub(super) async fn write(&self, write: SessionWrite) -> Settled {
        self.send(write).await.await.unwrap()
    }

    /// Appends.
    pub(super) async fn send(&self, mut write: SessionWrite) -> oneshot::Receiver<Settled> {
        let (tell, told) = oneshot::channel();
        write.on_settled = Some(Box::new(move |settled| {
            let _ = tell.send(settled);
        }));
        self.store.append(write).await;
        told
    }

    pub(super) async fn contents(&self, session: &Arc<SessionHandle>) -> Vec<String> {
        let pending = self.store.pending(session, 1000, usize::MAX).await.unwrap();
        pending.into_iter().map(|message| message.content).collect()
    }

    /// Passes everything up to `row` as delivered.
    pub(super) async fn deliver(&self, session: &Arc<SessionHandle>, row: RowId, count: u64) {
        let cursor = Cursor { row, offset: 0, last_report: NOW };
        self.store.advance(session, cursor, Passed::delivered(count));
        self.store.cursor_follows(session, 0).await;
    }
}

pub(super) fn identity(name: &str) -> SessionIdentity {
    SessionIdentity { mac: MacAddress::from_octets([2, 0, 0, 0, 0, 1]), session_id: SessionId::new(name).unwrap() }
}

pub(super) fn message(content: &str) -> NewMessage {
    NewMessage {
        uuid: Uuid::now_v7(),
        chat_type: ChatType::User,
        content: content.into(),
        time: NOW,
        recorded: NOW,
        event_id: None,
        interrupted: false,
        uncommitted: false,
        sendable: true,
        audio: None,
        extra: None,
    }
}

pub(super) fn held(text: &str) -> HeldTranscript {
    HeldTranscript { uuid: Uuid::now_v7(), text: text.into(), time: NOW, recorded: NOW, item_id: None }
}

pub(super) fn empty_write(session: &Arc<SessionHandle>) -> SessionWrite {
    SessionWrite {
        session: Arc::clone(session),
        epoch: WriterEpoch::default(),
        messages: Vec::new(),
        hold: Vec::new(),
        release: Vec::new(),
        stream: None,
        lifecycle: None,
        recorded: NOW,
        on_settled: None,
    }
}

pub(super) fn write_of(session: &Arc<SessionHandle>, contents: &[&str]) -> SessionWrite {
    SessionWrite { messages: contents.iter().map(|content| message(content)).collect(), ..empty_write(session) }
}

/// Waits until something becomes true; the writer and its pauses are real.
pub(super) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
