//! A real store, made by SQLite, damaged in every way we could think of.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; the store is small"
)]

mod sample;

use self::sample::{
    MESSAGES, SESSIONS, START_MS, Sample, checkpointed, cursor_row, fill, in_wal, insert_message, insert_session, mac, open,
    sample, texts,
};
use super::*;
use crate::store::checksum::of_held;
use crate::store::schema::{PAGE_BYTES, PAGE_SIZES, V1};
use proptest::prelude::*;

/// Salvages the two files into a fresh store.
fn salvaged(db: Option<&[u8]>, wal: Option<&[u8]>) -> (SalvageReport, Connection) {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    for (path, bytes) in [(&damaged.db, db), (&damaged.wal, wal)] {
        if let Some(bytes) = bytes {
            std::fs::write(path, bytes).unwrap();
        }
    }
    let mut target = Connection::open_in_memory().unwrap();
    target.execute_batch(V1).unwrap();
    let report = salvage(&damaged, &mut target).unwrap();
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), usize::from(db.is_some()) + usize::from(wal.is_some()), "{left:?}");
    (report, target)
}

fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// What holds after any damage: no row altered, every row whose pages are `intact` is there, no cursor ahead.
fn check(sample: &Sample, report: &SalvageReport, target: &Connection, intact: impl Fn(u32) -> bool) -> u64 {
    let found = texts(target);
    for (id, text) in &found {
        assert_eq!(Some(text), sample.rows.get(id).map(|(text, _)| text), "row {id} was altered");
    }
    let expected: Vec<_> = sample.rows.iter().filter(|(_, (_, pages))| pages.iter().all(|page| intact(*page))).collect();
    if report.messages_without_session == 0 {
        for (id, _) in &expected {
            assert!(found.contains_key(*id), "row {id} stands on undamaged pages and was not found");
        }
    } else {
        assert!(report.messages + report.messages_without_session >= expected.len() as u64);
    }
    let mut cursors = target.prepare("SELECT session, row FROM cursors").unwrap();
    for cursor in cursors.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap() {
        let (session, row) = cursor.unwrap();
        assert!(row <= cursor_row(session), "the cursor of session {session} would lose messages");
    }
    assert_eq!(count(target, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'salvage%'"), 0);
    assert_eq!(count(target, "SELECT value FROM counters WHERE name = 'next_row'"), report.next_row);
    assert!(report.next_row > count(target, "SELECT coalesce(max(id), 0) FROM messages"));
    expected.len() as u64
}

#[test]
fn an_undamaged_store_comes_over_whole_by_the_page_reader_alone() {
    for (sample, wal) in [(checkpointed(), None), (in_wal(), Some(in_wal().wal.as_slice()))] {
        assert_eq!(sample.rows.len() as i64, MESSAGES);
        let (report, target) = salvaged(Some(&sample.db), wal);
        check(sample, &report, &target, |_| true);
        assert_eq!(report.messages as i64, MESSAGES);
        assert_eq!(report.messages_by_sqlite_alone, 0);
        assert!(report.sqlite_could_read);
        assert_eq!((report.sessions as i64, report.sessions_invented, report.sessions_lost), (SESSIONS, 0, 0));
        assert_eq!((report.cursors as i64, report.cursors_lost, report.rejected), (SESSIONS, 0, 1));
        assert_eq!((report.held, report.messages_damaged, report.unreadable_pages), (1, 0, 0));
        assert_eq!(report.wal_frames_damaged, 0);
        assert_eq!(
            count(&target, "SELECT count(*) FROM cursors c JOIN sessions s ON s.id = c.session WHERE s.agent_id = 'agent'"),
            SESSIONS
        );
    }
}

#[test]
fn a_replaced_header_or_a_lost_first_page_costs_no_row() {
    let sample = checkpointed();
    for length in [16, 100, PAGE_BYTES] {
        let mut db = sample.db.clone();
        db[..length].fill(b'x');
        let (report, target) = salvaged(Some(&db), None);
        check(sample, &report, &target, |page| page != 1);
        assert_eq!((report.messages as i64, report.cursors as i64), (MESSAGES, SESSIONS));
        assert!(!report.sqlite_could_read);
    }
}

#[test]
fn a_store_of_any_daemon_of_ours_comes_over_whatever_its_page_size_and_its_headers_say() {
    for page_bytes in PAGE_SIZES {
        let (at_rest, in_log) = (sample(page_bytes, true), sample(page_bytes, false));
        assert_eq!(u16::from_be_bytes([at_rest.db[16], at_rest.db[17]]) as usize, page_bytes);
        for other in PAGE_SIZES {
            let mut db = at_rest.db.clone();
            db[16..18].copy_from_slice(&(other as u16).to_be_bytes());
            let (report, target) = salvaged(Some(&db), None);
            check(&at_rest, &report, &target, |_| true);
            assert_eq!((report.messages as i64, report.cursors as i64), (MESSAGES, SESSIONS));
        }
        // Without the header of the log only the sums of its frames tell.
        let mut wal = in_log.wal.clone();
        wal[8..12].fill(0xff);
        for wal in [&in_log.wal, &wal] {
            let (report, target) = salvaged(Some(&in_log.db), Some(wal));
            check(&in_log, &report, &target, |_| true);
            assert_eq!(report.messages as i64, MESSAGES);
        }
    }
}

#[test]
fn files_that_are_no_database_give_an_empty_store() {
    for bytes in [&b""[..], b"this is a text\n", &[0; 9000], &[0x0d; 9000]] {
        for (db, wal) in [(Some(bytes), None), (None, Some(bytes)), (Some(bytes), Some(bytes)), (None, None)] {
            let (report, _) = salvaged(db, wal);
            assert_eq!((report.messages, report.sessions, report.next_row), (0, 0, settle::ROW_GAP));
        }
    }
}

#[test]
fn a_session_whose_row_is_lost_is_made_again_from_the_index() {
    let sample = checkpointed();
    let mut db = sample.db.clone();
    let mut hit = 0;
    for page in db.chunks_mut(PAGE_BYTES).skip(1) {
        let sessions = cells(page).any(|cell| {
            Header::read(cell.local, cell.payload_bytes)
                .is_some_and(|header| Kind::of(cell.tree, &header) == Some(Kind::Sessions))
        });
        if sessions {
            page.fill(0);
            hit += 1;
        }
    }
    assert!(hit > 0);
    let (report, target) = salvaged(Some(&db), None);
    assert_eq!((report.messages as i64, report.sessions_invented as i64, report.sessions_lost), (MESSAGES, SESSIONS, 0));
    assert_eq!(count(&target, "SELECT count(*) FROM sessions WHERE mac LIKE '68:25:dd:ba:39:%' AND started_ms > 0"), SESSIONS);
}

#[test]
fn messages_without_any_identity_are_counted_and_not_given_to_another() {
    let mut db = checkpointed().db.clone();
    for page in db.chunks_mut(PAGE_BYTES).skip(1) {
        let identity = cells(page).any(|cell| {
            let kind = Header::read(cell.local, cell.payload_bytes).and_then(|header| Kind::of(cell.tree, &header));
            matches!(kind, Some(Kind::Sessions | Kind::Identities))
        });
        if identity {
            page.fill(0);
        }
    }
    let (report, target) = salvaged(Some(&db), None);
    assert_eq!((report.messages, report.sessions, report.cursors), (0, 0, 0));
    assert_eq!((report.messages_without_session as i64, report.sessions_lost as i64), (MESSAGES, SESSIONS));
    assert_eq!(count(&target, "SELECT count(*) FROM messages"), 0);
}

#[test]
fn a_mac_changed_in_one_copy_never_sends_words_to_another_device() {
    let mut db = checkpointed().db.clone();
    let wanted = b"68:25:dd:ba:39:05";
    let at = db.windows(wanted.len()).position(|window| window == wanted).unwrap();
    db[at] = b'7';
    let (report, target) = salvaged(Some(&db), None);
    assert_eq!(count(&target, "SELECT count(*) FROM sessions WHERE mac NOT LIKE '68:25:dd:ba:39:%'"), 0);
    assert_eq!((report.messages as i64, report.sessions as i64), (MESSAGES, SESSIONS));
}

#[test]
fn what_was_deleted_does_not_come_back_from_an_undamaged_wal() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    let connection = open(&damaged.db);
    fill(&connection);
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    connection.execute("DELETE FROM messages WHERE session = 7", []).unwrap();
    connection.execute("DELETE FROM sessions WHERE id = 7", []).unwrap();
    connection.execute_batch("DELETE FROM held").unwrap();
    let mut target = Connection::open_in_memory().unwrap();
    target.execute_batch(V1).unwrap();
    let report = salvage(&damaged, &mut target).unwrap();
    assert_eq!(count(&target, "SELECT count(*) FROM messages WHERE session = 7"), 0);
    assert_eq!((report.messages_without_session, report.held, report.sessions as i64), (0, 0, SESSIONS - 1));
    assert_eq!(report.messages as i64, MESSAGES - MESSAGES / SESSIONS);
}

/// What was deleted since the last checkpoint shows up again when the log is damaged.
#[test]
fn a_session_that_left_does_not_take_the_place_of_the_one_that_lives_under_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    let connection = open(&damaged.db);
    insert_session(&connection, 9);
    connection.execute("UPDATE sessions SET id = 3, ended_ms = ?1", [START_MS]).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    connection.execute_batch("DELETE FROM sessions").unwrap();
    insert_session(&connection, 9);
    let after_opening = std::fs::metadata(&damaged.wal).unwrap().len();
    insert_message(&connection, 8);
    let sound = std::fs::read(&damaged.wal).unwrap();
    for harmed_at in [usize::try_from(after_opening).unwrap(), sound.len()] {
        // The last frame before it: the living session has nothing yet, then it has a message.
        let mut wal = sound[..harmed_at].to_vec();
        wal.extend_from_slice(&sound[harmed_at - PAGE_BYTES - 24..harmed_at]);
        let (report, target) = salvaged(Some(&std::fs::read(&damaged.db).unwrap()), Some(&wal));
        assert!(report.wal_frames_damaged > 0, "{report:?}");
        let found = "SELECT id FROM sessions WHERE ended_ms IS NULL";
        assert_eq!((count(&target, "SELECT count(*) FROM sessions"), count(&target, found)), (1, 9));
        assert_eq!((report.messages, report.messages_without_session), (u64::from(harmed_at == sound.len()), 0));
    }
}

/// Else what a person had not decided on yet is sent again, and leaves the list; and a session again from its beginning because
/// a person had dropped a message.
#[test]
fn a_cursor_whose_row_is_gone_is_believed_where_what_it_passes_proves_it_or_is_nothing() {
    let (first, second, third) = (SESSIONS, 2 * SESSIONS, 3 * SESSIONS);
    let time = |id: i64| START_MS + id * 1_700;
    // Rejected rows, deleted rows, the cursor's row, session and time; whether it is believed.
    let cases = [
        (Some(first), Some(second), 1, second, time(second), true),
        (None, Some(second), 1, second, time(second), false),
        (None, Some(second), 1, second, time(first), true),
        (Some(second), Some(first), 1, second, time(first), true),
        (None, Some(second), 1, 1 << 40, time(first), false),
        // Another session's row, which stands.
        (None, None, 2, second, time(second), false),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (number, (rejected, deleted, session, row, last_report, believed)) in cases.into_iter().enumerate() {
        let path = directory.path().join(format!("{number}.db"));
        let connection = open(&path);
        insert_session(&connection, 1);
        insert_session(&connection, 2);
        // All of the first session.
        for id in [first, second, third] {
            insert_message(&connection, id);
        }
        insert_message(&connection, third + 1);
        if let Some(rejected) = rejected {
            connection.execute("INSERT INTO rejected VALUES (?1, 1, 'invalid', NULL, ?2)", [rejected, START_MS]).unwrap();
        }
        connection.execute("INSERT INTO cursors VALUES (?1, ?2, 0, ?3)", [session, row, last_report]).unwrap();
        if let Some(deleted) = deleted {
            connection.execute("DELETE FROM messages WHERE id = ?1", [deleted]).unwrap();
        }
        connection.close().unwrap();
        let (report, target) = salvaged(Some(&std::fs::read(&path).unwrap()), None);
        assert_eq!((report.cursors, report.cursors_lost), (u64::from(believed), u64::from(!believed)), "case {number}");
        let kept = count(&target, "SELECT count(*) FROM rejected");
        assert_eq!(kept, i64::from(believed && rejected.is_some()), "case {number}");
        let ahead = "SELECT count(*) FROM cursors c JOIN messages m ON m.id > c.row AND m.session = c.session AND m.time_ms < c.last_report_ms";
        assert_eq!(count(&target, ahead), 0, "case {number}: what follows would be given the time of what went before");
    }
}

/// Many a wrong bit in a text that is no English makes it none at all.
#[test]
fn what_is_no_text_any_more_is_counted_like_what_has_another_checksum() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    let connection = open(&path);
    insert_session(&connection, 1);
    insert_message(&connection, SESSIONS);
    insert_message(&connection, 2 * SESSIONS);
    connection.execute("UPDATE messages SET content = CAST(x'62ff' AS TEXT) WHERE id = ?1", [SESSIONS]).unwrap();
    let held = "INSERT INTO held (session, uuid, text, time_ms, recorded_ms, crc) VALUES (1, randomblob(16), CAST(x'68ffee' AS TEXT), 1, 1, 1)";
    connection.execute(held, []).unwrap();
    connection.close().unwrap();
    let (report, _) = salvaged(Some(&std::fs::read(&path).unwrap()), None);
    assert_eq!((report.messages, report.messages_damaged, report.held, report.held_damaged), (1, 1, 0, 1));
}

#[test]
fn a_session_that_was_taken_up_again_behind_the_damage_has_not_ended() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    let connection = open(&damaged.db);
    insert_session(&connection, 9);
    connection.execute("UPDATE sessions SET ended_ms = ?1", [START_MS]).unwrap();
    let sound = usize::try_from(std::fs::metadata(&damaged.wal).unwrap().len()).unwrap();
    connection.execute("INSERT INTO counters VALUES ('other', 1)", []).unwrap();
    connection.execute("UPDATE sessions SET ended_ms = NULL", []).unwrap();
    insert_message(&connection, 8);
    let mut wal = std::fs::read(&damaged.wal).unwrap();
    wal[sound + 24 + PAGE_BYTES / 2] ^= 1;
    let (report, target) = salvaged(Some(&std::fs::read(&damaged.db).unwrap()), Some(&wal));
    assert_eq!((report.sessions, report.messages, report.wal_frames_damaged), (1, 1, 1), "{report:?}");
    assert_eq!(count(&target, "SELECT count(*) FROM sessions WHERE ended_ms IS NULL"), 1);
}

#[test]
fn a_lost_wal_leaves_what_was_checkpointed() {
    let sample = in_wal();
    let (report, _) = salvaged(Some(&sample.db), None);
    assert_eq!(report.messages, 0);
    let (report, _) = salvaged(None, Some(&sample.wal));
    assert_eq!(report.messages as i64, MESSAGES, "the WAL alone holds them all");
}

#[test]
fn commits_behind_a_damaged_frame_are_not_lost() {
    let sample = in_wal();
    let mut wal = sample.wal.clone();
    let frames = (wal.len() - 32) / (PAGE_BYTES + 24);
    wal[32 + (frames / 10) * (PAGE_BYTES + 24) + 2000] ^= 1;
    let (report, target) = salvaged(Some(&sample.db), Some(&wal));
    check(sample, &report, &target, |_| false);
    assert!(report.messages as i64 >= MESSAGES - 20, "{report:?}");
    assert_eq!(report.wal_frames_damaged, 1);
    let sqlite_alone = {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.db");
        std::fs::write(&path, &sample.db).unwrap();
        std::fs::write(directory.path().join("history.db-wal"), &wal).unwrap();
        count(&Connection::open(&path).unwrap(), "SELECT count(*) FROM messages")
    };
    println!("one bit of the WAL: SQLite keeps {sqlite_alone}, salvage {} of {MESSAGES}", report.messages);
    assert!(sqlite_alone < MESSAGES / 2);
}

#[test]
fn an_older_generation_of_the_wal_brings_nothing_back() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    let connection = open(&damaged.db);
    fill(&connection);
    connection.execute("DELETE FROM messages WHERE session = 7", []).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
    connection.execute("INSERT INTO counters VALUES ('other', 1)", []).unwrap();
    let layout = Pages::open(&damaged.db, &damaged.wal).layout;
    assert!(layout.frames < 3 && !layout.broken && std::fs::metadata(&damaged.wal).unwrap().len() > 1_000_000);
    let mut target = Connection::open_in_memory().unwrap();
    target.execute_batch(V1).unwrap();
    let report = salvage(&damaged, &mut target).unwrap();
    assert_eq!(report.messages as i64, MESSAGES - MESSAGES / SESSIONS);
    assert_eq!((report.wal_frames, report.wal_frames_damaged), (layout.frames, 0));
}

#[test]
fn a_held_transcript_that_became_a_message_is_not_held_again() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = DamagedFiles::beside(&directory.path().join("history.db"));
    let connection = open(&damaged.db);
    fill(&connection);
    let emitted: Vec<u8> = connection.query_row("SELECT uuid FROM messages WHERE session = 1", [], |row| row.get(0)).unwrap();
    let crc = of_held(1, &emitted, "said", START_MS, START_MS, None);
    let values = rusqlite::params![emitted, START_MS, crc];
    connection.execute("INSERT INTO held VALUES (9, 1, ?1, 'said', ?2, ?2, NULL, ?3)", values).unwrap();
    let mut target = Connection::open_in_memory().unwrap();
    target.execute_batch(V1).unwrap();
    assert_eq!(salvage(&damaged, &mut target).unwrap().held, 1, "only the one that never became a message");
}

#[test]
fn sqlite_alone_reads_on_behind_a_damaged_page() {
    let mut db = checkpointed().db.clone();
    let middle = checkpointed().rows[&1500].1.iter().next().copied().unwrap() as usize;
    db[(middle - 1) * PAGE_BYTES..middle * PAGE_BYTES].fill(0);
    for (db, wal, least) in [(&db, None, MESSAGES - 300), (&in_wal().db, Some(&in_wal().wal), MESSAGES)] {
        let directory = tempfile::tempdir().unwrap();
        let paths = [directory.path().join("history.db"), directory.path().join("history.db-wal")];
        std::fs::write(&paths[0], db).unwrap();
        if let Some(wal) = wal {
            std::fs::write(&paths[1], wal).unwrap();
        }
        let target = Connection::open_in_memory().unwrap();
        target.execute_batch(V1).unwrap();
        let mut staging = Staging::new(&target).unwrap();
        assert!(sqlite::read(&paths[0], &paths[1], u64::MAX, &mut staging).unwrap());
        println!("SQLite alone reads {} of {MESSAGES}", staging.messages);
        assert!(staging.messages as i64 >= least);
    }
}

/// One blow: what, where (as a share of the file), how long.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Flip(f64, u8),
    Zero(f64, usize),
    Noise(f64, usize),
    Truncate(f64),
}

fn blow() -> impl Strategy<Value = Blow> {
    prop_oneof![
        4 => (0.0..1.0, 1_u8..=255).prop_map(|(at, mask)| Blow::Flip(at, mask)),
        2 => (0.0..1.0, 1_usize..20_000).prop_map(|(at, length)| Blow::Zero(at, length)),
        2 => (0.0..1.0, 1_usize..20_000).prop_map(|(at, length)| Blow::Noise(at, length)),
        1 => (0.5..1.0).prop_map(Blow::Truncate),
    ]
}

/// Strikes, and returns the byte ranges that were hit.
fn strike(bytes: &mut Vec<u8>, blows: &[Blow]) -> Vec<std::ops::Range<usize>> {
    let mut hit = Vec::new();
    for blow in blows {
        let place = |share: f64| ((bytes.len() as f64 * share) as usize).min(bytes.len().saturating_sub(1));
        let (start, end) = match *blow {
            Blow::Flip(share, _) => (place(share), place(share) + 1),
            Blow::Zero(share, length) | Blow::Noise(share, length) => (place(share), (place(share) + length).min(bytes.len())),
            Blow::Truncate(share) => (place(share), usize::MAX),
        };
        match *blow {
            Blow::Flip(_, mask) => bytes[start] ^= mask,
            Blow::Zero(..) => bytes[start..end].fill(0),
            Blow::Noise(..) => {
                bytes[start..end].iter_mut().enumerate().for_each(|(index, byte)| *byte = (index * 131 + start) as u8 ^ 0x5a);
            }
            Blow::Truncate(_) => bytes.truncate(start),
        }
        hit.push(start..end);
    }
    hit
}

fn touches(hit: &[std::ops::Range<usize>], start: usize, length: usize) -> bool {
    hit.iter().any(|range| range.start < start + length && start < range.end)
}

/// Flips single bits on the pages that hold rows of these kinds, in their used part.
fn flip_bits_of(kinds: &[Kind], flips: &[(f64, u8)]) -> Vec<u8> {
    let mut db = checkpointed().db.clone();
    let mut used = Vec::new();
    for (number, page) in db.chunks(PAGE_BYTES).enumerate() {
        let holds = cells(page).any(|cell| {
            let kind = Header::read(cell.local, cell.payload_bytes).and_then(|header| Kind::of(cell.tree, &header));
            kind.is_some_and(|kind| kinds.contains(&kind))
        });
        if holds {
            used.extend((0..PAGE_BYTES).filter(|at| page[*at] != 0).map(|at| number * PAGE_BYTES + at));
        }
    }
    assert!(!used.is_empty());
    for (share, bit) in flips {
        let at = used[((used.len() as f64 * share) as usize).min(used.len() - 1)];
        db[at] ^= 1 << bit;
    }
    db
}

static SURVIVORS: std::sync::Mutex<Vec<(u64, u64)>> = std::sync::Mutex::new(Vec::new());

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_on_undamaged_pages_survive_any_damage_of_the_database(blows in proptest::collection::vec(blow(), 1..6)) {
        let sample = checkpointed();
        let mut db = sample.db.clone();
        let hit = strike(&mut db, &blows);
        let (report, target) = salvaged(Some(&db), None);
        let expected = check(sample, &report, &target, |page| !touches(&hit, (page as usize - 1) * PAGE_BYTES, PAGE_BYTES));
        let mut survivors = SURVIVORS.lock().unwrap();
        survivors.push((report.messages, expected));
        if survivors.len().is_multiple_of(20) {
            let (found, expected) = survivors.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            println!("{} damaged stores: {found} rows salvaged, {expected} stood on untouched pages, of {}", survivors.len(), survivors.len() as i64 * MESSAGES);
        }
    }

    #[test]
    fn rows_in_undamaged_frames_survive_any_damage_of_the_wal(blows in proptest::collection::vec(blow(), 1..6)) {
        let sample = in_wal();
        let pristine = {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("wal");
            std::fs::write(&path, &sample.wal).unwrap();
            Pages::open(Path::new("/nonexistent"), &path).layout
        };
        let mut wal = sample.wal.clone();
        let hit = strike(&mut wal, &blows);
        let (report, target) = salvaged(Some(&sample.db), Some(&wal));
        check(sample, &report, &target, |page| {
            let frame = pristine.committed[&page];
            !touches(&hit, wal::frame_at(frame, PAGE_BYTES) as usize, PAGE_BYTES + 24)
        });
    }

    #[test]
    fn a_cursor_with_a_flipped_bit_never_loses_a_message(flips in proptest::collection::vec((0.0..1.0, 0_u8..8), 1..4)) {
        let (report, target) = salvaged(Some(&flip_bits_of(&[Kind::Cursors], &flips)), None);
        check(checkpointed(), &report, &target, |_| true);
        prop_assert_eq!(report.messages as i64, MESSAGES);
        prop_assert_eq!((report.cursors + report.sessions_without_cursor) as i64, SESSIONS);
    }

    #[test]
    fn an_identity_with_a_flipped_bit_never_misleads_a_message(flips in proptest::collection::vec((0.0..1.0, 0_u8..8), 1..4)) {
        let (report, target) = salvaged(Some(&flip_bits_of(&[Kind::Sessions, Kind::Identities], &flips)), None);
        let mut sessions = target.prepare("SELECT id, mac FROM sessions").unwrap();
        for session in sessions.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).unwrap() {
            let (id, found) = session.unwrap();
            if count(&target, &format!("SELECT count(*) FROM messages WHERE session = {id}")) > 0 {
                prop_assert_eq!(found, mac(id));
            }
        }
        prop_assert_eq!((report.messages + report.messages_without_session) as i64, MESSAGES);
        prop_assert!(report.sessions_lost <= flips.len() as u64, "{:?}", report);
    }

    #[test]
    fn damage_of_both_files_alters_nothing(
        db_blows in proptest::collection::vec(blow(), 0..4),
        wal_blows in proptest::collection::vec(blow(), 0..4),
    ) {
        let sample = in_wal();
        // a database that holds older versions of the same pages
        let (mut db, mut wal) = (checkpointed().db.clone(), sample.wal.clone());
        strike(&mut db, &db_blows);
        strike(&mut wal, &wal_blows);
        let (report, target) = salvaged(Some(&db), Some(&wal));
        check(sample, &report, &target, |_| false);
    }
}
