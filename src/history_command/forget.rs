//! `history forget`: a device's or a session's history is deleted everywhere on this host, and that is checked.

use std::collections::BTreeSet;
use std::io::Write;

use super::failure::Failure;
use super::hand::Hand;
use super::{PAGE, SESSIONS_PAGE, is_wanted};
use crate::cli::history::ForgetArgs;
use crate::config::Settings;
use crate::history::change::Request;
use crate::history::wipe;
use crate::protocol::SessionIdentity;
use crate::store::archive::{Page, SessionQuery};
use crate::store::{Archive, RowId};

/// Texts that the files are searched for afterwards: the longest.
const SAMPLES: usize = 200;
/// The shortest text that says something, and the part of a text that is searched for, in bytes.
const SHORTEST: usize = 12;
const LONGEST: usize = 120;

/// What there is to forget.
#[derive(Default)]
struct Found {
    sessions: u64,
    messages: u64,
    undelivered: u64,
    texts: BTreeSet<(usize, String)>,
}

pub(super) fn forget(arguments: &ForgetArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let found = look(arguments, settings)?;
    let whose = match (arguments.mac, &arguments.session) {
        (Some(mac), Some(session)) => format!("session {session} of device {mac}"),
        (Some(mac), None) => format!("device {mac}"),
        (None, Some(session)) => format!("session {session}"),
        (None, None) => return Err(Failure::Usage("--mac or --session says whose history".into())),
    };
    if found.undelivered > 0 && !arguments.including_undelivered {
        return Err(Failure::Refused(format!(
            "{} messages of {whose} are undelivered: nothing was deleted (--including-undelivered deletes them, too)",
            found.undelivered
        )));
    }
    let question =
        format!("Delete {} sessions with {} messages of {whose}, and their backups, for ever?", found.sessions, found.messages);
    if !is_wanted(arguments.yes, &question)? {
        writeln!(out, "nothing was deleted")?;
        return Ok(out.flush()?);
    }
    let hand = Hand::find(settings)?;
    let answer = hand.request(&Request::Forget {
        mac: arguments.mac.map(|mac| mac.to_string()),
        session_id: arguments.session.as_ref().map(|id| id.as_str().to_owned()),
        including_undelivered: arguments.including_undelivered,
    })?;
    hand.finish();
    if answer.sessions == 0 && answer.backups == 0 {
        writeln!(out, "there is nothing of {whose} here")?;
        return Ok(out.flush()?);
    }
    writeln!(
        out,
        "deleted of {whose}: {} sessions, {} messages ({} undelivered ones and held transcripts among them), {} backup files",
        answer.sessions, answer.messages, answer.undelivered, answer.backups
    )?;
    out.flush()?;
    let texts: Vec<String> = found.texts.into_iter().map(|(_, text)| text).collect();
    check(arguments, settings, &texts)?;
    writeln!(out, "checked: none of {} texts is in the files of the store and the backups any more", texts.len())?;
    if !answer.log_truncated {
        writeln!(out, "the write-ahead log is still read by somebody: it is emptied at the next checkpoint")?;
    }
    Ok(out.flush()?)
}

fn look(arguments: &ForgetArgs, settings: &Settings) -> Result<Found, Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let query = SessionQuery {
        mac: arguments.mac.map(|mac| mac.to_string()),
        session_id: arguments.session.as_ref().map(|id| id.as_str().to_owned()),
        ..SessionQuery::default()
    };
    let mut found = Found::default();
    let mut page = Page::OLDEST;
    loop {
        let entries = archive.sessions(&query, page, SESSIONS_PAGE)?;
        let Some(last) = entries.last() else { return Ok(found) };
        page = Page::After(last.session.key);
        for entry in &entries {
            found.sessions += 1;
            found.messages += entry.messages;
            found.undelivered += entry.pending + entry.session.held.len() as u64;
            entry.session.held.iter().for_each(|held| sample(&mut found.texts, &held.text));
            let mut after = RowId::default();
            loop {
                let messages = archive.messages(entry.session.key, after, PAGE)?;
                let Some(last) = messages.last() else { break };
                after = last.row;
                for message in &messages {
                    sample(&mut found.texts, &message.content);
                }
            }
        }
    }
}

/// Keeps a part of the text that is written the same in the database and in JSON.
fn sample(texts: &mut BTreeSet<(usize, String)>, text: &str) {
    let plain = text.split(|character: char| character.is_control() || character == '"' || character == '\\');
    let Some(longest) = plain.max_by_key(|part| part.len()).filter(|part| part.len() >= SHORTEST) else { return };
    let end = (0..=LONGEST.min(longest.len())).rev().find(|end| longest.is_char_boundary(*end)).unwrap_or(0);
    let Some(part) = longest.get(..end) else { return };
    texts.insert((part.len(), part.to_owned()));
    if texts.len() > SAMPLES {
        texts.pop_first();
    }
}

/// Searches the files for what was forgotten. Others may have said the same: what still stands in a message is theirs.
fn check(arguments: &ForgetArgs, settings: &Settings, texts: &[String]) -> Result<(), Failure> {
    if texts.is_empty() {
        return Ok(());
    }
    let hits = wipe::files_with(&[&settings.store.directory, &settings.backup.directory], texts)?;
    if hits.is_empty() {
        return Ok(());
    }
    let others = said_by_others(arguments, settings, texts)?;
    let left: Vec<String> = hits
        .into_iter()
        .filter(|(_, there)| there.iter().any(|text| !others.contains(text)))
        .map(|(path, _)| path.display().to_string())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::Incomplete(format!(
        "the history was deleted from the store, but these files still hold texts of it: {} (a damaged store that was set aside \
         is not opened any more: delete it by hand)",
        left.join(", ")
    )))
}

fn said_by_others(arguments: &ForgetArgs, settings: &Settings, texts: &[String]) -> Result<BTreeSet<String>, Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let mut others = BTreeSet::new();
    let mut page = Page::OLDEST;
    loop {
        let entries = archive.sessions(&SessionQuery::default(), page, SESSIONS_PAGE)?;
        let Some(last) = entries.last() else { return Ok(others) };
        page = Page::After(last.session.key);
        let is_other = |identity: &SessionIdentity| {
            arguments.mac.is_some_and(|mac| mac != identity.mac)
                || arguments.session.as_ref().is_some_and(|session| *session != identity.session_id)
        };
        for entry in entries.iter().filter(|entry| is_other(&entry.session.identity)) {
            let mut after = RowId::default();
            loop {
                let messages = archive.messages(entry.session.key, after, PAGE)?;
                let Some(last) = messages.last() else { break };
                after = last.row;
                for message in &messages {
                    others.extend(texts.iter().filter(|text| message.content.contains(text.as_str())).cloned());
                }
            }
        }
    }
}
