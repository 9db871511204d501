//! What goes into the store and what comes out of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use uuid::Uuid;

use super::session_handle::SessionHandle;
use crate::protocol::{ChatType, UnixMillis};

/// The integer key of a session in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionKey(pub i64);

/// The id of a message row: rises over all sessions, is never used twice, and is the order of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RowId(pub i64);

/// How far a session is delivered: every row up to `row` is delivered or listed as rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    /// The last row that needs nothing more.
    pub row: RowId,
    /// How many bytes of the row after `row` have already been delivered as parts.
    pub offset: u64,
    /// The report time of the last accepted report, in the unit that was sent, in milliseconds.
    pub last_report: UnixMillis,
}

/// How far the lines of a stream are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamStand {
    /// The highest line that is settled, as all before it: its producer may forget it.
    pub settled: u64,
    /// The highest line that was taken in: said again, it is a duplicate.
    pub taken: u64,
}

impl StreamStand {
    /// Of a stream whose lines are all durable.
    pub(super) const fn durable(seq: u64) -> Self {
        Self { settled: seq, taken: seq }
    }

    /// What two places know together.
    pub(super) fn with(self, other: Self) -> Self {
        Self { settled: self.settled.max(other.settled), taken: self.taken.max(other.taken) }
    }
}

/// A message to be appended.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    /// Its identity for ever, and the Idempotency-Key of its report.
    pub uuid: Uuid,
    /// Who spoke.
    pub chat_type: ChatType,
    /// The cleaned, non-empty text.
    pub content: String,
    /// When it was said.
    pub time: UnixMillis,
    /// When the daemon took it in.
    pub recorded: UnixMillis,
    /// The producer's id, the de-duplication key of the session.
    pub event_id: Option<String>,
    /// Cut off by the user.
    pub interrupted: bool,
    /// A final transcript that never became an item.
    pub uncommitted: bool,
    /// `false`: kept here, never sent (tools without `manager_api.send_tools`).
    pub sendable: bool,
    /// Decoded audio.
    pub audio: Option<Vec<u8>>,
    /// One JSON object, as text.
    pub extra: Option<String>,
}

impl NewMessage {
    /// The memory it needs while it waits, in bytes, for the bounds of queue and shelf.
    #[must_use]
    pub fn weight(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        256 + self.content.len() + optional(&self.event_id) + optional(&self.extra) + self.audio.as_ref().map_or(0, Vec::len)
    }
}

/// A final transcript that waits for its item, in the side table.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldTranscript {
    /// Names it in the side table; the message it may become gets the same one.
    pub uuid: Uuid,
    /// The cleaned, non-empty text.
    pub text: String,
    /// When it was recognised.
    pub time: UnixMillis,
    /// When the daemon took it in.
    pub recorded: UnixMillis,
    /// The item it will become, where known.
    pub item_id: Option<String>,
}

/// What becomes of the session itself with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// `session_start`, or a first message after the end: the session is open (again).
    Started {
        /// The agent, when the producer named it.
        agent_id: Option<String>,
        /// The producer's name and version.
        client: Option<String>,
    },
    /// `session_end`, or idle.
    Ended {
        /// Why: the producer's reason, or `idle`.
        reason: Option<String>,
        /// Lines the producer dropped before they reached the daemon.
        dropped: u64,
    },
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Committed, or delivered from the shelf.
    Durable,
    /// Refused. Nothing of the write was taken, nor will any later write of the same [`WriterEpoch`] be.
    Overloaded(NoRoom),
}

/// Why a write was refused: said to its producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoom {
    /// The store is at its limit, and nothing delivered is left to delete.
    Store,
    /// The store cannot be written, and what waits for it in memory is at its limit.
    Shelf,
    /// An earlier write of the same epoch was refused.
    Earlier,
    /// The session cannot be opened.
    Unopened,
    /// There is no room for one session more.
    Sessions,
    /// The store was closed.
    Stopping,
}

impl NoRoom {
    /// The reason in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "the store is full (store.max_bytes)",
            Self::Shelf => "the store cannot be written and the shelf in memory is full (store.shelf_bytes)",
            Self::Earlier => "an earlier line of the session was not taken",
            Self::Unopened => "the session cannot be opened now",
            Self::Sessions => "too many sessions are open (session.max_open)",
            Self::Stopping => "the daemon is stopping",
        }
    }
}

/// Called once per write, from the writer thread: must not block.
pub type OnSettled = Box<dyn FnOnce(Settled) + Send>;

/// One life of an actor's state. When the store refuses one of its writes it refuses all later ones too, so that the
/// order on a stream has no hole; the actor then drops its state and opens the session anew with a fresh epoch.
#[derive(Clone, Default, Debug)]
pub struct WriterEpoch(Arc<std::sync::atomic::AtomicBool>);

impl WriterEpoch {
    /// Whether a write of this epoch was refused.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Called by the writer thread alone.
    pub(super) fn refuse(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One atomic change of one session: all of it is in one transaction, or nothing.
pub struct SessionWrite {
    /// The session.
    pub session: Arc<SessionHandle>,
    /// The life of the actor's state that this write belongs to.
    pub epoch: WriterEpoch,
    /// Messages, in order.
    pub messages: Vec<NewMessage>,
    /// Transcripts to hold.
    pub hold: Vec<HeldTranscript>,
    /// Held transcripts that are no longer held (emitted among `messages`, or superseded).
    pub release: Vec<Uuid>,
    /// The highest settled line of a stream.
    pub stream: Option<(Arc<str>, u64)>,
    /// Start or end of the session.
    pub lifecycle: Option<Lifecycle>,
    /// When the daemon took in the youngest line of this write.
    pub recorded: UnixMillis,
    /// Told what became of it.
    pub on_settled: Option<OnSettled>,
}

/// The most de-duplication keys of a session that are remembered: the youngest.
pub const MAX_EVENT_IDS: usize = 50_000;

/// A session that was opened for writing: the actor's memory, reloaded.
pub struct OpenedSession {
    /// The shared handle.
    pub handle: Arc<SessionHandle>,
    /// Transcripts still held, in order.
    pub held: Vec<HeldTranscript>,
    /// The de-duplication keys of the session: the `event_id`s of its messages of the last 24 h and of all since its
    /// last start, oldest first.
    pub event_ids: Vec<String>,
    /// The agent, when known.
    pub agent_id: Option<String>,
    /// Whether it had ended before.
    pub was_ended: bool,
}

/// A stream belongs to another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream belongs to another session")]
pub struct StreamTaken;

/// A message the uploader may send.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingMessage {
    /// Its row.
    pub row: RowId,
    /// Its identity.
    pub uuid: Uuid,
    /// Who spoke.
    pub chat_type: ChatType,
    /// The text.
    pub content: String,
    /// When it was said.
    pub time: UnixMillis,
    /// When the daemon took it in.
    pub recorded: UnixMillis,
    /// There is audio with it: `Store::audio` reads it.
    pub has_audio: bool,
    /// What to do with it.
    pub disposition: Disposition,
}

/// What the uploader does with a row it reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// Send it.
    Send,
    /// Pass over it: kept here only.
    KeepOnly,
    /// Its checksum fails: reject it as damaged, never send it.
    Damaged,
}

/// Why a message will never be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RejectReason {
    /// The server found the report itself wrong (code 10034).
    Invalid,
    /// The server alone refused it, again and again, while others went through.
    RefusedByServer,
    /// Its device was not registered within `upload.unknown_device_hold`.
    DeviceNotRegistered,
    /// Its row fails its checksum.
    Damaged,
}

impl RejectReason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Invalid, Self::RefusedByServer, Self::DeviceNotRegistered, Self::Damaged];

    /// The reason in the store, in counters and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::RefusedByServer => "refused_by_server",
            Self::DeviceNotRegistered => "device_not_registered",
            Self::Damaged => "damaged",
        }
    }
}

/// A message leaves the queue without being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: RejectReason,
    /// The server's last word, at most 300 characters, without content.
    pub answer: Option<String>,
}

/// A session with undelivered messages, found at start.
pub struct BacklogSession {
    /// The shared handle; its `pending` is right.
    pub handle: Arc<SessionHandle>,
    /// Whether the session has ended.
    pub ended: bool,
    /// When the daemon took in its oldest pending message.
    pub oldest: UnixMillis,
}

/// A device that the server does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingDevice {
    /// The device.
    pub mac: crate::protocol::MacAddress,
    /// Since when (wall clock).
    pub since: UnixMillis,
    /// How often it was tried.
    pub tries: u32,
}

/// What has arrived for the uploader since it last looked.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The session.
    pub handle: Arc<SessionHandle>,
    /// Sendable messages accepted since the last look.
    pub messages: u64,
    /// When the first of them was accepted.
    pub since: Instant,
    /// The session has ended (`Some(true)`), or was opened again (`Some(false)`).
    pub ended: Option<bool>,
    /// It has ended since the last look, though it may be open again.
    pub had_an_end: bool,
}
