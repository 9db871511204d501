//! Spool and archive in one: every message is here before it is acknowledged, and the uploader only sends what is here.
//!
//! Promises: a write reported [`Settled::Durable`] survives a kill (and, with `durability = "fsync"`, a power cut); the
//! order of a session is the order of its row ids, and row ids are never used twice; a damaged file is set aside and
//! salvaged, never a reason to stop; while the disk fails, writes stand on a bounded shelf in memory, visible to
//! readers, and are settled only when they are delivered or written after all.
//! Refuses: to change rows in place on the hot path, to delete what is undelivered, to answer from a row whose
//! checksum fails.
//! Called by `session` (writes), `upload` (pending messages, cursors), `history` (reads) and `daemon`.

pub mod checksum;
pub mod schema;
pub mod types;

pub use types::{
    Arrival, BacklogSession, Cursor, Disposition, HeldTranscript, Lifecycle, NewMessage, OnSettled, OpenedSession,
    PendingMessage, RejectReason, Rejection, RowId, SessionHandle, SessionKey, SessionWrite, Settled, StreamTaken, WaitingDevice,
    WriterEpoch,
};
