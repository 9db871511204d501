//! The one uploader task: takes what arrived, starts the turns of due sessions as far as the gate allows, and judges
//! what came of them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::deliveries::{Delivered, Deliveries, Request, Server, UploadStatus};
use super::devices::{Admission, Devices};
use super::due::DueRule;
use super::gate::{Change, Closed, Gate, Probe};
use super::poison::StrikeOutcome;
use super::queue::Queue;
use super::turn::{Failure, Outcome, Progress, TURN_MESSAGES, Turn, TurnEnd};
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::manager_api::{ManagerApi, ProfileUnknown, ServerProfile, Verdict};
use crate::observe::Metrics;
use crate::protocol::{MacAddress, UnixMillis};
use crate::store::{
    Arrival, BacklogSession, Cursor, Passed, RejectReason, Rejection, SessionHandle, SessionKey, Store, StoreError,
};

/// How often the server is asked for its profile while all goes well.
const PROFILE_EVERY: Duration = Duration::from_secs(300);

/// Sessions read per page when the backlog is looked through.
const BACKLOG_PAGE: usize = 500;

/// How long a session is held when the store could not be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

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
    profile: Profile,
    queue: Queue,
    devices: Devices,
    work: JoinSet<Done>,
    sending: usize,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
}

struct Profile {
    known: Option<ServerProfile>,
    /// Ask before the next report.
    ask: bool,
    asking: bool,
    asked: Instant,
}

enum Done {
    Turn(SessionKey, TurnEnd),
    Probe(Verdict),
    Profile(Result<ServerProfile, ProfileUnknown>),
    Backlog(Result<Vec<BacklogSession>, StoreError>),
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
            settings,
            metrics,
            requests,
            on_finished,
            gate_open,
            progress: Arc::default(),
            api,
            profile: Profile { known: None, ask: true, asking: false, asked: Instant::now() },
            queue: Queue::default(),
            devices: Devices::default(),
            work: JoinSet::new(),
            sending: 0,
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
            self.start_work();
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
            self.work.spawn(async move { Done::Backlog(store.backlog(after, BACKLOG_PAGE).await) });
        }
    }

    fn looked_through(&mut self, page: Result<Vec<BacklogSession>, StoreError>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                warn!(%error, "the backlog cannot be read: it is looked through at the next start or reload");
                return;
            }
        };
        let last = page.last().map(|session| session.handle.key);
        for BacklogSession { handle, ended, oldest } in page {
            let key = handle.key;
            let entry = self.queue.enter(handle, Instant::now(), oldest.0);
            entry.ended |= ended;
            // What stood in the store at the start has waited long enough.
            entry.urgent = true;
            entry.order = entry.order.min(oldest.0);
            self.evaluate(key);
        }
        if last.is_some() {
            self.look_through(last);
        }
    }

    fn take_arrivals(&mut self) {
        for Arrival { handle, messages, since, ended } in self.store.arrivals().take() {
            let key = handle.key;
            if ended == Some(true) {
                (self.on_finished)(key);
            }
            if self.api.is_none() || (messages == 0 && !self.queue.contains(key)) {
                continue;
            }
            let entry = self.queue.enter(handle, Instant::from_std(since), wall_clock().0);
            entry.ended = ended.unwrap_or(entry.ended);
            self.evaluate(key);
        }
    }

    fn evaluate(&mut self, key: SessionKey) {
        let rule = {
            let session = &self.settings.borrow().session;
            // A daemon that stops sends whatever there is.
            let send_interval = if self.stopping.is_some() { Duration::ZERO } else { session.send_interval };
            DueRule { batch_size: session.batch_size, send_interval }
        };
        if self.queue.evaluate(key, rule).is_some_and(|drained| drained.finished) {
            (self.on_finished)(key);
        }
    }

    fn start_work(&mut self) {
        let Some(api) = self.api.clone() else { return };
        if let Some(probe) = self.gate.start_probe(now()) {
            self.knock(probe, &api);
            return;
        }
        if self.gate.closed().is_some() || self.profile.asking {
            return;
        }
        let stale = self.profile.asked.elapsed() >= PROFILE_EVERY;
        if (self.profile.ask || stale) && self.queue.has_ready() {
            self.ask_profile(&api);
        }
        // A profile that is only old serves until the new one is there.
        if self.profile.known.is_none() || self.profile.ask {
            return;
        }
        while self.sending < self.gate.allowed() && self.send_next(&api, TURN_MESSAGES, false) {}
    }

    fn ask_profile(&mut self, api: &ManagerApi) {
        self.profile.asking = true;
        let api = api.clone();
        self.work.spawn(async move { Done::Profile(api.profile().await) });
    }

    fn knock(&mut self, probe: Probe, api: &ManagerApi) {
        match probe {
            Probe::EmptyReport => {
                // A rotated secret is found by the next knock.
                if let Err(error) = api.reload_secret() {
                    warn!(%error, "the secret cannot be read");
                }
                let api = api.clone();
                self.work.spawn(async move { Done::Probe(api.probe().await) });
            }
            Probe::Profile => self.ask_profile(api),
            // After a failed connection the server may have become another one: its profile first.
            Probe::OldestMessage if self.profile.ask => self.ask_profile(api),
            Probe::OldestMessage => {
                if !self.send_next(api, 1, true) {
                    self.gate.probe_impossible();
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
                    let hold = i64::try_from(hold.as_millis()).unwrap_or(i64::MAX);
                    (usize::MAX, Some(UnixMillis(wall_clock().0.saturating_sub(hold))))
                }
                Admission::Parked => {
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
                limit,
                knocks,
                expire_before,
                committing: entry.committing.take(),
            };
            self.sending += 1;
            self.work.spawn(async move { Done::Turn(key, turn.run().await) });
            return true;
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Turn(key, end) => self.turn_ended(key, end),
            Done::Probe(verdict) => self.probed(&verdict),
            Done::Profile(answer) => self.profile_answered(answer),
            Done::Backlog(page) => self.looked_through(page),
        }
    }

    fn probed(&mut self, verdict: &Verdict) {
        let change = match verdict {
            Verdict::Operator { reason } | Verdict::Refused { answer: reason } => self.gate.operator(reason, now(), random()),
            Verdict::Later { reason, .. } => {
                self.profile.ask = true;
                self.gate.later(reason, true, now(), random())
            }
            Verdict::Delivered | Verdict::Unregistered { .. } | Verdict::Rejected { .. } => self.gate.welcomed(),
        };
        self.announce(change);
    }

    fn profile_answered(&mut self, answer: Result<ServerProfile, ProfileUnknown>) {
        self.profile.asking = false;
        self.profile.asked = Instant::now();
        let change = match answer {
            Ok(profile) => {
                if self.profile.known != Some(profile) {
                    info!(unit = profile.unit.as_str(), "the server's profile is known");
                }
                self.profile.known = Some(profile);
                self.profile.ask = false;
                match self.gate.closed() {
                    Some((Closed::ProfileUnknown(_), _)) => self.gate.welcomed(),
                    // An outage is over only when a message is taken: knock with one.
                    Some((Closed::Outage(_), _)) => {
                        self.gate.probe_impossible();
                        self.gate.knock_now(now());
                        Change::None
                    }
                    _ => Change::None,
                }
            }
            Err(unknown) => {
                self.profile.known = None;
                self.profile.ask = true;
                match self.gate.closed() {
                    Some((Closed::Outage(_), _)) => self.gate.later(&unknown.reason, true, now(), random()),
                    _ => self.gate.profile_unknown(&unknown.reason, now(), random()),
                }
            }
        };
        self.announce(change);
    }

    fn turn_ended(&mut self, key: SessionKey, end: TurnEnd) {
        self.sending -= 1;
        let TurnEnd { accepted, passed, committing, outcome } = end;
        if accepted > 0 {
            let change = self.gate.accepted();
            self.announce(change);
        }
        if let Some(entry) = self.queue.turn_over(key) {
            entry.committing = committing;
            entry.passed += passed;
            entry.accepted += accepted;
            if passed > 0 {
                entry.forgive();
            }
            let mac = entry.handle.identity.mac;
            if accepted > 0 {
                self.device_is_known(mac);
            }
            self.judge(key, mac, outcome);
            if accepted == 0 && passed > 0 && self.devices.is_waiting(mac) {
                self.try_device(mac);
            }
            self.evaluate(key);
        }
        if self.sending == 0 {
            // A knock may have come back without an answer about the gate.
            self.gate.probe_impossible();
        }
    }

    fn judge(&mut self, key: SessionKey, mac: MacAddress, outcome: Outcome) {
        match outcome {
            Outcome::Drained => {
                if let Some(entry) = self.queue.get(key) {
                    entry.since = Instant::now();
                    entry.order = wall_clock().0;
                }
            }
            Outcome::More => {
                if let Some(entry) = self.queue.get(key) {
                    // To the back of the queue, and due.
                    entry.order = wall_clock().0;
                    entry.urgent = true;
                }
            }
            Outcome::Failed(failure) => self.failed(key, &failure),
            Outcome::Unregistered => {
                let change = self.gate.answered();
                self.announce(change);
                self.park(key, mac);
            }
            Outcome::Unreadable(error) => {
                warn!(mac = %mac.short(), %error, "a session cannot be read and is held");
                self.queue.back_off(key, UNREADABLE_PAUSE);
            }
        }
    }

    fn failed(&mut self, key: SessionKey, failure: &Failure) {
        let Failure { verdict, alone, unanswered, .. } = failure;
        // A connection that broke may lead to another server next time.
        self.profile.ask |= *unanswered;
        let change = match verdict {
            Verdict::Operator { reason } => self.gate.operator(reason, now(), random()),
            Verdict::Refused { answer } => self.gate.refused(key, answer, now(), random()),
            Verdict::Later { reason, .. } => self.gate.later(reason, *alone, now(), random()),
            Verdict::Delivered | Verdict::Unregistered { .. } | Verdict::Rejected { .. } => self.gate.answered(),
        };
        self.announce(change);
        if matches!(verdict, Verdict::Operator { .. }) {
            // Not the session's fault: it is among the first when the gate opens.
            if let Some(entry) = self.queue.get(key) {
                entry.urgent = true;
            }
        } else if !self.rejects_poison(key, failure) {
            self.repeat_later(key, verdict);
        }
    }

    /// The poison rule. `true`: the message is rejected and its session goes on.
    fn rejects_poison(&mut self, key: SessionKey, failure: &Failure) -> bool {
        let limit = self.settings.borrow().upload.poison_attempts;
        let accepted = self.progress.accepted.load(Ordering::Relaxed);
        let Some(entry) = self.queue.get(key).filter(|_| failure.about_the_message) else { return false };
        let by_others = accepted.saturating_sub(entry.accepted);
        if entry.strikes.on_failure(failure.row, by_others, limit) != StrikeOutcome::Reject {
            return false;
        }
        let answer = failure.verdict.text();
        error!(
            mac = %entry.handle.identity.mac.short(), row = failure.row.0, answer,
            "a message is rejected: the server refuses it again and again while it takes others"
        );
        let cursor = Cursor { row: failure.row, offset: 0, last_report: entry.handle.cursor().last_report };
        let rejection = Rejection { reason: RejectReason::RefusedByServer, answer: Some(answer.to_owned()) };
        entry.committing = Some(self.store.advance(&entry.handle, cursor, Passed::rejected(failure.row, rejection)));
        entry.passed += 1;
        entry.forgive();
        entry.urgent = true;
        true
    }

    /// `retry_attempts` in a row with growing pauses, then the longest one at the back of the queue.
    fn repeat_later(&mut self, key: SessionKey, verdict: &Verdict) {
        let retry_after = if let Verdict::Later { retry_after, .. } = verdict { *retry_after } else { None };
        let settings = self.settings.borrow().clone();
        let upload = &settings.upload;
        let Some(entry) = self.queue.get(key) else { return };
        entry.failures += 1;
        entry.urgent = true;
        entry.order = wall_clock().0;
        let delay = if entry.failures > upload.retry_attempts {
            Backoff::new(upload.backoff_max, upload.backoff_max).next_delay(retry_after, random())
        } else {
            let new = || Box::new(Backoff::new(upload.backoff_initial, upload.backoff_max));
            entry.backoff.get_or_insert_with(new).next_delay(retry_after, random())
        };
        warn!(
            mac = %entry.handle.identity.mac.short(), failures = entry.failures, again_in = ?delay, reason = verdict.text(),
            "a report failed and is repeated"
        );
        self.queue.back_off(key, delay);
    }

    /// The server does not know the device: all its sessions wait, and only they.
    fn park(&mut self, key: SessionKey, mac: MacAddress) {
        let retry = self.settings.borrow().upload.unknown_device_retry;
        let noted = self.devices.unregistered(key, mac, wall_clock(), Instant::now() + retry);
        self.queue.park(key);
        if let Some(entry) = self.queue.get(key) {
            entry.refuse_waiters("the server does not know the device (register it)");
        }
        if let Some(record) = noted.record {
            self.store.note_waiting(record);
        }
        if noted.fresh {
            warn!(mac = %mac.short(), again_in = ?retry, "the server does not know this device: its messages wait (register it)");
        }
    }

    fn device_is_known(&mut self, mac: MacAddress) {
        let Some(parked) = self.devices.registered(mac) else { return };
        info!(mac = %mac.short(), sessions = parked.len() + 1, "the device is registered now: its messages are sent");
        self.store.clear_waiting(mac);
        for key in parked {
            self.queue.unpark(key);
            self.evaluate(key);
        }
    }

    /// One session of a waiting device tries again; where none waits, its next message does.
    fn try_device(&mut self, mac: MacAddress) {
        if let Some(key) = self.devices.next_trial(mac) {
            self.queue.unpark(key);
            self.evaluate(key);
        }
    }

    fn timers_fired(&mut self) {
        let now = Instant::now();
        while let Some(key) = self.queue.pop_timer(now) {
            self.evaluate(key);
        }
        while let Some(mac) = self.devices.pop_timer(now) {
            self.try_device(mac);
        }
    }

    fn requested(&mut self, request: Request) {
        match request {
            Request::Heartbeat(answer) => {
                let _ = answer.send(());
            }
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Wait { handle, reply } => self.wait(handle, reply),
            Request::Stop { grace, done } => self.stop(grace, done),
            Request::Reload(server) => self.reload(server),
        }
    }

    fn reload(&mut self, server: Server) {
        let settings = self.settings.borrow().clone();
        self.gate.reconfigure(settings.upload.concurrency, gate_backoff(&settings));
        self.gate.knock_now(now());
        if let Server::Changed(api) = server {
            let appeared = self.api.is_none() && api.is_some();
            self.api = api;
            self.profile.known = None;
            self.profile.ask = true;
            self.announce(Change::None);
            if appeared {
                self.look_through(None);
            }
        }
    }

    fn stop(&mut self, grace: Duration, done: oneshot::Sender<()>) {
        self.take_arrivals();
        self.stopping = Some((Instant::now() + grace, done));
        for key in self.queue.keys() {
            // Sleeps are cut short, once: a failing server is not hammered in the time that is left.
            self.queue.cut_backoff_short(key);
            self.evaluate(key);
        }
    }

    fn wait(&mut self, handle: Arc<SessionHandle>, reply: oneshot::Sender<Delivered>) {
        let pending = handle.pending();
        let mac = handle.identity.mac;
        let reason = if pending == 0 {
            None
        } else if self.api.is_none() {
            Some("no manager_api.url is set")
        } else if self.gate.closed().is_some() {
            Some("the gate to the Manager API is closed")
        } else if self.devices.is_waiting(mac) {
            Some("the server does not know the device (register it)")
        } else if self.store.health().failing.is_some() {
            Some("the store cannot be written")
        } else {
            let key = handle.key;
            self.queue.enter(handle, Instant::now(), wall_clock().0).wait(reply);
            self.evaluate(key);
            return;
        };
        let _ = reply.send(Delivered { delivered: 0, pending, reason });
    }

    fn announce(&mut self, change: Change) {
        let closed = self.gate.closed();
        self.progress.closed.store(closed.is_some(), Ordering::Relaxed);
        let open = closed.is_none() && self.api.is_some();
        self.gate_open.send_if_modified(|now| std::mem::replace(now, open) != open);
        match (change, closed) {
            (Change::Closed, Some((why, _))) => {
                self.metrics.gate_closings.increment();
                warn!(
                    kind = why.kind(),
                    reason = why.reason(),
                    "the gate is closed: nothing is sent, nothing is lost, it is probed"
                );
                for entry in self.queue.entries_mut() {
                    entry.refuse_waiters("the gate to the Manager API is closed");
                }
            }
            (Change::Opened, _) => info!("the gate is open: messages are sent"),
            _ => {}
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let outage = matches!(self.gate.closed(), Some((Closed::Outage(_), _)));
        let can_knock = self.api.is_some() && (self.queue.has_ready() || !outage);
        let probe = self.gate.next_probe().filter(|_| can_knock).map(Instant::from_std);
        let stop = self.stopping.as_ref().map(|(deadline, _)| *deadline);
        [self.queue.next_timer(), self.devices.next_timer(), probe, stop].into_iter().flatten().min()
    }

    /// Whether a stop has come to its end: all sent, no way to send, or no time left.
    fn is_finished(&mut self) -> bool {
        let Some((deadline, _)) = &self.stopping else { return false };
        let no_way = self.gate.closed().is_some() || self.api.is_none();
        let idle = self.work.is_empty() && (no_way || !self.queue.has_any_soon());
        if idle || *deadline <= Instant::now() {
            self.work.abort_all();
            return true;
        }
        false
    }

    fn status(&self) -> UploadStatus {
        UploadStatus {
            closed: self.gate.closed().map(|(why, since)| (why.kind(), why.reason().to_owned(), Instant::from_std(since))),
            configured: self.api.is_some(),
            time_unit: self.profile.known.map(|profile| profile.unit.as_str()),
            sending: self.sending,
            sessions_pending: self.queue.len(),
            backing_off: self.queue.entries().filter(|entry| entry.is_backing_off()).count(),
            devices_waiting: self.devices.count(),
            strikes: self.queue.entries().map(|entry| entry.strikes.most()).max().unwrap_or(0),
            oldest: self.queue.entries().map(|entry| entry.since).min(),
        }
    }
}
