//! The writer thread: the only hand that writes, and the one truth about sessions, streams and row ids.
//!
//! It takes what is there, writes it in one transaction, tells everybody, and takes again: never a timer. What cannot be
//! written goes to the shelf (`failure`); between groups it keeps house (`housekeeping`).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use super::changes::Change;
use super::failure::Episode;
use super::files::Standing;
use super::group::Item;
use super::health::CloseReport;
use super::housekeeping::Housekeeping;
use super::inbox::{Advance, Job, Taken};
use super::rows;
use super::shared::Shared;
use super::types::{SessionKey, WaitingDevice};
use crate::protocol::{MacAddress, UnixMillis};

/// The writer.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) mode: Mode,
    pub(super) next: NextIds,
    pub(super) coalesced: Coalesced,
    pub(super) house: Housekeeping,
    pub(super) changes: VecDeque<Change>,
    /// The files that are open.
    pub(super) standing: Standing,
    /// What readers met last.
    pub(super) met_before: Option<MetBefore>,
}

/// Damage that a reader met.
pub(super) struct MetBefore {
    pub(super) cause: String,
    /// How long the same is not salvaged again.
    pub(super) rest: Duration,
    pub(super) rest_until: Instant,
}

/// Whether the database can be written.
pub(super) enum Mode {
    Running(Connection),
    Failing(Box<Episode>),
}

/// Cursors and devices that are to be written with the next transaction that works.
#[derive(Default)]
pub(super) struct Coalesced {
    pub(super) advances: HashMap<SessionKey, Advance>,
    pub(super) devices: HashMap<MacAddress, Option<WaitingDevice>>,
}

/// The ids that were never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NextIds {
    pub(super) row: i64,
    pub(super) session: i64,
}

/// Ids beyond this are damage, not age.
const IMPLAUSIBLE: i64 = 1 << 60;

impl NextIds {
    /// Reads them; `None` when an id in the database is implausible.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let (row, session): (i64, i64) = connection.query_row(
            "SELECT max(coalesce((SELECT max(id) FROM messages), 0), coalesce((SELECT max(id) FROM held), 0),
                        coalesce((SELECT max(row) FROM cursors), 0), coalesce((SELECT max(row) FROM rejected), 0)),
                    max(coalesce((SELECT max(id) FROM sessions), 0), coalesce((SELECT max(session) FROM cursors), 0))",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let row = row.saturating_add(1).max(rows::counter(connection, "next_row")?);
        let session = session.saturating_add(1).max(rows::counter(connection, "next_session")?);
        let plausible = |id: i64| (1..IMPLAUSIBLE).contains(&id);
        Ok((plausible(row) && plausible(session)).then_some(Self { row, session }))
    }

    /// The key of a new session.
    pub(super) const fn session_key(&mut self) -> SessionKey {
        let key = SessionKey(self.session);
        self.session += 1;
        key
    }

    /// Never below what was known before.
    pub(super) fn at_least(self, other: Self) -> Self {
        Self { row: self.row.max(other.row), session: self.session.max(other.session) }
    }

    /// Makes them outlive the deletion of the youngest rows; to be called in the transaction that deletes.
    pub(super) fn save(self, connection: &Connection) -> rusqlite::Result<()> {
        let mut upsert = rows::cached(
            connection,
            "INSERT INTO counters (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
        )?;
        upsert.execute(("next_row", self.row))?;
        upsert.execute(("next_session", self.session))?;
        Ok(())
    }
}

/// The wall clock.
pub(super) fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, connection: Connection, next: NextIds) -> Self {
        let house = Housekeeping::new(Instant::now(), wall_clock(), next);
        let standing = shared.files.standing();
        let (mode, coalesced, changes) = (Mode::Running(connection), Coalesced::default(), VecDeque::new());
        Self { shared, mode, next, coalesced, house, changes, standing, met_before: None }
    }

    /// Runs until the inbox is closed and empty.
    pub(super) fn run(mut self) -> CloseReport {
        loop {
            let mut taken = self.shared.inbox.take(self.deadline());
            if let Some((generation, cause)) = taken.damage.take() {
                self.damage_reported(generation, &cause, taken.damage_was_sought);
            }
            self.look_for_strays();
            let heartbeats = std::mem::take(&mut taken.heartbeats);
            let last = taken.last;
            self.work(taken);
            self.change_step();
            if last {
                let report = self.finish();
                self.shared.inbox.finish();
                return report;
            }
            self.keep_house();
            for beat in heartbeats {
                let _ = beat.send(());
            }
        }
    }

    /// When to go round without being asked.
    fn deadline(&self) -> Instant {
        match &self.mode {
            Mode::Running(_) => self.change_due().map_or_else(|| self.house.next_due(), |due| due.min(self.house.next_due())),
            Mode::Failing(episode) => episode.next_try(),
        }
    }

    fn work(&mut self, taken: Taken) {
        for (key, advance) in taken.advances {
            match self.coalesced.advances.entry(key) {
                Entry::Occupied(mut known) => known.get_mut().merge(advance),
                Entry::Vacant(free) => drop(free.insert(advance)),
            }
        }
        self.coalesced.devices.extend(taken.devices);
        let mut items = Vec::with_capacity(taken.jobs.len());
        for job in taken.jobs {
            match job {
                Job::Change(change) => self.changes.push_back(change),
                job => items.push(Item::new(job)),
            }
        }
        self.recover_if_due();
        self.answer_beginning();
        self.write_or_shelve(items);
    }

    /// Writes a group; when that fails, shelves it.
    pub(super) fn write_or_shelve(&mut self, mut items: Vec<Item>) {
        if let Mode::Running(connection) = &self.mode {
            if items.is_empty() && self.coalesced.advances.is_empty() && self.coalesced.devices.is_empty() {
                return;
            }
            let refusing = self.house.refuses();
            match super::group::commit(&self.shared, connection, &mut self.next, &mut items, &self.coalesced, refusing) {
                Ok(()) => {
                    self.shared.metrics.commits.increment();
                    self.coalesced.devices.clear();
                    let cursors = !self.coalesced.advances.is_empty();
                    // Whoever waits for one cursor is woken by the drop; whoever looks at all of them by what follows it.
                    self.coalesced.advances.clear();
                    super::group::settle(&self.shared, items, cursors);
                    return;
                }
                Err(error) => self.begin_episode("write", &error),
            }
        }
        self.shelve(items);
    }

    fn finish(&mut self) -> CloseReport {
        self.house.log.wait();
        self.last_recovery();
        if let Mode::Running(connection) = &self.mode {
            let saved = super::group::in_transaction(connection, || self.next.save(connection));
            let checkpointed = saved.and_then(|()| super::checkpoint::now(connection, "TRUNCATE"));
            if let Err(error) = checkpointed {
                tracing::warn!(cause = %error, "the store was closed without a checkpoint; the next start makes up for it");
            }
        }
        let messages_lost = self.shared.shelf().unsettled_messages();
        // Nobody is told of them: whoever waits for an outcome sees its sender go.
        drop(self.shared.shelf().take_front(usize::MAX));
        CloseReport { messages_lost }
    }
}
