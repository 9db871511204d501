//! What a backup says of a session and of a message.

use serde::Serialize;
use uuid::Uuid;

use super::super::name::rfc3339;
use super::super::{HeldRecord, MessageRecord, MessageState, SessionRecord};
use crate::protocol::UnixMillis;

/// What `format` says in every backup.
pub(super) const FORMAT: &str = "chat-historyd session";
/// What `version` says: raised when a field changes its meaning or goes.
pub(super) const VERSION: u32 = 1;

#[derive(Serialize)]
pub(super) struct SessionJson<'a> {
    format: &'static str,
    version: u32,
    mac: String,
    session_id: &'a str,
    agent_id: Option<&'a str>,
    client: Option<&'a str>,
    started: Option<String>,
    started_ms: i64,
    ended: Option<String>,
    ended_ms: Option<i64>,
    end_reason: Option<&'a str>,
    producer_dropped: u64,
    held: Vec<HeldJson<'a>>,
}

#[derive(Serialize)]
struct HeldJson<'a> {
    uuid: Spelled,
    time: Option<String>,
    time_ms: i64,
    content: &'a str,
    state: &'static str,
}

#[derive(Serialize)]
pub(super) struct MessageJson<'a> {
    uuid: Spelled,
    chat_type: u8,
    role: &'static str,
    time: Option<String>,
    time_ms: i64,
    recorded_ms: i64,
    content: &'a str,
    interrupted: bool,
    uncommitted: bool,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    audio_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra: Option<serde_json::Value>,
}

/// A UUID in its usual spelling.
struct Spelled(Uuid);

impl Serialize for Spelled {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.hyphenated())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'a> SessionJson<'a> {
    pub(super) fn of(session: &'a SessionRecord) -> Self {
        let held = |held: &'a HeldRecord| HeldJson {
            uuid: Spelled(held.uuid),
            time: rfc3339(held.time),
            time_ms: held.time.0,
            content: &held.text,
            state: "held",
        };
        Self {
            format: FORMAT,
            version: VERSION,
            mac: session.identity.mac.to_string(),
            session_id: session.identity.session_id.as_str(),
            agent_id: session.agent_id.as_deref(),
            client: session.client.as_deref(),
            started: rfc3339(session.started),
            started_ms: session.started.0,
            ended: session.ended.and_then(rfc3339),
            ended_ms: session.ended.map(|UnixMillis(ms)| ms),
            end_reason: session.end_reason.as_deref(),
            producer_dropped: session.producer_dropped,
            held: session.held.iter().map(held).collect(),
        }
    }
}

impl<'a> MessageJson<'a> {
    pub(super) fn of(message: &'a MessageRecord) -> Self {
        let (reason, answer) = match &message.state {
            MessageState::Rejected { reason, answer } => (Some(reason.as_str()), answer.as_deref()),
            _ => (None, None),
        };
        // Not raw: what cannot be parsed within serde's depth is kept as a string, so that the file always can be read.
        let extra = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.clone()));
        Self {
            uuid: Spelled(message.uuid),
            chat_type: message.chat_type.code(),
            role: message.role(),
            time: message.said().and_then(rfc3339),
            time_ms: message.time.0,
            recorded_ms: message.recorded.0,
            content: &message.content,
            interrupted: message.interrupted,
            uncommitted: message.uncommitted,
            state: message.state.as_str(),
            reason,
            answer,
            event_id: message.event_id.as_deref(),
            audio_bytes: message.audio_bytes,
            extra: message.extra.as_ref().map(extra),
        }
    }
}
