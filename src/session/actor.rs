//! The actor of one session: takes batches of lines, makes one atomic write of each, and ends the session when its
//! producer says so or has long been silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::memory::{Draft, Memory};
use super::registry::Context;
use crate::clock::wall_clock;
use crate::observe::{Conversation, Skip};
use crate::protocol::{LiveKitEvent, Message, SessionEnd, SessionIdentity, SessionStart, UnixMillis};
use crate::store::{
    BindError, Lifecycle, NoRoom, OnSettled, OpenedSession, SessionHandle, SessionWrite, Settled, StoreError, StreamStand,
};

/// One line's effect on its session.
#[derive(Debug)]
pub struct Entry {
    /// The line's number on its stream.
    pub seq: Option<u64>,
    /// What it says.
    pub event: Event,
}

/// What a line says to its session.
#[derive(Debug)]
pub enum Event {
    /// A message.
    Message(Message),
    /// An event of the framework.
    LiveKit(LiveKitEvent),
    /// The end.
    End(SessionEnd),
    /// Nothing (a refused or control line): only its number is settled.
    Nothing,
}

impl Event {
    /// How many it counts for in the books.
    #[must_use]
    pub fn weight(&self) -> u64 {
        match self {
            Self::LiveKit(LiveKitEvent::Tools(records)) => (records.len() as u64).max(1),
            Self::Message(_) | Self::LiveKit(_) => 1,
            Self::End(_) | Self::Nothing => 0,
        }
    }
}

/// The connection a batch came from, as the actor sees it: once a batch of it was refused, its later ones are, too,
/// for a stream must not have a hole.
#[derive(Debug, Default)]
pub struct ProducerLink {
    cut: AtomicBool,
}

impl ProducerLink {
    /// Nothing later from this connection is taken.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether it was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

/// Lines of one connection for one session, in order.
pub struct Batch {
    /// The lines.
    pub entries: Vec<Entry>,
    /// The stream their numbers belong to.
    pub stream: Option<Arc<str>>,
    /// The connection.
    pub link: Arc<ProducerLink>,
    /// When they were read.
    pub recorded: UnixMillis,
    /// Told what became of them, after their effects are durable.
    pub on_settled: OnSettled,
    /// Their share of the memory for long lines: given back when the store has them.
    pub share: Option<OwnedSemaphorePermit>,
}

/// What can be handed to an actor.
pub enum Input {
    /// Lines.
    Batch(Batch),
    /// `session_start`: binds a stream. Answered with how far its lines are known.
    Start {
        /// The line.
        start: SessionStart,
        /// When it was read.
        recorded: UnixMillis,
        /// The answer.
        reply: oneshot::Sender<Result<StreamStand, BindRefused>>,
    },
    /// Tells when everything handed over before is settled, and names the session for a wait for its delivery.
    Barrier {
        /// The answer; dropped unsent when the daemon stops first.
        reply: oneshot::Sender<Reached>,
    },
    /// A producer's connection is gone: idle time starts now.
    ProducerLeft,
    /// Left open by an earlier run: end it unless a producer came back.
    EndIfUntouched,
    /// Work off what is there, then leave without ending the session.
    Stop,
}

/// What is said at a barrier: everything before it is durable, and of this session; or that will take long.
pub type Reached = Result<Arc<SessionHandle>, Unsettled>;

/// What was handed over cannot be durable soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsettled {
    /// Messages of the session that are to be delivered.
    pub pending: u64,
    /// Why.
    pub reason: &'static str,
}

/// Why a stream could not be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindRefused {
    /// It belongs to another session.
    Taken,
    /// The store cannot open the session now.
    Unavailable,
}

/// An end that the store may still refuse: what it emits stays held then, and the session stays open.
struct Ending {
    is_idle: bool,
    outcome: oneshot::Receiver<Settled>,
}

pub(super) struct Actor {
    context: Arc<Context>,
    identity: SessionIdentity,
    inbox: mpsc::Receiver<Box<Input>>,
    memory: Option<Memory>,
    conversation: Arc<Conversation>,
    /// The last end of the session, until it is known what became of it.
    ending: Option<Ending>,
    /// The framework closed its session: held transcripts are emitted after the idle time even if the connection stays.
    framework_closed: bool,
    taken_anything: bool,
}

impl Actor {
    pub(super) fn new(
        context: Arc<Context>,
        identity: SessionIdentity,
        inbox: mpsc::Receiver<Box<Input>>,
        conversation: Arc<Conversation>,
    ) -> Self {
        let (framework_closed, taken_anything) = (false, false);
        Self { context, identity, inbox, memory: None, conversation, ending: None, framework_closed, taken_anything }
    }

    pub(super) async fn run(mut self) {
        let idle = sleep_until(self.idle_deadline());
        tokio::pin!(idle);
        loop {
            tokio::select! {
                input = self.inbox.recv() => {
                    let Some(input) = input else { return };
                    // The work is boxed: an actor that waits is small, and nearly all of them wait.
                    match *input {
                        Input::Batch(batch) => Box::pin(self.take(batch)).await,
                        Input::Start { start, recorded, reply } => {
                            let _ = reply.send(Box::pin(self.start(start, recorded)).await);
                        }
                        Input::Barrier { reply } => Box::pin(self.barrier(reply)).await,
                        Input::ProducerLeft => {}
                        Input::EndIfUntouched => {
                            if !self.taken_anything && !self.context.has_users(&self.identity) {
                                Box::pin(self.end_idle()).await;
                            }
                        }
                        Input::Stop => {
                            Box::pin(self.work_off()).await;
                            return;
                        }
                    }
                }
                settled = outcome(&mut self.ending) => self.end_settled(settled),
                () = idle.as_mut() => Box::pin(self.end_idle()).await,
            }
            if self.has_ended() && self.context.leave(&self.identity, &self.inbox) {
                return;
            }
            idle.as_mut().reset(self.idle_deadline());
        }
    }

    fn idle_deadline(&self) -> Instant {
        Instant::now() + self.context.settings.borrow().session.idle_timeout
    }

    /// Whether the session has ended and the store has taken that.
    fn has_ended(&self) -> bool {
        self.ending.is_none() && self.memory.as_ref().is_some_and(|memory| memory.ended && !memory.epoch.is_refused())
    }

    /// What was handed over before the stop is still taken.
    async fn work_off(&mut self) {
        while let Ok(input) = self.inbox.try_recv() {
            match *input {
                Input::Batch(batch) => self.take(batch).await,
                Input::Barrier { reply } => self.barrier(reply).await,
                Input::Start { .. } | Input::ProducerLeft | Input::EndIfUntouched | Input::Stop => {}
            }
        }
    }

    /// The session's memory: reloaded from the store when it was never loaded or when the store refused a write.
    async fn memory(&mut self) -> Result<&mut Memory, StoreError> {
        if self.memory.as_ref().is_some_and(|memory| memory.epoch.is_refused()) {
            self.memory = None;
        }
        let memory = if let Some(memory) = self.memory.take() { memory } else { self.open().await? };
        Ok(self.memory.insert(memory))
    }

    async fn open(&self) -> Result<Memory, StoreError> {
        let opened = self.context.store.open_session(&self.identity, wall_clock()).await?;
        if opened.agent_id.is_none() {
            self.context.agents.look_up(&opened.handle);
        }
        self.context.metrics.sessions_started.increment();
        let session = self.identity.session_id.as_str();
        if session.contains(':') {
            self.context.metrics.colon_session_ids.increment();
            warn!(session, "the session id holds a ':': one server's download of it will fail (leave it out of session ids)");
        }
        debug!(mac = %self.identity.mac.short(), session, held = opened.held.len(), "session opened");
        self.count_what_is_there(&opened).await;
        Ok(Memory::restore(opened))
    }

    /// The length of a conversation that goes on after a restart counts from its beginning.
    async fn count_what_is_there(&self, opened: &OpenedSession) {
        let is_new = opened.handle.cursor().row.0 == 0 && opened.handle.pending() == 0 && opened.event_ids.is_empty();
        let messages = if is_new { 0 } else { self.context.store.message_count(opened.handle.key).await.unwrap_or(0) };
        self.conversation.restored(&opened.handle, messages);
    }

    async fn start(&mut self, start: SessionStart, recorded: UnixMillis) -> Result<StreamStand, BindRefused> {
        self.taken_anything = true;
        self.conversation.touch();
        self.framework_closed = false;
        let store = self.context.store.clone();
        let (context, identity) = (Arc::clone(&self.context), self.identity.clone());
        let unavailable = |error: &StoreError| {
            context.tell_unopened(&identity, error);
            BindRefused::Unavailable
        };
        let memory = self.memory().await.map_err(|error| unavailable(&error))?;
        let mut stand = StreamStand::default();
        if let Some(stream) = &start.stream {
            stand = store.bind_stream(&memory.handle, stream, recorded).await.map_err(|error| match error {
                BindError::Taken(_) => BindRefused::Taken,
                BindError::Store(error) => unavailable(&error),
            })?;
            memory.bind(stream, stand.taken);
        }
        memory.ended = false;
        let write = SessionWrite {
            session: Arc::clone(&memory.handle),
            epoch: memory.epoch.clone(),
            messages: Vec::new(),
            hold: Vec::new(),
            release: Vec::new(),
            stream: None,
            lifecycle: Some(Lifecycle::Started { agent_id: start.agent_id, client: start.client }),
            recorded,
            on_settled: None,
        };
        store.append(write).await;
        Ok(stand)
    }

    /// Answers when all earlier writes are settled: by an empty write that follows them through the store's queue.
    async fn barrier(&mut self, reply: oneshot::Sender<Reached>) {
        let store = self.context.store.clone();
        let Ok(memory) = self.memory().await else {
            let _ = reply.send(Err(Unsettled { pending: 0, reason: "the session cannot be opened now" }));
            return;
        };
        let handle = Arc::clone(&memory.handle);
        let pending = handle.pending();
        if store.health().failing.is_some() {
            let _ = reply.send(Err(Unsettled { pending, reason: "the store cannot be written" }));
            return;
        }
        let mut draft = Draft::new(wall_clock());
        draft.on_settled = Some(Box::new(move |settled| {
            let _ = reply.send(match settled {
                Settled::Durable => Ok(handle),
                Settled::Overloaded(why) => Err(Unsettled { pending, reason: why.as_str() }),
            });
        }));
        let write = draft.into_write(memory);
        store.append(write).await;
    }

    async fn take(&mut self, batch: Batch) {
        self.taken_anything = true;
        self.conversation.touch();
        let Batch { entries, stream, link, recorded, on_settled, share: _share } = batch;
        let context = Arc::clone(&self.context);
        let weight: u64 = entries.iter().map(|entry| entry.event.weight()).sum();
        let mut closed = self.framework_closed;
        let identity = self.identity.clone();
        let conversation = Arc::clone(&self.conversation);
        let opened = self.memory().await;
        let refuse = |on_settled: OnSettled, why: NoRoom| {
            context.metrics.skipped.add(Skip::Overloaded, weight);
            on_settled(Settled::Overloaded(why));
        };
        let memory = match opened {
            Ok(memory) => memory,
            Err(error) => {
                context.tell_unopened(&identity, &error);
                return refuse(on_settled, NoRoom::Unopened);
            }
        };
        // Only after the memory is fresh: a refusal that made it stale has then also reached the link.
        if link.is_cut() {
            return refuse(on_settled, NoRoom::Earlier);
        }
        if let Some(stream) = &stream
            && !memory.is_bound(stream)
        {
            match context.store.bind_stream(&memory.handle, stream, recorded).await {
                Ok(stand) => memory.bind(stream, stand.taken),
                Err(error) => {
                    if let BindError::Store(error) = &error {
                        context.tell_unopened(&identity, error);
                    }
                    return refuse(on_settled, NoRoom::Unopened);
                }
            }
        }
        let send_tools = context.settings.borrow().manager_api.send_tools;
        let mut draft = Draft::new(recorded);
        let mut ending = None;
        for Entry { seq, event } in entries {
            let ends = matches!(event, Event::End(_));
            match &event {
                Event::LiveKit(LiveKitEvent::Close { .. }) => closed = true,
                Event::Message(_) | Event::LiveKit(LiveKitEvent::Item { .. }) => closed = false,
                _ => {}
            }
            memory.apply(seq, stream.as_ref(), event, send_tools, &context.metrics, &mut draft);
            if ends && draft.lifecycle.is_some() {
                // What follows an end opens the session again: another write, of the same epoch.
                info!(mac = %identity.mac.short(), session = identity.session_id.as_str(), "session ended");
                ending = Some(Ending { is_idle: false, outcome: draft.outcome() });
                let next = Draft::new(recorded);
                let write = std::mem::replace(&mut draft, next).counted(&context.metrics, &conversation).into_write(memory);
                context.store.append(write).await;
            }
        }
        draft.on_settled = Some(on_settled);
        let write = draft.counted(&context.metrics, &conversation).into_write(memory);
        context.store.append(write).await;
        debug!(mac = %identity.mac.short(), messages = conversation.messages(), "lines taken");
        self.framework_closed = closed;
        self.ending = ending.or(self.ending.take());
    }

    /// Ends the session when nobody holds on to it (or the framework closed it long ago).
    async fn end_idle(&mut self) {
        if self.context.has_users(&self.identity) && !self.framework_closed {
            return;
        }
        let context = Arc::clone(&self.context);
        let conversation = Arc::clone(&self.conversation);
        let Ok(memory) = self.memory().await else { return };
        if memory.ended {
            return;
        }
        let mut draft = Draft::new(wall_clock());
        memory.end(Some("idle".to_owned()), 0, &mut draft);
        let ending = Ending { is_idle: true, outcome: draft.outcome() };
        let write = draft.counted(&context.metrics, &conversation).into_write(memory);
        context.store.append(write).await;
        self.ending = Some(ending);
    }

    /// An end that was refused is tried again after the next idle time.
    fn end_settled(&mut self, settled: Option<Settled>) {
        let Some(Ending { is_idle, .. }) = self.ending.take() else { return };
        let (mac, session) = (self.identity.mac.short(), self.identity.session_id.as_str());
        match settled {
            Some(Settled::Durable) if is_idle => info!(%mac, session, "session ended: idle"),
            Some(Settled::Overloaded(why)) => debug!(%mac, session, reason = why.as_str(), "the end of a session is refused"),
            _ => {}
        }
    }
}

/// What became of an end, if one is open; `None`: the store was closed before it could say.
async fn outcome(ending: &mut Option<Ending>) -> Option<Settled> {
    match ending {
        Some(ending) => (&mut ending.outcome).await.ok(),
        None => std::future::pending().await,
    }
}
