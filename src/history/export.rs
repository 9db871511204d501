//! The formats of an export, each a stream: nothing is kept of what was written.
//!
//! Promises: the parts of an export are written in the order header, then per session its messages and held transcripts,
//! then the end; constant memory, whatever the length.

mod csv;
mod html;
mod json;
mod markdown;

use std::io::{self, Write};

use super::{HeldRecord, MessageRecord, SessionRecord};

/// The format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON document, as its published schema says.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// RFC 4180, one row a message.
    Csv,
    /// Markdown.
    Markdown,
    /// One self-contained, printable page.
    Html,
}

/// What may be chosen in a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// CSV: begin with a byte order mark, by which spreadsheets recognise UTF-8.
    pub bom: bool,
    /// JSON, JSONL: the audio, too.
    pub audio: bool,
}

/// A message with its audio, where that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Spoken<'a> {
    /// The message.
    pub message: &'a MessageRecord,
    /// Its audio.
    pub audio: Option<&'a [u8]>,
}

/// A format being written.
pub trait Export {
    /// The beginning.
    ///
    /// # Errors
    /// When `out` fails; so do all others.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()>;
    /// A session begins.
    ///
    /// # Errors
    /// When `out` fails.
    fn session(&mut self, out: &mut dyn Write, session: &SessionRecord) -> io::Result<()>;
    /// Its next message.
    ///
    /// # Errors
    /// When `out` fails.
    fn message(&mut self, out: &mut dyn Write, session: &SessionRecord, spoken: Spoken<'_>) -> io::Result<()>;
    /// A transcript it holds; after its messages.
    ///
    /// # Errors
    /// When `out` fails.
    fn held(&mut self, out: &mut dyn Write, session: &SessionRecord, held: &HeldRecord) -> io::Result<()>;
    /// The session ends.
    ///
    /// # Errors
    /// When `out` fails.
    fn end_session(&mut self, out: &mut dyn Write) -> io::Result<()>;
    /// The end.
    ///
    /// # Errors
    /// When `out` fails.
    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()>;
}

impl Format {
    /// A writer of this format; `exported` is now, in RFC 3339.
    #[must_use]
    pub fn export(self, choices: Choices, exported: &str) -> Box<dyn Export> {
        match self {
            Self::Json => Box::new(json::Document::new(exported)),
            Self::Jsonl => Box::new(json::Lines::new(exported)),
            Self::Csv => Box::new(csv::Csv::new(choices.bom)),
            Self::Markdown => Box::new(markdown::Markdown),
            Self::Html => Box::new(html::Html::new(exported)),
        }
    }

    /// Whether it can carry audio.
    #[must_use]
    pub const fn carries_audio(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}
