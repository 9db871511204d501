//! What a line can say, decoded: plain values that the rest of the daemon works with.

use std::borrow::Cow;

use super::identity::{MacAddress, SessionId, SessionIdentity};

/// Milliseconds since the Unix epoch. May lie anywhere: range checks are the decoder's work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UnixMillis(pub i64);

/// Who spoke, as the Manager API numbers it (`chatType`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ChatType {
    /// The child or parent: 1.
    User,
    /// The voice agent: 2.
    Agent,
    /// A tool call or its result: 3. Kept in the store; sent only with `manager_api.send_tools`.
    Tool,
}

impl ChatType {
    /// The number on the wire and in the store.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Agent => 2,
            Self::Tool => 3,
        }
    }

    /// The chat type of a number; `None` for anything but 1, 2 and 3.
    #[must_use]
    pub const fn from_code(code: i64) -> Option<Self> {
        match code {
            1 => Some(Self::User),
            2 => Some(Self::Agent),
            3 => Some(Self::Tool),
            _ => None,
        }
    }
}

/// The session a line names itself. A line without a target belongs to the session its connection is bound to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Target {
    /// The device, when the line names it or its session id holds it.
    pub mac: Option<MacAddress>,
    /// The conversation.
    pub session_id: Option<SessionId>,
}

impl Target {
    /// The full identity, when both halves are known.
    #[must_use]
    pub fn identity(&self) -> Option<SessionIdentity> {
        Some(SessionIdentity { mac: self.mac?, session_id: self.session_id.clone()? })
    }
}

/// One decoded line.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// The producer's number of this line, when it counts them.
    pub seq: Option<u64>,
    /// The session named in the line itself. The MAC is filled in from the session id where only that is given.
    pub target: Target,
    /// What to do.
    pub command: Command,
}

/// What a line asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// One message of the conversation.
    Message(Message),
    /// Binds the connection to the session of the line's target (which the decoder has checked to be complete).
    SessionStart(SessionStart),
    /// An event as the LiveKit framework dumps it, already mapped.
    LiveKit(LiveKitEvent),
    /// The conversation is over.
    SessionEnd(SessionEnd),
    /// Wait for durability or delivery.
    Flush(Flush),
    /// Are you there?
    Ping {
        /// Echoed in the `pong`: the JSON text of a string or number, at most 256 bytes.
        id: Option<String>,
    },
}

/// One message to be stored and reported.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    /// Who spoke.
    pub chat_type: ChatType,
    /// The cleaned text. Empty when nothing was left of it: the message is then skipped and counted.
    pub content: String,
    /// When it was said.
    pub time: UnixMillis,
    /// The producer gave a time outside 2001 … now + 1 day, and `time` is "now" instead: counted.
    pub time_replaced: bool,
    /// The producer's own id: the second de-duplication key, per session. At most 200 characters.
    pub event_id: Option<String>,
    /// The reply was cut off by the user.
    pub interrupted: bool,
    /// Decoded audio, when the line carried valid base64.
    pub audio: Option<Vec<u8>>,
    /// The line carried audio that is no strict base64: the text is kept without it, and that is counted.
    pub audio_invalid: bool,
    /// What else the producer said of it (confidence, metrics, metadata): the text of one JSON object.
    pub extra: Option<String>,
}

/// A transcript that the speech recogniser calls final: held until an item covers it (`session::turns`).
#[derive(Clone, PartialEq, Debug)]
pub struct Transcript {
    /// The cleaned, non-empty text.
    pub text: String,
    /// When it was recognised.
    pub time: UnixMillis,
    /// As for [`Message::time_replaced`].
    pub time_replaced: bool,
    /// The item it will become, where the framework says (1.7 and later, realtime models).
    pub item_id: Option<String>,
}

/// A LiveKit event, reduced to what history needs.
#[derive(Clone, PartialEq, Debug)]
pub enum LiveKitEvent {
    /// `conversation_item_added` with a message of the user or the assistant.
    Item {
        /// What was said. `event_id` is the item's id.
        message: Message,
        /// The framework tells how sure its recogniser was, so it was spoken. Else it was typed, or heard by a realtime
        /// model.
        recognised: bool,
    },
    /// `user_input_transcribed` with `is_final`.
    FinalTranscript(Transcript),
    /// `function_tools_executed`: one message of type [`ChatType::Tool`] per call and per result, in order.
    Tools(Vec<Message>),
    /// `close`: the framework's session is over; held transcripts may be emitted once the connection is idle.
    Close {
        /// The framework's reason, at most 200 characters.
        reason: Option<String>,
    },
    /// `speech_created`: carries no text, counted.
    SpeechCreated,
    /// `error`: a failure of speech recognition, the model or speech synthesis in the agent, counted and logged by type.
    AgentError {
        /// `stt_error`, `llm_error`, `tts_error`, …, at most 60 characters.
        kind: Option<String>,
    },
    /// Anything else, interim transcripts and empty finals included: counted.
    Ignored,
}

/// `session_start`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionStart {
    /// The producer's random name of its numbered lines: the same one again resumes. At most 200 characters.
    pub stream: Option<String>,
    /// Whether acks are wanted; when absent, every numbered line is acked, with a stream or without.
    pub ack: Option<bool>,
    /// The agent, when the producer knows it: spares the lookup.
    pub agent_id: Option<String>,
    /// The producer's name and version, for the status and the log.
    pub client: Option<String>,
}

/// `session_end`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionEnd {
    /// Why, at most 200 characters.
    pub reason: Option<String>,
    /// Lines the producer had to drop before they reached the daemon.
    pub dropped: Option<u64>,
}

/// How far a flush waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushLevel {
    /// Until the session's lines are in the store.
    Durable,
    /// Until they are delivered or rejected.
    Delivered,
}

/// `flush`.
#[derive(Clone, PartialEq, Debug)]
pub struct Flush {
    /// Echoed in the answer: the JSON text of a string or number, at most 256 bytes.
    pub id: Option<String>,
    /// How far to wait.
    pub level: FlushLevel,
    /// How long to wait at most (default 10 s, at most 60 s).
    pub timeout: std::time::Duration,
}

/// Why a line was refused. `message` names place and remedy and never echoes content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The code of the error reply.
    pub code: RefusalCode,
    /// The offending field, for [`RefusalCode::BadField`].
    pub field: Option<Cow<'static, str>>,
    /// What is wrong and how to mend it.
    pub message: Cow<'static, str>,
    /// The line's number, where it could be read: then the refused line is settled.
    pub seq: Option<u64>,
}

/// The error codes of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RefusalCode {
    /// Not one JSON object.
    BadJson,
    /// A field is missing, of the wrong type or out of range.
    BadField,
    /// The line needs a session and names none.
    NotBound,
    /// Longer than `socket.max_line_bytes`.
    LineTooLong,
    /// `session_start` with another `v` than 1. Fatal.
    UnsupportedVersion,
    /// Twenty refused lines in a row. Fatal.
    TooManyErrors,
    /// No room left in store or memory: the line was not taken. Fatal on a stream, and for a line that is not finished.
    Overloaded,
    /// `socket.max_connections` reached. Fatal.
    TooManyConnections,
}

impl RefusalCode {
    /// The code on the wire, in counters and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::BadField => "bad_field",
            Self::NotBound => "not_bound",
            Self::LineTooLong => "line_too_long",
            Self::UnsupportedVersion => "unsupported_version",
            Self::TooManyErrors => "too_many_errors",
            Self::Overloaded => "overloaded",
            Self::TooManyConnections => "too_many_connections",
        }
    }
}
