//! A store as the daemon writes it, made by SQLite: short messages, long ones on overflow pages, audio, Devanagari.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use rusqlite::params;

use super::super::*;
use crate::store::checksum::{RowFields, of_held, of_message};
use crate::store::schema::{PAGE_BYTES, V1};

pub(super) const SESSIONS: i64 = 60;
pub(super) const MESSAGES: i64 = 3000;
pub(super) const START_MS: i64 = 1_758_701_973_000;

/// A store as bytes: the database, its WAL, and what is in it.
pub(super) struct Sample {
    pub(super) db: Vec<u8>,
    pub(super) wal: Vec<u8>,
    /// Message → (all its columns as one text, the pages it stands on in the committed view).
    pub(super) rows: BTreeMap<i64, (String, BTreeSet<u32>)>,
}

pub(super) fn mac(session: i64) -> String {
    format!("68:25:dd:ba:39:{session:02x}")
}

fn content(id: i64) -> String {
    match id % 40 {
        0 => format!("{id} कहानी 🐘 ").repeat(400),
        1 => format!("{id} long ").repeat(1000),
        _ => format!("message {id} नमस्ते"),
    }
}

pub(super) fn insert_message(connection: &Connection, id: i64) {
    let uuid = (0x1000_0000_0000_0000_0000_u128 + u128::from(id.unsigned_abs())).to_be_bytes();
    let (text, event_id) = (content(id), format!("item_{id:012x}"));
    let audio = (id % 97 == 0).then(|| vec![(id % 251) as u8; 30_000]);
    let fields = RowFields {
        id,
        session: id % SESSIONS + 1,
        uuid: &uuid,
        chat_type: id % 2 + 1,
        flags: 0,
        time_ms: START_MS + id * 1_700,
        recorded_ms: START_MS + id * 1_700 + 9,
        content: &text,
        event_id: (id % 3 != 0).then_some(event_id.as_str()),
        extra: (id % 5 == 0).then_some("{\"confidence\":0.9}"),
        audio: audio.as_deref(),
    };
    let f = &fields;
    connection
        .execute(
            "INSERT INTO messages VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
            params![
                f.id,
                f.session,
                f.uuid,
                f.chat_type,
                f.flags,
                f.time_ms,
                f.recorded_ms,
                f.content,
                f.event_id,
                f.extra,
                f.audio,
                of_message(f)
            ],
        )
        .unwrap();
}

pub(super) fn insert_session(connection: &Connection, id: i64) {
    connection
        .execute(
            "INSERT INTO sessions (id, mac, session_id, agent_id, started_ms) VALUES (?1, ?2, ?3, 'agent', ?4)",
            params![id, mac(id), format!("d3746a02-1111-2222-3333-4444555566{id:02}_{}", mac(id).replace(':', "")), START_MS],
        )
        .unwrap();
}

fn set_cursor(connection: &Connection, session: i64, row: i64) {
    let last_report = START_MS + row * 1_700;
    connection.execute("INSERT OR REPLACE INTO cursors VALUES (?1, ?2, 0, ?3)", params![session, row, last_report]).unwrap();
}

/// The row of a session that its cursor stands at: all but the last five are delivered.
pub(super) fn cursor_row(session: i64) -> i64 {
    MESSAGES - 5 * SESSIONS - (MESSAGES - 5 * SESSIONS - (session - 1)).rem_euclid(SESSIONS)
}

pub(super) fn fill(connection: &Connection) {
    let mut id = 0;
    for group in 0..MESSAGES / 50 {
        connection.execute_batch("BEGIN").unwrap();
        if group == 0 {
            (1..=SESSIONS).for_each(|session| insert_session(connection, session));
            connection.execute("INSERT INTO counters VALUES ('next_row', 2)", []).unwrap();
        }
        for _ in 0..50 {
            id += 1;
            insert_message(connection, id);
        }
        let (uuid, text) = ((u128::from(id.unsigned_abs())).to_be_bytes(), format!("held {id}"));
        let crc = of_held(1, &uuid, &text, START_MS, START_MS, None);
        connection
            .execute("INSERT INTO held VALUES (?1, 1, ?2, ?3, ?4, ?4, NULL, ?5)", params![id, uuid, text, START_MS, crc])
            .unwrap();
        if group > 0 {
            connection.execute("DELETE FROM held WHERE id = ?1", [id - 50]).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    }
    connection.execute_batch("BEGIN").unwrap();
    (1..=SESSIONS).for_each(|session| set_cursor(connection, session, cursor_row(session)));
    connection
        .execute("INSERT INTO rejected VALUES (?1, ?2, 'invalid', NULL, ?3)", params![60, 60 % SESSIONS + 1, START_MS])
        .unwrap();
    connection.execute_batch("COMMIT").unwrap();
}

pub(super) fn open(path: &Path) -> Connection {
    open_with(path, PAGE_BYTES)
}

fn open_with(path: &Path, page_bytes: usize) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size = {page_bytes}; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA secure_delete = ON;
             PRAGMA wal_autocheckpoint = 0;"
        ))
        .unwrap();
    connection.execute_batch(V1).unwrap();
    connection
}

/// A store, all in its database or all in its log.
pub(super) fn sample(page_bytes: usize, checkpoint: bool) -> Sample {
    let directory = tempfile::tempdir().unwrap();
    let (db, wal) = (directory.path().join("history.db"), directory.path().join("history.db-wal"));
    let connection = open_with(&db, page_bytes);
    fill(&connection);
    if checkpoint {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }
    let pages = Pages::open(&db, &wal);
    let standing = standing(&pages);
    let rows = texts(&connection).into_iter().map(|(id, text)| (id, (text, standing.get(&id).cloned().unwrap()))).collect();
    Sample { db: std::fs::read(&db).unwrap(), wal: std::fs::read(&wal).unwrap(), rows }
}

pub(super) fn checkpointed() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| sample(PAGE_BYTES, true))
}

pub(super) fn in_wal() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| sample(PAGE_BYTES, false))
}

/// Which pages each message stands on.
fn standing(pages: &Pages) -> BTreeMap<i64, BTreeSet<u32>> {
    let mut found = BTreeMap::new();
    let last = pages.layout.database_pages.unwrap_or_else(|| pages.database_pages());
    let (mut page, mut next) = (vec![0; pages.page_bytes], vec![0; pages.page_bytes]);
    for number in 1..=last {
        pages.read(View::Committed, number, &mut page);
        for cell in cells(&page) {
            let Some(header) = Header::read(cell.local, cell.payload_bytes) else { continue };
            if Kind::of(cell.tree, &header) != Some(Kind::Messages) {
                continue;
            }
            let mut stands_on = BTreeSet::from([number]);
            let mut overflow = cell.overflow.unwrap_or(0);
            while overflow != 0 {
                stands_on.insert(overflow);
                pages.read(View::Committed, overflow, &mut next);
                overflow = u32::from_be_bytes(*next.first_chunk().unwrap());
            }
            found.insert(cell.rowid, stands_on);
        }
    }
    found
}

/// Every message with all its columns as one text.
pub(super) fn texts(connection: &Connection) -> BTreeMap<i64, String> {
    let sql = "SELECT id, session || hex(uuid) || chat_type || flags || time_ms || recorded_ms || content || coalesce(event_id, '-') \
               || coalesce(extra, '-') || coalesce(hex(audio), '-') || crc FROM messages";
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}
