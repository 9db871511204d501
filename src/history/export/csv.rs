//! CSV after RFC 4180 for spreadsheets: one header row, one row a message, CRLF.
//!
//! Promises: no cell is a formula: a text that a spreadsheet would compute is led by an apostrophe, and so is a part of it
//! that becomes a cell where semicolons or tabs separate them. No control character but line breaks and tabs is written.

use std::borrow::Cow;
use std::io::{self, Write};

use super::{Export, Spoken};
use crate::history::name::rfc3339;
use crate::history::{HeldRecord, MessageRecord, MessageState, SessionRecord};

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
                &message.said().and_then(rfc3339).unwrap_or_default(),
                message.role(),
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
    let text = harmless(text);
    if text.contains(['"', ',', '\n', ';', '\t']) || text.starts_with(' ') || text.ends_with(' ') {
        return Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")));
    }
    text
}

/// The text with an apostrophe before whatever a spreadsheet may compute.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_kept = |character: &char| !character.is_control() || matches!(character, '\n' | '\t');
    let kept: Cow<'_, str> =
        if text.chars().all(|character| is_kept(&character)) { text.into() } else { text.chars().filter(is_kept).collect() };
    let parts = || kept.split_inclusive([';', '\t', '\n']);
    if !parts().any(is_formula) {
        return kept;
    }
    parts().flat_map(|part| [if is_formula(part) { "'" } else { "" }, part]).collect()
}

/// Whether a spreadsheet computes it. Some trim white space before they look, some take the full-width forms, and quotes
/// inside a cell are none where something else separates cells.
fn is_formula(part: &str) -> bool {
    let first = part.trim_start_matches(|character: char| character.is_whitespace() || character == '"').chars().next();
    matches!(first, Some('=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠'))
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
            assert!(inner.trim_start().starts_with('\''), "{text:?} became {cell:?}");
        }
    }

    #[test]
    fn no_part_that_becomes_a_cell_elsewhere_is_a_formula() {
        assert_eq!(cell("hello\t=1+1\tx"), "\"hello\t'=1+1\tx\"");
        assert_eq!(cell("x;=1+1;y"), "\"x;'=1+1;y\"");
        assert_eq!(cell("x; \"=1+1"), "\"x;' \"\"=1+1\"");
        assert_eq!(cell("two\n-lines"), "\"two\n'-lines\"");
        assert_eq!(cell("2 + 3 = 5; is it not?"), "\"2 + 3 = 5; is it not?\"");
    }

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        assert_eq!(cell("a\u{1b}]0;title\u{7}b\u{9b}c\r"), "\"a]0;titlebc\"");
        assert_eq!(cell("a\u{1b}b"), "ab");
    }
}
