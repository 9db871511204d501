//! `history show`: the transcript of one session.

use std::io::Write;

use super::failure::Failure;
use super::{PAGE, in_order, look, no_such_session, say};
use crate::cli::history::{Shape, ShowArgs};
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::history::Filter;
use crate::history::export::{Choices, Export, Format, Spoken};
use crate::history::name::rfc3339;
use crate::history::table::Table;
use crate::store::archive::{Page, SessionEntry, SessionQuery};
use crate::store::{Archive, RowId};

pub(super) fn show(arguments: &ShowArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let entry = find(&archive, arguments)?;
    let now = wall_clock();
    let filter = Filter {
        from: arguments.from.map(|when| when.as_from(now)),
        to: arguments.to.map(|when| when.as_to(now)),
        state: arguments.state,
        ..Filter::default()
    };
    in_order(filter.from, filter.to)?;
    let limit = arguments.limit.unwrap_or(usize::MAX);
    let shown = match arguments.format {
        Shape::Text => text(&archive, &entry, &filter, limit, out)?,
        Shape::Json => json(&archive, &entry, &filter, limit, out)?,
    };
    out.flush()?;
    if arguments.format == Shape::Text && shown == limit {
        say(format_args!("there may be more: only {limit} messages were asked for\n"));
    }
    Ok(())
}

/// The session that is meant.
fn find(archive: &Archive, arguments: &ShowArgs) -> Result<SessionEntry, Failure> {
    let id = arguments.session.as_str();
    let mac = arguments.mac.map(|mac| mac.to_string());
    let query = SessionQuery { mac, session_id: Some(id.to_owned()), ..SessionQuery::default() };
    let mut found = archive.sessions(&query, Page::YOUNGEST, 10)?;
    let Some(entry) = found.pop() else {
        return Err(no_such_session(archive, &arguments.session));
    };
    if found.is_empty() {
        return Ok(entry);
    }
    found.push(entry);
    let macs: Vec<String> = found.iter().map(|entry| entry.session.identity.mac.to_string()).collect();
    Err(Failure::Usage(format!("several devices have a session {id:?}: choose one with --mac ({})", macs.join(", "))))
}

fn text(archive: &Archive, entry: &SessionEntry, filter: &Filter, limit: usize, out: &mut dyn Write) -> Result<usize, Failure> {
    let (width, colour) = look();
    let mut table = Table::begin_in(out, &entry.session, width, colour)?;
    let shown = messages(archive, entry, filter, limit, |message| Ok(table.message(message)?))?;
    for held in entry.session.held.iter().filter(|held| filter.takes_held(held.time)) {
        table.held(held)?;
    }
    table.finish()?;
    Ok(shown)
}

fn json(archive: &Archive, entry: &SessionEntry, filter: &Filter, limit: usize, out: &mut dyn Write) -> Result<usize, Failure> {
    let exported = rfc3339(wall_clock()).unwrap_or_default();
    let mut export: Box<dyn Export> = Format::Json.export(Choices::default(), &exported)?;
    export.begin(out)?;
    export.session(out, &entry.session)?;
    let shown = messages(archive, entry, filter, limit, |message| {
        Ok(export.message(out, &entry.session, Spoken { message, audio: None })?)
    })?;
    for held in entry.session.held.iter().filter(|held| filter.takes_held(held.time)) {
        export.held(out, &entry.session, held)?;
    }
    export.end_session(out)?;
    export.finish(out)?;
    Ok(shown)
}

fn messages(
    archive: &Archive,
    entry: &SessionEntry,
    filter: &Filter,
    limit: usize,
    mut take: impl FnMut(&crate::history::MessageRecord) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let (mut after, mut shown) = (RowId::default(), 0);
    loop {
        let page = archive.messages_of(entry, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(shown) };
        after = last.row;
        for message in page.iter().filter(|message| filter.takes(message)) {
            if shown == limit {
                return Ok(shown);
            }
            take(message)?;
            shown += 1;
        }
    }
}
