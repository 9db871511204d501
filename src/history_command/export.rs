//! `history export`: conversations in a format, to a file or to standard output, in constant memory.
//!
//! Promises: beside a running daemon, each session is exported as it was at one moment: every message of it once, whatever
//! is said, recognised or tried again meanwhile. Its pages are short reads all the same: a reader that stops (`| less`) must
//! not keep the log of the store from starting anew. What left its place before it was read is counted and told of.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use super::failure::Failure;
use super::progress::Progress;
use super::{PAGE, SESSIONS_PAGE, filter, output, say};
use crate::cli::history::ExportArgs;
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::history::Filter;
use crate::history::export::{Choices, Export, Format, Spoken, Unavailable};
use crate::history::name::rfc3339;
use crate::history::output::{Output, OutputError};
use crate::store::archive::{Page, SessionEntry, SessionQuery};
use crate::store::{Archive, RowId};

pub(super) fn export(arguments: &ExportArgs, settings: &Settings) -> Result<(), Failure> {
    if arguments.bom && arguments.format != Format::Csv {
        return Err(Failure::Usage("--bom goes with --format csv only".into()));
    }
    if arguments.audio && !arguments.format.carries_audio() {
        return Err(Failure::Usage("--audio goes with --format json and jsonl only".into()));
    }
    if arguments.output.is_none() && !arguments.format.is_text() && io::stdout().is_terminal() {
        return Err(Failure::Usage("a terminal cannot show this format: -o FILE says where it goes".into()));
    }
    let archive = Archive::open(&settings.store.directory)?;
    let remarks = match arguments.output.as_deref() {
        None => {
            let mut out = output();
            let remarks = Run::new(arguments, &archive, !io::stdout().is_terminal())?.write(&mut out)?;
            out.flush()?;
            remarks
        }
        Some(path) => {
            let mut out = Output::begin(path)?;
            let remarks = Run::new(arguments, &archive, true)?.write(&mut out).map_err(|failure| named(failure, path))?;
            out.commit()?;
            remarks
        }
    };
    for remark in remarks {
        say(format_args!("chat-historyd history: {remark}\n"));
    }
    Ok(())
}

/// The failure with the name of the file that is written.
fn named(failure: Failure, path: &Path) -> Failure {
    match failure {
        Failure::Io(source) => Failure::Output(OutputError { path: path.to_path_buf(), source }),
        other => other,
    }
}

/// The messages of the sessions that are asked for.
fn count(archive: &Archive, query: &SessionQuery) -> Result<u64, Failure> {
    let (mut page, mut messages) = (Page::OLDEST, 0);
    loop {
        let entries = archive.sessions(query, page, SESSIONS_PAGE)?;
        let Some(last) = entries.last() else { return Ok(messages) };
        page = Page::After(last.session.key);
        messages += entries.iter().map(|entry| entry.messages).sum::<u64>();
    }
}

struct Run<'a> {
    archive: &'a Archive,
    filter: Filter,
    /// Sessions without a message that is asked for are left out.
    selective: bool,
    audio: bool,
    left: u64,
    /// Messages that left their places before they were read.
    missed: u64,
    begun_any: bool,
    export: Box<dyn Export>,
    progress: Progress,
}

impl<'a> Run<'a> {
    fn new(arguments: &ExportArgs, archive: &'a Archive, may_draw: bool) -> Result<Self, Failure> {
        let now = wall_clock();
        let filter = filter(archive, &arguments.filter)?;
        let query = filter.query(false);
        let total = if query == SessionQuery::default() { archive.message_count()? } else { count(archive, &query)? };
        let choices = Choices { bom: arguments.bom, audio: arguments.audio };
        Ok(Self {
            archive,
            selective: filter.from.is_some() || filter.to.is_some() || filter.state.is_some(),
            filter,
            audio: arguments.audio,
            left: arguments.limit.unwrap_or(u64::MAX),
            missed: 0,
            begun_any: false,
            export: arguments.format.export(choices, &rfc3339(now).unwrap_or_default())?,
            progress: Progress::new(total, may_draw),
        })
    }

    /// Writes it all; answers what is to be known of it.
    fn write(mut self, out: &mut dyn Write) -> Result<Vec<String>, Failure> {
        self.write_all(out).map_err(|failure| match failure {
            Failure::Io(error) => error.downcast::<Unavailable>().map_or_else(Failure::Io, Failure::Unavailable),
            other => other,
        })?;
        let nothing =
            (!self.begun_any).then(|| "nothing was chosen: the export is empty (history list shows what there is)".into());
        let missed = (self.missed > 0).then(|| {
            format!(
                "{} messages left the store while it was exported, by age or forgotten, or were tried again, which puts them at the end \
                 of their session: export again to have those",
                self.missed
            )
        });
        Ok([self.export.remark(), missed, nothing].into_iter().flatten().collect())
    }

    fn write_all(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        let query = self.filter.query(false);
        let mut page = Page::OLDEST;
        self.export.begin(out)?;
        while self.left > 0 {
            let entries = self.archive.sessions(&query, page, SESSIONS_PAGE)?;
            let Some(last) = entries.last() else { break };
            page = Page::After(last.session.key);
            for entry in &entries {
                self.session(out, entry)?;
            }
        }
        Ok(self.export.finish(out)?)
    }

    fn session(&mut self, out: &mut dyn Write, entry: &SessionEntry) -> Result<(), Failure> {
        let mut begun = false;
        let filter = self.filter.clone();
        if !self.selective && self.left > 0 {
            self.begin(out, entry, &mut begun)?;
        }
        let (mut after, mut read) = (RowId::default(), 0);
        while self.left > 0 {
            let page = self.archive.messages_of(entry, after, PAGE)?;
            let Some(last) = page.last() else {
                self.missed += entry.messages.saturating_sub(read);
                break;
            };
            (after, read) = (last.row, read + page.len() as u64);
            self.progress.advance(page.len() as u64);
            for message in page.iter().filter(|message| filter.takes(message)) {
                if self.left == 0 {
                    break;
                }
                self.left -= 1;
                self.begin(out, entry, &mut begun)?;
                let audio = if self.audio && message.audio_bytes > 0 { self.archive.audio(message.row)? } else { None };
                self.export.message(out, &entry.session, Spoken { message, audio: audio.as_deref() })?;
            }
        }
        for held in entry.session.held.iter().filter(|held| filter.takes_held(held.time)) {
            if self.left > 0 {
                self.left -= 1;
                self.begin(out, entry, &mut begun)?;
                self.export.held(out, &entry.session, held)?;
            }
        }
        if begun {
            self.export.end_session(out)?;
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut dyn Write, entry: &SessionEntry, begun: &mut bool) -> Result<(), Failure> {
        self.begun_any = true;
        if !std::mem::replace(begun, true) {
            self.export.session(out, &entry.session)?;
        }
        Ok(())
    }
}
