//! The one uploader task: takes what arrived, starts the turns of due sessions as far as the gate allows, and judges
//! what came of them.

mod judge;
mod requests;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::ages::Ages;
use super::backoff::Backoff;
use super::deliveries::{Deliveries, Request};
use super::devices::{Admission, Devices};
use super::due::DueRule;
use super::files::FileReader;
use super::gate::{Change, Closed, Gate, Probe};
use super::queue::{Order, Queue};
use super::turn::{Outcome, Progress, TURN_MESSAGES, Turn, TurnEnd};
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::manager_api::{ManagerApi, ProfileUnknown, ServerProfile, Verdict};
use crate::observe::{Metrics, Throttle};
use crate::store::{Arrival, BacklogSession, SessionHandle, SessionKey, Store, StoreError};

/// How often the server is asked for its profile while all goes well.
const PROFILE_EVERY: Duration = Duration::from_secs(300);

/// Sessions read per page when the backlog is looked through.
const BACKLOG_PAGE: usize = 500;

/// How long a session is held when the store could not be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

/// When a session is looked at again whose pending messages are not to be seen yet, if nothing of it arrives before.
const UNSEEN_PAUSE: Duration = Duration::from_millis(100);

/// When the backlog is looked through again after the store could not be read.
const BACKLOG_PAUSE: Duration = Duration::from_secs(10);

/// Told to whoever waits for messages of a device that the server does not know.
const UNKNOWN_DEVICE: &str = "the server does not know the device (register it)";

/// Told of a session that ended, or of an ended one whose last message is through.
pub type OnFinished = Box<dyn Fn(SessionKey) + Send + Sync>;

/// The uploader.
pub struct Uploader {
    store: Store,
    settings: watch::Receiver<Arc<Settings>>,
    metrics: Arc<Metrics>,
    requests: mpsc::Receiver<Request>,
    on_finished: OnFinished,
    gate_open: watch::Sender<bool>,
    progress: Arc<Progress>,
    api: Option<ManagerApi>,
    gate: Gate,
    /// Since when the gate is closed, for whatever reasons.
    shut_at: Option<Instant>,
    /// How often it has opened.
    openings: u64,
    profile: Profile,
    queue: Queue,
    devices: Devices,
    ages: Ages,
    unreadable: Throttle,
    work: JoinSet<Done>,
    /// Turns that are not over yet.
    sending: usize,
    /// Those of them that only wait for their cursor: a kill must not repeat more than two messages for each turn.
    settling: Vec<Settling>,
    /// One permit for each request that may be in flight.
    requests_in_flight: Arc<Semaphore>,
    files: FileReader,
    /// Reports accepted when the last failure was judged.
    accepted_before: u64,
    /// Failed attempts whose message was accepted at a later one.
    mended: u64,
    /// A page of the backlog could not be read: when to try again, and after which session.
    backlog_again: Option<(Instant, Option<SessionKey>)>,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
}

struct Profile {
    known: Option<ServerProfile>,
    /// Ask before the next report.
    ask: bool,
    asking: bool,
    /// The question under way is the knock on the closed gate.
    knocks: bool,
    /// The number of the question whose answer counts.
    question: u64,
    asked: Instant,
}

/// A turn that is over when its cursor is durable.
struct Settling {
    handle: Arc<SessionHandle>,
    knocked: bool,
    end: TurnEnd,
    /// Its cursor does not wait for a group to be written with.
    hurried: bool,
}

enum Done {
    Turn(Settling),
    /// Which file could not be read again.
    Files(Option<String>),
    /// The same, and what came of the knock.
    Probe(Option<String>, Verdict),
    Profile(u64, Result<ServerProfile, ProfileUnknown>),
    Backlog(Option<SessionKey>, Result<Vec<BacklogSession>, StoreError>),
}

/// A number in `0.0 .. 1.0`, for jitter.
#[allow(clippy::cast_precision_loss, reason = "jitter needs no precision")]
fn random() -> f64 {
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1_u64 << 53) as f64
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn gate_backoff(settings: &Settings) -> Backoff {
    Backoff::new(settings.upload.backoff_initial, settings.upload.backoff_max)
}

impl Uploader {
    /// An uploader, the way to it, and whether the server is worth asking. `api` is `None` while no URL is configured.
    #[must_use]
    pub fn new(
        store: Store,
        settings: watch::Receiver<Arc<Settings>>,
        metrics: Arc<Metrics>,
        api: Option<ManagerApi>,
        on_finished: OnFinished,
    ) -> (Self, Deliveries, watch::Receiver<bool>) {
        let (deliveries, requests) = Deliveries::new();
        let (gate_open, is_open) = watch::channel(api.is_some());
        let current = settings.borrow().clone();
        let uploader = Self {
            store,
            gate: Gate::new(current.upload.concurrency, gate_backoff(&current)),
            shut_at: None,
            openings: 0,
            settings,
            metrics,
            requests,
            on_finished,
            gate_open,
            progress: Arc::default(),
            api,
            profile: Profile { known: None, ask: true, asking: false, knocks: false, question: 0, asked: Instant::now() },
            queue: Queue::default(),
            devices: Devices::default(),
            ages: Ages::new(Instant::now(), wall_clock()),
            unreadable: Throttle::new(),
            work: JoinSet::new(),
            sending: 0,
            settling: Vec::new(),
            requests_in_flight: Arc::new(Semaphore::new(current.upload.concurrency)),
            files: FileReader::default(),
            accepted_before: 0,
            mended: 0,
            backlog_again: None,
            stopping: None,
        };
        (uploader, deliveries, is_open)
    }

    /// Runs until it is stopped.
    pub async fn run(mut self) {
        let store = self.store.clone();
        self.load_devices().await;
        self.look_through(None);
        loop {
            // Before any turn is judged: what was accepted until now was no failure. Each cursor that becomes durable leads here.
            self.gate.grow(self.progress.accepted.load(Ordering::Relaxed), self.sending);
            self.end_settled();
            self.start_work();
            self.hold_or_not();
            self.hurry_cursors();
            if self.is_finished() {
                if let Some((_, done)) = self.stopping.take() {
                    let _ = done.send(());
                }
                return;
            }
            let wake = self.next_wake();
            tokio::select! {
                () = store.arrivals().changed() => self.take_arrivals(),
                Some(done) = self.work.join_next(), if !self.work.is_empty() => {
                    match done {
                        Ok(done) => self.done(done),
                        Err(failure) => {
                            error!(%failure, "a turn of the uploader died");
                            return;
                        }
                    }
                    // More may have ended meanwhile: one look at the queue serves them all.
                    while let Some(Ok(done)) = self.work.try_join_next() {
                        self.done(done);
                    }
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.requested(request),
                    None => return,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.timers_fired(),
            }
        }
    }

    async fn load_devices(&mut self) {
        match self.store.waiting_devices().await {
            Ok(devices) => devices.into_iter().for_each(|device| self.devices.restore(device)),
            Err(error) => warn!(%error, "the waiting devices cannot be read: they are learned anew"),
        }
    }

    /// Looks through the store for what is undelivered, page by page, beside everything else.
    fn look_through(&mut self, after: Option<SessionKey>) {
        if self.api.is_some() {
            let store = self.store.clone();
            self.work.spawn(async move { Done::Backlog(after, store.backlog(after, BACKLOG_PAGE).await) });
        }
    }

    fn looked_through(&mut self, after: Option<SessionKey>, page: Result<Vec<BacklogSession>, StoreError>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                warn!(%error, again_in = ?BACKLOG_PAUSE, "the backlog cannot be read");
                self.backlog_again = Some((Instant::now() + BACKLOG_PAUSE, after));
                return;
            }
        };
        let last = page.last().map(|session| session.handle.key);
        for BacklogSession { handle, ended, oldest } in page {
            let key = handle.key;
            // The age of what waits counts from when it was said to us, not from this start.
            let waited = wall_clock().0.saturating_sub(oldest.0).max(0).unsigned_abs();
            let since = Instant::now().checked_sub(Duration::from_millis(waited)).unwrap_or_else(Instant::now);
            let entry = self.queue.enter(handle, since, Order::Stored(oldest.0));
            entry.ended |= ended;
            entry.since = entry.since.min(since);
            // What stood in the store at the start has waited long enough.
            entry.urgent = true;
            entry.order = entry.order.min(Order::Stored(oldest.0));
            self.evaluate(key);
        }
        if last.is_some() {
            self.look_through(last);
        }
    }

    fn take_arrivals(&mut self) {
        self.ages.look(Instant::now(), wall_clock());
        if self.store.arrivals().take_rebuilt() {
            // What could not be read before may be among what was salvaged.
            self.look_through(None);
        }
        for Arrival { handle, since, ended, had_an_end, .. } in self.store.arrivals().take() {
            let key = handle.key;
            if had_an_end {
                (self.on_finished)(key);
            }
            if self.api.is_none() || (handle.pending() == 0 && !self.queue.contains(key)) {
                continue;
            }
            let entry = self.queue.enter(handle, Instant::from_std(since), Order::Since(Instant::now()));
            entry.ended = ended.unwrap_or(entry.ended);
            let mac = entry.handle.identity.mac;
            if self.queue.arrived(key) {
                debug!(mac = %mac.short(), "something arrived for a session that had looked too early: it goes on");
            }
            self.evaluate(key);
        }
    }

    /// Puts a session where it belongs. One that leaves may have been the one that was to try for its device.
    fn evaluate(&mut self, mut key: SessionKey) {
        let rule = {
            let session = &self.settings.borrow().session;
            // A daemon that stops sends whatever there is.
            let send_interval = if self.stopping.is_some() { Duration::ZERO } else { session.send_interval };
            DueRule { batch_size: session.batch_size, send_interval }
        };
        while let Some(drained) = self.queue.evaluate(key, rule) {
            if drained.finished {
                (self.on_finished)(key);
            }
            let Some(next) = self.devices.left(key, drained.mac) else { return };
            self.queue.unpark(next);
            key = next;
        }
    }

    fn start_work(&mut self) {
        let Some(api) = self.api.clone() else { return };
        if let Some(reason) = api.unusable().filter(|_| !matches!(self.gate.closed(), Some((Closed::Operator(_), _)))) {
            let change = self.gate.operator(&reason, now(), random());
            self.announce(change);
        }
        if let Some(probe) = self.gate.start_probe(now()) {
            self.knock(probe, &api);
            return;
        }
        if self.gate.closed().is_some() {
            return;
        }
        let stale = self.profile.asked.elapsed() >= PROFILE_EVERY;
        if (self.profile.ask || stale) && self.queue.has_ready() {
            self.ask_profile(&api, false);
        }
        // A profile that is only old serves until the new one is there.
        if self.profile.known.is_none() || self.profile.ask {
            return;
        }
        while self.sending < self.gate.turns() && self.send_next(&api, TURN_MESSAGES, false) {}
    }

    /// Turns that only wait for their cursor make room, if somebody needs it: else the cursor is written with what comes next.
    fn hurry_cursors(&mut self) {
        let crowded = self.stopping.is_some() || (self.queue.has_ready() && self.sending >= self.gate.turns());
        let mut any = false;
        for turn in self.settling.iter_mut().filter(|turn| !turn.hurried) {
            turn.hurried = crowded || turn.knocked || !matches!(turn.end.outcome, Outcome::Drained);
            any |= turn.hurried;
        }
        if any {
            self.store.hurry_cursors();
        }
    }

    /// Ends the turns whose cursors are durable.
    fn end_settled(&mut self) {
        while let Some(at) = self.settling.iter().position(|turn| turn.handle.is_settled()) {
            let turn = self.settling.swap_remove(at);
            self.turn_ended(turn);
        }
    }

    /// Asks for the server's profile, once at a time.
    fn ask_profile(&mut self, api: &ManagerApi, knocks: bool) {
        self.profile.knocks |= knocks;
        if std::mem::replace(&mut self.profile.asking, true) {
            return;
        }
        let (api, question) = (api.clone(), self.profile.question);
        self.work.spawn(async move { Done::Profile(question, api.profile().await) });
    }

    /// The server may have become another one: an answer that is still under way does not count.
    fn doubt_profile(&mut self) {
        self.profile.ask = true;
        if std::mem::take(&mut self.profile.asking) {
            self.profile.question += 1;
            if std::mem::take(&mut self.profile.knocks) {
                self.gate.probe_again(now());
            }
        }
    }

    fn knock(&mut self, probe: Probe, api: &ManagerApi) {
        match probe {
            Probe::EmptyReport => {
                let (files, api) = (self.files.read_again(api), api.clone());
                self.work.spawn(async move {
                    let unreadable = files.await;
                    Done::Probe(unreadable, api.probe().await)
                });
            }
            Probe::Profile => self.ask_profile(api, true),
            // After a failed connection the server may have become another one: its profile first.
            Probe::OldestMessage if self.profile.ask => self.ask_profile(api, true),
            Probe::OldestMessage => {
                if !self.send_next(api, 1, true) {
                    self.gate.probe_again(now());
                }
            }
        }
    }

    /// Starts the turn of the oldest due session. `false`: there is none.
    fn send_next(&mut self, api: &ManagerApi, limit: usize, knocks: bool) -> bool {
        let Some(profile) = self.profile.known else { return false };
        let settings = self.settings.borrow().clone();
        let (retry, hold) = (settings.upload.unknown_device_retry, settings.upload.unknown_device_hold);
        loop {
            let Some((key, entry)) = self.queue.pop_ready() else { return false };
            let (limit, expire_before) = match self.devices.admit(key, entry.handle.identity.mac, retry, hold) {
                Admission::Free => (limit, None),
                Admission::Trial => (1, None),
                Admission::HoldIsOver => {
                    let now = Instant::now();
                    self.ages.look(now, wall_clock());
                    (1, Some(self.ages.waited_for(hold, now)))
                }
                Admission::Parked => {
                    entry.refuse_waiters(UNKNOWN_DEVICE);
                    self.queue.park(key);
                    continue;
                }
            };
            let turn = Turn {
                handle: Arc::clone(&entry.handle),
                store: self.store.clone(),
                api: api.clone(),
                profile,
                settings,
                metrics: Arc::clone(&self.metrics),
                progress: Arc::clone(&self.progress),
                requests: Arc::clone(&self.requests_in_flight),
                limit,
                knocks,
                expire_before,
                losses: BTreeMap::new(),
            };
            self.sending += 1;
            let handle = Arc::clone(&entry.handle);
            self.work
                .spawn(async move { Done::Turn(Settling { handle, knocked: knocks, end: turn.run().await, hurried: false }) });
            return true;
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Turn(turn) => self.settling.push(turn),
            Done::Files(unreadable) => self.files.tell(unreadable),
            Done::Probe(unreadable, verdict) => {
                self.files.tell(unreadable);
                self.probed(&verdict);
            }
            Done::Profile(question, answer) if question == self.profile.question => self.profile_answered(answer),
            Done::Profile(..) => {}
            Done::Backlog(after, page) => self.looked_through(after, page),
        }
    }

    fn probed(&mut self, verdict: &Verdict) {
        self.gate.probe_over();
        let change = match verdict {
            Verdict::Operator { reason } | Verdict::Refused { answer: reason } => self.gate.operator(reason, now(), random()),
            Verdict::Later { reason, retry_after, .. } => {
                self.doubt_profile();
                self.gate.later(reason, true, *retry_after, now(), random())
            }
            Verdict::Delivered | Verdict::Unregistered { .. } | Verdict::Rejected { .. } => self.gate.welcomed(),
        };
        self.announce(change);
    }

    fn profile_answered(&mut self, answer: Result<ServerProfile, ProfileUnknown>) {
        self.profile.asking = false;
        self.profile.asked = Instant::now();
        let knocked = std::mem::take(&mut self.profile.knocks);
        if knocked {
            self.gate.probe_over();
        }
        let change = match answer.and_then(|profile| profile.believed_after(self.profile.known)) {
            Ok(profile) => {
                if self.profile.known != Some(profile) {
                    info!(unit = profile.unit.as_str(), "the server's profile is known");
                }
                self.profile.known = Some(profile);
                self.profile.ask = false;
                match self.gate.closed() {
                    Some((Closed::ProfileUnknown(_), _)) => self.gate.welcomed(),
                    // An outage is over only when a message is taken: `probe_judged` has it knock with one.
                    _ => Change::None,
                }
            }
            Err(unknown) => {
                self.profile.known = None;
                self.profile.ask = true;
                match self.gate.closed() {
                    Some((Closed::Outage(_), _)) => self.gate.later(&unknown.reason, true, None, now(), random()),
                    // The operator is needed first; the profile is asked for when that is done.
                    Some((Closed::Operator(_), _)) => Change::None,
                    _ => self.gate.profile_unknown(&unknown.reason, now(), random()),
                }
            }
        };
        if knocked {
            self.gate.probe_judged(now());
        }
        self.announce(change);
    }

    fn timers_fired(&mut self) {
        let now = Instant::now();
        while let Some(key) = self.queue.pop_timer(now) {
            self.evaluate(key);
        }
        while let Some(mac) = self.devices.pop_timer(now) {
            self.try_device(mac);
        }
        if let Some((_, after)) = self.backlog_again.take_if(|(at, _)| *at <= now) {
            self.look_through(after);
        }
    }

    /// Tells the turns whether they may go on.
    fn hold_or_not(&self) {
        let hold = self.profile.ask || self.sending > self.gate.turns();
        if !self.progress.hold.swap(hold, Ordering::Relaxed) && hold {
            self.progress.held.notify_waiters();
        }
    }

    fn announce(&mut self, change: Change) {
        self.hold_or_not();
        let closed = self.gate.closed();
        let open = closed.is_none() && self.api.is_some();
        self.gate_open.send_if_modified(|now| std::mem::replace(now, open) != open);
        match (change, closed) {
            (Change::Closed, Some((why, _))) => {
                self.metrics.gate_closings.increment();
                self.shut_at.get_or_insert_with(Instant::now);
                let hint = match (why, &self.api) {
                    (Closed::Operator(_), Some(api)) => Some(api.renewal()),
                    _ => None,
                };
                warn!(
                    kind = why.kind(),
                    reason = why.reason(),
                    hint,
                    "the gate is closed: nothing is sent, nothing is lost, it is probed"
                );
                for entry in self.queue.entries_mut() {
                    entry.refuse_waiters("the gate to the Manager API is closed");
                }
            }
            (Change::Opened, _) => {
                self.openings += 1;
                let after = self.shut_at.take().map(|since| tracing::field::debug(since.elapsed()));
                info!(after, "the gate is open: messages are sent");
            }
            _ => {}
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let outage = matches!(self.gate.closed(), Some((Closed::Outage(_), _)));
        let can_knock = self.api.is_some() && (self.queue.has_ready() || !outage);
        let probe = self.gate.next_probe().filter(|_| can_knock).map(Instant::from_std);
        let stop = self.stopping.as_ref().map(|(deadline, _)| *deadline);
        let backlog = self.backlog_again.as_ref().map(|(at, _)| *at);
        [self.queue.next_timer(), self.devices.next_timer(), backlog, probe, stop].into_iter().flatten().min()
    }

    /// Whether a stop has come to its end: all sent, no way to send, or no time left.
    fn is_finished(&mut self) -> bool {
        let Some((deadline, _)) = &self.stopping else { return false };
        let no_way = self.gate.closed().is_some() || self.api.is_none();
        let idle = self.work.is_empty() && self.settling.is_empty() && (no_way || !self.queue.has_any_soon());
        if idle || *deadline <= Instant::now() {
            self.work.abort_all();
            return true;
        }
        false
    }
}
