//! Markdown: a heading a session, a paragraph a message.
//!
//! Promises: what was said stands there as it was said; nothing of it is taken for markup.

use std::io::{self, Write};

use super::prose::{Said, about, stamp};
use super::{Export, Spoken};
use crate::history::table::NO_CLOCK;
use crate::history::{HeldRecord, SessionRecord};

pub(super) struct Markdown;

impl Export for Markdown {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "# Conversations")
    }

    fn session(&mut self, out: &mut dyn Write, session: &SessionRecord) -> io::Result<()> {
        writeln!(out, "\n## Session {}\n", escape(session.identity.session_id.as_str()))?;
        writeln!(out, "{}", about(session, escape))
    }

    fn message(&mut self, out: &mut dyn Write, _: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        said(out, &Said::of(spoken.message))
    }

    fn held(&mut self, out: &mut dyn Write, _: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        said(out, &Said::held(held))
    }

    fn end_session(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

fn said(out: &mut dyn Write, said: &Said<'_>) -> io::Result<()> {
    let marks: Vec<String> = said.marks.iter().map(|mark| format!(", {}", escape(mark))).collect();
    let marks = marks.concat();
    write!(
        out,
        "\n**{}** ({}{marks}):  \n{}\n",
        said.who,
        said.time.map_or_else(|| NO_CLOCK.to_owned(), stamp),
        paragraph(said.text)
    )
}

/// Text whose line breaks stay.
fn paragraph(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| escape(line.trim())).collect();
    lines.join("  \n")
}

/// Every character that means something in Markdown or HTML, escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for (index, character) in text.char_indices() {
        let (before, from) = text.split_at_checked(index).unwrap_or_default();
        match character {
            // Where bare addresses become links.
            ':' if from.starts_with("://") => escaped.push_str("\\:"),
            '.' if before.get(before.len().saturating_sub(3)..).is_some_and(|www| www.eq_ignore_ascii_case("www")) => {
                escaped.push_str("\\.");
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '!' | '$' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(character);
            }
            // Only at the beginning of a line: a list, a rule, a numbered list.
            '+' | '-' | '=' if index == 0 => {
                escaped.push('\\');
                escaped.push(character);
            }
            '.' | ')' if index > 0 && before.bytes().all(|byte| byte.is_ascii_digit()) => {
                escaped.push('\\');
                escaped.push(character);
            }
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_markup() {
        assert_eq!(escape("# no *heading*"), "\\# no \\*heading\\*");
        assert_eq!(escape("<script>&"), "&lt;script&gt;&amp;");
        assert_eq!(escape("- no list"), "\\- no list");
        assert_eq!(escape("1. no list, 2.5 litres"), "1\\. no list, 2.5 litres");
        assert_eq!(escape("see http://x.org, www.x.org: 10:30"), "see http\\://x.org, www\\.x.org: 10:30");
        assert_eq!(escape("नमस्ते 你好 🐘"), "नमस्ते 你好 🐘");
        assert_eq!(paragraph("two\nlines"), "two  \nlines");
    }
}
