//! The formats of an export, each a stream: nothing is kept of what was written.
//!
//! Promises: the parts of an export are written in the order header, then per session its messages and held transcripts,
//! then the end; constant memory, whatever the length, but for PDF, whose file cannot be begun before its end is known: it
//! has a greatest length.

mod csv;
mod html;
mod json;
mod markdown;
#[cfg(feature = "pdf")]
mod pdf;
mod prose;

use std::io::{self, Write};
use std::path::PathBuf;

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
    /// For paper: A4. Only when it was built in, as in the packages.
    Pdf,
}

/// An export that cannot be made in this format.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// It was not built in.
    #[error(
        "this chat-historyd was built without PDF: the packages have it (from source: cargo build --release --features pdf), and \
         --format html gives a page that every browser prints"
    )]
    NotBuilt,
    /// There is no font on this system.
    #[error("there are no fonts in {}: a PDF needs some (apt-get install fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji)", list(.0))]
    NoFonts(Vec<PathBuf>),
    /// It would be too long.
    #[error(
        "this would be a PDF of more than {0} pages: choose fewer messages (--from, --to, --mac, --session, --limit), or another format"
    )]
    TooLong(usize),
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
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
    /// What whoever asked for it should know of it, when it is finished.
    fn remark(&self) -> Option<String> {
        None
    }
}

impl Format {
    /// A writer of this format; `exported` is now, in RFC 3339.
    ///
    /// # Errors
    /// When this program or this system cannot make it.
    pub fn export(self, choices: Choices, exported: &str) -> Result<Box<dyn Export>, Unavailable> {
        Ok(match self {
            Self::Json => Box::new(json::Document::new(exported)),
            Self::Jsonl => Box::new(json::Lines::new(exported)),
            Self::Csv => Box::new(csv::Csv::new(choices.bom)),
            Self::Markdown => Box::new(markdown::Markdown),
            Self::Html => Box::new(html::Html::new(exported)),
            #[cfg(feature = "pdf")]
            Self::Pdf => Box::new(pdf::Pdf::new(exported)?),
            #[cfg(not(feature = "pdf"))]
            Self::Pdf => return Err(Unavailable::NotBuilt),
        })
    }

    /// Whether it can carry audio.
    #[must_use]
    pub const fn carries_audio(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }

    /// Whether a terminal can show it.
    #[must_use]
    pub const fn is_text(self) -> bool {
        !matches!(self, Self::Pdf)
    }
}
