//! `history search`: messages with these words, the youngest first.

use std::collections::HashMap;
use std::io::Write;

use serde::Serialize;

use super::failure::Failure;
use super::{PAGE, filter, look, say};
use crate::cli::history::{SearchArgs, Shape};
use crate::config::Settings;
use crate::history::json::MessageJson;
use crate::history::name::rfc3339;
use crate::history::search::query::Snippet;
use crate::history::search::{Query, SearchIndex};
use crate::history::table::{Colour, printable};
use crate::history::{Filter, MessageRecord, SessionRecord};
use crate::store::{Archive, RowId, SessionKey};

/// A message that was found, as JSON.
#[derive(Serialize)]
struct FoundJson<'a> {
    mac: String,
    session_id: &'a str,
    agent_id: Option<&'a str>,
    snippet: String,
    message: MessageJson,
}

pub(super) fn search(arguments: &SearchArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(query) = Query::parse(&arguments.text) else {
        return Err(Failure::Usage("there is no word to search for".into()));
    };
    let archive = Archive::open(&settings.store.directory)?;
    let mut search = Search {
        filter: filter(&archive, &arguments.filter)?,
        archive,
        query,
        sessions: HashMap::new(),
        left: arguments.limit,
        shown: 0,
        shape: arguments.format,
        colour: look().1,
    };
    if arguments.format == Shape::Json {
        out.write_all(b"[")?;
    }
    search.run(&SearchIndex::of(&settings.store.directory), out)?;
    if arguments.format == Shape::Json {
        out.write_all(b"\n]\n")?;
    }
    out.flush()?;
    if arguments.format == Shape::Text {
        match search.shown {
            0 => say(format_args!("nothing was found\n")),
            shown if shown == arguments.limit => say(format_args!("there may be more: --limit shows more than {shown}\n")),
            _ => {}
        }
    }
    Ok(())
}

struct Search {
    archive: Archive,
    query: Query,
    filter: Filter,
    sessions: HashMap<SessionKey, Option<SessionRecord>>,
    left: usize,
    shown: usize,
    shape: Shape,
    colour: Colour,
}

impl Search {
    fn run(&mut self, index: &SearchIndex, out: &mut dyn Write) -> Result<(), Failure> {
        let reader = index.read(&self.archive);
        let watermark = reader.as_ref().map_or(RowId(0), |reader| reader.watermark);
        // What is not indexed yet is the youngest.
        self.read_all(RowId(i64::MAX), watermark, out)?;
        let Some(reader) = reader else { return Ok(()) };
        let fts = self.query.fts();
        let mut before = RowId(watermark.0.saturating_add(1));
        while self.left > 0 {
            let Ok(rows) = reader.rows(&fts, before, PAGE) else {
                // A damaged index is the daemon's to mend; the messages are all there.
                return self.read_all(before, RowId(0), out);
            };
            let Some(last) = rows.last() else { break };
            before = *last;
            self.look_at(&rows, out)?;
        }
        Ok(())
    }

    /// Reads the messages one by one, the youngest below `before` first.
    fn read_all(&mut self, mut before: RowId, above: RowId, out: &mut dyn Write) -> Result<(), Failure> {
        while self.left > 0 {
            let rows = self.archive.rows_before(before, above, PAGE)?;
            let Some(last) = rows.last() else { break };
            before = *last;
            self.look_at(&rows, out)?;
        }
        Ok(())
    }

    fn look_at(&mut self, rows: &[RowId], out: &mut dyn Write) -> Result<(), Failure> {
        for row in rows {
            if self.left == 0 {
                return Ok(());
            }
            // Whose it is comes first: a common word may stand in a million messages of others.
            let Some(key) = self.archive.session_of(*row)? else { continue };
            if !self.sessions.contains_key(&key) {
                if self.sessions.len() >= PAGE {
                    self.sessions.clear();
                }
                let session = self.archive.session(key)?.map(|entry| entry.session);
                self.sessions.insert(key, session);
            }
            let Some(session) = self.sessions.get(&key).and_then(Option::as_ref).filter(|session| self.is_meant(session)) else {
                continue;
            };
            let Some((_, message)) = self.archive.message(*row)? else { continue };
            let Some(snippet) = self.query.find(&message.content).filter(|_| self.filter.takes(&message)) else { continue };
            self.show(out, session, &message, &snippet)?;
            self.shown += 1;
            self.left -= 1;
        }
        Ok(())
    }

    fn is_meant(&self, session: &SessionRecord) -> bool {
        self.filter.mac.is_none_or(|mac| session.identity.mac == mac)
            && self.filter.session.as_ref().is_none_or(|id| session.identity.session_id == *id)
            && self.filter.agent.as_ref().is_none_or(|agent| session.agent_id.as_ref() == Some(agent))
    }

    fn show(
        &self,
        out: &mut dyn Write,
        session: &SessionRecord,
        message: &MessageRecord,
        snippet: &Snippet,
    ) -> Result<(), Failure> {
        let id = session.identity.session_id.as_str();
        match self.shape {
            Shape::Json => {
                let found = FoundJson {
                    mac: session.identity.mac.to_string(),
                    session_id: id,
                    agent_id: session.agent_id.as_deref(),
                    snippet: snippet.marked("[", "]"),
                    message: MessageJson::of(message, None),
                };
                out.write_all(if self.shown == 0 { b"\n" } else { b",\n" })?;
                serde_json::to_writer(&mut *out, &found).map_err(std::io::Error::from)?;
            }
            Shape::Text => {
                let time = message.said().and_then(rfc3339).unwrap_or_default();
                let time = time.get(..19).unwrap_or("-").replace('T', " ");
                let clean = Snippet { parts: snippet.parts.iter().map(|(text, found)| (printable(text), *found)).collect() };
                let text = match self.colour {
                    Colour::Plain => clean.marked("[", "]"),
                    Colour::Ansi => clean.marked("\u{1b}[1;33m", "\u{1b}[0m"),
                };
                writeln!(out, "{time}  {:5}  {}  {}\n    {text}", message.role(), session.identity.mac, printable(id))?;
            }
        }
        Ok(())
    }
}
