//! Accepted writes that could not be written, in order, in memory.
//!
//! Promises: what stands here is read by the uploader after the rows of the database and written when the database works
//! again; it never weighs more than its limit; what is undelivered is never dropped from it.
//!
//! When a shelved write is settled: when nothing acknowledged could be lost with it. That is when all its messages are
//! delivered, it holds nothing back and carries no message that stays here for ever (kept only, or rejected: its text is
//! nowhere else), and every earlier write of its session on the shelf is settled. A write that only moves a stream or releases transcripts loses nothing that a producer
//! could send again, so it is settled with its predecessors. All others wait until they are written.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::apply::{Applier, rows_of};
use super::session_handle::SessionHandle;
use super::types::{
    Disposition, HeldTranscript, Lifecycle, NewMessage, OnSettled, PendingMessage, Rejection, RowId, SessionKey, SessionWrite,
    StreamStand,
};
use crate::protocol::{SessionIdentity, UnixMillis};

/// What the smallest item weighs.
const MIN_WEIGHT: usize = 512;

/// One accepted change.
pub(super) enum Shelved {
    Create { handle: Arc<SessionHandle>, now: UnixMillis },
    Stream { handle: Arc<SessionHandle>, stream: Arc<str>, now: UnixMillis },
    Agent { handle: Arc<SessionHandle>, agent_id: String },
    Write(ShelvedWrite),
}

/// A write with its row ids.
pub(super) struct ShelvedWrite {
    pub(super) write: SessionWrite,
    pub(super) first_row: i64,
    pub(super) settled: bool,
    /// A message of it is rejected.
    gave_up: bool,
    weight: usize,
}

impl ShelvedWrite {
    pub(super) fn new(write: SessionWrite, first_row: i64) -> Self {
        let weight = write.weight();
        Self { write, first_row, settled: false, gave_up: false, weight }
    }

    /// The messages with their rows.
    fn messages(&self) -> impl Iterator<Item = (RowId, &NewMessage)> {
        (self.first_row..).map(RowId).zip(&self.write.messages)
    }

    pub(super) fn last_message_row(&self) -> Option<RowId> {
        self.messages().last().map(|(row, _)| row)
    }

    fn loses_nothing(&self) -> bool {
        let delivered = self.last_message_row().is_none_or(|last| last <= self.write.session.cursor().row);
        delivered && !self.gave_up && self.write.hold.is_empty() && self.write.messages.iter().all(|message| message.sendable)
    }
}

impl Shelved {
    fn handle(&self) -> &Arc<SessionHandle> {
        match self {
            Self::Create { handle, .. } | Self::Stream { handle, .. } | Self::Agent { handle, .. } => handle,
            Self::Write(shelved) => &shelved.write.session,
        }
    }

    fn weight(&self) -> usize {
        if let Self::Write(shelved) = self { shelved.weight } else { MIN_WEIGHT }
    }

    pub(super) fn apply(&self, applier: &mut Applier<'_>) -> rusqlite::Result<()> {
        match self {
            Self::Create { handle, now } => {
                // The group in which it was to be created first failed, and may stand in the log all the same.
                applier.remove_empty_namesake(handle.key, &handle.identity)?;
                applier.create_session(handle.key, &handle.identity, *now)
            }
            Self::Agent { handle, agent_id } => applier.suggest_agent(handle.key, agent_id),
            Self::Stream { handle, stream, now } => {
                applier.touch_stream(stream, handle.key, 0, *now);
                Ok(())
            }
            Self::Write(shelved) => applier.write(&shelved.write, shelved.first_row),
        }
    }
}

/// The shelf.
#[derive(Default)]
pub(super) struct Shelf {
    items: VecDeque<Shelved>,
    bytes: usize,
}

/// What the shelf knows of a session, to be laid over what the database knows.
#[derive(Default)]
pub(super) struct Overlay {
    pub(super) event_ids: Vec<String>,
    pub(super) held: Vec<HeldTranscript>,
    pub(super) released: Vec<uuid::Uuid>,
    /// The agent by the producer's word, and by the server's.
    pub(super) agent: Option<String>,
    pub(super) suggested_agent: Option<String>,
    /// The last start or end, and when.
    pub(super) lifecycle: Option<(Lifecycle, UnixMillis)>,
    /// Handle and time, when the session was created here.
    pub(super) created: Option<(Arc<SessionHandle>, UnixMillis)>,
}

impl Overlay {
    pub(super) fn ended(&self) -> Option<bool> {
        self.lifecycle.as_ref().map(|(lifecycle, _)| matches!(lifecycle, Lifecycle::Ended { .. }))
    }
}

impl Shelf {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Messages that stand here.
    pub(super) fn messages(&self) -> u64 {
        let count = |item: &Shelved| if let Shelved::Write(shelved) = item { shelved.write.messages.len() } else { 0 };
        self.items.iter().map(count).sum::<usize>() as u64
    }

    /// Messages that stand here and were never acknowledged.
    pub(super) fn unsettled_messages(&self) -> u64 {
        let count = |item: &Shelved| match item {
            Shelved::Write(shelved) if !shelved.settled => shelved.write.messages.len() + shelved.write.hold.len(),
            _ => 0,
        };
        self.items.iter().map(count).sum::<usize>() as u64
    }

    /// The writes, in order.
    pub(super) fn writes(&self) -> impl Iterator<Item = &SessionWrite> {
        self.items.iter().filter_map(|item| if let Shelved::Write(shelved) = item { Some(&shelved.write) } else { None })
    }

    /// Transcripts held here, less those released here.
    pub(super) fn held_balance(&self) -> u64 {
        let (held, released) = self.writes().fold((0, 0), |sum, write| (sum.0 + write.hold.len(), sum.1 + write.release.len()));
        held.saturating_sub(released) as u64
    }

    /// Puts a change on the shelf, or gives it back when there is no room: delivered messages leave first, unarchived,
    /// their number is added to `dropped`.
    pub(super) fn put(&mut self, item: Shelved, limit: usize, dropped: &mut u64) -> Result<(), Box<Shelved>> {
        let weight = item.weight();
        if self.bytes + weight > limit {
            *dropped += self.drop_delivered();
        }
        if self.bytes + weight > limit {
            return Err(Box::new(item));
        }
        self.bytes += weight;
        self.items.push_back(item);
        Ok(())
    }

    /// These rows will be rejected, wherever they stand. Called before a cursor passes them.
    pub(super) fn give_up(&mut self, rejected: &[(RowId, Rejection)]) {
        for item in &mut self.items {
            if let Shelved::Write(shelved) = item
                && let Some(last) = shelved.last_message_row()
            {
                shelved.gave_up |= rejected.iter().any(|(row, _)| (shelved.first_row..=last.0).contains(&row.0));
            }
        }
    }

    fn drop_delivered(&mut self) -> u64 {
        let mut dropped = 0;
        for item in &mut self.items {
            if let Shelved::Write(shelved) = item
                && shelved.settled
                && !shelved.write.messages.is_empty()
                && shelved.loses_nothing()
            {
                dropped += shelved.write.messages.len() as u64;
                // The rest of it stays: its stream, its releases, its lifecycle.
                shelved.write.messages = Vec::new();
                let weight = shelved.write.weight();
                self.bytes -= shelved.weight - weight;
                shelved.weight = weight;
            }
        }
        dropped
    }

    /// Settles what can be settled of these sessions; answers whom to tell.
    pub(super) fn settle(&mut self, mut concerns: impl FnMut(SessionKey) -> bool) -> Vec<OnSettled> {
        let mut blocked = HashSet::new();
        let mut told = Vec::new();
        for item in &mut self.items {
            let Shelved::Write(shelved) = item else { continue };
            let key = shelved.write.session.key;
            if shelved.settled || !concerns(key) || blocked.contains(&key) {
                continue;
            }
            if shelved.loses_nothing() {
                shelved.settled = true;
                told.extend(shelved.write.on_settled.take());
            } else {
                blocked.insert(key);
            }
        }
        told
    }

    /// The first items, at most so many and so many bytes, but at least one.
    pub(super) fn front(&self, items: usize, bytes: usize) -> impl Iterator<Item = &Shelved> {
        let mut sum = 0;
        self.items
            .iter()
            .take(items)
            .enumerate()
            .take_while(move |(index, item)| {
                sum += item.weight();
                *index == 0 || sum <= bytes
            })
            .map(|(_, item)| item)
    }

    /// Takes the first items: they are written.
    pub(super) fn take_front(&mut self, count: usize) -> Vec<Shelved> {
        let taken: Vec<Shelved> = self.items.drain(..count.min(self.items.len())).collect();
        self.bytes -= taken.iter().map(Shelved::weight).sum::<usize>();
        taken
    }

    /// The messages of a session after a row, in order, at most so many.
    pub(super) fn pending(&self, key: SessionKey, after: RowId, limit: usize) -> Vec<PendingMessage> {
        let of_session = self.items.iter().filter_map(|item| match item {
            Shelved::Write(shelved) if shelved.write.session.key == key => Some(shelved),
            _ => None,
        });
        of_session.flat_map(ShelvedWrite::messages).filter(|(row, _)| *row > after).take(limit).map(pending_message).collect()
    }

    /// The audio of a message, if it stands here.
    pub(super) fn audio(&self, row: RowId) -> Option<Vec<u8>> {
        self.items.iter().find_map(|item| match item {
            Shelved::Write(shelved) => {
                shelved.messages().find(|(known, _)| *known == row).and_then(|(_, message)| message.audio.clone())
            }
            _ => None,
        })
    }

    /// All messages of a session with their rows.
    pub(super) fn all_messages(&self, key: SessionKey, after: RowId, limit: usize) -> Vec<(RowId, NewMessage)> {
        let of_session = self.items.iter().filter_map(|item| match item {
            Shelved::Write(shelved) if shelved.write.session.key == key => Some(shelved),
            _ => None,
        });
        let messages = of_session.flat_map(ShelvedWrite::messages).filter(|(row, _)| *row > after);
        messages.take(limit).map(|(row, message)| (row, message.clone())).collect()
    }

    /// The session of this identity, when it was created on the shelf.
    pub(super) fn created(&self, identity: &SessionIdentity) -> Option<Arc<SessionHandle>> {
        self.items.iter().find_map(|item| match item {
            Shelved::Create { handle, .. } if handle.identity == *identity => Some(Arc::clone(handle)),
            _ => None,
        })
    }

    /// Owner and lines of a stream, as far as the shelf knows. Writes of a session are settled in order, so no line before a
    /// settled one is open.
    pub(super) fn stream(&self, name: &str) -> Option<(SessionKey, StreamStand)> {
        let mentions = self.items.iter().filter_map(|item| match item {
            Shelved::Stream { handle, stream, .. } if &**stream == name => Some((handle.key, StreamStand::default())),
            Shelved::Write(shelved) => {
                let (stream, seq) = shelved.write.stream.as_ref()?;
                let stand = StreamStand { settled: if shelved.settled { *seq } else { 0 }, taken: *seq };
                (&**stream == name).then_some((shelved.write.session.key, stand))
            }
            _ => None,
        });
        mentions.reduce(|first, next| (first.0, first.1.with(next.1)))
    }

    /// What the shelf adds to the database's knowledge of a session.
    pub(super) fn overlay(&self, key: SessionKey) -> Overlay {
        let mut overlay = Overlay::default();
        for item in self.items.iter().filter(|item| item.handle().key == key) {
            match item {
                Shelved::Agent { agent_id, .. } => overlay.suggested_agent = Some(agent_id.clone()),
                Shelved::Write(ShelvedWrite { write, .. }) => {
                    overlay.event_ids.extend(write.messages.iter().filter_map(|message| message.event_id.clone()));
                    overlay.held.extend(write.hold.iter().cloned());
                    overlay.held.retain(|held| !write.release.contains(&held.uuid));
                    overlay.released.extend(&write.release);
                    if let Some(Lifecycle::Started { agent_id: Some(agent_id), .. }) = &write.lifecycle {
                        overlay.agent = Some(agent_id.clone());
                    }
                    if let Some(lifecycle) = &write.lifecycle {
                        overlay.lifecycle = Some((lifecycle.clone(), write.recorded));
                    }
                }
                Shelved::Create { handle, now } => overlay.created = Some((Arc::clone(handle), *now)),
                Shelved::Stream { .. } => {}
            }
        }
        overlay
    }

    /// Undelivered sendable messages of a session here.
    pub(super) fn undelivered(&self, key: SessionKey, after: RowId) -> u64 {
        let sendable = |message: &PendingMessage| message.disposition == Disposition::Send;
        self.pending(key, after, usize::MAX).iter().filter(|message| sendable(message)).count() as u64
    }
}

fn pending_message((row, message): (RowId, &NewMessage)) -> PendingMessage {
    PendingMessage {
        row,
        uuid: message.uuid,
        chat_type: message.chat_type,
        content: message.content.clone(),
        time: message.time,
        recorded: message.recorded,
        has_audio: message.audio.is_some(),
        disposition: if message.sendable { Disposition::Send } else { Disposition::KeepOnly },
    }
}

/// The first row after those of a write.
pub(super) fn row_after(first_row: i64, write: &SessionWrite) -> i64 {
    first_row.saturating_add(rows_of(write))
}
