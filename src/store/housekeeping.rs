//! What the writer does between groups: it measures the store, checkpoints the log, and lets delivered history go by age
//! and size. Each visit is one small step, so intake never waits for more than that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::checkpoint::log_bytes;
use super::clock::{ClockWatch, SetAhead};
use super::log_care::LogCare;
use super::redating::{self, Redating, TakenIn};
use super::retention::{self, Aim, Pass, Sweep};
use super::shared::Shared;
use super::writer::{Mode, NextIds, Writer, wall_clock};
use crate::clock::since_boot;
use crate::observe::{Skip, Throttle};
use crate::protocol::UnixMillis;

/// How often a pass over old rows begins.
const PASS_EVERY: Duration = Duration::from_secs(3600);
/// The first pass, after the start.
const FIRST_PASS: Duration = Duration::from_secs(60);
/// The longest the writer sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After a failed step, and after a pass for room that found nothing.
const PAUSE: Duration = Duration::from_secs(5);
/// Steps of a pass for room in one visit: more rows than a group can bring.
const ROOM_STEPS: usize = 4;

/// What is going on in the house.
pub(super) struct Housekeeping {
    clock: ClockWatch,
    taken_in: TakenIn,
    redating: VecDeque<Redating>,
    pub(super) log: LogCare,
    used: u64,
    /// How much had gone into the log when it was measured.
    measured_at: u64,
    measured_limit: u64,
    pass: Option<Pass>,
    sweep: Option<Sweep>,
    next_pass: Instant,
    /// A pass for room found nothing to delete: not before this.
    next_room: Instant,
    refusing: bool,
    /// Undelivered messages that leave are told of once a minute.
    expired: Throttle,
}

impl Housekeeping {
    pub(super) fn new(now: Instant, wall: UnixMillis, next: NextIds) -> Self {
        Self {
            clock: ClockWatch::new(since_boot(), wall),
            taken_in: TakenIn { first_row: next.row, since: wall },
            redating: VecDeque::new(),
            log: LogCare::new(now),
            used: 0,
            measured_at: 0,
            // Measured at the first visit.
            measured_limit: 0,
            pass: None,
            sweep: None,
            next_pass: now + FIRST_PASS,
            next_room: now,
            refusing: false,
            expired: Throttle::new(),
        }
    }

    /// Whether the store is full and has nothing left that may go.
    pub(super) const fn refuses(&self) -> bool {
        self.refusing
    }

    /// When to come again without being asked.
    pub(super) fn next_due(&self) -> Instant {
        if self.pass.is_some() || self.sweep.is_some() || !self.redating.is_empty() {
            return Instant::now();
        }
        let due = if self.refusing { self.next_room.min(self.next_pass) } else { self.next_pass };
        // The clocks are compared, and the files looked for.
        due.min(Instant::now() + LOOK_EVERY)
    }

    /// The database is another one, or came back.
    pub(super) const fn look_soon(&mut self) {
        self.measured_limit = 0;
    }

    fn postpone(&mut self) {
        (self.pass, self.sweep) = (None, None);
        let now = Instant::now();
        self.next_room = now + PAUSE;
        self.next_pass = self.next_pass.max(now + FIRST_PASS);
    }
}

/// Bytes that count against the limit.
pub(super) fn used_bytes(shared: &Shared, connection: &Connection) -> rusqlite::Result<u64> {
    Ok(used_pages(connection)? + shared.files.wal_len())
}

/// Bytes of the pages in use.
fn used_pages(connection: &Connection) -> rusqlite::Result<u64> {
    let count =
        |pragma: &str| -> rusqlite::Result<i64> { super::rows::cached(connection, pragma)?.query_row([], |row| row.get(0)) };
    let pages = count("PRAGMA page_count")? - count("PRAGMA freelist_count")?;
    Ok(u64::try_from(pages * count("PRAGMA page_size")?).unwrap_or(0))
}

impl Writer {
    /// One visit.
    pub(super) fn keep_house(&mut self) {
        let Mode::Running(connection) = &self.mode else { return };
        let visit = visit(&self.shared, connection, &mut self.house, self.next);
        if let Err(error) = visit {
            self.house.postpone();
            self.begin_episode("tidy", &error);
        }
    }
}

fn visit(shared: &Arc<Shared>, connection: &Connection, house: &mut Housekeeping, next: NextIds) -> rusqlite::Result<()> {
    let limit = shared.limits.max_bytes();
    house.log.visit(shared, connection, limit)?;
    let wall = wall_clock();
    let trusts_clock = house.clock.trusts(since_boot(), wall);
    if let Some(SetAhead { otherwise, by_ms }) = house.clock.take_set_ahead() {
        house.redating.push_back(Redating::new(house.taken_in, next.row, otherwise, by_ms));
        // Of what was behind by now, it will be again, should the clock be set ahead once more.
        house.taken_in.since.0 = house.taken_in.since.0.saturating_add(by_ms);
    }
    if let Some(work) = house.redating.front_mut()
        && redating::step(connection, work)?
    {
        house.redating.pop_front();
    }
    if shared.log.bytes() - house.measured_at >= limit / 64 || house.measured_limit != limit {
        measure(shared, connection, house, limit)?;
    }
    let makes_room = house.pass.as_ref().is_some_and(|pass| pass.aim == Aim::Room);
    if house.used >= limit && Instant::now() >= house.next_room && !makes_room {
        begin_to_make_room(shared, connection, house, limit)?;
    }
    if house.pass.is_none() && house.sweep.is_none() && Instant::now() >= house.next_pass {
        house.next_pass = Instant::now() + PASS_EVERY;
        if trusts_clock {
            house.pass = Some(Pass::new(Aim::age(wall_clock(), shared.limits.retention())));
        }
    }
    if let Some(pass) = house.pass.take() {
        step(shared, connection, house, next, pass)?;
    } else if let Some(sweep) = house.sweep.take() {
        house.sweep = retention::sweep(connection, &shared.directory, sweep, wall_clock(), next)?;
    }
    Ok(())
}

fn step(
    shared: &Shared,
    connection: &Connection,
    house: &mut Housekeeping,
    next: NextIds,
    mut pass: Pass,
) -> rusqlite::Result<()> {
    let limit = shared.limits.max_bytes();
    let steps = if pass.aim == Aim::Room { ROOM_STEPS } else { 1 };
    for _ in 0..steps {
        let done = retention::step(connection, &mut pass, shared.limits.all_delivered(), next)?;
        shared.metrics.messages_pruned.add(done.deleted);
        let gone: u64 = done.expired.values().sum();
        if gone > 0
            && let Some(more) = house.expired.permits(Instant::now())
        {
            tracing::warn!(
                messages = gone,
                more,
                "messages that were never delivered leave the store: no manager_api.url is set"
            );
        }
        for (key, expired) in done.expired {
            shared.metrics.skipped.add(Skip::Expired, expired);
            shared.metrics.pending.subtract(expired);
            if let Some(handle) = shared.directory.get(key) {
                handle.remove_pending(expired);
                handle.start_anew();
            }
        }
        let enough = pass.aim == Aim::Room && {
            measure(shared, connection, house, limit)?;
            house.used < limit - limit / 32
        };
        if done.finished || enough {
            if pass.aim == Aim::Room {
                refuse_if_full(shared, connection, house, limit)?;
                if house.refusing {
                    house.next_room = Instant::now() + PAUSE;
                }
            }
            house.sweep = Some(Sweep::default());
            return Ok(());
        }
    }
    house.pass = Some(pass);
    Ok(())
}

/// The store is as large as it may be. What the file of the log takes beyond the size of the log, or has taken since somebody
/// reads, is no history: nothing is deleted for it.
fn begin_to_make_room(shared: &Shared, connection: &Connection, house: &mut Housekeeping, limit: u64) -> rusqlite::Result<()> {
    let log_bytes = log_bytes(limit);
    if shared.files.wal_len() > log_bytes {
        house.log.empty(shared, connection, limit);
        measure(shared, connection, house, limit)?;
    }
    if used_pages(connection)? + shared.files.wal_len().min(log_bytes) >= limit {
        house.pass = Some(Pass::new(Aim::Room));
    } else if house.used >= limit {
        set_refusing(shared, house, true);
        house.next_room = Instant::now() + PAUSE;
    }
    Ok(())
}

/// After a pass for room: is there room now?
fn refuse_if_full(shared: &Shared, connection: &Connection, house: &mut Housekeeping, limit: u64) -> rusqlite::Result<()> {
    if house.used >= limit {
        house.log.empty(shared, connection, limit);
        measure(shared, connection, house, limit)?;
    }
    set_refusing(shared, house, house.used >= limit);
    Ok(())
}

fn set_refusing(shared: &Shared, house: &mut Housekeeping, refusing: bool) {
    if refusing == house.refusing {
        return;
    }
    house.refusing = refusing;
    shared.health().full = refusing;
    let (path, used_bytes) = (shared.files.database.display(), house.used);
    if refusing {
        tracing::error!(
            %path, used_bytes,
            "the store is full of undelivered messages, or of a log that somebody reads for long: new ones are refused (raise store.max_bytes, let delivery go on, or end what reads the database)"
        );
    } else {
        tracing::info!(%path, used_bytes, "the store has room again");
    }
}

fn measure(shared: &Shared, connection: &Connection, house: &mut Housekeeping, limit: u64) -> rusqlite::Result<()> {
    house.used = used_bytes(shared, connection)?;
    (house.measured_at, house.measured_limit) = (shared.log.bytes(), limit);
    shared.health().used_bytes = house.used;
    if house.refusing && house.used < limit {
        set_refusing(shared, house, false);
    }
    Ok(())
}
