//! What a transcript shows of a session: its row, and every message with what became of it.

use uuid::Uuid;

use super::shelf::Overlay;
use super::types::{Lifecycle, NewMessage, RowId, SessionKey};
use crate::protocol::{ChatType, SessionIdentity, UnixMillis};

/// The row of a session, for backups and transcripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Its key.
    pub key: SessionKey,
    /// Whose it is.
    pub identity: SessionIdentity,
    /// The agent, when known.
    pub agent_id: Option<String>,
    /// The producer's name and version.
    pub client: Option<String>,
    /// When it was first seen.
    pub started: UnixMillis,
    /// When it ended; `None` while it is open.
    pub ended: Option<UnixMillis>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Lines that its producer dropped.
    pub producer_dropped: u64,
    /// Transcripts that wait for their item, in order.
    pub held: Vec<HeldTranscriptRecord>,
}

/// A held transcript as the transcript of a session shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldTranscriptRecord {
    /// Names it.
    pub uuid: Uuid,
    /// The text.
    pub text: String,
    /// When it was recognised.
    pub time: UnixMillis,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// Waits for delivery.
    Pending,
    /// The server has it.
    Delivered,
    /// It will never be delivered; the reason and the server's last word as the store holds them.
    Rejected {
        /// [`super::RejectReason::as_str`].
        reason: String,
        /// The server's last word.
        answer: Option<String>,
    },
    /// Kept here, never sent.
    Kept,
    /// Its row fails its checksum and waits for rejection.
    Damaged,
}

/// A message that will never be delivered, as the list of them has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRow {
    /// Its row.
    pub row: RowId,
    /// Its session.
    pub session: SessionKey,
    /// [`super::RejectReason::as_str`].
    pub reason: String,
    /// The server's last word.
    pub answer: Option<String>,
    /// Since when.
    pub rejected: UnixMillis,
}

/// One message with everything that is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscriptMessage {
    /// Its row.
    pub row: RowId,
    /// Its identity.
    pub uuid: Uuid,
    /// Who spoke.
    pub chat_type: ChatType,
    /// The text.
    pub content: String,
    /// When it was said.
    pub time: UnixMillis,
    /// When the daemon took it in.
    pub recorded: UnixMillis,
    /// The producer's id.
    pub event_id: Option<String>,
    /// Cut off by the user.
    pub interrupted: bool,
    /// A final transcript that never became an item.
    pub uncommitted: bool,
    /// Bytes of audio stored with it.
    pub audio_bytes: u64,
    /// One JSON object, as text.
    pub extra: Option<String>,
    /// What became of it.
    pub state: MessageState,
}

/// Lays what is on the shelf over the row of a session, or makes the row of one that was created there.
pub(super) fn lay_over(stored: Option<SessionSnapshot>, shelf: Overlay) -> Option<SessionSnapshot> {
    let created = shelf.created.map(|(handle, started)| SessionSnapshot {
        key: handle.key,
        identity: handle.identity.clone(),
        agent_id: None,
        client: None,
        started,
        ended: None,
        end_reason: None,
        producer_dropped: 0,
        held: Vec::new(),
    });
    let mut session = stored.or(created)?;
    session.agent_id = shelf.agent.or(session.agent_id).or(shelf.suggested_agent);
    match shelf.lifecycle {
        Some((Lifecycle::Started { client, .. }, _)) => {
            (session.ended, session.end_reason) = (None, None);
            session.client = client.or(session.client);
        }
        Some((Lifecycle::Ended { reason, dropped }, at)) => {
            (session.ended, session.end_reason) = (Some(at), reason);
            session.producer_dropped = session.producer_dropped.saturating_add(dropped);
        }
        None => {}
    }
    session.held.retain(|held| !shelf.released.contains(&held.uuid));
    let known: Vec<Uuid> = session.held.iter().map(|held| held.uuid).collect();
    let held = shelf.held.into_iter().filter(|held| !known.contains(&held.uuid));
    session.held.extend(held.map(|held| HeldTranscriptRecord { uuid: held.uuid, text: held.text, time: held.time }));
    Some(session)
}

/// A message that stands on the shelf.
pub(super) fn of_shelf(row: RowId, message: NewMessage, passed: bool) -> TranscriptMessage {
    let state = match (message.sendable, passed) {
        (false, _) => MessageState::Kept,
        (true, true) => MessageState::Delivered,
        (true, false) => MessageState::Pending,
    };
    TranscriptMessage {
        row,
        uuid: message.uuid,
        chat_type: message.chat_type,
        content: message.content,
        time: message.time,
        recorded: message.recorded,
        event_id: message.event_id,
        interrupted: message.interrupted,
        uncommitted: message.uncommitted,
        audio_bytes: message.audio.map_or(0, |audio| audio.len() as u64),
        extra: message.extra,
        state,
    }
}
