//! What people read of a session and of a message: the same words in every readable format. Pure, and not escaped.

use crate::history::name::date_of;
use crate::history::table::{NO_CLOCK, clock};
use crate::history::{HeldRecord, MessageRecord, MessageState, SessionRecord};
use crate::protocol::UnixMillis;

/// Whose a session is, and when it was. `foreign` writes what a producer or a server named, in the format's way; the rest
/// is markup nowhere.
pub(super) fn about(session: &SessionRecord, foreign: impl Fn(&str) -> String) -> String {
    let end = session.ended.map_or_else(|| "still open".to_owned(), |time| format!("ended {}", stamp(time)));
    let mut about = format!("Device {}, began {} UTC, {end}", session.identity.mac, stamp(session.started));
    if let Some(reason) = &session.end_reason {
        about.extend([" (", &foreign(reason), ")"]);
    }
    if let Some(agent) = &session.agent_id {
        about.extend([", agent ", &foreign(agent)]);
    }
    about
}

/// What was said: by whom, when, and what is to be known of it.
pub(super) struct Said<'a> {
    pub(super) who: &'static str,
    /// `None` when nothing is known of it but that it was there.
    pub(super) time: Option<UnixMillis>,
    /// Its name in tables and filters.
    pub(super) state: &'static str,
    /// Interrupted, uncommitted, and what became of it unless that is the usual.
    pub(super) marks: Vec<String>,
    pub(super) text: &'a str,
}

impl<'a> Said<'a> {
    pub(super) fn of(message: &'a MessageRecord) -> Self {
        let set = [(message.interrupted, "interrupted"), (message.uncommitted, "uncommitted")];
        let mut marks: Vec<String> = set.iter().filter(|(set, _)| *set).map(|(_, mark)| (*mark).to_owned()).collect();
        match &message.state {
            MessageState::Delivered => {}
            MessageState::Rejected { reason, .. } => marks.push(format!("rejected: {reason}")),
            other => marks.push(other.as_str().to_owned()),
        }
        let (who, state) = (message.role(), message.state.as_str());
        Self { who, time: message.said(), state, marks, text: &message.content }
    }

    pub(super) fn held(held: &'a HeldRecord) -> Self {
        Self { who: "user", time: Some(held.time), state: "held", marks: vec!["held".to_owned()], text: &held.text }
    }

    /// Its time of day.
    pub(super) fn clock(&self) -> String {
        self.time.map_or_else(|| NO_CLOCK.to_owned(), clock)
    }

    /// Whether something went wrong with it.
    #[cfg(feature = "pdf")]
    pub(super) fn is_trouble(&self) -> bool {
        matches!(self.state, "rejected" | "damaged")
    }
}

/// A moment for people.
pub(super) fn stamp(time: UnixMillis) -> String {
    format!("{} {}", date_of(time), clock(time))
}
