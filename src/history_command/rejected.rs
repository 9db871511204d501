//! `rejected list|show|retry|drop`: messages that the Manager API will never take.

use std::collections::HashMap;
use std::io::Write;
use std::rc::Rc;

use serde::Serialize;

use super::failure::Failure;
use super::hand::Hand;
use super::{is_wanted, say};
use crate::cli::history::{RejectedDropArgs, RejectedFilterArgs, RejectedListArgs, RejectedPickArgs, RejectedShowArgs, Shape};
use crate::config::Settings;
use crate::history::change::{ROWS, Request};
use crate::history::json::{MessageJson, SessionJson};
use crate::history::name::rfc3339;
use crate::history::table::printable;
use crate::history::{MessageRecord, SessionRecord};
use crate::store::{Archive, RejectedRow, RowId, SessionKey};

/// Rows read at once.
const PAGE: usize = 500;
/// Characters of the text in the list.
const EXCERPT: usize = 48;

/// One of them, as JSON.
#[derive(Serialize)]
struct RejectedJson {
    number: i64,
    reason: String,
    answer: Option<String>,
    rejected: Option<String>,
    rejected_ms: i64,
    session: Option<SessionJson>,
    /// `None` when its row is gone.
    message: Option<MessageJson>,
}

struct Found {
    row: RejectedRow,
    session: Option<Rc<SessionRecord>>,
    message: Option<MessageRecord>,
}

/// The sessions of rejected messages that stand near each other: to read one is to count all its messages.
#[derive(Default)]
struct Sessions(HashMap<SessionKey, Option<Rc<SessionRecord>>>);

impl Sessions {
    fn get(&mut self, archive: &Archive, key: SessionKey) -> Result<Option<Rc<SessionRecord>>, Failure> {
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        if self.0.len() >= PAGE {
            self.0.clear();
        }
        let session = archive.session(key)?.map(|entry| Rc::new(entry.session));
        self.0.insert(key, session.clone());
        Ok(session)
    }
}

impl Found {
    fn of(archive: &Archive, sessions: &mut Sessions, row: RejectedRow) -> Result<Self, Failure> {
        let session = sessions.get(archive, row.session)?;
        let message = archive.message(row.row)?.map(|(_, message)| message);
        Ok(Self { row, session, message })
    }

    fn json(&self) -> RejectedJson {
        RejectedJson {
            number: self.row.row.0,
            reason: self.row.reason.clone(),
            answer: self.row.answer.clone(),
            rejected: rfc3339(self.row.rejected),
            rejected_ms: self.row.rejected.0,
            session: self.session.as_deref().map(SessionJson::of),
            message: self.message.as_ref().map(|message| MessageJson::of(message, None)),
        }
    }

    fn text(&self) -> &str {
        self.message.as_ref().map_or("", |message| message.content.as_str())
    }
}

/// Calls `take` for every rejected message that is meant, until it says `false`.
fn each(
    archive: &Archive,
    pick: &RejectedFilterArgs,
    mut take: impl FnMut(Found) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let (mut after, mut sessions) = (RowId::default(), Sessions::default());
    loop {
        let page = archive.rejected(after, PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.row;
        for row in page {
            if pick.reason.as_ref().is_some_and(|reason| *reason != row.reason) {
                continue;
            }
            let found = Found::of(archive, &mut sessions, row)?;
            let identity = found.session.as_ref().map(|session| &session.identity);
            let of_device = pick.mac.is_none_or(|mac| identity.is_some_and(|identity| identity.mac == mac));
            let of_session = pick.session.as_ref().is_none_or(|id| identity.is_some_and(|identity| identity.session_id == *id));
            if of_device && of_session && !take(found)? {
                return Ok(());
            }
        }
    }
}

pub(super) fn list(arguments: &RejectedListArgs, settings: &Settings, mut out: &mut dyn Write) -> Result<(), Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let (mut listed, mut more) = (0, false);
    match arguments.format {
        Shape::Text => {
            writeln!(out, "{:>8}  {:<20}  {:<17}  {:<21}  text", "number", "said (UTC)", "device", "reason")?;
        }
        Shape::Json => out.write_all(b"[")?,
    }
    each(&archive, &arguments.pick, |found| {
        if listed == arguments.limit {
            more = true;
            return Ok(false);
        }
        match arguments.format {
            Shape::Text => {
                let said = found.message.as_ref().and_then(|message| message.said().and_then(rfc3339)).unwrap_or_default();
                let mac = found.session.as_ref().map_or_else(String::new, |session| session.identity.mac.to_string());
                let text: String = printable(found.text()).chars().take(EXCERPT).collect();
                let said = said.get(..19).unwrap_or("-");
                writeln!(out, "{:>8}  {said:<20}  {mac:<17}  {:<21}  {text}", found.row.row.0, found.row.reason)?;
            }
            Shape::Json => {
                out.write_all(if listed == 0 { b"\n" } else { b",\n" })?;
                serde_json::to_writer(&mut out, &found.json()).map_err(std::io::Error::from)?;
            }
        }
        listed += 1;
        Ok(true)
    })?;
    if arguments.format == Shape::Json {
        out.write_all(b"\n]\n")?;
    }
    out.flush()?;
    if arguments.format == Shape::Text && more {
        say(format_args!("there are more: --limit shows more than {}\n", arguments.limit));
    }
    Ok(())
}

pub(super) fn show(arguments: &RejectedShowArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let row = archive.rejected(RowId(arguments.number.saturating_sub(1)), 1)?;
    let Some(row) = row.into_iter().find(|row| row.row.0 == arguments.number) else {
        return Err(Failure::Usage(format!(
            "no rejected message has the number {} (rejected list shows them)",
            arguments.number
        )));
    };
    let found = Found::of(&archive, &mut Sessions::default(), row)?;
    if arguments.format == Shape::Json {
        let text = serde_json::to_string_pretty(&found.json()).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
        return Ok(out.flush()?);
    }
    writeln!(out, "number    {}", found.row.row.0)?;
    if let Some(session) = &found.session {
        writeln!(out, "session   {}", printable(session.identity.session_id.as_str()))?;
        writeln!(out, "device    {}", session.identity.mac)?;
    }
    writeln!(out, "rejected  {}", rfc3339(found.row.rejected).unwrap_or_default())?;
    writeln!(out, "reason    {} ({})", found.row.reason, meaning(&found.row.reason))?;
    if let Some(answer) = &found.row.answer {
        writeln!(out, "answer    {}", printable(answer))?;
    }
    if let Some(message) = &found.message {
        writeln!(out, "said      {}", message.said().and_then(rfc3339).unwrap_or_default())?;
        writeln!(out, "by        {}\n", message.role())?;
        for line in message.content.split('\n') {
            writeln!(out, "{}", printable(line))?;
        }
    }
    Ok(out.flush()?)
}

fn meaning(reason: &str) -> &'static str {
    match reason {
        "invalid" => "the server found the report wrong",
        "refused_by_server" => "the server refused it again and again while it took others",
        "device_not_registered" => "its device was not registered in time",
        "damaged" => "its row was damaged on disk; it cannot be sent",
        _ => "unknown",
    }
}

/// The numbers that are meant.
fn pick(archive: &Archive, arguments: &RejectedPickArgs) -> Result<Vec<i64>, Failure> {
    let mut numbers = Vec::new();
    each(archive, &arguments.pick, |found| {
        let number = found.row.row.0;
        if arguments.numbers.is_empty() || arguments.numbers.contains(&number) {
            numbers.push(number);
        }
        Ok(true)
    })?;
    if let Some(number) = arguments.numbers.iter().find(|number| !numbers.contains(number)) {
        return Err(Failure::Usage(format!("no such rejected message has the number {number} (rejected list shows them)")));
    }
    Ok(numbers)
}

pub(super) fn retry(arguments: &RejectedPickArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let numbers = pick(&Archive::open(&settings.store.directory)?, arguments)?;
    let hand = Hand::find(settings)?;
    let (mut retried, mut damaged) = (0, 0);
    for rows in numbers.chunks(ROWS) {
        let answer = hand.request(&Request::Retry { rows: rows.to_vec() })?;
        retried += answer.messages;
        damaged += answer.damaged;
    }
    let when = if hand.is_daemon() { "the daemon delivers them now" } else { "the daemon delivers them when it runs" };
    hand.finish();
    writeln!(out, "{retried} messages are pending again: {when}")?;
    if damaged > 0 {
        writeln!(out, "{damaged} messages are damaged and can never be sent (rejected drop deletes them)")?;
    }
    Ok(out.flush()?)
}

pub(super) fn drop(arguments: &RejectedDropArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let numbers = pick(&Archive::open(&settings.store.directory)?, &arguments.which)?;
    if !numbers.is_empty() && !is_wanted(arguments.yes, &format!("Delete {} rejected messages for ever?", numbers.len()))? {
        writeln!(out, "nothing was deleted")?;
        return Ok(out.flush()?);
    }
    let hand = Hand::find(settings)?;
    let mut dropped = 0;
    for rows in numbers.chunks(ROWS) {
        dropped += hand.request(&Request::Drop { rows: rows.to_vec() })?.messages;
    }
    hand.finish();
    writeln!(out, "{dropped} rejected messages were deleted (backups still hold them: history forget deletes those)")?;
    Ok(out.flush()?)
}
