//! `history forget`: a device's or a session's history is deleted everywhere on this host, and that is checked.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::hand::Hand;
use super::{PAGE, SESSIONS_PAGE, is_wanted};
use crate::cli::history::ForgetArgs;
use crate::config::Settings;
use crate::history::change::{Answer, Request};
use crate::history::search::words::indexed;
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
    devices: BTreeSet<String>,
    sessions: u64,
    messages: u64,
    undelivered: u64,
    texts: Samples,
    /// How messages begin, to look for them in the index of words.
    beginnings: Samples,
}

/// The longest parts of texts, by length.
#[derive(Default)]
struct Samples(BTreeSet<(usize, String)>);

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
    if !is_wanted(arguments.yes, &question(&found, &whose, arguments))? {
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
    // Whoever reads the output no more is still to know whether all is gone.
    let places = Places::of(settings);
    let checked = check(arguments, settings, &places, &found, &answer).map_err(|failure| match failure {
        Failure::Incomplete(files) => Failure::Incomplete(format!("these files still hold something of {whose}: {files}")),
        other => other,
    });
    let told = tell(out, &whose, &answer);
    checked?;
    told?;
    let searched_for = found.texts.0.len();
    if searched_for > 0 {
        writeln!(out, "checked: none of {searched_for} texts is in the files of the store and the backups any more")?;
    }
    if !answer.log_truncated {
        writeln!(out, "somebody still reads a write-ahead log: end that reader and run this again, which empties the log")?;
    }
    if wipe::holds_files(&places.set_aside) {
        writeln!(
            out,
            "in {} are damaged stores: nothing of {whose} was found there, but they are not opened (delete them when they are of no \
             more use)",
            places.set_aside.display()
        )?;
    }
    Ok(out.flush()?)
}

/// Tells what was deleted.
fn tell(out: &mut dyn Write, whose: &str, answer: &Answer) -> io::Result<()> {
    if answer.sessions == 0 && answer.backups == 0 {
        writeln!(out, "there is nothing of {whose} in the store and the backups")?;
    } else {
        writeln!(
            out,
            "deleted of {whose}: {} sessions, {} messages ({} undelivered ones and held transcripts among them), {} backup files",
            answer.sessions, answer.messages, answer.undelivered, answer.backups
        )?;
    }
    out.flush()
}

fn question(found: &Found, whose: &str, arguments: &ForgetArgs) -> String {
    let devices: Vec<&str> = found.devices.iter().map(String::as_str).collect();
    // A session id alone may be one of several devices.
    let devices =
        if arguments.mac.is_some() || devices.is_empty() { String::new() } else { format!(" (of {})", devices.join(", ")) };
    format!(
        "Delete {} sessions with {} messages of {whose}{devices}, and their backups, for ever?",
        found.sessions, found.messages
    )
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
            found.devices.insert(entry.session.identity.mac.to_string());
            entry.session.held.iter().for_each(|held| found.texts.take(&held.text));
            let mut after = RowId::default();
            loop {
                let messages = archive.messages(entry.session.key, after, PAGE)?;
                let Some(last) = messages.last() else { break };
                after = last.row;
                for message in &messages {
                    found.texts.take(&message.content);
                    found.beginnings.keep(&message.content);
                }
            }
        }
    }
}

impl Samples {
    /// Keeps a part of the text that is written the same in the database and in JSON.
    fn take(&mut self, text: &str) {
        let plain = text.split(|character: char| character.is_control() || character == '"' || character == '\\');
        if let Some(longest) = plain.max_by_key(|part| part.len()) {
            self.keep(longest);
        }
    }

    /// Keeps how the text begins.
    fn keep(&mut self, text: &str) {
        let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let Some(part) = text.get(..end).filter(|part| part.len() >= SHORTEST) else { return };
        self.0.insert((part.len(), part.to_owned()));
        if self.0.len() > SAMPLES {
            self.0.pop_first();
        }
    }

    fn texts(&self) -> Vec<String> {
        self.0.iter().map(|(_, text)| text.clone()).collect()
    }

    /// As the index of words holds them, without the last word, which may have been cut.
    fn words(&self) -> Vec<String> {
        let words = self.0.iter().filter_map(|(_, text)| indexed(text).rsplit_once(' ').map(|(words, _)| words.to_owned()));
        words.filter(|words| words.len() >= SHORTEST).collect()
    }
}

/// Where files may hold something, as [`wipe::files_with`] names them.
struct Places {
    store: PathBuf,
    backups: PathBuf,
    /// Damaged stores.
    set_aside: PathBuf,
}

impl Places {
    fn of(settings: &Settings) -> Self {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let store = real(&settings.store.directory);
        Self { backups: real(&settings.backup.directory), set_aside: store.join("corrupt"), store }
    }

    /// Whether it is a file of this database of the store.
    fn is_of(&self, path: &Path, database: &str) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // With a suffix it is the log, or the list of what is in it.
        let is_its_own = name.strip_prefix(database).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        path.parent() == Some(&self.store) && is_its_own
    }

    /// What is to be done about a file that still holds something.
    fn remedy(&self, path: &Path, log_truncated: bool) -> &'static str {
        let is_database = self.is_of(path, "history.db") || self.is_of(path, "search.db");
        if path.starts_with(&self.set_aside) {
            "a damaged store that was set aside is not opened any more: delete it by hand"
        } else if is_database && !log_truncated {
            "somebody still reads its write-ahead log: end that reader and run this again, which empties the log"
        } else if is_database {
            "it may have been said again since: history search shows where"
        } else if path.starts_with(&self.backups) {
            "run this again"
        } else {
            "it is no file of the daemon's"
        }
    }
}

/// Searches the files for what was forgotten. Others may have said the same: what still stands in one of their messages,
/// transcripts or backups is theirs.
fn check(arguments: &ForgetArgs, settings: &Settings, places: &Places, found: &Found, answer: &Answer) -> Result<(), Failure> {
    // A damaged store may hold texts that nobody knows any more. Whose they are stands beside them.
    let names: Vec<String> = match (&arguments.session, arguments.mac) {
        (Some(session), _) => vec![session.as_str().to_owned()],
        (None, Some(mac)) => vec![mac.to_string(), mac.bare()],
        (None, None) => Vec::new(),
    };
    let (texts, words) = (found.texts.texts(), found.beginnings.words());
    let texts_and_names: Vec<String> = [texts.as_slice(), &names].concat();
    let mut hits = wipe::files_with(&[&places.store, &places.backups], |path| {
        if path.starts_with(&places.set_aside) {
            &texts_and_names
        } else if places.is_of(path, "search.db") {
            &words
        } else {
            &texts
        }
    })?;
    hits.retain(|(path, _)| {
        let is_backup = path.starts_with(&places.backups) && !path.starts_with(&places.set_aside);
        !(is_backup && wipe::is_backup_of_another(path, arguments.mac, arguments.session.as_ref()))
    });
    if hits.is_empty() {
        return Ok(());
    }
    let there: BTreeSet<&str> = hits.iter().flat_map(|(_, there)| there).map(String::as_str).collect();
    let others = said_by_others(arguments, settings, &there, &words)?;
    let left: Vec<String> = hits
        .iter()
        .filter(|(_, there)| there.iter().any(|text| names.contains(text) || !others.contains(text)))
        .map(|(path, _)| format!("{} ({})", path.display(), places.remedy(path, answer.log_truncated)))
        .collect();
    if left.is_empty() { Ok(()) } else { Err(Failure::Incomplete(left.join(", "))) }
}

/// Which of the texts others have said; `words` are those of the index.
fn said_by_others(
    arguments: &ForgetArgs,
    settings: &Settings,
    texts: &BTreeSet<&str>,
    words: &[String],
) -> Result<BTreeSet<String>, Failure> {
    let archive = Archive::open(&settings.store.directory)?;
    let mut others = BTreeSet::new();
    let any_words = texts.iter().any(|text| words.iter().any(|words| words == text));
    let mut hear = |said: &str| {
        let indexed = if any_words { indexed(said) } else { String::new() };
        let same = texts.iter().filter(|text| said.contains(**text) || indexed.contains(**text));
        others.extend(same.map(|text| (*text).to_owned()));
    };
    let is_other = |identity: &SessionIdentity| {
        arguments.mac.is_some_and(|mac| mac != identity.mac)
            || arguments.session.as_ref().is_some_and(|session| *session != identity.session_id)
    };
    let mut page = Page::OLDEST;
    loop {
        let entries = archive.sessions(&SessionQuery::default(), page, SESSIONS_PAGE)?;
        let Some(last) = entries.last() else { return Ok(others) };
        page = Page::After(last.session.key);
        for entry in entries.iter().filter(|entry| is_other(&entry.session.identity)) {
            entry.session.held.iter().for_each(|held| hear(&held.text));
            let mut after = RowId::default();
            loop {
                let messages = archive.messages(entry.session.key, after, PAGE)?;
                let Some(last) = messages.last() else { break };
                after = last.row;
                for message in &messages {
                    hear(&message.content);
                }
            }
        }
    }
}
