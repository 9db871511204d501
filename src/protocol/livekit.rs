//! The events of a LiveKit `AgentSession`, reduced to what history needs.
//!
//! Promises: the text of an item is the framework's own `text_content` plus the transcripts of audio parts; audio and
//! image data are never copied; agent hand-offs, other roles, interim transcripts and events without a sentence are
//! [`LiveKitEvent::Ignored`]. Details that history can do without (reason, error, ids that are no keys) never cost a
//! sentence: what is wrong with them is dropped.
//! Refuses: an item or transcript whose text, role or time is of the wrong type: then nobody knows what was said.
//! Called by the decoder alone. Source: `reference/livekit.md` §1.

use std::borrow::Cow;

use super::decode::{DecodeOptions, MAX_ID_CHARACTERS};
use super::event::{ChatType, LiveKitEvent, Message, Transcript, UnixMillis};
use super::extra::Extra;
use super::fields::{Field, Fields, Kind, Problem, each_element, kind, unescape};
use super::text::{bounded, clean, fits, strip_markup};
use super::time;

/// More calls in one batch than any model makes.
const MAX_TOOL_CALLS: usize = 256;
const MAX_REASON_CHARACTERS: usize = 200;
const MAX_ERROR_KIND_CHARACTERS: usize = 60;

/// Maps an event; `None` when its type is none that history knows.
///
/// # Errors
/// When a field that history needs is missing or wrong.
pub(super) fn event(kind: &str, fields: &Fields<'_>, options: &DecodeOptions) -> Result<Option<LiveKitEvent>, Problem> {
    Ok(Some(match kind {
        "conversation_item_added" => item(fields, options)?,
        "user_input_transcribed" => transcript(fields, options)?,
        "function_tools_executed" => LiveKitEvent::Tools(tools(fields, options)?),
        "speech_created" => LiveKitEvent::SpeechCreated,
        "close" => LiveKitEvent::Close { reason: note(fields, Field::Reason, MAX_REASON_CHARACTERS) },
        "error" => LiveKitEvent::AgentError { kind: error_kind(fields) },
        _ => return Ok(None),
    }))
}

fn item(event: &Fields<'_>, options: &DecodeOptions) -> Result<LiveKitEvent, Problem> {
    let value = event.raw(Field::Item).ok_or(Problem::new(Field::Item, "is missing"))?;
    let item = Fields::nested(value, Field::Item)?;
    message(event, &item, options).map_err(|problem| problem.within(Field::Item))
}

fn message(event: &Fields<'_>, item: &Fields<'_>, options: &DecodeOptions) -> Result<LiveKitEvent, Problem> {
    if !matches!(item.text(Field::Type)?.as_deref(), None | Some("message")) {
        return Ok(LiveKitEvent::Ignored);
    }
    let chat_type = match item.text(Field::Role)?.as_deref() {
        Some("user") => ChatType::User,
        Some("assistant") => ChatType::Agent,
        Some(_) => return Ok(LiveKitEvent::Ignored),
        None => return Err(Problem::new(Field::Role, "is missing")),
    };
    let text = content(item)?;
    let text = match chat_type {
        ChatType::Agent => Cow::Owned(strip_markup(&text).into_owned()),
        ChatType::User | ChatType::Tool => text,
    };
    let (time, time_replaced) = created_at(item, event, options)?;
    let mut extra = Extra::default();
    for field in [Field::TranscriptConfidence, Field::Metrics, Field::Extra] {
        if let Some(value) = item.raw(field) {
            extra.add(field.name(), value);
        }
    }
    let message = Message {
        chat_type,
        content: clean(text),
        time,
        time_replaced,
        event_id: key(item, Field::Id),
        interrupted: item.boolean(Field::Interrupted)?.unwrap_or_default(),
        audio: None,
        audio_invalid: false,
        extra: extra.finish(),
    };
    Ok(LiveKitEvent::Item { message, recognised: item.raw(Field::TranscriptConfidence).is_some() })
}

/// String parts and transcripts of audio parts, one a line, in order. A plain string is what frameworks before 1.0 send.
fn content<'a>(item: &Fields<'a>) -> Result<Cow<'a, str>, Problem> {
    let wrong = Problem::new(Field::Content, "must be a list of strings and objects");
    let list = match (item.kind(Field::Content), item.raw(Field::Content)) {
        (None, _) | (_, None) => return Ok(Cow::Borrowed("")),
        (Some(Kind::String(_)), Some(text)) => return Ok(unescape(text)),
        (Some(Kind::Array), Some(list)) => list,
        _ => return Err(wrong),
    };
    let mut text: Option<Cow<'a, str>> = None;
    each_element(list, |part| {
        let part = match kind(part) {
            Some(Kind::String(_)) => unescape(part),
            Some(Kind::Object) => match Fields::nested(part, Field::Content)?.text(Field::Transcript) {
                Ok(Some(transcript)) => transcript,
                Ok(None) => return Ok(()),
                Err(problem) => return Err(problem.within(Field::Content)),
            },
            None => return Ok(()),
            Some(_) => return Err(wrong.clone()),
        };
        match &mut text {
            None => text = Some(part),
            Some(before) => {
                let before = before.to_mut();
                before.push('\n');
                before.push_str(&part);
            }
        }
        Ok(())
    })?;
    Ok(text.unwrap_or_default())
}

fn transcript(fields: &Fields<'_>, options: &DecodeOptions) -> Result<LiveKitEvent, Problem> {
    if fields.boolean(Field::IsFinal)? != Some(true) {
        return Ok(LiveKitEvent::Ignored);
    }
    let text = clean(fields.text(Field::Transcript)?.unwrap_or_default());
    if text.is_empty() {
        return Ok(LiveKitEvent::Ignored);
    }
    let (time, time_replaced) = time::read(fields, Field::CreatedAt, options)?;
    Ok(LiveKitEvent::FinalTranscript(Transcript { text, time, time_replaced, item_id: key(fields, Field::ItemId) }))
}

/// Calls with their results, paired by position as the framework pairs them.
fn tools(event: &Fields<'_>, options: &DecodeOptions) -> Result<Vec<Message>, Problem> {
    let calls = list(event, Field::FunctionCalls)?;
    let mut outputs = list(event, Field::FunctionCallOutputs)?.into_iter();
    let mut messages = Vec::with_capacity(calls.len() * 2);
    for call in calls {
        if let Some(value) = call {
            let call = Fields::nested(value, Field::FunctionCalls)?;
            messages.push(tool_call(&call, event, options).map_err(|problem| problem.within(Field::FunctionCalls))?);
        }
        if let Some(value) = outputs.next().flatten() {
            messages.push(tool_result(value, event, options)?);
        }
    }
    for value in outputs.flatten() {
        messages.push(tool_result(value, event, options)?);
    }
    Ok(messages)
}

/// The elements of a list; `None` for those that are `null`.
fn list<'a>(event: &Fields<'a>, field: Field) -> Result<Vec<Option<&'a str>>, Problem> {
    let mut elements = Vec::new();
    match (event.kind(field), event.raw(field)) {
        (None, _) | (_, None) => {}
        (Some(Kind::Array), Some(array)) => each_element(array, |element| {
            if elements.len() == MAX_TOOL_CALLS {
                return Err(Problem::new(field, "has more than 256 elements"));
            }
            elements.push(kind(element).map(|_| element));
            Ok(())
        })?,
        _ => return Err(Problem::new(field, "must be a list")),
    }
    Ok(elements)
}

/// As the original server's own reporter writes a call: `[{"type":"tool","text":"name(arguments)"}]`.
fn tool_call(call: &Fields<'_>, event: &Fields<'_>, options: &DecodeOptions) -> Result<Message, Problem> {
    let name = call.text(Field::Name)?.ok_or(Problem::new(Field::Name, "is missing"))?;
    let text = format!("{}({})", clean(name), clean(verbatim(call, Field::Arguments)));
    tool_message("tool", &text, call, event, options)
}

/// As the original server's own reporter writes a result: `[{"type":"tool_result","text":"{\"result\":…}"}]`.
fn tool_result(value: &str, event: &Fields<'_>, options: &DecodeOptions) -> Result<Message, Problem> {
    let output = Fields::nested(value, Field::FunctionCallOutputs)?;
    let text = format!("{{\"result\":{}}}", quoted(&clean(verbatim(&output, Field::Output))));
    tool_message("tool_result", &text, &output, event, options).map_err(|problem| problem.within(Field::FunctionCallOutputs))
}

fn tool_message(
    kind: &str,
    text: &str,
    item: &Fields<'_>,
    event: &Fields<'_>,
    options: &DecodeOptions,
) -> Result<Message, Problem> {
    let (time, time_replaced) = created_at(item, event, options)?;
    let mut extra = Extra::default();
    for field in [Field::CallId, Field::IsError] {
        if let Some(value) = item.raw(field).filter(|&value| value != "false") {
            extra.add(field.name(), value);
        }
    }
    Ok(Message {
        chat_type: ChatType::Tool,
        content: format!("[{{\"type\":\"{kind}\",\"text\":{}}}]", quoted(text)),
        time,
        time_replaced,
        event_id: key(item, Field::Id),
        interrupted: false,
        audio: None,
        audio_invalid: false,
        extra: extra.finish(),
    })
}

/// A string's text; of any other value its JSON.
fn verbatim<'a>(fields: &Fields<'a>, field: Field) -> Cow<'a, str> {
    match fields.raw(field) {
        Some(value) if matches!(kind(value), Some(Kind::String(_))) => unescape(value),
        other => Cow::Borrowed(other.unwrap_or_default()),
    }
}

/// A text as a JSON string, with its quotes.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn error_kind(event: &Fields<'_>) -> Option<String> {
    let error = Fields::read(event.raw(Field::Error)?).ok()?;
    note(&error, Field::Type, MAX_ERROR_KIND_CHARACTERS)
}

/// When the item was said; the time of the event stands in for a missing one.
fn created_at(item: &Fields<'_>, event: &Fields<'_>, options: &DecodeOptions) -> Result<(UnixMillis, bool), Problem> {
    let place = if item.raw(Field::CreatedAt).is_some() { item } else { event };
    time::read(place, Field::CreatedAt, options)
}

/// An id that can serve as a key; any other is none.
fn key(fields: &Fields<'_>, field: Field) -> Option<String> {
    let text = fields.text(field).ok().flatten()?;
    let usable = !text.is_empty() && fits(&text, MAX_ID_CHARACTERS) && !text.chars().any(char::is_control);
    usable.then(|| text.into_owned())
}

fn note(fields: &Fields<'_>, field: Field, max_characters: usize) -> Option<String> {
    let text = fields.text(field).ok().flatten()?;
    Some(clean(Cow::Borrowed(bounded(&text, max_characters)))).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
