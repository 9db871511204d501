//! Finds or makes the actor of a session, and knows how many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::actor::{Actor, Input};
use super::agents::AgentDirectory;
use crate::config::Settings;
use crate::observe::{Conversation, Metrics, Throttle};
use crate::protocol::SessionIdentity;
use crate::store::{Store, StoreError};

/// Batches an actor's inbox holds before its producers wait.
const INBOX_BATCHES: usize = 2;

/// When the sessions of an earlier run are looked at again while `session.max_open` is reached.
const WHEN_FULL: Duration = Duration::from_secs(1);

/// When they are looked for again after the store could not be read.
const WHEN_UNREADABLE: Duration = Duration::from_secs(1);

/// Sessions read per page at start.
const PAGE: usize = 500;

/// `session.max_open` is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many sessions are open (session.max_open)")]
pub struct TooManySessions;

/// A way to an actor. Whoever holds one keeps the actor from leaving. Its items are boxed: a channel has room for 32 of
/// them from its first one on, and ten thousand sessions have ten thousand channels.
#[derive(Clone)]
pub struct SessionRef(Arc<Door>);

struct Door {
    inbox: mpsc::Sender<Box<Input>>,
    conversation: Arc<Conversation>,
}

impl SessionRef {
    /// Hands something to the actor; waits while its inbox is full. `false` when the daemon is stopping and the actor
    /// is gone.
    ///
    /// # Cancel safety
    /// The input is either handed over or dropped.
    pub async fn send(&self, input: Input) -> bool {
        self.0.inbox.send(Box::new(input)).await.is_ok()
    }

    /// Hands over the last input of this holder, who has let go when the actor sees it: an actor that asks whether
    /// anybody holds on to it must not count the one who just said goodbye.
    pub(crate) async fn send_and_leave(self, input: Input) {
        let sender = mpsc::Sender::clone(&self.0.inbox);
        if let Ok(room) = sender.reserve_owned().await {
            drop(self);
            room.send(Box::new(input));
        }
    }
}

/// What every actor works with.
pub(super) struct Context {
    pub(super) store: Store,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) agents: AgentDirectory,
    /// Sessions that cannot be opened are told of once a minute.
    pub(super) unopened: Mutex<Throttle>,
    pub(super) sessions: Mutex<HashMap<SessionIdentity, SessionRef>>,
}

impl Context {
    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionIdentity, SessionRef>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the actor out of the registry if nobody could still send to it: nobody else holds its [`SessionRef`]
    /// (new ones are only made under the same lock) and its inbox is empty.
    pub(super) fn leave(&self, identity: &SessionIdentity, inbox: &mpsc::Receiver<Box<Input>>) -> bool {
        let mut sessions = self.sessions();
        let alone = sessions.get(identity).is_none_or(|session| Arc::strong_count(&session.0) == 1);
        if alone && inbox.is_empty() {
            sessions.remove(identity);
            self.metrics.sessions_open.set(sessions.len() as u64);
            return true;
        }
        false
    }

    /// Tells that a session cannot be opened: once a minute, with how many more there were.
    pub(super) fn tell_unopened(&self, identity: &SessionIdentity, error: &StoreError) {
        let more = self.unopened.lock().unwrap_or_else(PoisonError::into_inner).permits(Instant::now());
        if let Some(more) = more {
            error!(mac = %identity.mac.short(), %error, more, "a session cannot be opened: its lines are refused, its producer must come back");
        }
    }

    /// Whether a producer holds on to the session.
    pub(super) fn has_users(&self, identity: &SessionIdentity) -> bool {
        self.sessions().get(identity).is_some_and(|session| Arc::strong_count(&session.0) > 1)
    }
}

/// All open sessions.
#[derive(Clone)]
pub struct Registry {
    context: Arc<Context>,
    actors: TaskTracker,
}

impl Registry {
    /// A registry without sessions.
    #[must_use]
    pub fn new(store: Store, settings: watch::Receiver<Arc<Settings>>, metrics: Arc<Metrics>, agents: AgentDirectory) -> Self {
        let context = Context { store, settings, metrics, agents, unopened: Mutex::default(), sessions: Mutex::default() };
        Self { context: Arc::new(context), actors: TaskTracker::new() }
    }

    /// The way to a session's actor, which is made on first use.
    ///
    /// # Errors
    /// When it would be one actor more than `session.max_open`.
    pub fn session(&self, identity: &SessionIdentity) -> Result<SessionRef, TooManySessions> {
        let mut sessions = self.context.sessions();
        if let Some(session) = sessions.get(identity) {
            return Ok(session.clone());
        }
        if sessions.len() >= self.context.settings.borrow().session.max_open {
            return Err(TooManySessions);
        }
        let (sender, inbox) = mpsc::channel(INBOX_BATCHES);
        let conversation = Arc::new(Conversation::new(identity.clone()));
        let session = SessionRef(Arc::new(Door { inbox: sender, conversation: Arc::clone(&conversation) }));
        sessions.insert(identity.clone(), session.clone());
        self.context.metrics.sessions_open.set(sessions.len() as u64);
        drop(sessions);
        let actor = Actor::new(Arc::clone(&self.context), identity.clone(), inbox, conversation);
        self.actors.spawn(actor.run());
        Ok(session)
    }

    /// The sessions in memory.
    #[must_use]
    pub fn conversations(&self) -> Vec<Arc<Conversation>> {
        self.context.sessions().values().map(|session| Arc::clone(&session.0.conversation)).collect()
    }

    /// Sessions that were open in the store when the daemon started get an idle time from now on; those to which no
    /// producer has come back by then are ended. While the store cannot be read they wait. Runs once, beside everything
    /// else.
    ///
    /// # Cancel safety
    /// What is not ended yet stays open.
    pub async fn end_left_over_sessions(&self, idle: Duration) {
        tokio::time::sleep(idle).await;
        let (mut after, mut unreadable) = (None, Throttle::new());
        loop {
            let page = match self.context.store.open_sessions(after, PAGE).await {
                Ok(page) => page,
                Err(failure) => {
                    if let Some(more) = unreadable.permits(Instant::now()) {
                        warn!(%failure, more, "sessions left open by the last run cannot be read: they stay open until they can");
                    }
                    tokio::time::sleep(WHEN_UNREADABLE).await;
                    continue;
                }
            };
            let Some((last, _)) = page.last() else { return };
            after = Some(*last);
            for (_, identity) in page {
                loop {
                    if let Ok(session) = self.session(&identity) {
                        session.send_and_leave(Input::EndIfUntouched).await;
                        break;
                    }
                    tokio::time::sleep(WHEN_FULL).await;
                }
            }
        }
    }

    /// Ends all actors after they have worked off their inboxes. Ends no session: what is held stays held.
    pub async fn close(&self) {
        let all: Vec<SessionRef> = self.context.sessions().drain().map(|(_, session)| session).collect();
        for session in all {
            session.send(Input::Stop).await;
        }
        self.actors.close();
        self.actors.wait().await;
    }
}
