//! JSON, whole and by lines.

use std::io::{self, Write};

use serde::Serialize;

use super::{Export, Spoken};
use crate::history::json::{FORMAT, HeldJson, MessageJson, SessionJson, VERSION};
use crate::history::{HeldRecord, MessageRecord, SessionRecord};

/// One document.
pub(super) struct Document {
    exported: String,
    sessions: u64,
    members: u64,
    /// Held transcripts of the session, which its record has had from the beginning.
    held: Vec<HeldRecord>,
}

impl Document {
    pub(super) fn new(exported: &str) -> Self {
        Self { exported: exported.to_owned(), sessions: 0, members: 0, held: Vec::new() }
    }
}

impl Export for Document {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"exported\":\"{}\",\"sessions\":[", self.exported)
    }

    fn session(&mut self, out: &mut dyn Write, session: &SessionRecord) -> io::Result<()> {
        let mut head = serde_json::to_vec(&SessionJson::of(session))?;
        head.pop(); // the closing brace: the messages follow inside
        out.write_all(if self.sessions == 0 { b"\n" } else { b",\n" })?;
        out.write_all(&head)?;
        out.write_all(b",\"messages\":[")?;
        self.sessions += 1;
        self.members = 0;
        self.held.clear();
        Ok(())
    }

    fn message(&mut self, out: &mut dyn Write, _: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        out.write_all(if self.members == 0 { b"\n  " } else { b",\n  " })?;
        self.members += 1;
        serde_json::to_writer(out, &MessageJson::of(spoken.message, spoken.audio))?;
        Ok(())
    }

    fn held(&mut self, _: &mut dyn Write, _: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        self.held.push(held.clone());
        Ok(())
    }

    fn end_session(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let held: Vec<HeldJson> = self.held.drain(..).map(|held| HeldJson::of(&held)).collect();
        out.write_all(b"],\"held\":")?;
        serde_json::to_writer(&mut *out, &held)?;
        out.write_all(b"}")
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"\n]}\n")
    }
}

/// One object a line.
pub(super) struct Lines {
    exported: String,
}

impl Lines {
    pub(super) fn new(exported: &str) -> Self {
        Self { exported: exported.to_owned() }
    }
}

/// A line: what it is, whose it is, and the rest.
#[derive(Serialize)]
struct Line<'a, T> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    #[serde(flatten)]
    rest: T,
}

impl<'a, T: Serialize> Line<'a, T> {
    fn of(kind: &'static str, session: &'a SessionRecord, rest: T) -> Self {
        let identity = &session.identity;
        Self { kind, mac: Some(identity.mac.to_string()), session_id: Some(identity.session_id.as_str()), rest }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }
}

impl Export for Lines {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{{\"kind\":\"header\",\"format\":\"{FORMAT}\",\"version\":{VERSION},\"exported\":\"{}\"}}", self.exported)
    }

    fn session(&mut self, out: &mut dyn Write, session: &SessionRecord) -> io::Result<()> {
        Line { kind: "session", mac: None, session_id: None, rest: SessionJson::of(session) }.write(out)
    }

    fn message(&mut self, out: &mut dyn Write, session: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        let message: &MessageRecord = spoken.message;
        Line::of("message", session, MessageJson::of(message, spoken.audio)).write(out)
    }

    fn held(&mut self, out: &mut dyn Write, session: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        Line::of("held", session, HeldJson::of(held)).write(out)
    }

    fn end_session(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
