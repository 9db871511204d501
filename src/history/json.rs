//! The history as JSON: one shape for `list`, `show`, `export` and `import`, described by `export.schema.json`.
//!
//! Promises: what is exported can be read back; unknown fields are ignored when it is read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::name::rfc3339;
use super::{HeldRecord, MessageRecord, MessageState, SessionRecord};
use crate::protocol::extra::is_strict;
use crate::store::archive::SessionEntry;

/// What `format` says in every export.
pub const FORMAT: &str = "chat-historyd/history";
/// What `version` says: raised when a field changes its meaning or goes.
pub const VERSION: u32 = 1;
/// The JSON Schema of an export (`--format json`) and, in its `$defs`, of the lines of `--format jsonl`.
pub const SCHEMA: &str = include_str!("export.schema.json");

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionJson {
    /// The device.
    pub mac: String,
    /// The session id.
    pub session_id: String,
    /// The agent, when known.
    pub agent_id: Option<String>,
    /// The producer's name and version.
    pub client: Option<String>,
    /// RFC 3339, for people: `started_ms` counts.
    pub started: Option<String>,
    /// When it was first seen, in milliseconds since 1970.
    pub started_ms: i64,
    /// RFC 3339.
    pub ended: Option<String>,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Lines its producer dropped.
    #[serde(default)]
    pub producer_dropped: u64,
}

/// A message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MessageJson {
    /// Its identity for ever.
    pub uuid: String,
    /// 1 user, 2 agent, 3 tool.
    pub chat_type: u8,
    /// The same in a word, for people.
    #[serde(default)]
    pub role: String,
    /// RFC 3339, for people: `time_ms` counts.
    pub time: Option<String>,
    /// When it was said.
    pub time_ms: i64,
    /// When the daemon took it in.
    pub recorded_ms: i64,
    /// The text.
    pub content: String,
    /// Cut off by the user.
    #[serde(default)]
    pub interrupted: bool,
    /// A final transcript that never became an item.
    #[serde(default)]
    pub uncommitted: bool,
    /// What became of it.
    pub state: String,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The server's last word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The producer's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Bytes of its audio.
    #[serde(default)]
    pub audio_bytes: u64,
    /// The audio, with `--audio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio_base64: Option<String>,
    /// Whatever else the producer said of it, as it stands: numbers keep their digits and fields their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Box<RawValue>>,
}

/// A held transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldJson {
    /// Names it.
    pub uuid: String,
    /// RFC 3339.
    pub time: Option<String>,
    /// When it was recognised.
    pub time_ms: i64,
    /// The text.
    pub content: String,
}

/// A session in a list.
#[derive(Clone, Debug, Serialize)]
pub struct EntryJson {
    /// The session.
    #[serde(flatten)]
    pub session: SessionJson,
    /// Its messages.
    pub messages: u64,
    /// How many of them are in which state.
    pub states: StatesJson,
}

/// How many messages are in which state.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct StatesJson {
    pub pending: u64,
    pub delivered: u64,
    pub rejected: u64,
    pub kept: u64,
    pub held: u64,
}

impl SessionJson {
    /// The session of a record.
    #[must_use]
    pub fn of(session: &SessionRecord) -> Self {
        Self {
            mac: session.identity.mac.to_string(),
            session_id: session.identity.session_id.as_str().to_owned(),
            agent_id: session.agent_id.clone(),
            client: session.client.clone(),
            started: rfc3339(session.started),
            started_ms: session.started.0,
            ended: session.ended.and_then(rfc3339),
            ended_ms: session.ended.map(|time| time.0),
            end_reason: session.end_reason.clone(),
            producer_dropped: session.producer_dropped,
        }
    }
}

impl MessageJson {
    /// The message of a record.
    #[must_use]
    pub fn of(message: &MessageRecord, audio: Option<&[u8]>) -> Self {
        let (reason, answer) = match &message.state {
            MessageState::Rejected { reason, answer } => (Some(reason.clone()), answer.clone()),
            _ => (None, None),
        };
        Self {
            uuid: message.uuid.hyphenated().to_string(),
            chat_type: message.chat_type.code(),
            role: message.role().to_owned(),
            time: message.said().and_then(rfc3339),
            time_ms: message.time.0,
            recorded_ms: message.recorded.0,
            content: message.content.clone(),
            interrupted: message.interrupted,
            uncommitted: message.uncommitted,
            state: message.state.as_str().to_owned(),
            reason,
            answer,
            event_id: message.event_id.clone(),
            audio_bytes: message.audio_bytes,
            audio_base64: audio.map(|audio| STANDARD.encode(audio)),
            extra: message.extra.as_deref().and_then(raw),
        }
    }
}

/// JSON as it stands, on one line.
fn raw(text: &str) -> Option<Box<RawValue>> {
    if !is_strict(text) {
        // Checked when it came in; if it is no JSON any more, its text says more than nothing.
        return to_raw_value(text).ok();
    }
    // Within strings they are escaped.
    RawValue::from_string(text.replace(['\n', '\r'], " ")).ok()
}

impl HeldJson {
    /// The transcript of a record.
    #[must_use]
    pub fn of(held: &HeldRecord) -> Self {
        Self {
            uuid: held.uuid.hyphenated().to_string(),
            time: rfc3339(held.time),
            time_ms: held.time.0,
            content: held.text.clone(),
        }
    }
}

impl EntryJson {
    /// The entry of a list.
    #[must_use]
    pub fn of(entry: &SessionEntry) -> Self {
        let held = entry.session.held.len() as u64;
        let states =
            StatesJson { pending: entry.pending, delivered: entry.delivered, rejected: entry.rejected, kept: entry.kept, held };
        Self { session: SessionJson::of(&entry.session), messages: entry.messages, states }
    }
}
