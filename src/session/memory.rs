//! What an actor knows of its session, and how a line changes it: pure but for the clock it is given and the ids it
//! draws. A cache of the store; thrown away whole when the store refuses a write.

use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::actor::Event;
use super::turns::{Step, Turns};
use super::youngest::{Youngest, YoungestIds};
use crate::observe::{Conversation, Metrics, Skip};
use crate::protocol::{ChatType, LiveKitEvent, Message, Transcript, UnixMillis};
use crate::store::{
    HeldTranscript, Lifecycle, MAX_EVENT_IDS, NewMessage, OnSettled, OpenedSession, SessionHandle, SessionWrite, Settled,
    WriterEpoch,
};

/// The most streams remembered in a session. One that is forgotten is asked of the store again.
const MAX_STREAMS: usize = 1_000;

/// A write in the making.
pub(super) struct Draft {
    messages: Vec<NewMessage>,
    hold: Vec<HeldTranscript>,
    release: Vec<Uuid>,
    stream: Option<(Arc<str>, u64)>,
    pub(super) lifecycle: Option<Lifecycle>,
    recorded: UnixMillis,
    pub(super) on_settled: Option<OnSettled>,
    skipped: Vec<(Skip, u64)>,
    superseded: u64,
}

impl Draft {
    pub(super) fn new(recorded: UnixMillis) -> Self {
        Self {
            messages: Vec::new(),
            hold: Vec::new(),
            release: Vec::new(),
            stream: None,
            lifecycle: None,
            recorded,
            on_settled: None,
            skipped: Vec::new(),
            superseded: 0,
        }
    }

    fn skip(&mut self, reason: Skip, count: u64) {
        self.skipped.push((reason, count));
    }

    /// Tells what becomes of it.
    pub(super) fn outcome(&mut self) -> oneshot::Receiver<Settled> {
        let (settled, outcome) = oneshot::channel();
        self.on_settled = Some(Box::new(move |became| _ = settled.send(became)));
        outcome
    }

    /// Books what was captured and what was skipped. What an item superseded stays held when the write is refused, and the session
    /// stays open; what was new in a refused write is booked by the store.
    pub(super) fn counted(mut self, metrics: &Arc<Metrics>, conversation: &Conversation) -> Self {
        let length = conversation.captured(self.messages.len() as u64);
        for (reason, count) in self.skipped.drain(..) {
            metrics.skipped.add(reason, count);
        }
        let ends = matches!(self.lifecycle, Some(Lifecycle::Ended { .. }));
        if ends || self.superseded > 0 {
            let (metrics, superseded, inner) = (Arc::clone(metrics), self.superseded, self.on_settled.take());
            self.on_settled = Some(Box::new(move |settled| {
                if settled == Settled::Durable {
                    metrics.skipped.add(Skip::Superseded, superseded);
                    if ends {
                        metrics.sessions_ended.increment();
                        metrics.conversation_messages.observe_count(length);
                    }
                }
                if let Some(inner) = inner {
                    inner(settled);
                }
            }));
        }
        self
    }

    pub(super) fn into_write(self, memory: &Memory) -> SessionWrite {
        SessionWrite {
            session: Arc::clone(&memory.handle),
            epoch: memory.epoch.clone(),
            messages: self.messages,
            hold: self.hold,
            release: self.release,
            stream: self.stream,
            lifecycle: self.lifecycle,
            recorded: self.recorded,
            on_settled: self.on_settled,
        }
    }
}

/// What an actor knows.
pub(super) struct Memory {
    pub(super) handle: Arc<SessionHandle>,
    pub(super) epoch: WriterEpoch,
    pub(super) ended: bool,
    turns: Turns,
    event_ids: YoungestIds<MAX_EVENT_IDS>,
    streams: Youngest<u64, MAX_STREAMS>,
}

impl Memory {
    pub(super) fn restore(opened: OpenedSession) -> Self {
        let turns = Turns::restore(opened.held, &opened.event_ids);
        Self {
            handle: opened.handle,
            epoch: WriterEpoch::default(),
            ended: opened.was_ended,
            turns,
            event_ids: opened.event_ids.into_iter().collect(),
            streams: Youngest::default(),
        }
    }

    /// Whether the last number of a stream is known here.
    pub(super) fn is_bound(&self, stream: &str) -> bool {
        self.streams.contains(stream)
    }

    /// Remembers a stream. What is known here may already be ahead of the store.
    pub(super) fn bind(&mut self, stream: &str, taken: u64) {
        let known = self.streams.get_or_insert(&Arc::from(stream), taken);
        *known = (*known).max(taken);
    }

    /// Puts one line's effect into the draft.
    pub(super) fn apply(
        &mut self,
        seq: Option<u64>,
        stream: Option<&Arc<str>>,
        event: Event,
        send_tools: bool,
        metrics: &Metrics,
        draft: &mut Draft,
    ) {
        let weight = event.weight();
        if let (Some(seq), Some(stream)) = (seq, stream) {
            let last = self.streams.get_or_insert(stream, 0);
            if seq <= *last {
                draft.skip(Skip::Duplicate, weight);
                return;
            }
            *last = seq;
            draft.stream = Some((Arc::clone(stream), seq));
        }
        match event {
            Event::Message(message) => self.message(message, send_tools, draft),
            Event::LiveKit(event) => self.livekit(event, send_tools, metrics, draft),
            Event::End(end) => {
                let dropped = end.dropped.unwrap_or(0);
                metrics.producer_dropped.add_claimed(dropped);
                if dropped > 0 {
                    tracing::error!(mac = %self.handle.identity.mac.short(), dropped, "the producer lost lines before they reached the daemon");
                }
                self.end(end.reason, dropped, draft);
            }
            Event::Nothing => {}
        }
    }

    /// Ends the session: what is still held is emitted.
    pub(super) fn end(&mut self, reason: Option<String>, dropped: u64, draft: &mut Draft) {
        if self.ended {
            return;
        }
        let steps = self.turns.finish();
        self.steps(steps, draft);
        self.ended = true;
        draft.lifecycle = Some(Lifecycle::Ended { reason, dropped });
    }

    fn reopen(&mut self, draft: &mut Draft) {
        if self.ended {
            self.ended = false;
            draft.lifecycle = Some(Lifecycle::Started { agent_id: None, client: None });
        }
    }

    fn livekit(&mut self, event: LiveKitEvent, send_tools: bool, metrics: &Metrics, draft: &mut Draft) {
        match event {
            LiveKitEvent::Item { message, recognised } => self.item(message, recognised, send_tools, draft),
            LiveKitEvent::FinalTranscript(transcript) => self.transcript(transcript, draft),
            LiveKitEvent::Tools(records) if records.is_empty() => draft.skip(Skip::Ignored, 1),
            LiveKitEvent::Tools(records) => {
                for record in records {
                    self.message(record, send_tools, draft);
                }
            }
            LiveKitEvent::SpeechCreated => {
                metrics.speeches_created.increment();
                draft.skip(Skip::Ignored, 1);
            }
            LiveKitEvent::AgentError { kind } => {
                metrics.agent_errors.increment();
                tracing::debug!(mac = %self.handle.identity.mac.short(), kind = kind.as_deref().unwrap_or("unknown"), "the agent reports an error");
                draft.skip(Skip::Ignored, 1);
            }
            LiveKitEvent::Close { .. } | LiveKitEvent::Ignored => draft.skip(Skip::Ignored, 1),
        }
    }

    fn item(&mut self, message: Message, recognised: bool, send_tools: bool, draft: &mut Draft) {
        if self.is_duplicate(message.event_id.as_deref()) {
            draft.skip(Skip::Duplicate, 1);
            return;
        }
        let steps = match message.chat_type {
            ChatType::User => self.turns.user_item(message.event_id.as_deref(), &message.content, recognised),
            ChatType::Agent | ChatType::Tool => Vec::new(),
        };
        self.steps(steps, draft);
        self.message(message, send_tools, draft);
    }

    fn transcript(&mut self, transcript: Transcript, draft: &mut Draft) {
        let held = HeldTranscript {
            uuid: Uuid::now_v7(),
            text: transcript.text,
            time: transcript.time,
            recorded: draft.recorded,
            item_id: transcript.item_id,
        };
        self.reopen(draft);
        let steps = self.turns.transcript(held);
        self.steps(steps, draft);
    }

    fn message(&mut self, message: Message, send_tools: bool, draft: &mut Draft) {
        if message.content.is_empty() {
            draft.skip(Skip::Empty, 1);
            return;
        }
        if self.is_duplicate(message.event_id.as_deref()) {
            draft.skip(Skip::Duplicate, 1);
            return;
        }
        if let Some(id) = &message.event_id {
            self.event_ids.insert(id);
        }
        self.reopen(draft);
        let sendable = message.chat_type != ChatType::Tool || send_tools;
        draft.messages.push(NewMessage {
            uuid: Uuid::now_v7(),
            chat_type: message.chat_type,
            content: message.content,
            time: message.time,
            recorded: draft.recorded,
            event_id: message.event_id,
            interrupted: message.interrupted,
            uncommitted: false,
            sendable,
            audio: message.audio,
            extra: message.extra,
        });
    }

    fn is_duplicate(&self, event_id: Option<&str>) -> bool {
        event_id.is_some_and(|id| self.event_ids.contains(id))
    }

    fn steps(&mut self, steps: Vec<Step>, draft: &mut Draft) {
        for step in steps {
            match step {
                Step::Hold(held) => draft.hold.push(held),
                Step::Drop(_) => draft.skip(Skip::Superseded, 1),
                Step::Supersede(held) => {
                    if release(draft, held.uuid) {
                        draft.superseded += 1;
                    } else {
                        draft.skip(Skip::Superseded, 1);
                    }
                }
                Step::Emit(held) => {
                    release(draft, held.uuid);
                    self.ended = false;
                    draft.messages.push(NewMessage {
                        uuid: held.uuid,
                        chat_type: ChatType::User,
                        content: held.text,
                        time: held.time,
                        recorded: held.recorded,
                        event_id: None,
                        interrupted: false,
                        uncommitted: true,
                        sendable: true,
                        audio: None,
                        extra: None,
                    });
                }
            }
        }
    }
}

/// A transcript held by the same draft never reaches the side table: `false`.
fn release(draft: &mut Draft, uuid: Uuid) -> bool {
    let before = draft.hold.len();
    draft.hold.retain(|held| held.uuid != uuid);
    let stored = draft.hold.len() == before;
    if stored {
        draft.release.push(uuid);
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MacAddress, SessionId, SessionIdentity};
    use crate::store::{Cursor, SessionKey};

    struct Lab {
        memory: Memory,
        metrics: Metrics,
    }

    impl Lab {
        fn new(event_ids: Vec<String>) -> Self {
            let identity = SessionIdentity { mac: MacAddress::from_octets([0; 6]), session_id: SessionId::new("s").unwrap() };
            let handle = Arc::new(SessionHandle::new(SessionKey(1), identity, Cursor::default(), 0));
            let opened = OpenedSession { handle, held: Vec::new(), event_ids, agent_id: None, was_ended: false };
            Self { memory: Memory::restore(opened), metrics: Metrics::default() }
        }

        /// Whether the message is taken, not skipped as a duplicate.
        fn takes(&mut self, event_id: String, stream: Option<(&str, u64)>) -> bool {
            let mut draft = Draft::new(UnixMillis(0));
            let message = Message {
                chat_type: ChatType::User,
                content: "x".to_owned(),
                time: UnixMillis(0),
                time_replaced: false,
                event_id: Some(event_id),
                interrupted: false,
                audio: None,
                audio_invalid: false,
                extra: None,
            };
            let (stream, seq) = stream.map(|(stream, seq)| (Arc::from(stream), seq)).unzip();
            self.memory.apply(seq, stream.as_ref(), Event::Message(message), true, &self.metrics, &mut draft);
            draft.messages.len() == 1
        }
    }

    #[test]
    fn a_session_that_never_ends_remembers_as_many_ids_as_one_that_is_opened_again() {
        let id = |number: usize| format!("id-{number}");
        let mut lab = Lab::new((0..MAX_EVENT_IDS).map(id).collect());
        assert!(!lab.takes(id(0), None), "all of them are known");
        for number in MAX_EVENT_IDS..MAX_EVENT_IDS + 100 {
            assert!(lab.takes(id(number), None));
        }
        assert!((100..MAX_EVENT_IDS + 100).all(|number| !lab.takes(id(number), None)), "the youngest are known");
        assert!(lab.takes(id(99), None), "the oldest were forgotten");
    }

    #[test]
    fn of_streams_without_end_the_oldest_are_asked_of_the_store_again() {
        let mut lab = Lab::new(Vec::new());
        for number in 0..=MAX_STREAMS {
            lab.memory.bind(&number.to_string(), 7);
        }
        assert!(!lab.memory.is_bound("0") && lab.memory.is_bound("1"));
        assert!(!lab.takes("a".to_owned(), Some(("1", 7))), "the last number of a stream is remembered with it");
        assert!(lab.takes("b".to_owned(), Some(("1", 8))));
    }
}
