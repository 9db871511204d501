//! CSV after RFC 4180 for spreadsheets: one header row, one row a message, CRLF.
//!
//! Promises: no cell is a formula: a text that a spreadsheet would compute is led by an apostrophe.

use std::borrow::Cow;
use std::io::{self, Write};

use super::{Export, Spoken};
use crate::history::name::rfc3339;
use crate::history::{HeldRecord, MessageRecord, MessageState, SessionRecord, role};

const HEADER: &str = "mac,session_id,agent_id,time,role,content,state,reason,interrupted,uncommitted,uuid,event_id";

pub(super) struct Csv {
    bom: bool,
}

impl Csv {
    pub(super) const fn new(bom: bool) -> Self {
        Self { bom }
    }
}

impl Export for Csv {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.bom {
            out.write_all("\u{feff}".as_bytes())?;
        }
        write!(out, "{HEADER}\r\n")
    }

    fn session(&mut self, _: &mut dyn Write, _: &SessionRecord) -> io::Result<()> {
        Ok(())
    }

    fn message(&mut self, out: &mut dyn Write, session: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        let message: &MessageRecord = spoken.message;
        let reason = match &message.state {
            MessageState::Rejected { reason, .. } => reason.as_str(),
            _ => "",
        };
        row(
            out,
            [
                &session.identity.mac.to_string(),
                session.identity.session_id.as_str(),
                session.agent_id.as_deref().unwrap_or(""),
                &rfc3339(message.time).unwrap_or_default(),
                role(message.chat_type),
                &message.content,
                message.state.as_str(),
                reason,
                yes(message.interrupted),
                yes(message.uncommitted),
                &message.uuid.hyphenated().to_string(),
                message.event_id.as_deref().unwrap_or(""),
            ],
        )
    }

    fn held(&mut self, out: &mut dyn Write, session: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        row(
            out,
            [
                &session.identity.mac.to_string(),
                session.identity.session_id.as_str(),
                session.agent_id.as_deref().unwrap_or(""),
                &rfc3339(held.time).unwrap_or_default(),
                "user",
                &held.text,
                "held",
                "",
                "no",
                "no",
                &held.uuid.hyphenated().to_string(),
                "",
            ],
        )
    }

    fn end_session(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

const fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn row(out: &mut dyn Write, cells: [&str; 12]) -> io::Result<()> {
    for (index, text) in cells.into_iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        out.write_all(cell(text).as_bytes())?;
    }
    out.write_all(b"\r\n")
}

/// A cell: harmless to a spreadsheet, quoted where it must be.
fn cell(text: &str) -> Cow<'_, str> {
    // Some spreadsheets trim white space before they look, and some take the full-width forms.
    let first = text.trim_start().chars().next();
    let formula = matches!(first, Some('=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠')) || text.starts_with(['\t', '\r']);
    let text = if formula { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) };
    if text.contains(['"', ',', '\r', '\n', ';']) || text.starts_with(' ') || text.ends_with(' ') {
        return Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_commas_and_newlines_are_quoted() {
        assert_eq!(cell("plain"), "plain");
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(cell("say \"hi\""), "\"say \"\"hi\"\"\"");
        assert_eq!(cell("two\nlines"), "\"two\nlines\"");
        assert_eq!(cell("नमस्ते"), "नमस्ते");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "=HYPERLINK(\"http://x\",\"y\")", "\n=1"] {
            let cell = cell(text);
            let inner = cell.strip_prefix('"').unwrap_or(&cell);
            assert!(inner.starts_with('\''), "{text:?} became {cell:?}");
        }
    }
}
