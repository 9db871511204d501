//! A damaged database is set aside and what can be read of it is carried into a fresh one.
//!
//! The fresh database is filled under another name and takes the place of the damaged one by a rename, so a kill in between
//! starts the salvage again at the next start. While the daemon runs, this happens on a thread of its own: intake goes
//! to the shelf meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::apply::Applier;
use super::error::StoreError;
use super::files::Files;
use super::group::in_transaction;
use super::inbox::Advance;
use super::left_behind::{LeftBehind, left_behind};
use super::log_meter::LogMeter;
use super::open::{self, Opening};
use super::rows;
use super::salvage::{self, DamagedFiles, SalvageReport, salvage};
use super::session_handle::SessionHandle;
use super::shared::Shared;
use super::types::{RejectReason, RowId};
use super::writer::{NextIds, wall_clock};
use crate::config::Durability;
use crate::observe::Metrics;

/// Ids left out after a salvage: rows that could not be read may have had them.
const ID_GAP: i64 = 1 << 20;

/// How long a salvage waits for a disk that does not read, and how often it looks.
const READABLE_PATIENCE: Duration = Duration::from_secs(60);
const READABLE_PAUSE: Duration = Duration::from_millis(500);

/// Where a fresh database gets its content from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// The damaged files.
    Aside,
    /// The damaged files, and ids that were given out while the daemon ran.
    Known(NextIds),
    /// Nowhere: what salvage had made was damaged, too.
    Nothing,
}

/// How far the repair of a damaged database is.
#[derive(Default)]
pub(super) enum Repair {
    /// Nothing to repair.
    #[default]
    None,
    /// Damage was found.
    Needed,
    /// The damaged files are set aside.
    Aside(PathBuf),
    /// A thread salvages.
    UnderWay(PathBuf, JoinHandle<Result<SalvageReport, StoreError>>),
    /// The rebuilt database is in place, the living sessions have to be written into it.
    InPlace,
}

impl Repair {
    /// The database is not at its place, or is about to leave it.
    pub(super) const fn holds_the_files(&self) -> bool {
        matches!(self, Self::Needed | Self::Aside(_) | Self::UnderWay(..))
    }

    pub(super) const fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay(..))
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::UnderWay(_, thread) if thread.is_finished())
    }
}

/// A name for the place of a damaged database.
pub(super) fn place_name() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Goes on with a repair; answers whether the database can be opened.
pub(super) fn proceed(shared: &Arc<Shared>, repair: &mut Repair, next: &NextIds) -> Result<bool, StoreError> {
    loop {
        *repair = match std::mem::take(repair) {
            Repair::Needed => {
                shared.readers.take_away();
                match shared.files.set_aside(&place_name()) {
                    Ok(aside) => Repair::Aside(aside),
                    Err(error) => {
                        *repair = Repair::Needed;
                        return Err(error);
                    }
                }
            }
            Repair::Aside(aside) => match start(shared, &aside, *next) {
                Ok(thread) => {
                    *repair = Repair::UnderWay(aside, thread);
                    return Ok(false);
                }
                Err(error) => {
                    *repair = Repair::Aside(aside);
                    return Err(error);
                }
            },
            Repair::UnderWay(aside, thread) if thread.is_finished() => match thread.join() {
                Ok(Ok(report)) => {
                    announce(&shared.metrics, &shared.files, &aside, &report);
                    Repair::InPlace
                }
                Ok(Err(error)) => {
                    *repair = Repair::Aside(aside);
                    return Err(error);
                }
                Err(_) => {
                    *repair = Repair::Aside(aside);
                    return Err(StoreError::Unavailable);
                }
            },
            under_way @ Repair::UnderWay(..) => {
                *repair = under_way;
                return Ok(false);
            }
            ready @ (Repair::None | Repair::InPlace) => {
                *repair = ready;
                return Ok(true);
            }
        };
    }
}

fn start(shared: &Arc<Shared>, aside: &Path, next: NextIds) -> Result<JoinHandle<Result<SalvageReport, StoreError>>, StoreError> {
    let (shared, aside) = (Arc::clone(shared), aside.to_path_buf());
    let place = aside.clone();
    std::thread::Builder::new()
        .name("store-salvage".into())
        .spawn(move || {
            let result = rebuild(&shared.files, shared.durability, &aside, Source::Known(next));
            shared.inbox.poke();
            result
        })
        .map_err(StoreError::file("start a thread to salvage", &place))
}

/// Makes a fresh database, salvages `source` into it, and puts it in the place of the one that stands in `aside`. Blocks.
pub(super) fn rebuild(files: &Files, durability: Durability, aside: &Path, source: Source) -> Result<SalvageReport, StoreError> {
    let damaged = DamagedFiles { db: regular(aside.to_path_buf()), wal: regular(aside.with_file_name("history.db-wal")) };
    if source != Source::Nothing {
        wait_until_readable(&damaged);
    }
    let rebuilt = files.rebuilt();
    rebuilt.remove()?;
    let Opening::Ready(mut connection) = open::open(&rebuilt, durability, &LogMeter::default())? else {
        return Err(StoreError::Unavailable);
    };
    let failed = |error| StoreError::database("salvage into", &rebuilt.database)(error);
    let report =
        if source == Source::Nothing { SalvageReport::default() } else { salvage(&damaged, &mut connection).map_err(failed)? };
    let found = NextIds::read(&connection).map_err(failed)?.unwrap_or(NextIds { row: 1, session: 1 });
    let mut next = NextIds { row: found.row.max(report.next_row), ..found };
    if let Source::Known(known) = source {
        next = next.at_least(known);
    }
    let next = NextIds { row: next.row + ID_GAP, session: next.session + ID_GAP };
    in_transaction(&connection, || next.save(&connection)).map_err(failed)?;
    super::checkpoint::now(&connection, "TRUNCATE").map_err(failed)?;
    connection.close().map_err(|(_, error)| failed(error))?;
    LeftBehind::of(&report).note_beside(aside)?;
    files.put_in_place(&rebuilt, aside)?;
    Ok(report)
}

/// A read that fails looks like damage to SQLite, and what cannot be read cannot be salvaged: a disk that only hiccups gets
/// a while to give everything back. After that, what can be read has to do.
fn wait_until_readable(damaged: &DamagedFiles) {
    let until = Instant::now() + READABLE_PATIENCE;
    let mut told = false;
    while !salvage::is_readable(damaged) {
        let path = damaged.db.display();
        if Instant::now() >= until {
            tracing::error!(%path, "parts of the damaged store still cannot be read: the rest is salvaged");
            return;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%path, at_most = ?READABLE_PATIENCE, "the disk does not read: the salvage waits for it");
        }
        std::thread::sleep(READABLE_PAUSE);
    }
}

/// A symlink in place of a file is nobody's history, and is not followed: its path becomes one where nothing is.
fn regular(path: PathBuf) -> PathBuf {
    let foreign = path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file());
    if foreign { path.with_extension("not-followed") } else { path }
}

/// Counts a salvage and says so, and what of the damaged store is nowhere else.
pub(super) fn announce(metrics: &Metrics, files: &Files, aside: &Path, report: &SalvageReport) {
    metrics.messages_left_behind.set(left_behind(&files.directory));
    metrics.stores_salvaged.increment();
    metrics.messages_salvaged.add(report.messages);
    metrics.cursors_lost.add(report.sessions_without_cursor);
    tracing::error!(
        aside = %aside.display(),
        messages = report.messages,
        sessions_sent_again = report.sessions_without_cursor,
        messages_damaged = report.messages_damaged,
        messages_without_session = report.messages_without_session,
        held_damaged = report.held_damaged,
        held_without_session = report.held_without_session,
        sessions_lost = report.sessions_lost,
        "a damaged store was set aside; its readable messages were salvaged"
    );
    if !LeftBehind::of(report).is_nothing() {
        tracing::error!(aside = %aside.display(), "not all that was found could be carried over: the rest stands there alone, keep it");
    }
}

/// After a repair: the sessions in use are written into the new database with what is known of them in memory, and counted
/// anew, because rows may have been lost.
pub(super) fn restore_living(
    shared: &Shared,
    connection: &Connection,
    next: &mut NextIds,
    repair: &mut Repair,
) -> rusqlite::Result<()> {
    if !matches!(repair, Repair::InPlace) {
        return Ok(());
    }
    if let Some(found) = NextIds::read(connection)? {
        *next = next.at_least(found);
    }
    // The uploader goes on meanwhile and counts down what it delivers: the counts are corrected, never set, and what it
    // delivers after this look is on neither side of the comparison.
    let metrics = &shared.metrics;
    let held_before = metrics.held.get();
    let (pending_before, living) = look_at_living(shared);
    let now = wall_clock();
    in_transaction(connection, || {
        let mut applier = Applier::new(connection)?;
        for (handle, ..) in &living {
            // An identity gets another id only after its earlier session has left: whoever else bears it here is one that
            // left and that damage shows again. It would take the place of the living one.
            if let Some(other) = rows::session_by_identity(connection, &handle.identity)?.filter(|row| row.key != handle.key) {
                super::forget::remove_session(connection, other.key)?;
            }
            applier.create_session(handle.key, &handle.identity, now)?;
            handle.start_anew();
            if handle.cursor().row > RowId(0) {
                let advance = Advance::of(Arc::clone(handle));
                applier.advance(&advance, now)?;
            }
            // What is still known need not have been readable.
            for message in handle.recent().messages() {
                applier.known(handle.key, message)?;
            }
        }
        applier.finish()
    })?;
    // Sessions that nobody uses: all that is pending, less what the living have behind the cursors just written.
    let mut pending = super::reads::pending_count(connection)?;
    for (handle, before, after) in &living {
        pending = pending.saturating_sub(rows::count_after(connection, handle.key, rows::cursor(connection, handle.key)?.row)?);
        handle.set_stored(rows::newest(connection, handle.key)?);
        let found = rows::count_after(connection, handle.key, *after)? + shared.shelf().undelivered(handle.key, *after);
        handle.add_pending(found.saturating_sub(*before));
        handle.remove_pending(before.saturating_sub(found));
        pending += found;
    }
    let held = super::reads::held_count(connection)? + shared.shelf().held_balance();
    metrics.pending.add(pending.saturating_sub(pending_before));
    metrics.pending.subtract(pending_before.saturating_sub(pending));
    metrics.held.set(held);
    // What the damage took was counted as pending or held; what it made pending again (its cursor is lost) was not.
    let (before, after) = (pending_before + held_before, pending + held);
    metrics.rejected.add(RejectReason::Damaged, before.saturating_sub(after));
    metrics.pending_at_start.add(after.saturating_sub(before));
    *repair = Repair::None;
    Ok(())
}

/// What is pending in all, and the sessions in use with what each had pending behind which row: as of one moment.
fn look_at_living(shared: &Shared) -> (u64, Vec<(Arc<SessionHandle>, u64, RowId)>) {
    let pending = &shared.metrics.pending;
    loop {
        let before = pending.get();
        let look = |handle: Arc<SessionHandle>| {
            let (pending, cursor) = (handle.pending(), handle.cursor().row);
            (handle, pending, cursor)
        };
        let living = shared.directory.living().into_iter().map(look).collect();
        // The uploader delivered something meanwhile: once more.
        if pending.get() == before {
            return (before, living);
        }
    }
}
