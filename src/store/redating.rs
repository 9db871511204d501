//! Messages that were taken in by a clock that was behind: their age must not come from it, or they would leave as old.
//!
//! A clock that is set while the daemon runs tells by how much it was behind: what this run took in until then is dated anew
//! at once, to the time at which it really came. What a clock without any date took in and no run saw corrected is dated
//! when retention first meets it.

use rusqlite::{Connection, params};

use super::checksum;
use super::group::in_transaction;
use super::rows::{MESSAGE_COLUMNS, StoredMessage, cached};
use crate::protocol::UnixMillis;

/// 2001-01-01: nobody spoke with a toy before, and no event time is from before, either.
const FIRST_DATE: i64 = 978_307_200_000;

/// Rows in one step.
const STEP_ROWS: i64 = 500;

/// Whether a time is of a clock that had no date.
pub(super) const fn is_undated(recorded: i64) -> bool {
    recorded < FIRST_DATE
}

/// What this run has taken in since its clock was last seen to change.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenIn {
    pub(super) first_row: i64,
    pub(super) since: UnixMillis,
}

/// Rows to be dated anew.
#[derive(Debug)]
pub(super) struct Redating {
    next: i64,
    end: i64,
    from: UnixMillis,
    to: UnixMillis,
    ahead_ms: i64,
    done: usize,
}

impl Redating {
    /// What was taken in below the row `end` until the clock, which said `to`, was set ahead. What an import brought has times
    /// from elsewhere, and keeps them.
    pub(super) const fn new(taken_in: TakenIn, end: i64, to: UnixMillis, ahead_ms: i64) -> Self {
        Self { next: taken_in.first_row, end, from: taken_in.since, to, ahead_ms, done: 0 }
    }
}

/// One step. `true`: it was the last.
pub(super) fn step(connection: &Connection, work: &mut Redating) -> rusqlite::Result<bool> {
    let page: Vec<(i64, i64)> =
        cached(connection, "SELECT id, recorded_ms FROM messages WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3")?
            .query_map([work.next, work.end, STEP_ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
    let Some((last, _)) = page.last() else {
        if work.done > 0 {
            tracing::info!(messages = work.done, "the clock was set ahead: what was taken in before is dated anew");
        }
        return Ok(true);
    };
    let behind: Vec<_> = page.iter().filter(|(_, recorded)| (work.from.0..=work.to.0).contains(recorded)).collect();
    in_transaction(connection, || {
        behind.iter().try_for_each(|(id, recorded)| date(connection, *id, recorded.saturating_add(work.ahead_ms)))
    })?;
    work.next = last + 1;
    work.done += behind.len();
    Ok(false)
}

/// Gives a row another time, and the checksum that goes with it. A damaged one stays as it is.
pub(super) fn date(connection: &Connection, id: i64, recorded: i64) -> rusqlite::Result<()> {
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?1");
    let crc = cached(connection, &sql)?.query_row([id], |row| {
        let sound = StoredMessage::of(row)?.sound;
        Ok(sound.map(|fields| checksum::of_message(&checksum::RowFields { recorded_ms: recorded, ..fields })))
    })?;
    if let Some(crc) = crc {
        cached(connection, "UPDATE messages SET recorded_ms = ?2, crc = ?3 WHERE id = ?1")?
            .execute(params![id, recorded, crc])?;
    }
    Ok(())
}
