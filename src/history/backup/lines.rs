//! A backup read back, a line at a time: one of ours, whole, or an error.
//!
//! Called by `backup` and `earlier`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use serde::Deserialize;
use uuid::Uuid;

use super::super::MessageState;

/// The longest line that is read: a message of the longest line that a producer may send, spelled at length.
const LINE_BYTES: u64 = 256 << 20;

/// The lines of a backup.
pub(super) struct Lines {
    file: BufReader<File>,
    /// The line of the session, without the comma and the brace that would end it.
    pub(super) head: Vec<u8>,
    is_at_end: bool,
}

/// The line of a message.
pub(super) struct Line {
    pub(super) uuid: Uuid,
    /// The place of its state in [`MessageState::NAMES`].
    pub(super) state: usize,
    has_left: bool,
    /// The JSON object.
    pub(super) json: Vec<u8>,
}

impl Lines {
    /// Reads a backup from its beginning.
    pub(super) fn of(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let mut lines = Self { file: BufReader::with_capacity(1 << 16, file), head: Vec::new(), is_at_end: false };
        lines.head = lines.line()?;
        if lines.head.pop() != Some(b',') || lines.line()? != b"\"messages\":[" {
            return Err(invalid("it does not begin as a backup does"));
        }
        Ok(lines)
    }

    /// The next message; `None` at the end of a whole backup.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        if self.is_at_end {
            return Ok(None);
        }
        let line = self.line()?;
        if line == b"]," {
            if !self.line()?.starts_with(b"\"counts\":{") || !self.file.fill_buf()?.is_empty() {
                return Err(invalid("it does not end as a backup does"));
            }
            self.is_at_end = true;
            return Ok(None);
        }
        let json = line.trim_ascii();
        let json = json.strip_suffix(b",").unwrap_or(json);
        let fields: Fields<'_> = parsed(json)?;
        let uuid = Uuid::try_parse(&fields.uuid).map_err(|_| invalid("a message has no uuid"))?;
        let state = MessageState::NAMES.iter().position(|name| *name == fields.state);
        let state = state.ok_or_else(|| invalid("a message has no state that is known"))?;
        Ok(Some(Line { uuid, state, has_left: fields.left_store, json: json.to_vec() }))
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut self.file).take(LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(invalid("it is cut off"));
        }
        Ok(line)
    }
}

impl Line {
    /// The same, marked as one whose state is not looked after any more.
    pub(super) fn left_behind(mut self) -> Self {
        if !self.has_left && self.json.pop_if(|last| *last == b'}').is_some() {
            self.json.extend_from_slice(b",\"left_store\":true}");
        }
        self
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    uuid: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(default)]
    left_store: bool,
}

/// All of it is looked at: what is written again must be readable.
pub(super) fn parsed<'a, T: Deserialize<'a>>(json: &'a [u8]) -> io::Result<T> {
    let text = std::str::from_utf8(json).map_err(|_| invalid("it is no UTF-8"))?;
    // The parser's own words may quote the text.
    serde_json::from_str(text).ok().filter(|_| json.starts_with(b"{")).ok_or_else(|| invalid("a line of it is no JSON of ours"))
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
