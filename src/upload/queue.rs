//! The sessions that have something to send: which are due, in which order, and which wait for what.
//!
//! Bounded by the number of sessions with undelivered messages: one that has none is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::deliveries::Delivered;
use super::due::{Backlog, DueRule};
use super::poison::Strikes;
use crate::observe::{Ended, Episode};
use crate::protocol::MacAddress;
use crate::store::{RowId, SessionHandle, SessionKey};

/// All sessions with undelivered messages.
#[derive(Default)]
pub(super) struct Queue {
    /// Boxed: the table is up to half empty, and moves when it grows.
    sessions: HashMap<SessionKey, Box<Entry>>,
    /// Due sessions, oldest first.
    ready: BTreeMap<Place, SessionKey>,
    timers: BTreeSet<(Instant, SessionKey)>,
    places: u64,
}

/// A place in the queue: the session's order, then arrival.
type Place = (Order, u64);

/// What a session is older than others by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Order {
    /// It stood in the store, before all that this run took in: the wall clock of its oldest message.
    Stored(i64),
    /// When it came, or had its last turn: not by the wall clock, for one that ran ahead for a while would leave sessions
    /// behind all later ones.
    Since(Instant),
}

/// One session.
pub(super) struct Entry {
    pub(super) handle: Arc<SessionHandle>,
    pub(super) ended: bool,
    /// Due whatever its number and age of messages.
    pub(super) urgent: bool,
    /// When its oldest message was taken in.
    pub(super) since: Instant,
    pub(super) order: Order,
    /// Messages accepted or rejected since it is known here.
    pub(super) passed: u64,
    /// Messages accepted since it is known here.
    pub(super) accepted: u64,
    /// Failed attempts in a row.
    pub(super) failures: u32,
    pub(super) strikes: Strikes,
    /// The message to which an answer was given that an operator must act on, and how often the gate had opened by then.
    pub(super) forbidden: Option<(RowId, u64)>,
    /// Its reports fail.
    pub(super) trouble: Episode,
    pub(super) backoff: Option<Box<Backoff>>,
    stage: Stage,
    /// Something arrived since its turn began.
    news: bool,
    waiters: Vec<Waiter>,
}

struct Waiter {
    target: u64,
    began: u64,
    reply: oneshot::Sender<Delivered>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    /// Until its oldest message is old enough.
    Waiting(Instant),
    Ready(Place),
    Sending,
    BackingOff(Instant),
    /// What the books say is pending is still being committed: until it has arrived, or at most until then.
    Unseen(Instant),
    /// Its device is not registered.
    Parked,
}

/// A session has nothing left to send and is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Drained {
    /// Its device.
    pub(super) mac: MacAddress,
    /// It has ended, and messages of it went through.
    pub(super) finished: bool,
}

impl Queue {
    /// The session's entry, made when it is new here.
    pub(super) fn enter(&mut self, handle: Arc<SessionHandle>, since: Instant, order: Order) -> &mut Entry {
        self.sessions.entry(handle.key).or_insert_with(|| Box::new(Entry::new(handle, since, order)))
    }

    pub(super) fn get(&mut self, key: SessionKey) -> Option<&mut Entry> {
        self.sessions.get_mut(&key).map(Box::as_mut)
    }

    pub(super) fn contains(&self, key: SessionKey) -> bool {
        self.sessions.contains_key(&key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.sessions.values().map(Box::as_ref)
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.sessions.values_mut().map(Box::as_mut)
    }

    pub(super) fn keys(&self) -> Vec<SessionKey> {
        self.sessions.keys().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether a session is due.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a session will be due without anything new happening, or is.
    pub(super) fn has_any_soon(&self) -> bool {
        self.sessions
            .values()
            .any(|entry| matches!(entry.stage, Stage::BackingOff(_) | Stage::Unseen(_) | Stage::Waiting(_) | Stage::Ready(_)))
    }

    /// The oldest due session, which is then being sent.
    pub(super) fn pop_ready(&mut self) -> Option<(SessionKey, &mut Entry)> {
        loop {
            let (_, key) = self.ready.pop_first()?;
            if self.sessions.contains_key(&key) {
                let entry = self.sessions.get_mut(&key)?;
                entry.stage = Stage::Sending;
                entry.news = false;
                return Some((key, entry));
            }
        }
    }

    /// Puts a session where it belongs by what is known of it.
    pub(super) fn evaluate(&mut self, key: SessionKey, rule: DueRule) -> Option<Drained> {
        let entry = self.sessions.get_mut(&key)?;
        entry.answer_waiters();
        let pending = entry.handle.pending();
        match entry.stage {
            Stage::Sending => return None,
            Stage::Parked | Stage::BackingOff(_) | Stage::Unseen(_) | Stage::Ready(_) if pending > 0 => return None,
            Stage::Ready(place) => {
                self.ready.remove(&place);
            }
            Stage::Waiting(at) | Stage::BackingOff(at) | Stage::Unseen(at) => {
                self.timers.remove(&(at, key));
            }
            Stage::Idle | Stage::Parked => {}
        }
        entry.stage = Stage::Idle;
        let urgent = entry.urgent || entry.ended || !entry.waiters.is_empty();
        let now = Instant::now();
        match rule.due_at(Backlog { pending, since: entry.since.into_std(), urgent }).map(Instant::from_std) {
            None => {
                let drained = Drained { mac: entry.handle.identity.mac, finished: entry.ended && entry.passed > 0 };
                self.sessions.remove(&key);
                return Some(drained);
            }
            Some(at) if at <= now => {
                self.places += 1;
                let place = (entry.order, self.places);
                entry.stage = Stage::Ready(place);
                self.ready.insert(place, key);
            }
            Some(at) => {
                entry.stage = Stage::Waiting(at);
                self.timers.insert((at, key));
            }
        }
        None
    }

    /// The session takes no turn until then.
    pub(super) fn back_off(&mut self, key: SessionKey, delay: Duration) {
        let at = Instant::now() + delay;
        if let Some(entry) = self.sessions.get_mut(&key) {
            entry.stage = Stage::BackingOff(at);
            entry.answer_waiters();
            self.timers.insert((at, key));
        }
    }

    /// The session found nothing of what is pending: it takes no turn until that has arrived, unless it did during the turn.
    pub(super) fn await_arrival(&mut self, key: SessionKey, at_most: Duration) {
        let at = Instant::now() + at_most;
        if let Some(entry) = self.sessions.get_mut(&key).filter(|entry| !entry.news) {
            entry.stage = Stage::Unseen(at);
            self.timers.insert((at, key));
        }
    }

    /// Something of the session arrived, as a rule messages that are there to be sent; to be evaluated. Answers whether it waited.
    pub(super) fn arrived(&mut self, key: SessionKey) -> bool {
        let Some(entry) = self.sessions.get_mut(&key) else { return false };
        entry.news = true;
        let Stage::Unseen(at) = entry.stage else { return false };
        self.timers.remove(&(at, key));
        entry.stage = Stage::Idle;
        true
    }

    /// The session waits until [`Self::unpark`].
    pub(super) fn park(&mut self, key: SessionKey) {
        if let Some(entry) = self.sessions.get_mut(&key) {
            entry.stage = Stage::Parked;
        }
    }

    /// The session, if it was parked, is due again; to be evaluated.
    pub(super) fn unpark(&mut self, key: SessionKey) {
        if let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.stage == Stage::Parked) {
            entry.stage = Stage::Idle;
            entry.urgent = true;
        }
    }

    /// Its turn is over; to be evaluated.
    pub(super) fn turn_over(&mut self, key: SessionKey) -> Option<&mut Entry> {
        let entry = self.sessions.get_mut(&key)?;
        entry.stage = Stage::Idle;
        entry.urgent = false;
        Some(entry)
    }

    /// Ends a backoff before its time; to be evaluated.
    pub(super) fn cut_backoff_short(&mut self, key: SessionKey) {
        if let Some(entry) = self.sessions.get_mut(&key)
            && let Stage::BackingOff(at) = entry.stage
        {
            self.timers.remove(&(at, key));
            entry.stage = Stage::Idle;
        }
    }

    /// When the next session is due or its backoff over.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// A session whose time has come; to be evaluated.
    pub(super) fn pop_timer(&mut self, now: Instant) -> Option<SessionKey> {
        let &(at, key) = self.timers.first().filter(|(at, _)| *at <= now)?;
        self.timers.pop_first();
        if let Some(entry) = self.sessions.get_mut(&key)
            && matches!(entry.stage, Stage::Waiting(due) | Stage::BackingOff(due) | Stage::Unseen(due) if due == at)
        {
            entry.stage = Stage::Idle;
        }
        Some(key)
    }
}

impl Entry {
    fn new(handle: Arc<SessionHandle>, since: Instant, order: Order) -> Self {
        Self {
            handle,
            ended: false,
            urgent: false,
            since,
            order,
            passed: 0,
            accepted: 0,
            failures: 0,
            strikes: Strikes::default(),
            forbidden: None,
            trouble: Episode::new(),
            backoff: None,
            stage: Stage::Idle,
            news: false,
            waiters: Vec::new(),
        }
    }

    /// Something went through: what went wrong before is forgotten. Answers what is over now.
    pub(super) fn forgive(&mut self, now: Instant) -> Option<Ended> {
        self.failures = 0;
        self.strikes.head_is_through();
        self.forbidden = None;
        self.backoff = None;
        self.trouble.ends(now.into_std())
    }

    pub(super) const fn is_backing_off(&self) -> bool {
        matches!(self.stage, Stage::BackingOff(_))
    }

    /// Somebody waits until what is pending now is through.
    pub(super) fn wait(&mut self, reply: oneshot::Sender<Delivered>) {
        self.waiters.push(Waiter { target: self.handle.accepted(), began: self.handle.left(), reply });
    }

    fn answer_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let (left, pending) = (self.handle.left(), self.handle.pending());
        for waiter in std::mem::take(&mut self.waiters) {
            if left >= waiter.target {
                let _ = waiter.reply.send(Delivered { delivered: left - waiter.began, pending, reason: None });
            } else if !waiter.reply.is_closed() {
                self.waiters.push(waiter);
            }
        }
    }

    /// It cannot happen soon: whoever waits is told why.
    pub(super) fn refuse_waiters(&mut self, reason: &'static str) {
        let (left, pending) = (self.handle.left(), self.handle.pending());
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Delivered { delivered: left - waiter.began, pending, reason: Some(reason) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{SessionId, SessionIdentity};
    use crate::store::Cursor;

    const RULE: DueRule = DueRule { batch_size: 5, send_interval: Duration::from_secs(30) };

    fn handle(key: i64, pending: u64) -> Arc<SessionHandle> {
        let identity = SessionIdentity { mac: MacAddress::from_octets([0; 6]), session_id: SessionId::new("s").unwrap() };
        Arc::new(SessionHandle::new(SessionKey(key), identity, Cursor::default(), pending))
    }

    fn enter(queue: &mut Queue, key: i64, pending: u64, order: i64) {
        queue.enter(handle(key, pending), Instant::now(), Order::Stored(order));
        queue.evaluate(SessionKey(key), RULE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_due_session_goes_first_and_a_lone_message_waits_for_its_age() {
        let mut queue = Queue::default();
        enter(&mut queue, 1, 5, 300);
        enter(&mut queue, 2, 7, 100);
        enter(&mut queue, 3, 1, 1);
        assert_eq!(queue.pop_ready().map(|(key, _)| key), Some(SessionKey(2)));
        assert_eq!(queue.pop_ready().map(|(key, _)| key), Some(SessionKey(1)));
        assert!(queue.pop_ready().is_none());
        assert_eq!(queue.pop_timer(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stood_in_the_store_goes_before_what_came_in_this_run() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for (key, order) in [
            (1, Order::Since(now + Duration::from_secs(1))),
            (2, Order::Since(now)),
            (3, Order::Stored(i64::MAX)),
            (4, Order::Stored(0)),
        ] {
            queue.enter(handle(key, 5), now, order);
            queue.evaluate(SessionKey(key), RULE);
        }
        let order: Vec<i64> = std::iter::from_fn(|| queue.pop_ready().map(|(key, _)| key.0)).collect();
        assert_eq!(order, [4, 3, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_in_backoff_is_not_due_until_its_time() {
        let mut queue = Queue::default();
        enter(&mut queue, 1, 5, 1);
        let (key, _) = queue.pop_ready().unwrap();
        queue.turn_over(key);
        queue.back_off(key, Duration::from_secs(2));
        queue.evaluate(key, RULE);
        assert!(!queue.has_ready());
        assert!(queue.has_any_soon());
        queue.cut_backoff_short(key);
        queue.evaluate(key, RULE);
        assert!(queue.has_ready());
        assert_eq!(queue.next_timer(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_whose_messages_are_not_to_be_seen_yet_goes_on_when_they_arrive() {
        let mut queue = Queue::default();
        let turn_without_a_find = |queue: &mut Queue, key| {
            queue.turn_over(key);
            queue.await_arrival(key, Duration::from_secs(1));
            queue.evaluate(key, RULE);
        };
        enter(&mut queue, 1, 5, 1);
        let (key, _) = queue.pop_ready().unwrap();
        turn_without_a_find(&mut queue, key);
        assert!(!queue.has_ready() && queue.has_any_soon());
        queue.evaluate(key, RULE);
        assert!(!queue.has_ready(), "nothing arrived");
        assert!(queue.arrived(key));
        queue.evaluate(key, RULE);
        assert_eq!((queue.has_ready(), queue.next_timer()), (true, None));
        // What arrives during the turn is not waited for.
        queue.pop_ready().unwrap();
        assert!(!queue.arrived(key));
        queue.evaluate(key, RULE);
        turn_without_a_find(&mut queue, key);
        assert!(queue.has_ready());
        // What never arrives is looked for again.
        queue.pop_ready().unwrap();
        turn_without_a_find(&mut queue, key);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(queue.pop_timer(Instant::now()), Some(key));
        queue.evaluate(key, RULE);
        assert!(queue.has_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_session_stays_until_it_is_unparked() {
        let mut queue = Queue::default();
        enter(&mut queue, 1, 5, 1);
        let (key, _) = queue.pop_ready().unwrap();
        queue.park(key);
        queue.evaluate(key, RULE);
        assert!(!queue.has_ready() && queue.contains(key));
        queue.unpark(key);
        queue.evaluate(key, RULE);
        assert!(queue.has_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_without_pending_messages_is_forgotten_and_its_waiters_are_answered() {
        let mut queue = Queue::default();
        let (reply, mut answer) = oneshot::channel();
        let entry = queue.enter(handle(1, 0), Instant::now(), Order::Stored(1));
        entry.ended = true;
        entry.passed = 1;
        entry.wait(reply);
        assert_eq!(queue.evaluate(SessionKey(1), RULE), Some(Drained { mac: MacAddress::from_octets([0; 6]), finished: true }));
        assert_eq!(queue.len(), 0);
        assert_eq!(answer.try_recv().map(|delivered| delivered.reason), Ok(None));
    }
}
