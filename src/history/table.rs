//! The transcript of a session as a plain-text table: time, speaker, state, text.
//!
//! Promises: no control character or direction override of a text reaches the terminal; a grapheme cluster is never
//! torn; lines keep to the width as far as terminals agree on it: East Asian wide characters and emoji count two cells,
//! combining marks none, Devanagari vowel signs that stand beside their letter one.
//! Refuses: colours unless they are asked for, and guesses about other scripts' ligatures. The text is the last column, so that a terminal that
//! counts otherwise shifts nothing.

use std::io::{self, Write};

use unicode_segmentation::UnicodeSegmentation;

use super::name::{date_of, moment};
use super::{HeldRecord, MessageRecord, MessageState, SessionRecord};
use crate::protocol::UnixMillis;

/// The columns before the text: `08:19:33  agent  delivered  `.
const INDENT: usize = 8 + 2 + 5 + 2 + 9 + 2;
/// In place of a time that is not known.
pub(crate) const NO_CLOCK: &str = "--:--:--";
/// The narrowest text column.
const NARROWEST: usize = 16;

/// Whether the table is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// No escape sequence in it.
    Plain,
    /// ANSI colours: who speaks, and what is not delivered.
    Ansi,
}

impl Colour {
    /// The text in a colour, by its ANSI number.
    fn paint(self, number: u8, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Ansi => format!("\u{1b}[{number}m{text}\u{1b}[0m"),
        }
    }
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const CYAN: u8 = 36;
const DIM: u8 = 2;

/// Writes the transcript of a session, row by row.
#[derive(Debug)]
pub struct Table<W> {
    out: W,
    colour: Colour,
    text_width: usize,
    date: String,
    rows: u64,
}

impl<W: Write> Table<W> {
    /// Begins a table that is `width` cells wide (at least 44) with the heading of the session.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn begin(out: W, session: &SessionRecord, width: usize) -> io::Result<Self> {
        Self::begin_in(out, session, width, Colour::Plain)
    }

    /// [`Self::begin`], coloured or not.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn begin_in(mut out: W, session: &SessionRecord, width: usize, colour: Colour) -> io::Result<Self> {
        let date = date_of(session.started);
        let end = session.end_reason.as_deref().map(printable).unwrap_or_default();
        let ended = match (session.ended, end.is_empty()) {
            (None, _) => ", still open".to_owned(),
            (Some(time), true) => format!(", ended {}", clock(time)),
            (Some(time), false) => format!(", ended {} ({end})", clock(time)),
        };
        writeln!(out, "session {}", printable(session.identity.session_id.as_str()))?;
        writeln!(out, "device  {}, {date} {} UTC{ended}", session.identity.mac, clock(session.started))?;
        if let Some(agent) = &session.agent_id {
            writeln!(out, "agent   {}", printable(agent))?;
        }
        let text_width = width.saturating_sub(INDENT).max(NARROWEST);
        writeln!(out, "\n{:8}  {:5}  {:9}  text", "time", "who", "state")?;
        writeln!(out, "{:-<8}  {:-<5}  {:-<9}  {:-<text_width$}", "", "", "", "")?;
        Ok(Self { out, colour, text_width, date, rows: 0 })
    }

    /// Adds a message.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn message(&mut self, message: &MessageRecord) -> io::Result<()> {
        let marks = [(message.interrupted, " [interrupted]"), (message.uncommitted, " [uncommitted]")];
        let mut text = if message.state == MessageState::Damaged { String::new() } else { message.content.clone() };
        text.extend(marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark));
        if let MessageState::Rejected { reason, .. } = &message.state {
            text.extend([" [", reason, "]"]);
        }
        self.row(message.said(), message.role(), message.state.as_str(), &text)
    }

    /// Adds a transcript that is still held.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn held(&mut self, held: &HeldRecord) -> io::Result<()> {
        self.row(Some(held.time), "user", "held", &held.text)
    }

    /// Ends the table; answers the number of its rows.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.rows)
    }

    fn row(&mut self, time: Option<UnixMillis>, who: &str, state: &str, text: &str) -> io::Result<()> {
        self.rows += 1;
        if let Some(date) = time.map(date_of).filter(|date| *date != self.date) {
            writeln!(self.out, "{date}")?;
            self.date = date;
        }
        let (who_colour, state_colour) = (colour_of_speaker(who), colour_of_state(state));
        let mut first = format!(
            "{:8}  {}  {}  ",
            time.map_or_else(|| NO_CLOCK.to_owned(), clock),
            self.colour.paint(who_colour, &format!("{who:5}")),
            self.colour.paint(state_colour, &format!("{state:9}"))
        );
        for line in wrap(text, self.text_width) {
            writeln!(self.out, "{}", format!("{first}{line}").trim_end())?;
            first = " ".repeat(INDENT);
        }
        Ok(())
    }
}

fn colour_of_speaker(who: &str) -> u8 {
    match who {
        "user" => CYAN,
        "agent" => GREEN,
        _ => DIM,
    }
}

fn colour_of_state(state: &str) -> u8 {
    match state {
        "pending" | "held" => YELLOW,
        "rejected" | "damaged" => RED,
        _ => DIM,
    }
}

/// Writes the whole transcript, held transcripts at the end.
///
/// # Errors
/// When `out` fails.
pub fn write<'m>(
    out: impl Write,
    session: &SessionRecord,
    messages: impl IntoIterator<Item = &'m MessageRecord>,
    width: usize,
) -> io::Result<u64> {
    let mut table = Table::begin(out, session, width)?;
    messages.into_iter().try_for_each(|message| table.message(message))?;
    session.held.iter().try_for_each(|held| table.held(held))?;
    table.finish()
}

pub(crate) fn clock(time: UnixMillis) -> String {
    moment(time).map_or_else(|| NO_CLOCK.to_owned(), |moment| moment.strftime("%H:%M:%S").to_string())
}

/// The text without what a terminal would obey: control characters become spaces, direction overrides vanish.
pub(crate) fn printable(text: &str) -> String {
    let visible = text.chars().filter(|character| !matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    visible.map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The text in lines of at most `width` cells, broken at white space, else between grapheme clusters. Never empty.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut used) = (String::new(), 0);
        for word in printable(paragraph).split_whitespace() {
            let gap = usize::from(used > 0);
            let word_cells = word.graphemes(true).map(cells).sum::<usize>();
            if used + gap + word_cells <= width {
                line.extend(std::iter::repeat_n(' ', gap));
                line.push_str(word);
                used += gap + word_cells;
                continue;
            }
            if used > 0 {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            for cluster in word.graphemes(true) {
                if used > 0 && used + cells(cluster) > width {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push_str(cluster);
                used += cells(cluster);
            }
        }
        lines.push(line);
    }
    lines
}

/// Cells of a grapheme cluster.
fn cells(cluster: &str) -> usize {
    let emoji = cluster.contains('\u{fe0f}') || cluster.contains('\u{200d}') && cluster.chars().any(is_wide);
    if emoji || cluster.chars().any(is_wide) { 2 } else { cluster.chars().filter(|character| !is_zero_width(*character)).count() }
}

/// East Asian wide and full-width characters, and emoji, by block.
const fn is_wide(character: char) -> bool {
    matches!(character as u32,
        0x1100..=0x115f | 0x231a..=0x231b | 0x23e9..=0x23ec | 0x2e80..=0x303e | 0x3041..=0x33ff | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff | 0xa000..=0xa4cf | 0xa960..=0xa97f | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f
        | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f1e6..=0x1f1ff | 0x1f300..=0x1f64f | 0x1f680..=0x1f6ff | 0x1f7e0..=0x1f7eb
        | 0x1f900..=0x1faff | 0x20000..=0x3fffd)
}

/// Combining marks that stand over, under or in their letter, and characters without a body.
const fn is_zero_width(character: char) -> bool {
    matches!(character as u32,
        0x0300..=0x036f | 0x0483..=0x0489 | 0x0591..=0x05bd | 0x0610..=0x061a | 0x064b..=0x065f | 0x0670
        | 0x0900..=0x0902 | 0x093a | 0x093c | 0x0941..=0x0948 | 0x094d | 0x0951..=0x0957 | 0x0962..=0x0963
        | 0x0981 | 0x09bc | 0x09c1..=0x09c4 | 0x09cd | 0x0a01..=0x0a02 | 0x0a3c | 0x0a41..=0x0a51 | 0x0a70..=0x0a71
        | 0x0a81..=0x0a82 | 0x0abc | 0x0ac1..=0x0ac8 | 0x0acd | 0x0b82 | 0x0bc0 | 0x0bcd | 0x0c3e..=0x0c40 | 0x0c46..=0x0c56
        | 0x0cbc | 0x0cbf | 0x0cc6 | 0x0ccc..=0x0ccd | 0x0d41..=0x0d44 | 0x0d4d | 0x0e31 | 0x0e34..=0x0e3a | 0x0e47..=0x0e4e
        | 0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x200b..=0x200f | 0x2060..=0x2064 | 0x20d0..=0x20f0 | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f | 0xfeff | 0xe0100..=0xe01ef)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use proptest::prelude::*;

    use super::super::sample;
    use super::*;

    fn table(width: usize) -> String {
        let mut out = Vec::new();
        write(&mut out, &sample::session(), &sample::messages(), width).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn width_of(line: &str) -> usize {
        line.graphemes(true).map(cells).sum()
    }

    #[test]
    fn the_real_conversation_reads_as_a_table() {
        let table = table(72);
        let mut lines = table.lines();
        assert_eq!(lines.next(), Some("session d3746a02-1111-2222-3333-444455556666_6825ddba3978"));
        assert_eq!(lines.next(), Some("device  68:25:dd:ba:39:78, 2026-11-22 07:44:42 UTC, ended 07:46:22 (user_initiated)"));
        assert!(table.contains("\n07:45:14  agent  delivered  नमस्ते! मैं ठीक हूँ, तुम कैसे हो? 😊\n"), "{table}");
        assert!(table.contains("[invalid]") && table.contains("[interrupted]"), "{table}");
        assert!(table.ends_with("07:46:21  user   held       one more\n"), "{table}");
        for line in table.lines().skip(3) {
            assert!(width_of(line) <= 72, "{line}");
        }
    }

    #[test]
    fn no_word_of_the_real_conversation_is_lost_at_any_width() {
        for width in [0, 44, 60, 100] {
            let squeezed = |text: &str| text.split_whitespace().collect::<String>();
            let body = table(width).lines().skip(6).map(|line| line.chars().skip(INDENT).collect::<String>()).collect::<String>();
            for message in sample::messages() {
                assert!(squeezed(&body).contains(&squeezed(&message.content)), "{width}: {}", message.content);
            }
        }
    }

    #[test]
    fn text_cannot_command_the_terminal() {
        assert_eq!(wrap("a\u{1b}[31mb\u{202e}c\td", 40), ["a [31mbc d"]);
    }

    #[test]
    fn wide_characters_emoji_and_devanagari_are_counted_in_cells() {
        for (text, expected) in [
            ("a", 1),
            ("é", 1),
            ("e\u{301}", 1),
            ("你好", 4),
            ("🐘", 2),
            ("👨‍👩‍👧", 2),
            ("🇮🇳", 2),
            ("❤️", 2),
            ("कि", 2),
            ("कु", 1),
            ("नमस्ते", 4),
        ] {
            assert_eq!(width_of(text), expected, "{text}");
        }
    }

    #[test]
    fn long_text_breaks_between_words_and_long_words_between_clusters() {
        assert_eq!(wrap("once upon a time there was", 12), ["once upon a", "time there", "was"]);
        assert_eq!(wrap("one\n\ntwo", 12), ["one", "", "two"]);
        assert_eq!(wrap("👨‍👩‍👧👨‍👩‍👧👨‍👩‍👧", 4), ["👨‍👩‍👧👨‍👩‍👧", "👨‍👩‍👧"]);
        assert_eq!(wrap("", 12), [""]);
    }

    proptest! {
        #[test]
        fn wrapping_keeps_every_visible_character_and_the_width(text in "[\\PC\\n]{0,200}", width in 2_usize..60) {
            let lines = wrap(&text, width);
            let visible = |text: &str| printable(text).chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(visible(&lines.concat()), visible(&text));
            for line in &lines {
                let single = line.graphemes(true).count() == 1;
                prop_assert!(single || width_of(line) <= width, "{:?}", line);
            }
        }
    }
}
