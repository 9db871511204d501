//! From the bytes of a line to what it asks for.
//!
//! Promises: one pass, no tree, a few microseconds a message; memory bounded by the line; never panics, whatever the
//! bytes. Unknown fields are ignored; each known field may stand once, under its canonical name or its alias.
//! `seq` is found for refused lines, too, so that they settle: wherever the line is one JSON object, bad UTF-8 or not.
//! Refuses: to coerce. `1.0`, `"1"` and `true` are no chat type; a line is refused rather than half understood.
//!
//! What a line without a known `type` is: without any `type`, a message if it has `content` and `chat_type`. With an
//! unknown one, an event of a newer framework, to be ignored — if it looks like one: every event of LiveKit carries
//! `created_at`, and none carries `chat_type` or `content`. Anything else is a misspelt command or message, and ignoring
//! that would lose a sentence in silence: it is refused.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::event::{
    ChatType, Command, Flush, FlushLevel, Line, LiveKitEvent, Message, Refusal, RefusalCode, SessionEnd, SessionStart, Target,
    UnixMillis,
};
use super::extra::Extra;
use super::fields::{Field, Fields, Kind, Problem};
use super::identity::{InvalidIdentity, MacAddress, SessionId};
use super::text::{bounded, clean, fits};
use super::{livekit, time};

/// The date of this source: a clock before it is wrong.
pub const BUILD_DATE: UnixMillis = UnixMillis(1_795_305_600_000);

/// The version of the protocol.
pub const VERSION: u64 = 1;

/// The longest id of a message, a stream or an agent, in characters.
pub const MAX_ID_CHARACTERS: usize = 200;

const MAX_ECHOED_BYTES: usize = 256;
const MAX_REASON_CHARACTERS: usize = 200;
const DEFAULT_FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_FLUSH_SECONDS: f64 = 60.0;

/// What the decoder must be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeOptions {
    /// Whether messages of chat type 3 are taken (`manager_api.send_tools`).
    pub tools: bool,
    /// The wall clock.
    pub now: UnixMillis,
    /// The date before which the wall clock cannot be right; [`BUILD_DATE`] outside tests.
    pub build_date: UnixMillis,
}

impl DecodeOptions {
    /// Options at a moment, with [`BUILD_DATE`].
    #[must_use]
    pub const fn at(now: UnixMillis, tools: bool) -> Self {
        Self { tools, now, build_date: BUILD_DATE }
    }
}

/// Decodes one line, given without its line end. Whether a line that names no session may be used is for the
/// connection to say: it knows its binding.
///
/// # Errors
/// When the line is not one JSON object, when a field is missing, wrong or there twice, and for another version.
pub fn decode(line: &[u8], options: &DecodeOptions) -> Result<Line, Refusal> {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return Err(not_utf8(line, error.valid_up_to())),
    };
    let fields = Fields::read(text).map_err(|error| bad_json(text, &error))?;
    let seq = seq(&fields);
    let refuse = |problem: Problem| bad_field(problem, seq.clone().unwrap_or_default());
    if fields.too_deep {
        let message = "nests more than 128 levels deep: send it flatter".into();
        return Err(Refusal { code: RefusalCode::BadJson, field: None, message, seq: seq.unwrap_or_default() });
    }
    if let Some(twice) = fields.duplicate {
        return Err(refuse(Problem::new(twice, "is there twice: send it once, under one of its names")));
    }
    let seq = seq.clone().map_err(refuse)?;
    let refuse = |problem| bad_field(problem, seq);
    let kind = fields.text(Field::Type).map_err(refuse)?;
    if matches!(kind.as_deref(), Some("session_start" | "hello")) {
        check_version(&fields, seq)?;
    }
    let target = target(&fields).map_err(refuse)?;
    let command = command(kind.as_deref(), &fields, &target, options).map_err(refuse)?;
    Ok(Line { seq, target, command })
}

/// Whether a line that was refused was to start a session, as far as it can be read: what follows it belongs there.
#[must_use]
pub fn starts_a_session(line: &[u8]) -> bool {
    let fields = std::str::from_utf8(line).ok().and_then(|text| Fields::read(text).ok());
    let kind = fields.and_then(|fields| fields.text(Field::Type).ok().flatten().map(Cow::into_owned));
    matches!(kind.as_deref(), Some("session_start" | "hello"))
}

fn command(kind: Option<&str>, fields: &Fields<'_>, target: &Target, options: &DecodeOptions) -> Result<Command, Problem> {
    let has = |field| fields.raw(field).is_some();
    Ok(match kind {
        Some("message") => Command::Message(message(fields, options)?),
        None if has(Field::Content) && has(Field::ChatType) => Command::Message(message(fields, options)?),
        None => return Err(Problem::new(Field::Type, "is missing (a line without it needs 'content' and 'chat_type')")),
        Some("session_start" | "hello") => Command::SessionStart(session_start(fields, target)?),
        Some("session_end") => {
            Command::SessionEnd(SessionEnd { reason: note(fields, Field::Reason)?, dropped: fields.unsigned(Field::Dropped)? })
        }
        Some("flush") => Command::Flush(flush(fields)?),
        Some("ping") => Command::Ping { id: echoed_id(fields)? },
        Some(event) => match livekit::event(event, fields, options)? {
            Some(event) => Command::LiveKit(event),
            None if has(Field::CreatedAt) && !has(Field::ChatType) && !has(Field::Content) => {
                Command::LiveKit(LiveKitEvent::Ignored)
            }
            None => return Err(Problem::new(Field::Type, "is neither a command nor an event of LiveKit")),
        },
    })
}

fn message(fields: &Fields<'_>, options: &DecodeOptions) -> Result<Message, Problem> {
    let chat_type = chat_type(fields, options.tools)?;
    let content = fields.text(Field::Content)?.ok_or(Problem::new(Field::Content, "is missing"))?;
    let (time, time_replaced) = time::read(fields, Field::Timestamp, options)?;
    let event_id = id(fields, Field::Id)?;
    let interrupted = fields.boolean(Field::Interrupted)?.unwrap_or_default();
    let (audio, audio_invalid) = audio(fields)?;
    let mut extra = Extra::default();
    if let Some(metadata) = fields.raw(Field::Metadata) {
        if !matches!(fields.kind(Field::Metadata), Some(Kind::Object)) {
            return Err(Problem::new(Field::Metadata, "must be an object"));
        }
        extra.add(Field::Metadata.name(), metadata);
    }
    Ok(Message {
        chat_type,
        content: clean(content),
        time,
        time_replaced,
        event_id,
        interrupted,
        audio,
        audio_invalid,
        extra: extra.finish(),
    })
}

fn chat_type(fields: &Fields<'_>, tools: bool) -> Result<ChatType, Problem> {
    let wrong = if tools { "must be 1, 2, 3, \"user\", \"agent\" or \"tool\"" } else { "must be 1, 2, \"user\" or \"agent\"" };
    match fields.kind(Field::ChatType) {
        None => Err(Problem::new(Field::ChatType, "is missing")),
        Some(Kind::Number("1") | Kind::String("user")) => Ok(ChatType::User),
        Some(Kind::Number("2") | Kind::String("agent")) => Ok(ChatType::Agent),
        Some(Kind::Number("3") | Kind::String("tool")) if tools => Ok(ChatType::Tool),
        Some(Kind::Number("3") | Kind::String("tool")) => {
            Err(Problem::new(Field::ChatType, "is 3 (tool), which is taken only with manager_api.send_tools"))
        }
        Some(_) => Err(Problem::new(Field::ChatType, wrong)),
    }
}

/// The audio, or that it is no strict standard base64: a `data:` prefix, line breaks, the URL-safe alphabet and missing
/// padding would all be stored by the server as noise, so the text goes without it.
fn audio(fields: &Fields<'_>) -> Result<(Option<Vec<u8>>, bool), Problem> {
    Ok(match fields.text(Field::AudioBase64)? {
        None => (None, false),
        Some(text) if text.is_empty() => (None, false),
        Some(text) => match STANDARD.decode(text.as_bytes()) {
            Ok(audio) => (Some(audio), false),
            Err(_) => (None, true),
        },
    })
}

fn session_start(fields: &Fields<'_>, target: &Target) -> Result<SessionStart, Problem> {
    if target.session_id.is_none() {
        return Err(Problem::new(Field::SessionId, "is missing"));
    }
    if target.mac.is_none() {
        return Err(Problem::new(Field::MacAddress, "is missing, and the session id does not end in _<12 hex>[_<type>]"));
    }
    Ok(SessionStart {
        stream: id(fields, Field::Stream)?,
        ack: fields.boolean(Field::Ack)?,
        agent_id: id(fields, Field::AgentId)?,
        client: note(fields, Field::Client)?,
    })
}

fn flush(fields: &Fields<'_>) -> Result<Flush, Problem> {
    let level = match fields.kind(Field::Level) {
        Some(Kind::String("durable")) => FlushLevel::Durable,
        Some(Kind::String("delivered")) => FlushLevel::Delivered,
        _ => return Err(Problem::new(Field::Level, "must be \"durable\" or \"delivered\"")),
    };
    let timeout = match fields.kind(Field::Timeout) {
        None => Some(DEFAULT_FLUSH_TIMEOUT),
        Some(Kind::Number(digits)) => digits
            .parse::<f64>()
            .ok()
            .filter(|seconds| (0.0..=MAX_FLUSH_SECONDS).contains(seconds))
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        Some(_) => None,
    };
    let timeout = timeout.ok_or(Problem::new(Field::Timeout, "must be a number of seconds from 0 to 60"))?;
    Ok(Flush { id: echoed_id(fields)?, level, timeout })
}

/// An id that the answer repeats: the JSON text of a string or number.
fn echoed_id(fields: &Fields<'_>) -> Result<Option<String>, Problem> {
    match (fields.kind(Field::Id), fields.raw(Field::Id)) {
        (None, _) | (_, None) => Ok(None),
        (Some(Kind::String(_) | Kind::Number(_)), Some(text)) if text.len() <= MAX_ECHOED_BYTES => Ok(Some(text.to_owned())),
        _ => Err(Problem::new(Field::Id, "must be a string or a number of at most 256 bytes")),
    }
}

/// An id that is a key: taken as it is or not at all. An empty one is none, since it would tell nothing apart.
fn id(fields: &Fields<'_>, field: Field) -> Result<Option<String>, Problem> {
    let Some(text) = fields.text(field)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    if !fits(&text, MAX_ID_CHARACTERS) || text.chars().any(char::is_control) {
        return Err(Problem::new(field, "must have at most 200 characters and no control characters"));
    }
    Ok(Some(text.into_owned()))
}

/// A text for people: cleaned, and cut where it is too long.
fn note(fields: &Fields<'_>, field: Field) -> Result<Option<String>, Problem> {
    Ok(fields
        .text(field)?
        .map(|text| clean(Cow::Borrowed(bounded(&text, MAX_REASON_CHARACTERS))))
        .filter(|text| !text.is_empty()))
}

fn target(fields: &Fields<'_>) -> Result<Target, Problem> {
    let wrong = |field| move |InvalidIdentity(message)| Problem::new(field, message);
    let session_id =
        fields.text(Field::SessionId)?.map(|text| SessionId::new(&text)).transpose().map_err(wrong(Field::SessionId))?;
    let mac = fields.text(Field::MacAddress)?.map(|text| text.parse()).transpose().map_err(wrong(Field::MacAddress))?;
    let mac = mac.or_else(|| session_id.as_ref().and_then(|id| MacAddress::from_session_id(id.as_str())));
    Ok(Target { mac, session_id })
}

/// Numbers start at 1: `last_seq` of a new stream is 0, so a line 0 would count as already there.
fn seq(fields: &Fields<'_>) -> Result<Option<u64>, Problem> {
    match (fields.unsigned(Field::Seq)?, fields.duplicate) {
        (Some(0), _) => Err(Problem::new(Field::Seq, "must be a whole number from 1")),
        (_, Some(Field::Seq)) => Err(Problem::new(Field::Seq, "is there twice")),
        (seq, _) => Ok(seq),
    }
}

fn check_version(fields: &Fields<'_>, seq: Option<u64>) -> Result<(), Refusal> {
    match fields.kind(Field::V) {
        None => Ok(()),
        Some(Kind::Number(digits)) if digits.parse() == Ok(VERSION) => Ok(()),
        Some(Kind::Number(_)) => Err(Refusal {
            code: RefusalCode::UnsupportedVersion,
            field: Some(Cow::Borrowed(Field::V.name())),
            message: "this daemon speaks version 1 of the protocol".into(),
            seq,
        }),
        Some(_) => Err(bad_field(Problem::new(Field::V, "must be the number 1"), seq)),
    }
}

fn bad_field(problem: Problem, seq: Option<u64>) -> Refusal {
    let message = format!("{} {}", problem.field, problem.message).into();
    Refusal { code: RefusalCode::BadField, field: Some(problem.field), message, seq }
}

fn bad_json(text: &str, error: &serde_json::Error) -> Refusal {
    let message = if text.starts_with('\u{feff}') {
        "starts with a byte order mark: send plain UTF-8".into()
    } else if error.is_data() {
        "must be a JSON object".into()
    } else if error.is_eof() {
        "ends in the middle of the JSON object".into()
    } else {
        format!("is no valid JSON (at byte {})", error.column()).into()
    };
    Refusal { code: RefusalCode::BadJson, field: None, message, seq: None }
}

/// Reads the line once more with the bad bytes replaced, for its `seq` alone.
fn not_utf8(line: &[u8], valid: usize) -> Refusal {
    let text = String::from_utf8_lossy(line);
    let seq = Fields::read(&text).ok().and_then(|fields| seq(&fields).ok().flatten());
    let message = format!("is no valid UTF-8 (at byte {})", valid + 1).into();
    Refusal { code: RefusalCode::BadJson, field: None, message, seq }
}

#[cfg(test)]
mod tests;
