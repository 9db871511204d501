//! While the database cannot be written: intake goes to the shelf, the database is reopened with growing pauses, and when
//! it works again the shelf is written, in order, then the cursors. One log line when it begins, one when it ends; between
//! them the shelf tells when it is full, too, once a minute.
//!
//! After a failed write or sync the connection is closed: the kernel may have dropped what could not be written, and a
//! second sync on the same file would report success. What the database then holds of the failed group is harmless,
//! because everything on the shelf can be applied twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::apply::Applier;
use super::checkpoint;
use super::error::StoreError;
use super::files::Standing;
use super::group::{self, Answer, Item};
use super::health::Failing;
use super::inbox::Job;
use super::open::{self, Fault, Opening};
use super::repair::Repair;
use super::session_handle::SessionHandle;
use super::sessions;
use super::shared::Shared;
use super::shelf::{Shelved, ShelvedWrite, row_after};
use super::types::{NoRoom, Settled};
use super::writer::{MetBefore, Mode, NextIds, Writer, wall_clock};
use crate::observe::{self, Mention, Throttle};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long damage that a salvage did not cure is left alone; twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(60);
/// Items and bytes of the shelf in one transaction.
const REPLAY_ITEMS: usize = 512;
const REPLAY_BYTES: usize = 1 << 20;
/// Cursors in one transaction after the shelf.
const REPLAY_CURSORS: usize = 1000;
/// How long the last try at the end may take.
const LAST_TRY: Duration = Duration::from_secs(3);

/// One episode in which the database cannot be written.
pub(super) struct Episode {
    since: Instant,
    next_try: Instant,
    pause: Duration,
    /// Still good: the disk was full or somebody held the lock, nothing was lost in it.
    connection: Option<Connection>,
    pub(super) repair: Repair,
    /// Sessions and streams that begin meanwhile, and until when they wait for the repair.
    pub(super) beginning: Vec<(Instant, Job)>,
    written: u64,
    /// The shelf has no room either.
    overflow: observe::Episode,
    /// The shelf drops delivered messages, which the archive then never has.
    unarchived: Throttle,
    /// It was said what stands in the way of the repair.
    told_of_repair: bool,
}

impl Episode {
    pub(super) fn next_try(&self) -> Instant {
        if self.repair.is_under_way() { self.next_try.min(Instant::now() + FIRST_PAUSE) } else { self.next_try }
    }

    fn postpone(&mut self) {
        self.next_try = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether a connection may be used again after this.
fn leaves_connection_good(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Writer {
    /// The database cannot be written from now on.
    pub(super) fn begin_episode(&mut self, verb: &str, error: &rusqlite::Error) {
        let damaged = Fault::of(error) == Fault::Damage;
        self.begin(verb, &error.to_string(), damaged, leaves_connection_good(error));
    }

    fn begin(&mut self, verb: &str, cause: &str, damaged: bool, keep_connection: bool) {
        // Nobody has a hand in the files when they are moved or opened anew.
        self.house.log.wait();
        let shared = &self.shared;
        shared.metrics.store_errors.increment();
        let now = Instant::now();
        let path = shared.files.database.display();
        if damaged {
            tracing::error!(%path, cause, "the store is damaged: it is set aside and salvaged, messages wait in memory meanwhile");
        } else {
            tracing::error!(
                %path, verb, cause,
                "the store cannot be written: messages are kept in memory (store.shelf_bytes) and delivered from there; free or mend the disk"
            );
        }
        shared.health().failing = Some(Failing { since: now, what: cause.to_owned(), refused: 0 });
        let repair = if damaged { Repair::Needed } else { Repair::None };
        let episode = Episode {
            since: now,
            next_try: now + FIRST_PAUSE,
            pause: FIRST_PAUSE * 2,
            connection: None,
            repair,
            beginning: Vec::new(),
            written: 0,
            overflow: observe::Episode::new(),
            unarchived: Throttle::new(),
            told_of_repair: false,
        };
        let before = std::mem::replace(&mut self.mode, Mode::Failing(Box::new(episode)));
        if let (Mode::Running(connection), Mode::Failing(episode)) = (before, &mut self.mode)
            && keep_connection
        {
            episode.connection = Some(connection);
        }
    }

    /// Looks whether the open files are still at their paths: what is written to one that is not would be acknowledged and
    /// never seen again. They stay open, and what only they hold is delivered; nothing new is acknowledged until they are back.
    /// To be called before anything is written.
    pub(super) fn look_for_strays(&mut self) {
        if !matches!(self.mode, Mode::Running(_)) {
            return;
        }
        let Some(stray) = self.shared.files.strayed(self.standing) else { return };
        let cause = format!(
            "{} is gone, or another file than the open one (put it back, or restart the daemon, which makes a new store)",
            stray.path.display()
        );
        self.shared.readers.keep_to_open_ones();
        self.begin("find", &cause, false, true);
    }

    /// A reader met damage.
    pub(super) fn damage_reported(&mut self, generation: u64, cause: &str, was_sought: bool) {
        if generation != self.shared.readers.generation() {
            return;
        }
        // A salvage that did not help will not help at once either, and each keeps a copy of the store.
        let now = Instant::now();
        let rests = self.met_before.as_ref().is_some_and(|before| before.cause == cause && now < before.rest_until);
        if rests && !was_sought {
            tracing::warn!(cause, "damage that a salvage has just dealt with is met again: the store stays as it is for now");
            return;
        }
        let rest = self.met_before.take().map_or(FIRST_REST, |before| before.rest * 2);
        self.met_before = Some(MetBefore { cause: cause.to_owned(), rest, rest_until: now + rest });
        match &mut self.mode {
            Mode::Running(_) => self.begin("read", cause, true, false),
            Mode::Failing(episode) if matches!(episode.repair, Repair::None) => episode.repair = Repair::Needed,
            Mode::Failing(_) => {}
        }
    }

    pub(super) fn recover_if_due(&mut self) {
        if let Mode::Failing(episode) = &self.mode
            && (Instant::now() >= episode.next_try || episode.repair.is_done())
        {
            self.recover();
        }
    }

    /// At the end: once more, and a salvage under way may take a moment.
    pub(super) fn last_recovery(&mut self) {
        let deadline = Instant::now() + LAST_TRY;
        while matches!(self.mode, Mode::Failing(_)) {
            self.recover();
            let waits = matches!(&self.mode, Mode::Failing(episode) if episode.repair.is_under_way());
            if !waits || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tries to write again.
    fn recover(&mut self) {
        let Mode::Failing(episode) = &mut self.mode else { return };
        match attempt(&self.shared, episode, &mut self.next, &mut self.standing) {
            // While intake waits for this try, nobody else's lock is waited for.
            Ok(Some(connection)) => match connection.busy_timeout(Duration::ZERO).and_then(|()| self.replay(&connection)) {
                Ok(()) => {
                    let _ = connection.busy_timeout(open::BUSY);
                    self.end_episode(connection);
                }
                Err(error) => {
                    self.shared.metrics.store_errors.increment();
                    tracing::debug!(cause = %error, "the store still cannot be written");
                    let Mode::Failing(episode) = &mut self.mode else { return };
                    if Fault::of(&error) == Fault::Damage {
                        episode.repair = Repair::Needed;
                    } else if leaves_connection_good(&error) {
                        episode.connection = Some(connection);
                    }
                    episode.postpone();
                }
            },
            Ok(None) => episode.postpone(),
            Err(error) => {
                self.shared.metrics.store_errors.increment();
                tracing::debug!(cause = %error, "the store still cannot be opened");
                let is_news = episode.repair.holds_the_files() && !std::mem::replace(&mut episode.told_of_repair, true);
                episode.postpone();
                if is_news {
                    self.tell_why_no_salvage(&error.to_string());
                }
            }
        }
    }

    /// What stands in the way of a salvage is another thing than what began it, mostly a full disk.
    fn tell_why_no_salvage(&self, cause: &str) {
        let path = self.shared.files.database.display();
        let mut health = self.shared.health();
        let Some(failing) = health.failing.as_mut() else { return };
        cause.clone_into(&mut failing.what);
        drop(health);
        tracing::error!(%path, cause, "the damaged store cannot be salvaged; it is tried again: free or mend the disk");
    }

    /// Writes the shelf, then cursors and devices.
    fn replay(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let shared = &self.shared;
        while !shared.shelf().is_empty() {
            let mut count = 0;
            group::in_transaction(connection, || {
                let mut applier = Applier::new(connection)?;
                for item in shared.shelf().front(REPLAY_ITEMS, REPLAY_BYTES) {
                    item.apply(&mut applier)?;
                    count += 1;
                }
                applier.finish()
            })?;
            let written = note_replayed(shared, count);
            if let Mode::Failing(episode) = &mut self.mode {
                episode.written += written;
            }
        }
        // A disk that is full or read-only must not look sound because there was nothing to write.
        group::in_transaction(connection, || self.next.save(connection))?;
        let now = wall_clock();
        while !self.coalesced.advances.is_empty() || !self.coalesced.devices.is_empty() {
            let keys: Vec<_> = self.coalesced.advances.keys().take(REPLAY_CURSORS).copied().collect();
            group::in_transaction(connection, || {
                let applier = Applier::new(connection)?;
                keys.iter().filter_map(|key| self.coalesced.advances.get(key)).try_for_each(|one| applier.advance(one, now))?;
                self.coalesced.devices.iter().try_for_each(|(mac, device)| applier.device(*mac, device.as_ref()))?;
                applier.finish()
            })?;
            self.coalesced.devices.clear();
            for key in keys {
                self.coalesced.advances.remove(&key);
            }
            shared.arrivals.note([], true);
        }
        Ok(())
    }

    fn end_episode(&mut self, connection: Connection) {
        let before = std::mem::replace(&mut self.mode, Mode::Running(connection));
        let refused = self.shared.health().failing.take().map_or(0, |failing| failing.refused);
        self.shared.metrics.shelf_bytes.set(0);
        let path = self.shared.files.database.display();
        let mut beginning = Vec::new();
        if let Mode::Failing(episode) = before {
            let (seconds, messages) = (episode.since.elapsed().as_secs(), episode.written);
            tracing::info!(%path, seconds, messages, refused, "the store works again; what was kept in memory is written");
            beginning = episode.beginning;
        }
        self.shared.readers.put_in_place();
        self.house.look_soon();
        self.write_or_shelve(beginning.into_iter().map(|(_, job)| Item::new(job)).collect());
    }

    /// Puts what cannot be written on the shelf.
    pub(super) fn shelve(&mut self, items: Vec<Item>) {
        let mut news = Vec::new();
        for mut item in items {
            item.answer = Answer::None;
            match item.job {
                Job::Write(_) => news.extend(self.shelve_write(item)),
                Job::Agent { session, agent_id } => {
                    let _ = self.put(Shelved::Agent { handle: session, agent_id });
                }
                // It stays due: the next start writes it once more.
                Job::Backed { .. } => {}
                Job::Change(change) => change.refuse(StoreError::Unavailable),
                job @ (Job::Open { .. } | Job::Bind { .. }) => self.begin_when_readable(job),
                Job::Adopt { found, reply } => {
                    let directory = &self.shared.directory;
                    drop(reply.send(self.shared.readers.run(|connection| sessions::adopt(directory, connection, &found))));
                }
            }
        }
        for advance in self.coalesced.advances.values_mut() {
            advance.release();
        }
        self.shared.arrivals.note(news, !self.coalesced.advances.is_empty());
        let settled_now = self.shared.shelf().settle(|_| true);
        let (bytes, messages) = {
            let stand = self.shared.shelf();
            (stand.bytes() as u64, stand.messages())
        };
        self.shared.metrics.shelf_bytes.set(bytes);
        let mut health = self.shared.health();
        (health.shelf_bytes, health.shelf_messages) = (bytes, messages);
        drop(health);
        for on_settled in settled_now {
            on_settled(Settled::Durable);
        }
    }

    pub(super) fn put(&mut self, item: Shelved) -> Result<(), Box<Shelved>> {
        let mut dropped = 0;
        let result = self.shared.shelf().put(item, self.shared.limits.shelf_bytes(), &mut dropped);
        if dropped > 0 {
            self.tell_unarchived(dropped);
        }
        result
    }

    /// Delivered messages leave the shelf for want of room, before the archive had them.
    fn tell_unarchived(&mut self, messages: u64) {
        self.shared.metrics.archive_dropped.add(messages);
        let Mode::Failing(episode) = &mut self.mode else { return };
        if episode.unarchived.permits(Instant::now()).is_some() {
            let so_far = self.shared.metrics.archive_dropped.get();
            tracing::error!(
                messages,
                so_far,
                "delivered messages leave the shelf for want of room: the local history will lack them"
            );
        }
    }

    fn shelve_write(&mut self, mut item: Item) -> Option<(Arc<SessionHandle>, u64, Option<bool>)> {
        let refused = matches!(&item.job, Job::Write(write) if write.epoch.is_refused());
        if !refused {
            group::book(&self.shared, &mut item);
        }
        let Job::Write(write) = item.job else { return None };
        if refused {
            let messages = group::refuse(&self.shared, *write, item.booked, NoRoom::Earlier);
            self.tell_overflow(messages);
            return None;
        }
        // A group that failed has its rows already.
        let first_row = if item.first_row > 0 { item.first_row } else { self.next.row };
        self.next.row = self.next.row.max(row_after(first_row, &write));
        let news = (Arc::clone(&write.session), group::sendable(&write), group::ended(&write));
        let Err(refused) = self.put(Shelved::Write(ShelvedWrite::new(*write, first_row))) else { return Some(news) };
        if let Shelved::Write(shelved) = *refused {
            let messages = group::refuse(&self.shared, shelved.write, item.booked, NoRoom::Shelf);
            self.tell_overflow(messages);
        }
        None
    }

    /// Messages find no room on the shelf: an error when that begins, and once a minute with how many there were.
    fn tell_overflow(&mut self, messages: u64) {
        let Mode::Failing(episode) = &mut self.mode else { return };
        if messages == 0 {
            return;
        }
        let refused = self.shared.health().failing.as_mut().map_or(messages, |failing| {
            failing.refused += messages;
            failing.refused
        });
        if episode.overflow.occurs(Instant::now()) != Mention::Silent {
            let shelf_bytes = self.shared.limits.shelf_bytes();
            tracing::error!(
                refused,
                shelf_bytes,
                "the shelf in memory is full: messages are refused until the disk or the delivery works"
            );
        }
    }
}

/// Takes what is written off the shelf and tells whom it concerns; answers the number of messages.
fn note_replayed(shared: &Shared, count: usize) -> u64 {
    // First the rows are known as stored, then they leave the shelf: a reader sees them in one place at least.
    for item in shared.shelf().front(count, usize::MAX) {
        if let Shelved::Write(shelved) = item {
            group::note_stored(&shelved.write, shelved.first_row);
        }
    }
    let taken = shared.shelf().take_front(count);
    let mut messages = 0;
    for item in taken {
        if let Shelved::Write(shelved) = item {
            messages += shelved.write.messages.len() as u64;
            shared.metrics.writes_committed.increment();
            if let Some(on_settled) = shelved.write.on_settled {
                on_settled(Settled::Durable);
            }
        }
    }
    shared.metrics.commits.increment();
    let mut health = shared.health();
    let shelf = shared.shelf();
    (health.shelf_bytes, health.shelf_messages) = (shelf.bytes() as u64, shelf.messages());
    messages
}

/// A connection that may work: the kept one, or a new one, after a repair where one is needed. `None`: later.
fn attempt(
    shared: &Arc<Shared>,
    episode: &mut Episode,
    next: &mut NextIds,
    standing: &mut Standing,
) -> Result<Option<Connection>, StoreError> {
    if !matches!(episode.repair, Repair::None) {
        episode.connection = None;
        if !super::repair::proceed(shared, &mut episode.repair, next)? {
            return Ok(None);
        }
    }
    if let Some(connection) = episode.connection.take() {
        let Some(stray) = shared.files.strayed(*standing) else { return Ok(Some(connection)) };
        let carried = stray.is_log && checkpoint::whole(&connection);
        if !carried {
            episode.connection = Some(connection);
            return Err(StoreError::Unavailable);
        }
        // The database is still there, and has by now what the log held: it is opened anew, and gets a new log.
        shared.readers.take_away();
    } else if matches!(episode.repair, Repair::None) && !shared.files.has_database_of(*standing) {
        // An unmounted disk, say. A new database there would know of no session that is in use.
        return Err(StoreError::Unavailable);
    }
    match open::open(&shared.files, shared.durability, &shared.log)? {
        Opening::Ready(connection) => {
            let rebuilt = matches!(episode.repair, Repair::InPlace);
            super::repair::restore_living(shared, &connection, next, &mut episode.repair)
                .map_err(StoreError::database("restore", &shared.files.database))?;
            *standing = shared.files.standing();
            shared.readers.put_in_place();
            if rebuilt {
                shared.arrivals.note_rebuilt();
            }
            Ok(Some(connection))
        }
        Opening::Damaged(cause) => {
            tracing::error!(cause, "the store is damaged: it is set aside and salvaged");
            episode.repair = Repair::Needed;
            Ok(None)
        }
    }
}
