//! What the writer thread is asked to do: a bounded queue of jobs, and what is coalesced beside it.
//!
//! Promises: jobs keep the order in which they were accepted; waiting jobs never weigh more than [`CAPACITY_BYTES`]
//! (each at least [`MIN_WEIGHT`], which bounds their number, too); cursors and waiting devices are coalesced, so they
//! never block and are bounded by the number of sessions and devices. A cursor is no reason for a group of its own until
//! somebody waits for it or it has waited for a moment: each group costs a sync.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use super::backups_due::Backed;
use super::changes::Change;
use super::error::{BindError, StoreError};
use super::session_handle::SessionHandle;
use super::types::{
    BacklogSession, Cursor, NoRoom, OpenedSession, Rejection, RowId, SessionKey, SessionWrite, Settled, StreamStand,
    WaitingDevice,
};
use crate::protocol::{MacAddress, SessionIdentity, UnixMillis};

/// Bytes of jobs that may wait.
const CAPACITY_BYTES: u32 = 4 << 20;
/// What the smallest job weighs.
const MIN_WEIGHT: usize = 512;
/// Jobs in one transaction.
const GROUP_JOBS: usize = 1024;
/// Bytes of jobs in one transaction (the first job is taken whatever it weighs).
const GROUP_BYTES: usize = 1 << 20;
/// How long a cursor that nobody hurries may wait for a group to be written with.
const CURSOR_PATIENCE: Duration = Duration::from_millis(15);

/// One thing to do, in order.
pub(super) enum Job {
    Write(Box<SessionWrite>),
    Open {
        identity: SessionIdentity,
        now: UnixMillis,
        reply: oneshot::Sender<Result<OpenedSession, StoreError>>,
    },
    Bind {
        session: Arc<SessionHandle>,
        stream: Arc<str>,
        now: UnixMillis,
        reply: oneshot::Sender<Result<StreamStand, BindError>>,
    },
    Agent {
        session: Arc<SessionHandle>,
        agent_id: String,
    },
    /// A session's backup was written.
    Backed {
        session: SessionKey,
        backed: Backed,
    },
    Adopt {
        found: Vec<Found>,
        reply: oneshot::Sender<Result<Vec<BacklogSession>, StoreError>>,
    },
    /// Asked for by a person; done in steps, after the group it came with.
    Change(Change),
}

/// A session with undelivered messages as a reader saw it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) key: SessionKey,
    pub(super) identity: SessionIdentity,
    pub(super) ended: bool,
    pub(super) cursor: Cursor,
    pub(super) pending: u64,
    /// Its rows after the cursor begin and end here.
    pub(super) oldest: RowId,
    pub(super) newest: RowId,
    pub(super) waits_since: UnixMillis,
}

/// The cursor of a session is to be written, together with what it passed over: a kill must not leave one without the
/// other.
pub(super) struct Advance {
    pub(super) handle: Arc<SessionHandle>,
    pub(super) cursor: Cursor,
    pub(super) rejected: Vec<(RowId, Rejection)>,
    /// How many advances it stands for that somebody may wait for.
    awaited: u32,
}

impl Advance {
    /// Where the session is now; nobody waits for it.
    pub(super) fn of(handle: Arc<SessionHandle>) -> Self {
        let cursor = handle.cursor();
        Self { handle, cursor, rejected: Vec::new(), awaited: 0 }
    }

    /// Takes in a younger one of the same session.
    pub(super) fn merge(&mut self, mut younger: Self) {
        self.cursor = younger.cursor;
        self.rejected.append(&mut younger.rejected);
        self.awaited += std::mem::take(&mut younger.awaited);
    }

    /// Nobody has to wait for it any longer.
    pub(super) fn release(&mut self) {
        self.handle.remove_unwritten(std::mem::take(&mut self.awaited));
    }
}

impl Drop for Advance {
    fn drop(&mut self) {
        self.release();
    }
}

/// Everything the writer takes at once.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) jobs: Vec<Job>,
    pub(super) advances: HashMap<SessionKey, Advance>,
    /// `None`: the device no longer waits.
    pub(super) devices: HashMap<MacAddress, Option<WaitingDevice>>,
    pub(super) heartbeats: Vec<oneshot::Sender<()>>,
    /// A reader met damage in the database of this generation.
    pub(super) damage: Option<(u64, String)>,
    /// A person looked for it.
    pub(super) damage_was_sought: bool,
    /// The daemon stops, and no job is left after these.
    pub(super) last: bool,
}

/// The writer's inbox.
pub(super) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    room: Semaphore,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Job, u32)>,
    coalesced: Taken,
    /// Since when the oldest cursor waits.
    cursors_since: Option<Instant>,
    /// Somebody waits for a cursor.
    hurried: bool,
    poked: bool,
    phase: Phase,
    sleep: Sleep,
}

/// Whether a wake-up, which is a system call, is worth it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Sleep {
    #[default]
    Awake,
    /// The writer looks again by itself before a cursor has waited for long.
    Light,
    Deep,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// What is queued is still done.
    Closing,
    /// The writer is gone.
    Closed,
}

impl SessionWrite {
    /// The memory it needs while it waits, in bytes.
    pub(super) fn weight(&self) -> usize {
        let messages: usize = self.messages.iter().map(super::types::NewMessage::weight).sum();
        let held: usize = self.hold.iter().map(|held| 256 + held.text.len() + held.item_id.as_ref().map_or(0, String::len)).sum();
        MIN_WEIGHT + messages + held + self.release.len() * 16
    }
}

impl Job {
    fn weight(&self) -> u32 {
        let bytes = if let Self::Write(write) = self { write.weight() } else { MIN_WEIGHT };
        u32::try_from(bytes).unwrap_or(u32::MAX).min(CAPACITY_BYTES)
    }

    /// Answers a job that nobody will do any more.
    fn abandon(self) {
        match self {
            Self::Write(write) => {
                write.epoch.refuse();
                if let Some(on_settled) = write.on_settled {
                    on_settled(Settled::Overloaded(NoRoom::Stopping));
                }
            }
            Self::Open { reply, .. } => drop(reply.send(Err(StoreError::Closed))),
            Self::Bind { reply, .. } => drop(reply.send(Err(BindError::Store(StoreError::Closed)))),
            Self::Adopt { reply, .. } => drop(reply.send(Err(StoreError::Closed))),
            Self::Change(change) => change.refuse(StoreError::Closed),
            Self::Agent { .. } | Self::Backed { .. } => {}
        }
    }
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), room: Semaphore::new(CAPACITY_BYTES as usize) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let sleep = std::mem::take(&mut state.sleep);
        drop(state);
        if sleep > Sleep::Awake {
            self.wake.notify_one();
        }
    }

    /// Queues a job; waits for room. Answers it itself when the store is closed.
    pub(super) async fn push(&self, job: Job) {
        let weight = job.weight();
        match self.room.acquire_many(weight).await {
            // Given back by `take`.
            Ok(permit) => permit.forget(),
            Err(_) => return job.abandon(),
        }
        let mut state = self.state();
        if state.phase != Phase::Open {
            drop(state);
            return job.abandon();
        }
        state.jobs.push_back((job, weight));
        self.wake(state);
    }

    /// Queues the newest cursor of a session: it is written with the next group, or soon.
    pub(super) fn advance(&self, handle: &Arc<SessionHandle>, cursor: Cursor, rejected: Vec<(RowId, Rejection)>) {
        let mut state = self.state();
        if state.phase == Phase::Closed {
            return;
        }
        handle.add_unwritten();
        let younger = Advance { handle: Arc::clone(handle), cursor, rejected, awaited: 1 };
        match state.coalesced.advances.entry(handle.key) {
            Entry::Occupied(mut known) => known.get_mut().merge(younger),
            Entry::Vacant(free) => drop(free.insert(younger)),
        }
        state.cursors_since.get_or_insert_with(Instant::now);
        if state.sleep == Sleep::Deep {
            self.wake(state);
        }
    }

    /// Somebody waits for the cursor of this session.
    pub(super) fn hurry(&self, handle: &SessionHandle) {
        let mut state = self.state();
        // What is not in here any more is being written.
        let all_here = state.coalesced.advances.get(&handle.key).is_some_and(|advance| advance.awaited >= handle.unwritten());
        if all_here {
            state.hurried = true;
            self.wake(state);
        }
    }

    /// Somebody waits for all cursors.
    pub(super) fn hurry_all(&self) {
        let mut state = self.state();
        if !state.coalesced.advances.is_empty() {
            state.hurried = true;
            self.wake(state);
        }
    }

    /// Queues what is known of a waiting device; `None`: it no longer waits.
    pub(super) fn device(&self, mac: MacAddress, device: Option<WaitingDevice>) {
        let mut state = self.state();
        state.coalesced.devices.insert(mac, device);
        self.wake(state);
    }

    /// Answers when the writer has gone round its loop.
    pub(super) fn heartbeat(&self) -> oneshot::Receiver<()> {
        let (beat, beaten) = oneshot::channel();
        let mut state = self.state();
        if state.phase != Phase::Closed {
            state.coalesced.heartbeats.push(beat);
        }
        self.wake(state);
        beaten
    }

    /// Tells that the database of this generation is damaged.
    pub(super) fn report_damage(&self, generation: u64, cause: String) {
        let mut state = self.state();
        state.coalesced.damage = Some((generation, cause));
        self.wake(state);
    }

    /// The same of damage that a person looked for: it is salvaged whatever was salvaged before.
    pub(super) fn report_sought_damage(&self, generation: u64, cause: String) {
        self.state().coalesced.damage_was_sought = true;
        self.report_damage(generation, cause);
    }

    /// Makes the writer go round its loop.
    pub(super) fn poke(&self) {
        let mut state = self.state();
        state.poked = true;
        self.wake(state);
    }

    /// No job is accepted from now on; what is queued is done, then the writer ends.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.phase = state.phase.max(Phase::Closing);
        self.room.close();
        self.wake(state);
    }

    /// The writer is gone: answers what came too late.
    pub(super) fn finish(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        let jobs = std::mem::take(&mut state.jobs);
        let coalesced = std::mem::take(&mut state.coalesced);
        drop(state);
        self.room.close();
        for (job, _) in jobs {
            job.abandon();
        }
        drop(coalesced);
    }

    /// Takes the next group; waits for something to do, but not beyond `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Taken {
        let mut state = self.state();
        // Cursors come in runs: after a group it looks again by itself, so that the next cursor need not wake it.
        let mut look_again = Some(Instant::now() + CURSOR_PATIENCE);
        loop {
            let now = Instant::now();
            if state.is_due(now) || deadline <= now {
                break;
            }
            let (sleep, until) = match state.cursors_since.map(|since| since + CURSOR_PATIENCE).or(look_again) {
                Some(until) => (Sleep::Light, until.min(deadline)),
                None => (Sleep::Deep, deadline),
            };
            state.sleep = sleep;
            state = self.wake.wait_timeout(state, until.saturating_duration_since(now)).unwrap_or_else(PoisonError::into_inner).0;
            look_again = look_again.filter(|until| *until > Instant::now());
        }
        state.sleep = Sleep::Awake;
        state.cursors_since = None;
        state.hurried = false;
        state.poked = false;
        let mut taken = std::mem::take(&mut state.coalesced);
        let (mut bytes, mut freed) = (0, 0);
        while let Some((_, weight)) = state.jobs.front() {
            let weight = *weight as usize;
            if taken.jobs.len() >= GROUP_JOBS || (!taken.jobs.is_empty() && bytes + weight > GROUP_BYTES) {
                break;
            }
            bytes += weight;
            freed += weight;
            taken.jobs.extend(state.jobs.pop_front().map(|(job, _)| job));
        }
        taken.last = state.phase != Phase::Open && state.jobs.is_empty();
        drop(state);
        self.room.add_permits(freed);
        taken
    }
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        let coalesced = &self.coalesced;
        self.poked
            || self.hurried
            || self.phase != Phase::Open
            || !self.jobs.is_empty()
            || self.cursors_since.is_some_and(|since| since + CURSOR_PATIENCE <= now)
            || !coalesced.devices.is_empty()
            || !coalesced.heartbeats.is_empty()
            || coalesced.damage.is_some()
    }
}
