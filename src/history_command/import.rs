//! `history import`: an export in JSON or JSONL is read back into the store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::Failure;
use super::hand::Hand;
use super::{PAGE, say};
use crate::cli::history::ImportArgs;
use crate::clock::wall_clock;
use crate::config::Settings;
use crate::history::change::Request;
use crate::history::json::{FORMAT, HeldJson, MessageJson, SessionJson, VERSION};
use crate::history::restore;
use crate::store::archive::{Page, SessionQuery};
use crate::store::{Archive, RowId};

/// Retention takes nothing younger, whatever is set.
const YOUNGEST_TO_LEAVE: Duration = Duration::from_secs(86_400);
/// Messages in one request, and their bytes.
const CHUNK_MESSAGES: usize = 500;
const CHUNK_BYTES: usize = 2 << 20;
/// The longest line of JSONL: a message with its audio.
const LINE_BYTES: u64 = 8 << 20;

/// What was imported so far.
#[derive(Default)]
struct Totals {
    sessions: u64,
    messages: u64,
    pending: u64,
    known: u64,
    /// Messages of the export that retention will take.
    old: u64,
}

/// Messages on their way.
struct Chunks<'a> {
    hand: &'a Hand,
    /// The store's directory.
    store: &'a Path,
    /// Where the input is by now, for messages.
    place: String,
    session: Option<SessionJson>,
    messages: Vec<MessageJson>,
    held: Vec<HeldJson>,
    bytes: usize,
    /// When the youngest message of the session so far was taken in, where the export was made.
    youngest_ms: i64,
    /// Whether what the session held is settled here; `None` before that was looked up.
    settled: Option<bool>,
    /// Retention takes what was taken in before.
    old_before_ms: i64,
    totals: Totals,
}

impl Chunks<'_> {
    fn begin(&mut self, session: SessionJson) -> Result<(), Failure> {
        self.send()?;
        self.check(&session, Vec::new(), Vec::new())?;
        self.totals.sessions += 1;
        (self.youngest_ms, self.settled) = (i64::MIN, None);
        self.session = Some(session);
        // A session without messages is a session, too.
        self.send_even_if_empty()
    }

    /// Refuses what the writer would, here where it stands.
    fn check(&self, session: &SessionJson, messages: Vec<MessageJson>, held: Vec<HeldJson>) -> Result<(), Failure> {
        let checked = restore::session(session, messages, held, wall_clock());
        checked.map(drop).map_err(|error| Failure::Input(format!("{}: {error}", self.place)))
    }

    fn message(&mut self, message: MessageJson) -> Result<(), Failure> {
        if let Some(session) = &self.session {
            self.check(session, vec![message.clone()], Vec::new())?;
        }
        self.make_room(&message)?;
        self.youngest_ms = self.youngest_ms.max(message.recorded_ms);
        let leaves = matches!(message.state.as_str(), "delivered" | "kept") && message.recorded_ms < self.old_before_ms;
        self.totals.old += u64::from(leaves);
        self.messages.push(message);
        Ok(())
    }

    fn held(&mut self, held: HeldJson) -> Result<(), Failure> {
        if let Some(session) = &self.session {
            self.check(session, Vec::new(), vec![held.clone()])?;
        }
        self.make_room(&held)?;
        self.held.push(held);
        Ok(())
    }

    /// Sends what there is when this would be too much in one request.
    fn make_room(&mut self, next: &impl Serialize) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(next).map_err(io::Error::from)?.len();
        if self.messages.len() + self.held.len() >= CHUNK_MESSAGES || self.bytes + bytes > CHUNK_BYTES {
            self.send()?;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The held transcripts to be sent: none when they are settled here.
    fn unsettled(&mut self) -> Result<Vec<HeldJson>, Failure> {
        let held = std::mem::take(&mut self.held);
        let Some(session) = self.session.as_ref().filter(|_| !held.is_empty()) else { return Ok(held) };
        // Looked up once: what of them is imported must not settle the others.
        let settled = match self.settled {
            Some(settled) => settled,
            None => is_settled(self.store, session, self.youngest_ms)?,
        };
        self.settled = Some(settled);
        if settled {
            self.totals.known += held.len() as u64;
            return Ok(Vec::new());
        }
        Ok(held)
    }

    fn send(&mut self) -> Result<(), Failure> {
        if self.messages.is_empty() && self.held.is_empty() { Ok(()) } else { self.send_even_if_empty() }
    }

    fn send_even_if_empty(&mut self) -> Result<(), Failure> {
        let held = self.unsettled()?;
        let Some(session) = &self.session else { return Ok(()) };
        let answer = self
            .hand
            .request(&Request::Import { session: Box::new(session.clone()), messages: std::mem::take(&mut self.messages), held })
            .map_err(|failure| {
                // Messages are sent many at once.
                let near = |why| format!("{}, or what stands before it: session {:?}: {why}", self.place, session.session_id);
                match failure {
                    Failure::Refused(why) => Failure::Refused(near(why)),
                    Failure::NotNow(why) => Failure::NotNow(near(why)),
                    other => other,
                }
            })?;
        self.bytes = 0;
        self.totals.messages += answer.messages;
        self.totals.pending += answer.undelivered;
        self.totals.known += answer.passed_over;
        Ok(())
    }
}

/// Whether the store knows what became of the transcripts that this session held. One that is open here, or went on after
/// the export was made, does: it holds them still, said them itself, or has their item.
fn is_settled(store: &Path, session: &SessionJson, youngest_ms: i64) -> Result<bool, Failure> {
    let archive = Archive::open(store)?;
    let query =
        SessionQuery { mac: Some(session.mac.clone()), session_id: Some(session.session_id.clone()), ..SessionQuery::default() };
    let Some(entry) = archive.sessions(&query, Page::OLDEST, 1)?.pop() else { return Ok(false) };
    if entry.session.ended.is_none() {
        return Ok(true);
    }
    let mut after = RowId::default();
    loop {
        let page = archive.messages(entry.session.key, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(false) };
        after = last.row;
        if page.iter().any(|message| message.recorded.0 > youngest_ms) {
            return Ok(true);
        }
    }
}

pub(super) fn import(arguments: &ImportArgs, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let name = arguments.file.display().to_string();
    let mut input: Box<dyn BufRead> = if name == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(&arguments.file).map_err(|error| Failure::Input(format!("cannot read {name}: {error}")))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    let first = line(&mut input, &name, 1)?.ok_or_else(|| Failure::Input(format!("{name} is empty")))?;
    let header: Option<Value> = serde_json::from_slice(&first).ok();
    let is_lines = header.as_ref().and_then(|header| header.get("kind")).and_then(Value::as_str) == Some("header");
    if is_lines && let Some(header) = &header {
        check_header(header, &name)?;
    }
    let hand = Hand::find(settings)?;
    let retention = settings.store.retention.max(YOUNGEST_TO_LEAVE);
    let mut chunks = Chunks {
        hand: &hand,
        store: &settings.store.directory,
        place: String::new(),
        session: None,
        messages: Vec::new(),
        held: Vec::new(),
        bytes: 0,
        youngest_ms: i64::MIN,
        settled: None,
        old_before_ms: wall_clock().0.saturating_sub(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX)),
        totals: Totals::default(),
    };
    let read = if is_lines { lines(&mut input, &name, &mut chunks) } else { document(first, input, &name, &mut chunks) };
    let totals = std::mem::take(&mut chunks.totals);
    drop(chunks);
    hand.finish();
    let told = writeln!(
        out,
        "imported {} messages of {} sessions; {} were there already; {} are pending and will be delivered",
        totals.messages, totals.sessions, totals.known, totals.pending
    )
    .and_then(|()| out.flush());
    if totals.old > 0 {
        say(format_args!(
            "{} messages of the export are older than store.retention ({}): they leave again within the hour (raise it first to \
             keep them)\n",
            totals.old,
            humantime::format_duration(retention)
        ));
    }
    // Whoever reads the output no more is still to know what became of the import.
    read?;
    Ok(told?)
}

fn check_header(header: &Value, name: &str) -> Result<(), Failure> {
    if header.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err(Failure::Input(format!("{name} is no export of chat-historyd (its format should say {FORMAT})")));
    }
    match header.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => Ok(()),
        None => Err(Failure::Input(format!("{name} says no version (format and version must stand before sessions)"))),
        _ => Err(Failure::Input(format!("{name} has another version than {VERSION} (use the chat-historyd that wrote it)"))),
    }
}

/// The next line, without its end; `None` at the end of the input.
fn line(input: &mut dyn BufRead, name: &str, number: u64) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let read = input.take(LINE_BYTES).read_until(b'\n', &mut line);
    match read.map_err(|error| Failure::Input(format!("cannot read {name}: {error}")))? {
        0 => Ok(None),
        _ if line.last() != Some(&b'\n') && line.len() as u64 == LINE_BYTES && number > 1 => {
            Err(Failure::Input(format!("{name}:{number}: the line is longer than {LINE_BYTES} bytes")))
        }
        _ => Ok(Some(line)),
    }
}

/// What a line of JSONL after the first is, and whose.
#[derive(Deserialize)]
struct Head {
    kind: Kind,
    mac: String,
    session_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Session,
    Message,
    Held,
}

fn lines(input: &mut dyn BufRead, name: &str, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    let mut number = 1;
    while let Some(text) = line(input, name, number + 1)? {
        number += 1;
        if text.trim_ascii().is_empty() {
            continue;
        }
        chunks.place = format!("{name}:{number}");
        let Head { kind, mac, session_id } = parsed(&text, name, number)?;
        let is_of = |session: &SessionJson| session.mac == mac && session.session_id == session_id;
        if !matches!(kind, Kind::Session) && !chunks.session.as_ref().is_some_and(is_of) {
            return Err(Failure::Input(format!("{name}:{number}: it stands under another session than its own")));
        }
        match kind {
            Kind::Session => chunks.begin(parsed(&text, name, number)?)?,
            Kind::Message => chunks.message(parsed(&text, name, number)?)?,
            Kind::Held => chunks.held(parsed(&text, name, number)?)?,
        }
    }
    chunks.send()
}

fn parsed<'a, T: Deserialize<'a>>(line: &'a [u8], name: &str, number: u64) -> Result<T, Failure> {
    serde_json::from_slice(line)
        .map_err(|error| Failure::Input(format!("{name}:{number}: this is no line of an export ({:?} error)", error.classify())))
}

/// A session in a document.
#[derive(Deserialize)]
struct Whole {
    #[serde(flatten)]
    session: SessionJson,
    messages: Vec<MessageJson>,
    #[serde(default)]
    held: Vec<HeldJson>,
}

/// One JSON document: its sessions are taken one after the other, never all at once.
fn document(first: Vec<u8>, input: Box<dyn BufRead>, name: &str, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    let mut failure = None;
    let mut parser = serde_json::Deserializer::from_reader(io::Cursor::new(first).chain(input));
    let seed = stream::Document {
        header: &mut |header| check_header(header, name).map_err(|error| failure.insert(error).to_string()),
        session: &mut |whole: Whole| {
            let take = |chunks: &mut Chunks<'_>| {
                let session = format!("{name}: session {:?}", whole.session.session_id);
                chunks.place.clone_from(&session);
                chunks.begin(whole.session)?;
                for (number, message) in (1..).zip(whole.messages) {
                    chunks.place = format!("{session}, message {number}");
                    chunks.message(message)?;
                }
                for (number, held) in (1..).zip(whole.held) {
                    chunks.place = format!("{session}, held transcript {number}");
                    chunks.held(held)?;
                }
                chunks.send()
            };
            take(chunks).map_err(Box::new)
        },
        failure: None,
    };
    let (parsed, taken) = seed.read(&mut parser);
    if let Some(failure) = failure.or(taken.map(|failure| *failure)) {
        return Err(failure);
    }
    let failed = |what: &str, error: serde_json::Error| {
        Failure::Input(format!("{name}:{}:{}: {what} ({:?} error)", error.line(), error.column(), error.classify()))
    };
    parsed.map_err(|error| failed("this is no export of chat-historyd", error))?;
    parser.end().map_err(|error| failed("something follows the export, which was not read (import one at a time)", error))
}

/// The document as a stream of sessions.
mod stream {
    use std::fmt;

    use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
    use serde_json::{Map, Value};

    use super::{Failure, Whole};

    pub(super) struct Document<'a, 'b> {
        pub(super) header: &'a mut (dyn FnMut(&Value) -> Result<(), String> + 'b),
        pub(super) session: &'a mut (dyn FnMut(Whole) -> Result<(), Box<Failure>> + 'b),
        pub(super) failure: Option<Box<Failure>>,
    }

    impl Document<'_, '_> {
        pub(super) fn read<'de, D: Deserializer<'de>>(mut self, parser: D) -> (Result<(), D::Error>, Option<Box<Failure>>) {
            let parsed = parser.deserialize_map(Fields(&mut self));
            (parsed, self.failure)
        }
    }

    struct Fields<'d, 'a, 'b>(&'d mut Document<'a, 'b>);

    impl<'de> Visitor<'de> for Fields<'_, '_, '_> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an export")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut header = Map::new();
            let mut checked = false;
            while let Some(name) = map.next_key::<String>()? {
                match name.as_str() {
                    "format" | "version" => {
                        header.insert(name, map.next_value()?);
                    }
                    "sessions" => {
                        (self.0.header)(&Value::Object(std::mem::take(&mut header))).map_err(A::Error::custom)?;
                        checked = true;
                        map.next_value_seed(Sessions(&mut *self.0))?;
                    }
                    _ => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            if checked { Ok(()) } else { (self.0.header)(&Value::Null).map_err(A::Error::custom) }
        }
    }

    struct Sessions<'d, 'a, 'b>(&'d mut Document<'a, 'b>);

    impl<'de> DeserializeSeed<'de> for Sessions<'_, '_, '_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
            parser.deserialize_seq(self)
        }
    }

    impl<'de> Visitor<'de> for Sessions<'_, '_, '_> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("sessions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
            while let Some(whole) = sequence.next_element::<Whole>()? {
                if let Err(failure) = (self.0.session)(whole) {
                    self.0.failure = Some(failure);
                    return Err(A::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
}
