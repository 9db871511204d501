//! Exported sessions and messages as the store takes them back. Pure.
//!
//! Promises: texts are cleaned as those of a producer's line are, and what is no message is refused; a mistake is named without the text it is in.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::json::{HeldJson, MessageJson, SessionJson};
use crate::protocol::extra::is_strict;
use crate::protocol::identity::InvalidIdentity;
use crate::protocol::text::clean;
use crate::protocol::{ChatType, SessionId, SessionIdentity, UnixMillis};
use crate::store::{ImportedMessage, ImportedSession, ImportedState, NewMessage, RejectReason};

const DAY_MS: i64 = 86_400_000;

/// An export that cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {what}")]
pub struct NotAnExport {
    field: &'static str,
    what: String,
}

fn wrong(field: &'static str) -> impl FnOnce(InvalidIdentity) -> NotAnExport {
    move |problem| NotAnExport { field, what: problem.to_string() }
}

/// The identity of an exported session.
///
/// # Errors
/// When it has none.
pub fn identity(mac: &str, session_id: &str) -> Result<SessionIdentity, NotAnExport> {
    Ok(SessionIdentity {
        mac: mac.parse().map_err(wrong("mac"))?,
        session_id: SessionId::new(session_id).map_err(wrong("session_id"))?,
    })
}

/// A session with its messages at this time; what it held becomes uncommitted messages, as at the end of a session.
///
/// # Errors
/// When a field is wrong.
pub fn session(
    session: &SessionJson,
    messages: Vec<MessageJson>,
    held: Vec<HeldJson>,
    now: UnixMillis,
) -> Result<ImportedSession, NotAnExport> {
    let identity = identity(&session.mac, &session.session_id)?;
    // A damaged row had nothing to export, whether it is rejected by now or not.
    let is_readable = |message: &MessageJson| message.state != "damaged" && Uuid::try_parse(&message.uuid) != Ok(Uuid::nil());
    let whole = messages.into_iter().filter(is_readable).map(|one| message(one, now));
    let messages = whole.chain(held.into_iter().map(|one| uncommitted(one, now))).collect::<Result<Vec<_>, _>>()?;
    Ok(ImportedSession {
        identity,
        agent_id: note(session.agent_id.clone()),
        client: note(session.client.clone()),
        started: time("started_ms", session.started_ms, now)?,
        ended: session.ended_ms.map(|ended| time("ended_ms", ended, now)).transpose()?,
        end_reason: note(session.end_reason.clone()),
        producer_dropped: session.producer_dropped,
        messages,
    })
}

fn message(message: MessageJson, now: UnixMillis) -> Result<ImportedMessage, NotAnExport> {
    let problem = |field, what: &str| NotAnExport { field, what: what.to_owned() };
    let state = match message.state.as_str() {
        "pending" => ImportedState::Pending,
        "delivered" | "kept" => ImportedState::Done,
        "rejected" => {
            let reason = message.reason.ok_or_else(|| problem("reason", "is missing"))?;
            if !RejectReason::ALL.iter().any(|known| known.as_str() == reason) {
                return Err(problem("reason", "is none that is known"));
            }
            ImportedState::Rejected(reason, note(message.answer))
        }
        _ => return Err(problem("state", "is none that is known")),
    };
    let audio = message.audio_base64.map(|text| STANDARD.decode(text)).transpose();
    Ok(ImportedMessage {
        message: NewMessage {
            uuid: uuid(&message.uuid)?,
            chat_type: ChatType::from_code(i64::from(message.chat_type))
                .ok_or_else(|| problem("chat_type", "is not 1, 2 or 3"))?,
            content: text(message.content)?,
            time: time("time_ms", message.time_ms, now)?,
            recorded: time("recorded_ms", message.recorded_ms, now)?,
            event_id: note(message.event_id),
            interrupted: message.interrupted,
            uncommitted: message.uncommitted,
            sendable: message.state != "kept",
            audio: audio.map_err(|_| problem("audio_base64", "is no base64"))?,
            extra: message.extra.map(|extra| whole(extra.get())).transpose()?,
        },
        state,
    })
}

fn uncommitted(held: HeldJson, now: UnixMillis) -> Result<ImportedMessage, NotAnExport> {
    let time = time("time_ms", held.time_ms, now)?;
    Ok(ImportedMessage {
        message: NewMessage {
            uuid: uuid(&held.uuid)?,
            chat_type: ChatType::User,
            content: text(held.content)?,
            time,
            recorded: time,
            event_id: None,
            interrupted: false,
            uncommitted: true,
            sendable: true,
            audio: None,
            extra: None,
        },
        state: ImportedState::Pending,
    })
}

/// A time that a clock may have shown: one of tomorrow would be reported to the server, and kept by retention until then.
fn time(field: &'static str, millis: i64, now: UnixMillis) -> Result<UnixMillis, NotAnExport> {
    if (0..=now.0.saturating_add(DAY_MS)).contains(&millis) {
        return Ok(UnixMillis(millis));
    }
    let what = format!("is {millis}: before 1970, or more than a day ahead (correct it there, or the clock here)");
    Err(NotAnExport { field, what })
}

/// What else was said, as it stands, when every reader of a later export takes it.
fn whole(extra: &str) -> Result<String, NotAnExport> {
    if is_strict(extra) {
        return Ok(extra.to_owned());
    }
    let what = "holds what not every JSON reader takes: a number beyond a double, half a surrogate pair, or too many levels";
    Err(NotAnExport { field: "extra", what: what.to_owned() })
}

fn uuid(text: &str) -> Result<Uuid, NotAnExport> {
    Uuid::try_parse(text).map_err(|_| NotAnExport { field: "uuid", what: "is none".to_owned() })
}

fn text(text: String) -> Result<String, NotAnExport> {
    let text = clean(Cow::Owned(text));
    if text.is_empty() {
        return Err(NotAnExport { field: "content", what: "is empty".to_owned() });
    }
    Ok(text)
}

/// A text that may be missing.
fn note(text: Option<String>) -> Option<String> {
    text.map(|text| clean(Cow::Owned(text))).filter(|text| !text.is_empty())
}
