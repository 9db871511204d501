//! `history list`: the sessions, youngest first.

use std::io::Write;

use super::failure::Failure;
use super::{SESSIONS_PAGE, filter, say};
use crate::cli::history::{ListArgs, Shape};
use crate::config::Settings;
use crate::history::json::EntryJson;
use crate::history::{State, listing};
use crate::store::Archive;
use crate::store::archive::Page;

pub(super) fn list(arguments: &ListArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    if arguments.filter.state == Some(State::Damaged) {
        return Err(Failure::Usage(
            "a list reads no messages, so it knows of no damaged ones (history export --state damaged has them)".into(),
        ));
    }
    let archive = Archive::open(&settings.store.directory)?;
    let filter = filter(&archive, &arguments.filter)?;
    let query = filter.query(true);
    let (mut page, mut listed, mut more) = (Page::YOUNGEST, 0, false);
    let mut out = out;
    match arguments.format {
        Shape::Text => listing::heading(&mut out)?,
        Shape::Json => out.write_all(b"[")?,
    }
    'pages: loop {
        let entries = archive.sessions(&query, page, SESSIONS_PAGE)?;
        let Some(last) = entries.last() else { break };
        page = Page::Before(last.session.key);
        for entry in entries.iter().filter(|entry| filter.lists(entry)) {
            if listed == arguments.limit {
                more = true;
                break 'pages;
            }
            match arguments.format {
                Shape::Text => listing::row(&mut out, entry)?,
                Shape::Json => {
                    out.write_all(if listed == 0 { b"\n" } else { b",\n" })?;
                    serde_json::to_writer(&mut out, &EntryJson::of(entry)).map_err(std::io::Error::from)?;
                }
            }
            listed += 1;
        }
    }
    if arguments.format == Shape::Json {
        out.write_all(b"\n]\n")?;
    }
    out.flush()?;
    if arguments.format == Shape::Text && more {
        say(format_args!("there are more: --limit shows more than {} sessions, the filters fewer\n", arguments.limit));
    }
    if arguments.format == Shape::Text && listed == 0 && !more {
        say(format_args!("there is no such session\n"));
    }
    Ok(())
}
