//! The evidence is in: which sessions, cursors and rejections are believed, and which messages have a home.
//!
//! Identities stand twice in a database, in `sessions` and in its unique index, on different pages: one copy is enough,
//! two that disagree need the MAC inside the session id to decide, and what stays open is left out, because words must
//! not reach another child's history. Pages that are no longer true may show sessions that left: they give way.
//!
//! A wrong cursor would lose messages, a missing one repeats some. One is believed if the row it names is no other session's
//! and the report time it carries is the one that the rows up to there lead to; where none of those was reported, it passes
//! nothing. Its own row may have left by its age, or because a person dropped it.

use rusqlite::{Connection, OptionalExtension, params};

use super::SalvageReport;

/// Row ids left unused behind the highest one found: rows that could not be read had ids, too, and no id is used twice.
pub(super) const ROW_GAP: i64 = 1 << 20;

/// How far a report time may lie above the newest message's: the parts of split messages each add a millisecond.
const PARTS_MS: i64 = 1_000;

const MOVE_DOUBTFUL: &str = "
CREATE TABLE salvage_known (uuid PRIMARY KEY) WITHOUT ROWID;
INSERT OR IGNORE INTO salvage_known
  SELECT uuid FROM messages WHERE session IN (SELECT DISTINCT session FROM salvage_messages);
INSERT OR IGNORE INTO messages
  SELECT id, session, uuid, chat_type, flags, time_ms, recorded_ms, content, event_id, extra, audio, crc
  FROM salvage_messages WHERE uuid NOT IN (SELECT uuid FROM salvage_known) ORDER BY id;
DROP TABLE salvage_known;
";

/// Of the identities found for an id: the one on which both copies agree; or the one copy alone that the MAC inside the
/// session id does not contradict; or the one of several that it proves.
/// Of the ids found for an identity: the one that has messages or transcripts, before the one that has both copies, before
/// the youngest, because an identity gets another id only after its earlier session has left. Several that have one copy
/// each are one too many: none of them gets it.
const SESSIONS: &str = "
CREATE TABLE salvage_choice (id, mac, session_id, proof, copies, filled, PRIMARY KEY (id, mac, session_id)) WITHOUT ROWID;
INSERT INTO salvage_choice
  SELECT id, mac, session_id, proof, count(*), id IN (SELECT session FROM messages UNION SELECT session FROM salvage_held)
  FROM (SELECT id, mac, session_id, proof FROM salvage_sessions
        UNION ALL SELECT id, mac, session_id, proof FROM salvage_identities)
  GROUP BY id, mac, session_id;
CREATE INDEX salvage_choice_by_identity ON salvage_choice (mac, session_id);
DELETE FROM salvage_choice AS mine
  WHERE copies = 1 AND (proof < 0 OR EXISTS (SELECT 1 FROM salvage_choice other WHERE other.id = mine.id AND other.copies = 2));
DELETE FROM salvage_choice AS mine
  WHERE EXISTS (SELECT 1 FROM salvage_choice other
                WHERE other.id = mine.id AND (other.session_id <> mine.session_id OR other.mac <> mine.mac))
  AND (mine.proof = 0 OR (SELECT sum(proof) FROM salvage_choice other WHERE other.id = mine.id) > 1);
DELETE FROM salvage_choice AS mine
  WHERE EXISTS (SELECT 1 FROM salvage_choice other
                WHERE other.mac = mine.mac AND other.session_id = mine.session_id AND other.id <> mine.id
                AND ((other.filled, other.copies) > (mine.filled, mine.copies)
                     OR (other.filled, other.copies) = (mine.filled, mine.copies) AND (other.copies = 1 OR other.id > mine.id)));
INSERT OR IGNORE INTO sessions
  SELECT id, mac, session_id, agent_id, client, started_ms, ended_ms, end_reason, producer_dropped
  FROM salvage_sessions JOIN salvage_choice USING (id, mac, session_id);
";

const INVENT: &str = "
INSERT OR IGNORE INTO sessions (id, mac, session_id, started_ms)
  SELECT id, mac, session_id, started_ms FROM (
    SELECT c.id, c.mac, c.session_id, coalesce(
      (SELECT min(recorded_ms) FROM messages WHERE session = c.id),
      (SELECT min(recorded_ms) FROM salvage_held WHERE session = c.id)) AS started_ms
    FROM salvage_choice c WHERE c.id NOT IN (SELECT id FROM sessions))
  WHERE started_ms IS NOT NULL
";

const HELD: &str = "
INSERT INTO held (session, uuid, text, time_ms, recorded_ms, item_id, crc)
  SELECT h.session, h.uuid, h.text, h.time_ms, h.recorded_ms, h.item_id, h.crc FROM salvage_held h
  WHERE h.session IN (SELECT id FROM sessions)
    AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.session = h.session AND m.uuid = h.uuid)
  ORDER BY h.id
";

const REJECTED: &str = "
INSERT INTO rejected
  SELECT r.row, r.session, r.reason, r.answer, r.rejected_ms FROM salvage_rejected r
  JOIN messages m ON m.id = r.row AND m.session = r.session
";

const DROP_STAGING: &str = "
DROP TABLE IF EXISTS salvage_choice;
DROP TABLE salvage_messages; DROP TABLE salvage_damaged; DROP TABLE salvage_damaged_held; DROP TABLE salvage_held; DROP TABLE salvage_sessions;
DROP TABLE salvage_identities; DROP TABLE salvage_cursors; DROP TABLE salvage_rejected; DROP TABLE salvage_next_row;
";

/// Turns staging into rows, inside the transaction that is open.
pub(super) fn settle(connection: &Connection, report: &mut SalvageReport) -> rusqlite::Result<()> {
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
    let highest =
        "SELECT coalesce(max(n), 0) FROM (SELECT max(id) AS n FROM messages UNION ALL SELECT max(value) FROM salvage_next_row)";

    connection.execute_batch(MOVE_DOUBTFUL)?;
    report.messages_damaged = count("SELECT count(*) FROM salvage_damaged WHERE id NOT IN (SELECT id FROM messages)")?;
    report.next_row = connection.query_row(highest, [], |row| row.get::<_, i64>(0))?.saturating_add(ROW_GAP);

    connection.execute_batch(SESSIONS)?;
    report.sessions_invented = connection.execute(INVENT, [])? as u64;
    report.sessions = count("SELECT count(*) FROM sessions")?;
    report.sessions_lost = count(
        "SELECT count(*) FROM (SELECT DISTINCT session FROM messages UNION SELECT session FROM salvage_held)
         WHERE session NOT IN (SELECT id FROM sessions)",
    )?;
    report.messages_without_session =
        connection.execute("DELETE FROM messages WHERE session NOT IN (SELECT id FROM sessions)", [])? as u64;
    report.messages = count("SELECT count(*) FROM messages")?;
    report.held_without_session = count("SELECT count(*) FROM salvage_held WHERE session NOT IN (SELECT id FROM sessions)")?;
    report.held = connection.execute(HELD, [])? as u64;
    report.held_damaged = count("SELECT count(*) FROM salvage_damaged_held WHERE id NOT IN (SELECT id FROM salvage_held)")?;

    connection.execute(REJECTED, [])?;
    settle_cursors(connection, report)?;
    connection.execute(
        "DELETE FROM rejected WHERE row > coalesce((SELECT c.row FROM cursors c WHERE c.session = rejected.session), 0)",
        [],
    )?;
    report.rejected = count("SELECT count(*) FROM rejected")?;
    report.sessions_without_cursor = count(
        "SELECT count(*) FROM sessions s WHERE NOT EXISTS (SELECT 1 FROM cursors c WHERE c.session = s.id)
         AND EXISTS (SELECT 1 FROM messages m WHERE m.session = s.id)",
    )?;
    connection.execute("INSERT OR REPLACE INTO counters (name, value) VALUES ('next_row', ?1)", [report.next_row])?;
    connection.execute_batch(DROP_STAGING)
}

/// Of messages `m`: those that are sent, or were. (4: `flags::KEEP_ONLY`.)
const SENDABLE: &str = "(m.flags & 4) = 0 AND NOT EXISTS (SELECT 1 FROM rejected r WHERE r.row = m.id)";

/// A cursor as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Found {
    session: i64,
    row: i64,
    offset: i64,
    last_report_ms: i64,
}

/// What the messages say about a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Evidence {
    /// The newest event time among the rows up to the cursor that were reported; none when no row of them was.
    newest_ms: Option<i64>,
    /// How many those are.
    reported: i64,
}

/// Keeps the furthest cursor that is believed of each session. The offset is not: the message in parts starts anew.
fn settle_cursors(connection: &Connection, report: &mut SalvageReport) -> rusqlite::Result<()> {
    let mut found =
        connection.prepare("SELECT session, row, offset, last_report_ms FROM salvage_cursors ORDER BY session, row DESC")?;
    let mut keep = connection.prepare("INSERT INTO cursors (session, row, offset, last_report_ms) VALUES (?1, ?2, 0, ?3)")?;
    let mut rows = found.query([])?;
    let mut settled = 0;
    let mut doubted = None;
    while let Some(row) = rows.next()? {
        let cursor = Found { session: row.get(0)?, row: row.get(1)?, offset: row.get(2)?, last_report_ms: row.get(3)? };
        if doubted.is_some_and(|session| session != cursor.session) {
            report.cursors_lost += u64::from(has_messages(connection, doubted.take())?);
        }
        if cursor.session == settled {
            continue;
        }
        let last_report_ms =
            if cursor.row <= report.next_row - ROW_GAP { believed_report_time(connection, cursor)? } else { None };
        if let Some(last_report_ms) = last_report_ms {
            keep.execute([cursor.session, cursor.row, last_report_ms])?;
            report.cursors += 1;
            settled = cursor.session;
            doubted = None;
        } else {
            doubted = Some(cursor.session);
        }
    }
    report.cursors_lost += u64::from(has_messages(connection, doubted)?);
    Ok(())
}

/// The report time of a cursor that is believed.
fn believed_report_time(connection: &Connection, cursor: Found) -> rusqlite::Result<Option<i64>> {
    let Some(evidence) = evidence(connection, cursor)? else { return Ok(None) };
    if evidence.newest_ms.is_some() || cursor.last_report_ms == 0 {
        return Ok(is_believable(cursor, evidence).then_some(cursor.last_report_ms));
    }
    // All that it passes was rejected or only kept: it hides nothing. Its time, which nothing proves, is no later than the
    // next message's.
    let next = "SELECT min(time_ms) FROM messages WHERE session = ?1 AND id > ?2";
    let next: Option<i64> = connection.query_row(next, [cursor.session, cursor.row], |row| row.get(0))?;
    Ok((cursor.offset == 0).then(|| cursor.last_report_ms.min(next.unwrap_or(0))))
}

fn has_messages(connection: &Connection, session: Option<i64>) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM messages WHERE session = ?1)", [session], |row| row.get(0))
}

/// `None` when the row the cursor names is another session's, its session is lost, or the message it is in the middle of is
/// not there. Its own row may be gone: a delivered one by its age, a rejected one because a person decided.
fn evidence(connection: &Connection, cursor: Found) -> rusqlite::Result<Option<Evidence>> {
    let elsewhere = "SELECT NOT EXISTS (SELECT 1 FROM sessions WHERE id = ?1)
                     OR EXISTS (SELECT 1 FROM messages WHERE id = ?2 AND session <> ?1)";
    if connection.query_row(elsewhere, [cursor.session, cursor.row], |row| row.get::<_, bool>(0))? {
        return Ok(None);
    }
    let last = if cursor.offset == 0 {
        cursor.row
    } else {
        let next = format!("SELECT m.id FROM messages m WHERE m.session = ?1 AND m.id > ?2 AND {SENDABLE} ORDER BY m.id LIMIT 1");
        match connection.query_row(&next, [cursor.session, cursor.row], |row| row.get(0)).optional()? {
            Some(next) => next,
            None => return Ok(None),
        }
    };
    let reported = format!("SELECT max(m.time_ms), count(*) FROM messages m WHERE m.session = ?1 AND m.id <= ?2 AND {SENDABLE}");
    let read = |row: &rusqlite::Row<'_>| Ok(Evidence { newest_ms: row.get(0)?, reported: row.get(1)? });
    connection.query_row(&reported, params![cursor.session, last], read).map(Some)
}

/// Whether the report time is the one the rows up to the cursor lead to: in milliseconds at least the newest event
/// time, in whole seconds its second, and above it only by the millisecond each report may add.
fn is_believable(cursor: Found, evidence: Evidence) -> bool {
    let Some(newest) = evidence.newest_ms else { return cursor.last_report_ms == 0 };
    let lowest = if cursor.last_report_ms % 1_000 == 0 { newest - newest.rem_euclid(1_000) } else { newest };
    let highest = newest.saturating_add(evidence.reported).saturating_add(PARTS_MS);
    (lowest..=highest).contains(&cursor.last_report_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believed(last_report_ms: i64, newest_ms: Option<i64>) -> bool {
        let cursor = Found { session: 1, row: 5, offset: 0, last_report_ms };
        is_believable(cursor, Evidence { newest_ms, reported: 5 })
    }

    #[test]
    fn a_cursor_needs_the_report_time_of_its_row() {
        assert!(believed(1_758_701_973_250, Some(1_758_701_973_250)), "milliseconds");
        assert!(believed(1_758_701_973_000, Some(1_758_701_973_250)), "whole seconds");
        assert!(believed(1_758_701_973_253, Some(1_758_701_973_250)), "moved on by reports in the same millisecond");
        assert!(!believed(1_758_701_973_249, Some(1_758_701_973_250)), "a row that was not reported yet");
        assert!(!believed(1_758_701_972_000, Some(1_758_701_973_250)), "a second too early");
        assert!(!believed(1_758_701_979_000, Some(1_758_701_973_250)), "of a later row");
    }

    #[test]
    fn a_cursor_over_rejected_rows_alone_has_no_report_time() {
        assert!(believed(0, None));
        assert!(!believed(1_758_701_973_250, None));
    }
}
