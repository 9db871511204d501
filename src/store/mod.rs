//! Spool and archive in one: every message is here before it is acknowledged, and the uploader only sends what is here.
//!
//! Promises: a write reported [`Settled::Durable`] survives a kill (and, with `durability = "fsync"`, a power cut); the
//! order of a session is the order of its row ids, and row ids are never used twice; a damaged file is set aside and
//! salvaged, never a reason to stop; while the disk fails, writes stand on a bounded shelf in memory, visible to
//! readers, and are settled only when they are delivered or written after all.
//! Refuses: to change rows in place on the hot path, to delete what is undelivered, to answer from a row whose
//! checksum fails.
//! Called by `session` (writes), `upload` (pending messages, cursors), `history` (reads) and `daemon`.
//!
//! Who counts what: the store counts `pending` and `held` (up when a write is accepted, durable or on the shelf),
//! `skipped{overloaded}` (received items of refused writes), `skipped{kept_only}`, `skipped{expired}`; and, in
//! [`Store::advance`], `delivered` and `rejected`. Everything else (`received`, `skipped{superseded}`, …) is the caller's.

mod agreement;
mod apply;
pub mod archive;
mod arrivals;
mod backups_due;
mod beginning;
mod changes;
mod check;
mod checkpoint;
pub mod checksum;
mod clock;
mod directory;
mod error;
mod failure;
mod files;
mod forget;
mod group;
mod handle;
mod health;
mod housekeeping;
mod import;
mod inbox;
mod left_behind;
mod lock;
mod log_care;
mod log_meter;
mod open;
mod readers;
mod reads;
mod recent;
mod record;
mod redating;
mod repair;
mod retention;
mod rows;
pub mod salvage;
pub mod schema;
mod session_handle;
mod sessions;
mod shared;
mod shelf;
mod start;
pub mod types;
mod writer;

pub use archive::{Archive, ArchiveError};
pub use arrivals::Arrivals;
pub use backups_due::Backed;
pub use changes::Retried;
pub use check::{Checked, damage_of};
pub use error::{BindError, Foreign, StoreError};
pub(crate) use files::SUFFIXES;
pub use forget::{ForgetError, ForgetWish, Forgotten};
pub use handle::{Passed, Store};
pub use health::{CloseReport, Failing, StoreHealth};
pub use import::{ImportError, Imported, ImportedMessage, ImportedSession, ImportedState};
pub use left_behind::left_behind;
pub use record::{HeldTranscriptRecord, MessageState, RejectedRow, SessionSnapshot, TranscriptMessage};
pub use session_handle::SessionHandle;
pub use types::{
    Arrival, BacklogSession, Cursor, Disposition, HeldTranscript, Lifecycle, MAX_EVENT_IDS, NewMessage, NoRoom, OnSettled,
    OpenedSession, PendingMessage, RejectReason, Rejection, RowId, SessionKey, SessionWrite, Settled, StreamStand, StreamTaken,
    WaitingDevice, WriterEpoch,
};

#[cfg(test)]
mod tests;
