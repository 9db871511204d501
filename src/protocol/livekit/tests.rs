use std::fmt::Write;

use super::*;
use crate::protocol::{Command, decode};

const NOW: UnixMillis = UnixMillis(1_795_400_000_000);

fn read(line: &str) -> Result<LiveKitEvent, super::super::Refusal> {
    decode(line.as_bytes(), &DecodeOptions::at(NOW, false)).map(|line| match line.command {
        Command::LiveKit(event) => event,
        other => panic!("{other:?}"),
    })
}

fn item_with(fields: &str) -> String {
    format!(r#"{{"type":"conversation_item_added","item":{{{fields}}},"created_at":1795332578.85,"seq":23}}"#)
}

fn message_of(fields: &str) -> Message {
    match read(&item_with(fields)).unwrap() {
        LiveKitEvent::Item { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_real_item_becomes_a_message() {
    let message = message_of(
        r#""id":"item_b6cae2d52cf2","type":"message","role":"user","content":["tell me something about the tiger please"],"interrupted":false,"transcript_confidence":0.97,"extra":{},"metrics":{"transcription_delay":0.1987,"on_user_turn_completed_delay":6.847899999229412e-05},"created_at":1795332578.646901,"hash":null"#,
    );
    assert_eq!(
        message,
        Message {
            chat_type: ChatType::User,
            content: "tell me something about the tiger please".into(),
            time: UnixMillis(1_795_332_578_647),
            time_replaced: false,
            event_id: Some("item_b6cae2d52cf2".into()),
            interrupted: false,
            audio: None,
            audio_invalid: false,
            extra: Some(
                r#"{"transcript_confidence":0.97,"metrics":{"transcription_delay":0.1987,"on_user_turn_completed_delay":6.847899999229412e-05}}"#
                    .into()
            ),
        }
    );
}

#[test]
fn text_parts_and_transcripts_of_audio_are_joined_by_lines() {
    let content = |list: &str| message_of(&format!(r#""role":"user","content":{list}"#)).content;
    assert_eq!(content(r#"["one","two"]"#), "one\ntwo");
    assert_eq!(
        content(
            r#"["one",{"type":"image_content","image":"data:x"},{"type":"audio_content","frame":["AAAA"],"transcript":"two \ud83d"},null]"#
        ),
        "one\ntwo \u{fffd}"
    );
    assert_eq!(content(r#"[{"type":"audio_content","frame":[],"transcript":null}]"#), "");
    assert_eq!(content("[]"), "");
    assert_eq!(content("null"), "");
    assert_eq!(content(r#""plain""#), "plain");
}

#[test]
fn megabytes_of_audio_are_passed_over() {
    let frame = "A".repeat(2 << 20);
    let list = format!(r#"[{{"type":"audio_content","frame":["{frame}"],"transcript":"hi"}}]"#);
    let message = message_of(&format!(r#""role":"user","content":{list},"extra":{{"raw":"{frame}"}}"#));
    assert_eq!(message.content, "hi");
    assert_eq!(message.extra.as_deref(), Some(r#"{"omitted":["extra"]}"#));
}

#[test]
fn delivery_markup_is_stripped_from_replies_only() {
    let text = r#"["<expr type=\"expression\" label=\"warm\"/> Hello there."]"#;
    assert_eq!(message_of(&format!(r#""role":"assistant","content":{text}"#)).content, "Hello there.");
    assert!(message_of(&format!(r#""role":"user","content":{text}"#)).content.starts_with("<expr"));
}

#[test]
fn what_is_no_sentence_of_user_or_assistant_is_ignored() {
    for fields in [
        r#""id":"item_b","type":"agent_handoff","old_agent_id":null,"new_agent_id":"cheeko","created_at":1795332573.17"#,
        r#""type":"message","role":"system","content":["be kind"]"#,
        r#""type":"message","role":"developer","content":["be kind"]"#,
        r#""type":"function_call","name":"x""#,
    ] {
        assert_eq!(read(&item_with(fields)), Ok(LiveKitEvent::Ignored), "{fields}");
    }
}

#[test]
fn an_item_nobody_can_read_is_refused_by_field() {
    for (fields, name) in [
        (r#""type":"message","content":["x"]"#, "item.role"),
        (r#""role":5"#, "item.role"),
        (r#""role":"user","content":{}"#, "item.content"),
        (r#""role":"user","content":[5]"#, "item.content"),
        (r#""role":"user","content":[["x"]]"#, "item.content"),
        (r#""role":"user","content":[{"transcript":5}]"#, "item.content.transcript"),
        (r#""role":"user","content":["x"],"content":["y"]"#, "item.content"),
        (r#""role":"user","content":["x"],"created_at":"soon""#, "item.created_at"),
        (r#""role":"user","content":["x"],"interrupted":1"#, "item.interrupted"),
    ] {
        let refusal = read(&item_with(fields)).unwrap_err();
        assert_eq!((refusal.field.as_deref(), refusal.seq), (Some(name), Some(23)), "{fields}");
    }
    assert_eq!(read(r#"{"type":"conversation_item_added","item":[]}"#).unwrap_err().field.unwrap(), "item");
    assert_eq!(read(r#"{"type":"conversation_item_added"}"#).unwrap_err().field.unwrap(), "item");
}

#[test]
fn details_that_are_wrong_never_cost_the_sentence() {
    let message = message_of(&format!(r#""role":"user","content":["x"],"id":"{}","metrics":{{"a":1e400}}"#, "i".repeat(201)));
    assert_eq!((message.content.as_str(), message.event_id), ("x", None));
    assert_eq!(message.extra.as_deref(), Some(r#"{"omitted":["metrics"]}"#));
    assert_eq!(message_of(r#""role":"user","content":["x"]"#).time, UnixMillis(1_795_332_578_850));
}

#[test]
fn only_finals_with_words_are_transcripts() {
    let line = |transcript: &str, is_final: &str| {
        read(&format!(
            r#"{{"type":"user_input_transcribed","transcript":{transcript},"is_final":{is_final},"item_id":"item_C","created_at":1795332578.6464255}}"#
        ))
    };
    let expected = Transcript {
        text: "tell me".into(),
        time: UnixMillis(1_795_332_578_646),
        time_replaced: false,
        item_id: Some("item_C".into()),
    };
    assert_eq!(line(r#"" tell me""#, "true"), Ok(LiveKitEvent::FinalTranscript(expected)));
    for (transcript, is_final) in [(r#""tell""#, "false"), (r#""tell""#, "null"), (r#""  ""#, "true"), ("null", "true")] {
        assert_eq!(line(transcript, is_final), Ok(LiveKitEvent::Ignored));
    }
    assert_eq!(line("5", "true").unwrap_err().field.unwrap(), "transcript");
    assert_eq!(line(r#""x""#, "1").unwrap_err().field.unwrap(), "is_final");
}

#[test]
fn tools_become_a_message_a_call_and_a_message_a_result() {
    let event = read(
        r#"{"type":"function_tools_executed","function_calls":[{"id":"item_b43/fnc_0","type":"function_call","call_id":"call_84","arguments":"{\"percent\": 60}","name":"set_volume","created_at":1795332587.1112938,"extra":{}},{"id":"item_b44","name":"stop","arguments":""}],"function_call_outputs":[{"id":"item_d6b","type":"function_call_output","name":"set_volume","call_id":"call_84","output":"say \"hi\"","is_error":false,"created_at":1795332587.1744027},null],"created_at":1795332587.1761205,"seq":55}"#,
    );
    let Ok(LiveKitEvent::Tools(messages)) = event else { panic!("{event:?}") };
    let shown: Vec<(&str, Option<&str>, i64)> =
        messages.iter().map(|m| (m.content.as_str(), m.event_id.as_deref(), m.time.0)).collect();
    assert_eq!(
        shown,
        [
            (r#"[{"type":"tool","text":"set_volume({\"percent\": 60})"}]"#, Some("item_b43/fnc_0"), 1_795_332_587_111),
            (r#"[{"type":"tool_result","text":"{\"result\":\"say \\\"hi\\\"\"}"}]"#, Some("item_d6b"), 1_795_332_587_174),
            (r#"[{"type":"tool","text":"stop()"}]"#, Some("item_b44"), 1_795_332_587_176),
        ]
    );
    assert!(messages.iter().all(|message| message.chat_type == ChatType::Tool));
    assert_eq!(messages[0].extra.as_deref(), Some(r#"{"call_id":"call_84"}"#));
    for message in &messages {
        assert!(serde_json::from_str::<serde_json::Value>(&message.content).is_ok());
    }
}

#[test]
fn tool_events_are_bounded_and_checked() {
    let line = |calls: &str| read(&format!(r#"{{"type":"function_tools_executed","function_calls":{calls}}}"#));
    assert_eq!(line("[]"), Ok(LiveKitEvent::Tools(Vec::new())));
    assert_eq!(line("null"), Ok(LiveKitEvent::Tools(Vec::new())));
    assert_eq!(line("{}").unwrap_err().field.unwrap(), "function_calls");
    assert_eq!(line("[5]").unwrap_err().field.unwrap(), "function_calls");
    assert_eq!(line("[{}]").unwrap_err().field.unwrap(), "function_calls.name");
    let mut many = String::from("[");
    for _ in 0..=MAX_TOOL_CALLS {
        let _ = write!(many, r#"{{"name":"x"}},"#);
    }
    many.pop();
    assert_eq!(line(&(many + "]")).unwrap_err().field.unwrap(), "function_calls");
}

#[test]
fn the_other_events_are_told_apart() {
    for (line, expected) in [
        (
            r#"{"type":"speech_created","user_initiated":true,"source":"say","created_at":1795332573.19}"#,
            LiveKitEvent::SpeechCreated,
        ),
        (
            r#"{"type":"close","error":null,"reason":"user_initiated","created_at":1795332625.9}"#,
            LiveKitEvent::Close { reason: Some("user_initiated".into()) },
        ),
        (r#"{"type":"close","reason":5}"#, LiveKitEvent::Close { reason: None }),
        (
            r#"{"type":"error","error":{"type":"tts_error","label":"x","recoverable":false},"source":{}}"#,
            LiveKitEvent::AgentError { kind: Some("tts_error".into()) },
        ),
        (r#"{"type":"error","error":"TTSError('x')"}"#, LiveKitEvent::AgentError { kind: None }),
        (r#"{"type":"metrics_collected","metrics":{"type":"tts_metrics"},"created_at":1.0}"#, LiveKitEvent::Ignored),
    ] {
        assert_eq!(read(line), Ok(expected), "{line}");
    }
}

#[test]
fn every_line_of_a_real_session_is_understood() {
    for (fixture, lines) in [
        (include_str!("../../../tests/fixtures/livekit-1.2.8.ndjson"), 142),
        (include_str!("../../../tests/fixtures/livekit-1.8.9.ndjson"), 184),
    ] {
        let events: Vec<LiveKitEvent> = fixture.lines().map(|line| read(line).unwrap()).collect();
        assert_eq!(events.len(), lines);
        let items: Vec<&Message> =
            events.iter().filter_map(|e| if let LiveKitEvent::Item { message: m, .. } = e { Some(m) } else { None }).collect();
        assert_eq!(items.len(), 16);
        assert_eq!(items.iter().filter(|m| m.chat_type == ChatType::User).count(), 7);
        assert!(items.iter().all(|m| m.event_id.is_some() && !m.content.is_empty() && !m.time_replaced));
        let count = |wanted: fn(&LiveKitEvent) -> bool| events.iter().filter(|event| wanted(event)).count();
        assert_eq!(count(|e| matches!(e, LiveKitEvent::FinalTranscript(_))), 6);
        assert_eq!(count(|e| matches!(e, LiveKitEvent::Tools(tools) if tools.len() == 2)), 1);
        assert_eq!(count(|e| matches!(e, LiveKitEvent::SpeechCreated)), 10);
        assert_eq!(count(|e| matches!(e, LiveKitEvent::Close { reason: Some(_) })), 1);
    }
}
