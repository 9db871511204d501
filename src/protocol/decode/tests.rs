use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::protocol::SessionIdentity;

const NOW: UnixMillis = UnixMillis(1_758_800_000_000);
const OPTIONS: DecodeOptions = DecodeOptions { tools: false, now: NOW, build_date: UnixMillis(1_700_000_000_000) };

fn read(line: &str) -> Result<Line, Refusal> {
    decode(line.as_bytes(), &OPTIONS)
}

fn message_of(line: &str) -> Message {
    match read(line).unwrap().command {
        Command::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// A message with one more field.
fn with(field: &str) -> String {
    format!(r#"{{"type":"message","seq":7,"chat_type":1,"content":"Hello",{field}}}"#)
}

fn refused(line: &str) -> (&'static str, Option<String>, Option<u64>) {
    let refusal = read(line).unwrap_err();
    assert!(!refusal.message.contains("s3cret"), "{}", refusal.message);
    (refusal.code.as_str(), refusal.field.map(Cow::into_owned), refusal.seq)
}

#[test]
fn the_report_payload_of_the_manager_api_is_a_line() {
    let line = read(
        r#"{"macAddress":"68:25:DD:BA:39:78","sessionId":"s_1","chatType":1,"content":" Hello ","audioBase64":null,"reportTime":1758701973}"#,
    )
    .unwrap();
    let session_id = SessionId::new("s_1").unwrap();
    let mac = MacAddress::from_octets([0x68, 0x25, 0xdd, 0xba, 0x39, 0x78]);
    assert_eq!(line.target.identity(), Some(SessionIdentity { mac, session_id }));
    assert_eq!(line.seq, None);
    assert_eq!(
        line.command,
        Command::Message(Message {
            chat_type: ChatType::User,
            content: "Hello".into(),
            time: UnixMillis(1_758_701_973_000),
            time_replaced: false,
            event_id: None,
            interrupted: false,
            audio: None,
            audio_invalid: false,
            extra: None,
        })
    );
}

#[test]
fn every_field_of_a_message_is_read() {
    let line = read(
        r#"{"type":"message","seq":42,"session_id":"room_6825ddba3978_conversation","chat_type":"agent","content":"Hi","timestamp":"2025-09-24T08:19:33.25Z","audio_base64":"AAEC","id":"dtmf-7","interrupted":true,"metadata":{"a":[1]},"unknown":[{}]}"#,
    )
    .unwrap();
    assert_eq!(line.seq, Some(42));
    assert_eq!(line.target.mac.unwrap().bare(), "6825ddba3978");
    let Command::Message(message) = line.command else { panic!() };
    assert_eq!(message.chat_type, ChatType::Agent);
    assert_eq!(message.time, UnixMillis(1_758_701_973_250));
    assert_eq!(message.audio.as_deref(), Some(&[0, 1, 2][..]));
    assert_eq!(message.event_id.as_deref(), Some("dtmf-7"));
    assert!(message.interrupted && !message.audio_invalid && !message.time_replaced);
    assert_eq!(message.extra.as_deref(), Some(r#"{"metadata":{"a":[1]}}"#));
}

#[test]
fn fields_that_are_null_are_as_good_as_missing() {
    let message = message_of(&with(
        r#""timestamp":null,"audio_base64":null,"id":null,"interrupted":null,"metadata":null,"mac_address":null"#,
    ));
    assert_eq!((message.time, message.time_replaced), (NOW, false));
    assert_eq!((message.audio, message.event_id, message.extra), (None, None, None));
}

#[test]
fn text_is_cleaned_and_lone_surrogates_are_replaced() {
    let text = |content: &str| message_of(&format!(r#"{{"chat_type":1,"content":"{content}"}}"#)).content;
    assert_eq!(text(r" a\u0000b\u001b\r\n\tc\u00a0"), "ab\n\tc");
    assert_eq!(text(r"\ud83d \ud83d\ude00 \ude00\/"), "\u{fffd} 😀 \u{fffd}/");
    assert_eq!(text(r"   \u0007"), "");
    assert_eq!(text("नमस्ते 😊"), "नमस्ते 😊");
}

#[test]
fn chat_types_are_taken_as_specified_and_never_coerced() {
    let chat_type = |value: &str, tools| {
        let line = format!(r#"{{"content":"x","chat_type":{value},"seq":3}}"#);
        decode(line.as_bytes(), &DecodeOptions { tools, ..OPTIONS }).map(|line| match line.command {
            Command::Message(message) => message.chat_type,
            other => panic!("{other:?}"),
        })
    };
    for (value, expected) in
        [("1", ChatType::User), ("2", ChatType::Agent), (r#""user""#, ChatType::User), (r#""agent""#, ChatType::Agent)]
    {
        assert_eq!(chat_type(value, false), Ok(expected));
    }
    for value in ["3", r#""tool""#] {
        assert_eq!(chat_type(value, true), Ok(ChatType::Tool));
        assert_eq!(chat_type(value, false).unwrap_err().field.unwrap(), "chat_type");
    }
    for value in ["0", "7", "-1", "1.0", "1e0", "01", r#""1""#, r#""User""#, r#""assistant""#, "true", "[1]", "{}", "1e400"] {
        let refusal = chat_type(value, true).unwrap_err();
        assert!(
            (refusal.field.as_deref() == Some("chat_type") && refusal.seq == Some(3)) || value == "01",
            "{value}: {refusal:?}"
        );
    }
}

#[test]
fn audio_that_is_no_strict_base64_is_left_out_and_said() {
    for (value, audio, invalid) in [
        ("AAEC", Some(vec![0, 1, 2]), false),
        (r"AAE\u0043", Some(vec![0, 1, 2]), false),
        (r"\/\/79", Some(vec![0xff, 0xfe, 0xfd]), false),
        ("AA==", Some(vec![0]), false),
        ("", None, false),
        ("AA", None, true),
        ("AB==", None, true),
        (r"AAEC\n", None, true),
        ("__79", None, true),
        ("data:audio/wav;base64,AAEC", None, true),
        (r"\ud800", None, true),
    ] {
        let message = message_of(&with(&format!(r#""audioBase64":"{value}""#)));
        assert_eq!((message.audio, message.audio_invalid, message.content.as_str()), (audio, invalid, "Hello"), "{value}");
    }
}

#[test]
fn wrong_types_are_named_and_nothing_is_echoed() {
    for (field, name) in [
        (r#""content":["s3cret"]"#, "content"),
        (r#""timestamp":"s3cret""#, "timestamp"),
        (r#""reportTime":1e400"#, "timestamp"),
        (r#""id":7"#, "id"),
        (r#""id":"a\u0000s3cret""#, "id"),
        (r#""interrupted":1"#, "interrupted"),
        (r#""metadata":"s3cret""#, "metadata"),
        (r#""audio_base64":5"#, "audio_base64"),
        (r#""mac_address":"s3cret""#, "mac_address"),
        (r#""mac_address":5"#, "mac_address"),
        (r#""session_id":"""#, "session_id"),
        (r#""session_id":"a\nb""#, "session_id"),
        (r#""session_id":{}"#, "session_id"),
    ] {
        let line = with(field);
        let line = if name == "content" { line.replacen(r#""content":"Hello","#, "", 1) } else { line };
        assert_eq!(refused(&line), ("bad_field", Some(name.to_owned()), Some(7)), "{field}");
    }
    assert_eq!(refused(&with(&format!(r#""id":"{}""#, "é".repeat(201)))).1.unwrap(), "id");
    assert_eq!(message_of(&with(&format!(r#""id":"{}""#, "é".repeat(200)))).event_id.unwrap().chars().count(), 200);
    assert_eq!(refused(&with(&format!(r#""sessionId":"{}""#, "a".repeat(101)))).1.unwrap(), "session_id");
}

#[test]
fn a_missing_field_is_named() {
    for (line, name) in [
        (r#"{"type":"message","content":"x"}"#, "chat_type"),
        (r#"{"type":"message","chat_type":1}"#, "content"),
        (r#"{"type":"message","chat_type":1,"content":null}"#, "content"),
        (r#"{"content":"x"}"#, "type"),
        (r#"{"chat_type":1}"#, "type"),
        (r"{}", "type"),
        (r#"{"type":null}"#, "type"),
        (r#"{"type":5}"#, "type"),
    ] {
        assert_eq!(refused(line), ("bad_field", Some(name.to_owned()), None), "{line}");
    }
}

#[test]
fn seq_is_a_whole_number_from_one() {
    assert_eq!(read(r#"{"type":"ping","seq":1}"#).unwrap().seq, Some(1));
    assert_eq!(read(r#"{"type":"ping","seq":null}"#).unwrap().seq, None);
    for value in ["0", "-1", "1.0", "1e2", r#""1""#, "true", "9223372036854775808", "[]"] {
        assert_eq!(refused(&format!(r#"{{"type":"ping","seq":{value}}}"#)), ("bad_field", Some("seq".into()), None), "{value}");
    }
}

#[test]
fn hostile_lines_are_refused_with_their_seq_where_it_can_be_read() {
    let bomb = |open: &str, close: &str| format!(r#"{{"ignored":{}{},"seq":9}}"#, open.repeat(200_000), close.repeat(200_000));
    let table: Vec<(Vec<u8>, &str, Option<u64>)> = vec![
        (b"\xEF\xBB\xBF{\"seq\":9}".to_vec(), "bad_json", None),
        (b"not json".to_vec(), "bad_json", None),
        (b"[1,2]".to_vec(), "bad_json", None),
        (b"\"s3cret\"".to_vec(), "bad_json", None),
        (b"null".to_vec(), "bad_json", None),
        (b"{\"seq\":9".to_vec(), "bad_json", None),
        (b"{\"seq\":9}{}".to_vec(), "bad_json", None),
        (b"{\"seq\":9,}".to_vec(), "bad_json", None),
        (b"{\"seq\":9,\"timestamp\":NaN}".to_vec(), "bad_json", None),
        (b"{\"seq\":9,\"timestamp\":Infinity}".to_vec(), "bad_json", None),
        (b"{\"seq\":9,\"content\":\"a\x01b\"}".to_vec(), "bad_json", None),
        (b"{\"seq\":9,\"content\":\"\\x\"}".to_vec(), "bad_json", None),
        (b"{5:1}".to_vec(), "bad_json", None),
        (b"".to_vec(), "bad_json", None),
        (b"\0".to_vec(), "bad_json", None),
        (b"{\"content\":\"s3cret \xff\",\"seq\":9}".to_vec(), "bad_json", Some(9)),
        (b"\xff".to_vec(), "bad_json", None),
        (bomb("[", "]").into_bytes(), "bad_json", Some(9)),
        (bomb("{\"a\":", "}").replacen(":}", ":1}", 1).into_bytes(), "bad_json", Some(9)),
        (bomb("[", "").into_bytes(), "bad_json", None),
        (br#"{"content":"a","content":"s3cret","seq":9}"#.to_vec(), "bad_field", Some(9)),
        (br#"{"type":"ping","seq":9,"type":"ping"}"#.to_vec(), "bad_field", Some(9)),
        (br#"{"type":"ping","seq":9,"seq":9}"#.to_vec(), "bad_field", None),
    ];
    for (line, code, seq) in table {
        let refusal = decode(&line, &OPTIONS).unwrap_err();
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        assert_eq!((refusal.code.as_str(), refusal.seq), (code, seq), "{shown}: {}", refusal.message);
        assert!(!refusal.message.contains("s3cret") && refusal.message.len() < 200);
    }
}

#[test]
fn strange_values_in_ignored_fields_do_no_harm() {
    for field in
        [r#""x":1e400"#, r#""x":"\ud800""#, r#""\ud800":1"#, r#""x":1,"x":2"#, r#""x":[[[{"content":"y"}]]]"#, r#""a":"\u0000""#]
    {
        assert_eq!(message_of(&with(field)).content, "Hello", "{field}");
    }
}

#[test]
fn session_start_binds_to_a_complete_session_of_this_version() {
    let line = read(
        r#"{"type":"hello","v":1,"mac_address":"6825ddba3978","session_id":"s","stream":"r4nd0m","ack":false,"agent_id":"a1","client":"py/1\u0000","seq":null}"#,
    )
    .unwrap();
    let expected = SessionStart {
        stream: Some("r4nd0m".into()),
        ack: Some(false),
        agent_id: Some("a1".into()),
        client: Some("py/1".into()),
    };
    assert_eq!(line.command, Command::SessionStart(expected));
    assert!(line.target.identity().is_some());

    let start = read(r#"{"type":"session_start","session_id":"room_6825ddba3978"}"#).unwrap();
    assert_eq!(start.command, Command::SessionStart(SessionStart { stream: None, ack: None, agent_id: None, client: None }));
    assert!(start.target.identity().is_some());

    let start = |rest: &str| refused(&format!(r#"{{"type":"session_start","mac_address":"6825ddba3978",{rest}}}"#));
    assert_eq!(start(r#""v":1"#).1.unwrap(), "session_id");
    assert_eq!(start(r#""v":2,"session_id":7"#).0, "unsupported_version");
    assert_eq!(start(r#""v":1.0,"session_id":"s""#).0, "unsupported_version");
    assert_eq!(start(r#""v":"1","session_id":"s""#), ("bad_field", Some("v".into()), None));
    assert_eq!(start(r#""session_id":"s","ack":"yes""#).1.unwrap(), "ack");
    assert_eq!(start(r#""session_id":"s","stream":5"#).1.unwrap(), "stream");
    assert_eq!(refused(r#"{"type":"session_start","session_id":"s"}"#).1.unwrap(), "mac_address");
}

#[test]
fn session_end_flush_and_ping_are_read() {
    let end = format!(r#"{{"type":"session_end","reason":"{}","dropped":3}}"#, "é".repeat(300));
    assert_eq!(read(&end).unwrap().command, Command::SessionEnd(SessionEnd { reason: Some("é".repeat(200)), dropped: Some(3) }));
    assert_eq!(read(r#"{"type":"session_end"}"#).unwrap().command, Command::SessionEnd(SessionEnd::default()));
    assert_eq!(refused(r#"{"type":"session_end","dropped":-1}"#).1.unwrap(), "dropped");

    let flush = |rest: &str| read(&format!(r#"{{"type":"flush",{rest}}}"#)).map(|line| line.command);
    let expected = |id: Option<&str>, level, seconds| {
        Ok(Command::Flush(Flush { id: id.map(str::to_owned), level, timeout: Duration::from_secs_f64(seconds) }))
    };
    assert_eq!(flush(r#""id":"f\u0041","level":"durable""#), expected(Some(r#""f\u0041""#), FlushLevel::Durable, 10.0));
    assert_eq!(flush(r#""id":17,"level":"delivered","timeout":0.5"#), expected(Some("17"), FlushLevel::Delivered, 0.5));
    assert_eq!(flush(r#""level":"delivered","timeout":60"#), expected(None, FlushLevel::Delivered, 60.0));
    for (rest, field) in [
        (r#""id":1"#, "level"),
        (r#""level":"all""#, "level"),
        (r#""level":"durable","timeout":61"#, "timeout"),
        (r#""level":"durable","timeout":-1"#, "timeout"),
        (r#""level":"durable","timeout":1e400"#, "timeout"),
        (r#""level":"durable","timeout":"5s""#, "timeout"),
        (r#""level":"durable","id":{}"#, "id"),
        (r#""level":"durable","id":true"#, "id"),
    ] {
        assert_eq!(flush(rest).unwrap_err().field.unwrap(), field, "{rest}");
    }

    assert_eq!(read(r#"{"type":"ping"}"#).unwrap().command, Command::Ping { id: None });
    assert_eq!(read(r#"{"type":"ping","id":1.5}"#).unwrap().command, Command::Ping { id: Some("1.5".into()) });
    assert_eq!(refused(&format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(255))).1.unwrap(), "id");
}

#[test]
fn an_unknown_type_is_an_event_to_ignore_only_if_it_looks_like_one() {
    let ignored = Ok(Command::LiveKit(LiveKitEvent::Ignored));
    let command = |line: &str| read(line).map(|line| line.command);
    assert_eq!(command(r#"{"type":"user_state_changed","created_at":1758701973.5,"seq":3}"#), ignored);
    assert_eq!(command(r#"{"type":"of_tomorrow","created_at":0}"#), ignored);
    for line in [
        r#"{"type":"mesage","content":"x","chat_type":1,"seq":3}"#,
        r#"{"type":"mesage","content":"x","created_at":1,"seq":3}"#,
        r#"{"type":"sesion_end","seq":3}"#,
        r#"{"type":"","seq":3}"#,
    ] {
        assert_eq!(refused(line), ("bad_field", Some("type".into()), Some(3)), "{line}");
    }
}

#[test]
fn a_time_out_of_range_is_replaced_by_now() {
    let message = message_of(&with(r#""timestamp":5"#));
    assert_eq!((message.time, message.time_replaced), (NOW, true));
}

#[test]
fn large_or_unreadable_metadata_never_costs_the_message() {
    let large = message_of(&with(&format!(r#""metadata":{{"x":"{}"}}"#, "y".repeat(20_000))));
    assert_eq!(large.extra.as_deref(), Some(r#"{"omitted":["metadata"]}"#));
    let lax = message_of(&with(r#""metadata":{"x":"\ud800"}"#));
    assert_eq!(lax.extra.as_deref(), Some(r#"{"omitted":["metadata"]}"#));
}

/// A strategy for JSON values as text, with all that Python sends and strict parsers refuse.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{0,14}(\\.[0-9]{1,3})?(e[0-9]{1,3})?",
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(r#""\ud83d""#.to_owned()),
        Just(r#""message""#.to_owned()),
        Just(r#""conversation_item_added""#.to_owned()),
        Just(r#""function_tools_executed""#.to_owned()),
        Just(r#""assistant""#.to_owned()),
        Just("1".to_owned()),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|elements| format!("[{}]", elements.join(","))),
            object(inner),
        ]
    })
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "type",
        "seq",
        "chat_type",
        "chatType",
        "content",
        "timestamp",
        "session_id",
        "macAddress",
        "item",
        "role",
        "id",
        "created_at",
        "transcript",
        "is_final",
        "function_calls",
        "function_call_outputs",
        "name",
        "arguments",
        "output",
        "metadata",
        "x",
    ]);
    prop::collection::vec((name, value), 0..8).prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

/// `json.dumps` of Python escapes everything beyond ASCII, as UTF-16.
fn as_python_writes_it(json: &str) -> String {
    let mut out = String::new();
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&line, &OPTIONS);
    }

    #[test]
    fn no_object_makes_it_panic_and_none_is_bad_json(line in object(json()), cut in 0_usize..400) {
        if let Err(refusal) = read(&line) {
            prop_assert_ne!(refusal.code, RefusalCode::BadJson);
            prop_assert!(refusal.message.len() < 300);
        }
        let _ = decode(&line.as_bytes()[..cut.min(line.len())], &OPTIONS);
    }

    #[test]
    fn any_text_comes_through_as_it_is_cleaned(text in any::<String>(), ascii in any::<bool>()) {
        let mut quoted = serde_json::to_string(&text).unwrap();
        if ascii {
            quoted = as_python_writes_it(&quoted);
        }
        let content = message_of(&format!(r#"{{"chat_type":1,"content":{quoted}}}"#)).content;
        prop_assert_eq!(content, clean(Cow::Owned(text)));
    }
}
