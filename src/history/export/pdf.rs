//! PDF: set for paper, A4, a heading a session, who speaks and when beside what was said.
//!
//! Promises: text is data, never markup; scripts are shaped, directions kept, lines broken where their script breaks them;
//! the text can be searched and copied. Memory is bounded by the number of sheets, and one sheet too many is an error.
//! Refuses: to go on without a font.

mod fonts;
mod lines;
mod sheets;

use std::io::{self, Write};

use self::fonts::Fonts;
use self::lines::Look;
use self::sheets::{INSIDE, Sheets};
use super::prose::{Said, about};
use super::{Export, Spoken, Unavailable};
use crate::history::name::date_of;
use crate::history::table::printable;
use crate::history::{HeldRecord, SessionRecord};

const INK: [u8; 3] = [24, 24, 24];
const GREY: [u8; 3] = [96, 96, 96];
const USER: [u8; 3] = [10, 110, 189];
const AGENT: [u8; 3] = [43, 122, 61];
const TROUBLE: [u8; 3] = [179, 38, 30];

const TITLE: Look = Look { size: 18.0, bold: true, colour: INK };
const HEADING: Look = Look { size: 12.0, bold: true, colour: INK };
const NOTE: Look = Look { size: 8.5, bold: false, colour: GREY };
const TEXT: Look = Look { size: 10.5, bold: false, colour: INK };

/// The most sheets of one document: what is kept of them until the end is memory.
const MAX_SHEETS: usize = 5000;

/// The column of who and when, and the gap after it.
const WHO: f32 = 84.0;
/// A heading needs a little of its session below it.
const HEADING_NEEDS: f32 = 110.0;
/// A message that is not higher than this is not torn over two sheets.
const WHOLE: f32 = 160.0;

pub(super) struct Pdf {
    fonts: Fonts,
    /// Gone when they are written.
    sheets: Option<Sheets>,
    exported: String,
    sessions: u64,
    messages: u64,
    date: String,
}

impl Pdf {
    /// # Errors
    /// When this system has no fonts.
    pub(super) fn new(exported: &str) -> Result<Self, Unavailable> {
        Self::of_at_most(MAX_SHEETS, exported)
    }

    fn of_at_most(sheets: usize, exported: &str) -> Result<Self, Unavailable> {
        let day = exported.get(..10).unwrap_or(exported);
        let sheets = Sheets::new("Conversations", format!("chat-historyd, exported {day}. All times are UTC."), sheets);
        let fonts = Fonts::of_this_system()?;
        Ok(Self { fonts, sheets: Some(sheets), exported: exported.to_owned(), sessions: 0, messages: 0, date: String::new() })
    }

    fn paragraph(&mut self, text: &str, look: Look) -> io::Result<()> {
        let Some(sheets) = &mut self.sheets else { return Ok(()) };
        for line in lines::set(&mut self.fonts, text, look, INSIDE) {
            sheets.put(&mut self.fonts, 0.0, line)?;
        }
        Ok(())
    }

    fn said(&mut self, said: &Said<'_>) -> io::Result<()> {
        self.messages += 1;
        if let Some(date) = said.time.map(date_of).filter(|date| *date != self.date) {
            if !self.date.is_empty() {
                self.skip(6.0);
                self.paragraph(&date, NOTE)?;
            }
            self.date = date;
        }
        let Some(sheets) = &mut self.sheets else { return Ok(()) };
        let fonts = &mut self.fonts;
        let colour = match said.who {
            "user" => USER,
            "agent" => AGENT,
            _ => GREY,
        };
        let mut text = lines::set(fonts, said.text, TEXT, INSIDE - WHO);
        if !said.marks.is_empty() {
            let colour = if said.is_trouble() { TROUBLE } else { GREY };
            text.extend(lines::set(fonts, &said.marks.join(", "), Look { colour, ..NOTE }, INSIDE - WHO));
        }
        let mut beside = lines::set(fonts, said.who, Look { bold: true, colour, ..TEXT }, WHO);
        beside.extend(lines::set(fonts, &said.clock(), NOTE, WHO));
        let height_beside: f32 = beside.iter().map(|line| line.height).sum();
        let height = text.iter().map(|line| line.height).sum::<f32>().max(height_beside);
        let first = text.first().map_or(0.0, |line| line.height).max(height_beside);
        sheets.skip(4.0);
        sheets.need(fonts, if height <= WHOLE { height } else { first })?;
        sheets.rule();
        sheets.skip(3.0);
        let mut y = sheets.y();
        let foot = y + height_beside;
        let sheet = sheets.number();
        for line in beside {
            let height = line.height;
            sheets.beside(0.0, y, line);
            y += height;
        }
        for line in text {
            sheets.put(fonts, WHO, line)?;
        }
        if sheets.number() == sheet {
            sheets.down_to(foot);
        }
        Ok(())
    }

    fn skip(&mut self, height: f32) {
        if let Some(sheets) = &mut self.sheets {
            sheets.skip(height);
        }
    }
}

impl Export for Pdf {
    fn begin(&mut self, _: &mut dyn Write) -> io::Result<()> {
        self.paragraph("Conversations", TITLE)
    }

    fn session(&mut self, _: &mut dyn Write, session: &SessionRecord) -> io::Result<()> {
        self.sessions += 1;
        self.date = date_of(session.started);
        self.skip(16.0);
        if let Some(sheets) = &mut self.sheets {
            sheets.need(&mut self.fonts, HEADING_NEEDS)?;
            sheets.bookmark(printable(session.identity.session_id.as_str()));
        }
        self.paragraph(&format!("Session {}", session.identity.session_id), HEADING)?;
        self.paragraph(&about(session, str::to_owned), NOTE)?;
        self.skip(2.0);
        Ok(())
    }

    fn message(&mut self, _: &mut dyn Write, _: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()> {
        self.said(&Said::of(spoken.message))
    }

    fn held(&mut self, _: &mut dyn Write, _: &SessionRecord, held: &HeldRecord) -> io::Result<()> {
        self.said(&Said::held(held))
    }

    fn end_session(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.skip(16.0);
        let end =
            format!("{} messages in {} sessions, exported {} by chat-historyd.", self.messages, self.sessions, self.exported);
        self.paragraph(&end, NOTE)?;
        if self.remark().is_some() {
            self.paragraph("Some characters are drawn as boxes: no font of the system that made this document has them.", NOTE)?;
        }
        let Some(sheets) = self.sheets.take() else { return Ok(()) };
        out.write_all(&sheets.finish(&mut self.fonts)?)
    }

    fn remark(&self) -> Option<String> {
        self.fonts.remark()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::history::sample;

    /// Fonts are the system's: without any there is nothing to test here.
    fn pdf_of_at_most(sheets: usize) -> Option<Pdf> {
        Pdf::of_at_most(sheets, "2025-09-24T08:19:33.000Z").ok()
    }

    fn write(pdf: &mut Pdf, rounds: usize) -> io::Result<Vec<u8>> {
        let (mut out, session, messages) = (Vec::new(), sample::session(), sample::messages());
        pdf.begin(&mut out)?;
        for _ in 0..rounds {
            pdf.session(&mut out, &session)?;
            for message in &messages {
                pdf.message(&mut out, &session, Spoken { message, audio: None })?;
            }
            pdf.held(&mut out, &session, &session.held[0])?;
            pdf.end_session(&mut out)?;
        }
        pdf.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn a_pdf_that_would_be_too_long_is_an_error_before_anything_is_written() {
        let Some(mut pdf) = pdf_of_at_most(2) else { return };
        let error = write(&mut pdf, 20).unwrap_err().downcast::<Unavailable>().unwrap();
        assert!(matches!(error, Unavailable::TooLong(2)), "{error}");
        assert!(error.to_string().contains("more than 2 pages: choose fewer messages"), "{error}");
        let written = write(&mut pdf_of_at_most(200).unwrap(), 20).unwrap();
        assert!(written.starts_with(b"%PDF") && written.ends_with(b"%%EOF"), "{} bytes", written.len());
    }

    #[test]
    fn devanagari_is_shaped_and_every_glyph_knows_its_text() {
        let Some(mut pdf) = pdf_of_at_most(1) else { return };
        let text = "क्षत्रिय ज्ञान श्री";
        let lines = lines::set(&mut pdf.fonts, text, TEXT, INSIDE);
        if pdf.remark().is_some() {
            return;
        }
        let glyphs: Vec<_> = lines[0].runs.iter().flat_map(|run| &run.glyphs).collect();
        assert!(glyphs.len() < text.chars().count() - 4, "conjuncts are one glyph: {}", glyphs.len());
        assert!(glyphs.iter().all(|glyph| glyph.glyph_id.to_u32() != 0));
        let read: String = lines[0].runs.iter().map(|run| run.text.as_str()).collect();
        assert_eq!(read, text);
    }

    #[test]
    fn lines_keep_to_their_width_in_scripts_with_and_without_spaces() {
        let Some(mut pdf) = pdf_of_at_most(1) else { return };
        for text in ["the quick brown fox ".repeat(30), "从前有一只大象,".repeat(30), "x".repeat(9000), "\u{301}".repeat(9000)]
        {
            for line in lines::set(&mut pdf.fonts, &text, TEXT, 200.0) {
                assert!(line.width <= 206.0, "{} points: {text}", line.width);
            }
        }
    }
}
