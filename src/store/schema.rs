//! The shape of the database, by version. A version that was released is never edited: a new one is added with its
//! migration, and a file of every old version stays in the tests.
//!
//! Append-only messages keyed by integers, one cursor per session, no index with random keys on the hot path: measured
//! to be ten times as fast as a state column updated per row. The rare states live in side tables.

/// The version this daemon writes (`PRAGMA user_version`).
pub const VERSION: i32 = 1;

/// Marks the file as ours (`PRAGMA application_id`, "chis").
pub const APPLICATION_ID: i32 = 0x6368_6973;

/// The page size of every database we make. Half of SQLite's own choice: a lone message changes four pages, and each goes
/// to the log whole (13.6 kB are written for it instead of 21.4).
pub const PAGE_BYTES: usize = 2048;

/// The page sizes that databases of ours have, those of older daemons included: salvage finds out which.
pub const PAGE_SIZES: [usize; 2] = [PAGE_BYTES, 4096];

/// Bits of `messages.flags`.
pub mod flags {
    /// Cut off by the user.
    pub const INTERRUPTED: i64 = 1;
    /// A final transcript that never became an item.
    pub const UNCOMMITTED: i64 = 2;
    /// Kept here, never sent.
    pub const KEEP_ONLY: i64 = 4;
}

/// The tables of version 1. Times are milliseconds since the Unix epoch; `*_ms` columns are wall clock.
///
/// * `messages.id` is given out by the writer and is never used again (`counters.next_row` guards against reuse after
///   the youngest rows were deleted). `crc` is the CRC-32 of the row (`store::checksum`). The partial index
///   `messages_kept` holds the few rows that are never sent, so that pending ones are counted without reading rows.
/// * `cursors`: every row up to `row` is delivered or listed in `rejected`.
/// * `held`: final transcripts that wait for their item; not in the message order.
/// * `streams`: one row a stream, the highest settled line.
pub const V1: &str = "
CREATE TABLE sessions (
  id INTEGER PRIMARY KEY,
  mac TEXT NOT NULL,
  session_id TEXT NOT NULL,
  agent_id TEXT,
  client TEXT,
  started_ms INTEGER NOT NULL,
  ended_ms INTEGER,
  end_reason TEXT,
  producer_dropped INTEGER NOT NULL DEFAULT 0,
  UNIQUE (mac, session_id)
) STRICT;
CREATE INDEX sessions_open ON sessions (id) WHERE ended_ms IS NULL;
CREATE TABLE messages (
  id INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  uuid BLOB NOT NULL,
  chat_type INTEGER NOT NULL,
  flags INTEGER NOT NULL,
  time_ms INTEGER NOT NULL,
  recorded_ms INTEGER NOT NULL,
  content TEXT NOT NULL,
  event_id TEXT,
  extra TEXT,
  audio BLOB,
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX messages_by_session ON messages (session, id);
CREATE INDEX messages_kept ON messages (session, id) WHERE flags & 4;
CREATE TABLE cursors (
  session INTEGER PRIMARY KEY,
  row INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  last_report_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE held (
  id INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  uuid BLOB NOT NULL UNIQUE,
  text TEXT NOT NULL,
  time_ms INTEGER NOT NULL,
  recorded_ms INTEGER NOT NULL,
  item_id TEXT,
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX held_by_session ON held (session, id);
CREATE TABLE rejected (
  row INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  reason TEXT NOT NULL,
  answer TEXT,
  rejected_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE streams (
  stream TEXT PRIMARY KEY,
  session INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE waiting_devices (
  mac TEXT PRIMARY KEY,
  since_ms INTEGER NOT NULL,
  tries INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";
