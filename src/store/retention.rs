//! Delivered history leaves by age, and earlier when room is needed: oldest first, in steps of one short transaction.
//!
//! Promises: a row leaves only when its session's stored cursor has passed it or it is not to be delivered at all, and it is
//! not listed as rejected (or, without a Manager API, when it is old enough); de-duplication keys live for the session and a
//! day; no row leaves by the age of a clock that had no date; a clock that was ahead for a while and an import keep nothing here for longer that came after.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::directory::Directory;
use super::group::in_transaction;
use super::redating::{self, is_undated};
use super::rows::{self, cached};
use super::schema::flags;
use super::sessions::KEYS_LIVE_MS;
use super::types::{RowId, SessionKey};
use super::writer::NextIds;
use crate::protocol::UnixMillis;

/// Rows looked at in one step.
const STEP_ROWS: i64 = 500;

/// Why rows leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    /// They were taken in before this, and it is so late.
    Age { cutoff: UnixMillis, now: UnixMillis },
    /// Room is needed.
    Room,
}

impl Aim {
    /// Messages of this age leave. Never younger than a day: they are their sessions' de-duplication keys.
    pub(super) fn age(now: UnixMillis, retention: Duration) -> Self {
        let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX).max(KEYS_LIVE_MS);
        Self::Age { cutoff: UnixMillis(now.0.saturating_sub(retention)), now }
    }
}

/// Set while rows may stand in another order than that in which they were taken in: passes look at all until one finds none
/// that does.
const OUT_OF_ORDER: &str = "out_of_order";

/// Rows of any age were put behind the others.
pub(super) fn note_out_of_order(connection: &Connection) -> rusqlite::Result<()> {
    cached(connection, "INSERT OR REPLACE INTO counters (name, value) VALUES (?1, 1)")?.execute([OUT_OF_ORDER])?;
    Ok(())
}

/// A pass over the messages, oldest first.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) aim: Aim,
    after: i64,
    looks_at_all: bool,
    /// When the youngest row that stays was taken in.
    youngest: i64,
    /// A row stays that is older than one before it: by age it would leave first, and the pass that ends at young ones would
    /// not come to it.
    leaves_disorder: bool,
}

impl Pass {
    pub(super) const fn new(aim: Aim) -> Self {
        Self { aim, after: 0, looks_at_all: false, youngest: i64::MIN, leaves_disorder: false }
    }

    /// A row stays that was taken in at this time. Nothing is said by those of a clock that was ahead.
    fn stays(&mut self, recorded: i64) {
        if let Aim::Age { now, .. } = self.aim
            && recorded <= now.0
        {
            self.leaves_disorder |= recorded < self.youngest;
            self.youngest = self.youngest.max(recorded);
        }
    }
}

/// What a step did.
#[derive(Debug, Default)]
pub(super) struct Stepped {
    pub(super) deleted: u64,
    /// Undelivered messages that left because there is no Manager API.
    pub(super) expired: HashMap<SessionKey, u64>,
    pub(super) finished: bool,
}

/// One step of a pass.
pub(super) fn step(connection: &Connection, pass: &mut Pass, all_delivered: bool, next: NextIds) -> rusqlite::Result<Stepped> {
    let mut stepped = Stepped { finished: true, ..Stepped::default() };
    let (mut leaving, mut undated) = (Vec::new(), Vec::new());
    let mut cursors: HashMap<i64, RowId> = HashMap::new();
    let (mut looked_at, mut young) = (0, 0);
    if pass.after == 0 {
        pass.looks_at_all = rows::counter(connection, OUT_OF_ORDER)? > 0;
    }
    {
        let mut statement =
            cached(connection, "SELECT id, session, flags, recorded_ms FROM messages WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let mut found = statement.query(params![pass.after, STEP_ROWS])?;
        while let Some(row) = found.next()? {
            let (id, session): (i64, i64) = (row.get(0)?, row.get(1)?);
            let (bits, recorded): (i64, i64) = (row.get(2)?, row.get(3)?);
            pass.after = id;
            looked_at += 1;
            if let Aim::Age { now, .. } = pass.aim
                && is_undated(recorded)
                && !is_undated(now.0)
            {
                undated.push((id, now.0));
                pass.stays(now.0);
                continue;
            }
            if let Aim::Age { cutoff, now } = pass.aim
                && recorded >= cutoff.0
            {
                // The clock was ahead when these were taken in: they say nothing of those behind them.
                young += i64::from(recorded <= now.0);
                pass.stays(recorded);
                continue;
            }
            let cursor = if let Some(cursor) = cursors.get(&session) {
                *cursor
            } else {
                let row = rows::cursor(connection, SessionKey(session))?.row;
                cursors.insert(session, row);
                row
            };
            // No cursor passes what is only kept and stands behind the last message of its session.
            let done = id <= cursor.0 || bits & flags::KEEP_ONLY != 0;
            if (done || all_delivered) && !is_rejected(connection, id)? {
                leaving.push((id, session, !done));
            } else {
                pass.stays(recorded);
            }
        }
    }
    let at_the_end = looked_at < STEP_ROWS;
    // Else rows stand in the order they were taken in: behind a step full of young ones there are no old ones.
    stepped.finished = at_the_end || (young == looked_at && !pass.looks_at_all);
    if at_the_end && pass.looks_at_all && !pass.leaves_disorder && matches!(pass.aim, Aim::Age { .. }) {
        cached(connection, "DELETE FROM counters WHERE name = ?1")?.execute([OUT_OF_ORDER])?;
    }
    if leaving.is_empty() && undated.is_empty() {
        return Ok(stepped);
    }
    in_transaction(connection, || {
        for (id, now) in &undated {
            // They are younger now than what was taken in after them.
            note_out_of_order(connection)?;
            redating::date(connection, *id, *now)?;
        }
        let mut delete = cached(connection, "DELETE FROM messages WHERE id = ?1")?;
        for (id, ..) in &leaving {
            delete.execute([id])?;
        }
        // Where a message had been sent in part, it was of these.
        for (_, session, _) in leaving.iter().filter(|(_, _, expired)| *expired) {
            cached(connection, "UPDATE cursors SET offset = 0 WHERE session = ?1 AND offset > 0")?.execute([session])?;
        }
        next.save(connection)
    })?;
    stepped.deleted = leaving.len() as u64;
    for (_, session, _) in leaving.iter().filter(|(_, _, expired)| *expired) {
        *stepped.expired.entry(SessionKey(*session)).or_default() += 1;
    }
    Ok(stepped)
}

fn is_rejected(connection: &Connection, row: i64) -> rusqlite::Result<bool> {
    cached(connection, "SELECT EXISTS (SELECT 1 FROM rejected WHERE row = ?1)")?.query_row([row], |row| row.get(0))
}

/// A pass over sessions, then streams, that nothing refers to any more.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    session: i64,
    /// `Some` when the sessions are done.
    stream: Option<String>,
}

/// One step of a sweep; `None` when it is done.
pub(super) fn sweep(
    connection: &Connection,
    directory: &Directory,
    mut sweep: Sweep,
    now: UnixMillis,
    next: NextIds,
) -> rusqlite::Result<Option<Sweep>> {
    let before = now.0.saturating_sub(KEYS_LIVE_MS);
    match sweep.stream.take() {
        None => {
            let empty: Vec<i64> = cached(
                connection,
                "SELECT id FROM (SELECT id FROM sessions WHERE id > ?1 AND ended_ms < ?2 ORDER BY id LIMIT ?3) s
                 WHERE NOT EXISTS (SELECT 1 FROM messages m INDEXED BY messages_by_session WHERE m.session = s.id)
                 AND NOT EXISTS (SELECT 1 FROM held h WHERE h.session = s.id)",
            )?
            .query_map(params![sweep.session, before, STEP_ROWS], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
            let last: Option<i64> = cached(
                connection,
                "SELECT max(id) FROM (SELECT id FROM sessions WHERE id > ?1 AND ended_ms < ?2 ORDER BY id LIMIT ?3)",
            )?
            .query_row(params![sweep.session, before, STEP_ROWS], |row| row.get(0))?;
            let leaving: Vec<i64> = empty.into_iter().filter(|id| directory.get(SessionKey(*id)).is_none()).collect();
            if !leaving.is_empty() {
                in_transaction(connection, || {
                    for id in &leaving {
                        cached(connection, "DELETE FROM sessions WHERE id = ?1")?.execute([id])?;
                        cached(connection, "DELETE FROM cursors WHERE session = ?1")?.execute([id])?;
                        super::backups_due::forget(connection, SessionKey(*id))?;
                    }
                    next.save(connection)
                })?;
            }
            Ok(Some(match last {
                Some(last) => Sweep { session: last, stream: None },
                None => Sweep { session: sweep.session, stream: Some(String::new()) },
            }))
        }
        Some(after) => sweep_streams(connection, &after, before),
    }
}

fn sweep_streams(connection: &Connection, after: &str, before: i64) -> rusqlite::Result<Option<Sweep>> {
    let page: Vec<(String, bool)> = cached(
        connection,
        "SELECT stream, used_ms < ?2 AND NOT EXISTS
           (SELECT 1 FROM sessions s WHERE s.id = t.session AND (s.ended_ms IS NULL OR s.ended_ms >= ?2))
         FROM streams t WHERE stream > ?1 ORDER BY stream LIMIT ?3",
    )?
    .query_map(params![after, before, STEP_ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?
    .collect::<rusqlite::Result<_>>()?;
    if page.iter().any(|(_, leaves)| *leaves) {
        in_transaction(connection, || {
            for (stream, _) in page.iter().filter(|(_, leaves)| *leaves) {
                cached(connection, "DELETE FROM streams WHERE stream = ?1")?.execute([stream])?;
            }
            Ok(())
        })?;
    }
    Ok(page.into_iter().next_back().map(|(stream, _)| Sweep { session: 0, stream: Some(stream) }))
}
