//! `chat-historyd history` and `chat-historyd rejected`: what was said, from the shell.
//!
//! Promises: reading works beside a running daemon and without one; every failure names the place and the remedy on
//! standard error and has an exit code; a reader that closes its pipe ends the output quietly.
//! Refuses: to write to the store itself while a daemon runs.

mod check;
mod export;
mod failure;
mod forget;
mod hand;
mod import;
mod list;
mod owner;
mod progress;
mod rejected;
mod search;
mod show;

use std::fmt;
use std::io::{self, BufRead, BufWriter, IsTerminal, Read, Write};

use self::failure::Failure;
use crate::cli::history::{FilterArgs, HistoryCommand, RejectedCommand};
use crate::clock::wall_clock;
use crate::config::{self, Settings, Sources};
use crate::exit::Exit;
use crate::history::Filter;
use crate::history::table::Colour;
use crate::protocol::{SessionId, UnixMillis};
use crate::store::Archive;
use crate::store::archive::{Page, SessionQuery};

/// Messages read at once.
const PAGE: usize = 500;
/// Sessions read at once.
const SESSIONS_PAGE: usize = 200;
/// The width of a table that goes into a pipe.
const PIPE_WIDTH: usize = 100;

/// Runs a `history` command.
#[must_use]
pub fn history(command: &HistoryCommand, sources: &Sources) -> Exit {
    run("history", sources, |settings| match command {
        HistoryCommand::List(arguments) => list::list(arguments, settings, &mut output()),
        HistoryCommand::Show(arguments) => show::show(arguments, settings, &mut output()),
        HistoryCommand::Export(arguments) => export::export(arguments, settings),
        HistoryCommand::Schema => Ok(output().write_all(crate::history::json::SCHEMA.as_bytes())?),
        HistoryCommand::Import(arguments) => import::import(arguments, settings, &mut output()),
        HistoryCommand::Forget(arguments) => forget::forget(arguments, settings, &mut output()),
        HistoryCommand::Check => check::check(settings, &mut output()),
        HistoryCommand::Search(arguments) => search::search(arguments, settings, &mut output()),
    })
}

/// Runs a `rejected` command.
#[must_use]
pub fn rejected(command: &RejectedCommand, sources: &Sources) -> Exit {
    run("rejected", sources, |settings| match command {
        RejectedCommand::List(arguments) => rejected::list(arguments, settings, &mut output()),
        RejectedCommand::Show(arguments) => rejected::show(arguments, settings, &mut output()),
        RejectedCommand::Retry(arguments) => rejected::retry(arguments, settings, &mut output()),
        RejectedCommand::Drop(arguments) => rejected::drop(arguments, settings, &mut output()),
    })
}

fn run(name: &str, sources: &Sources, work: impl FnOnce(&Settings) -> Result<(), Failure>) -> Exit {
    let settings = match config::load(sources) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            say(format_args!("{problems}"));
            return Exit::Configuration;
        }
    };
    match work(&settings) {
        Ok(()) => Exit::Success,
        Err(failure) if failure.is_closed_pipe() => Exit::Success,
        Err(failure) => {
            say(format_args!("chat-historyd {name}: {failure}\n"));
            failure.exit()
        }
    }
}

/// Asks before something is deleted; `yes` was given on the command line, or is typed.
fn is_wanted(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} Nobody can be asked here: --yes says so")));
    }
    say(format_args!("{question} [y/N] "));
    let mut answer = Vec::new();
    io::stdin().lock().take(16).read_until(b'\n', &mut answer)?;
    Ok(matches!(answer.trim_ascii(), b"y" | b"Y" | b"yes"))
}

/// Tells the person. Standard error may be a pipe whose reader is gone (`2>&1 | head`): that is no reason to die.
fn say(words: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(words);
}

/// What the filter options mean now.
///
/// # Errors
/// When they make no sense, or name a session that is not there.
fn filter(archive: &Archive, arguments: &FilterArgs) -> Result<Filter, Failure> {
    let filter = arguments.filter(wall_clock());
    in_order(filter.from, filter.to)?;
    if let Some(session) = &filter.session {
        let query = SessionQuery {
            mac: filter.mac.map(|mac| mac.to_string()),
            session_id: Some(session.as_str().to_owned()),
            ..SessionQuery::default()
        };
        if archive.sessions(&query, Page::YOUNGEST, 1)?.is_empty() {
            return Err(no_such_session(archive, session));
        }
    }
    Ok(filter)
}

/// Refuses a time that ends before it begins.
fn in_order(from: Option<UnixMillis>, to: Option<UnixMillis>) -> Result<(), Failure> {
    match from.zip(to) {
        Some((from, to)) if from >= to => Err(Failure::Usage("--from is not before --to: nothing was said between them".into())),
        _ => Ok(()),
    }
}

fn no_such_session(archive: &Archive, session: &SessionId) -> Failure {
    let (id, place) = (session.as_str(), archive.path().display());
    Failure::Usage(format!("there is no session {id:?} in {place} (chat-historyd history list shows what there is)"))
}

/// Standard output, buffered; flushed when it is dropped, or by whoever wants to know.
fn output() -> impl Write {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Width and colour of tables: the terminal's, or plain for a pipe.
fn look() -> (usize, Colour) {
    if !io::stdout().is_terminal() {
        return (PIPE_WIDTH, Colour::Plain);
    }
    let width = terminal_size::terminal_size().map_or(PIPE_WIDTH, |(width, _)| usize::from(width.0));
    let wished = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    (width, if wished { Colour::Ansi } else { Colour::Plain })
}
