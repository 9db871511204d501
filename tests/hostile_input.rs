//! Bad lines are answered, counted and forgotten: the next line is processed, the connection lives, memory is bounded.

use serde_json::{Value, json};

use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, ManagerApi, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn ground() -> (ManagerApi, Daemon, Agent) {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("socket.max_line_bytes", "65536").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    (api, daemon, agent)
}

/// Sends bytes as a line and then a good message; the error the bad one got, if any.
#[track_caller]
fn after(agent: &mut Agent, bad: &[u8]) -> Option<Value> {
    let before = agent.errors().len();
    agent.raw(bad);
    agent.raw(b"\n");
    agent.line(&json!({ "type": "ping", "id": format!("after {before}") }));
    // Replies come in order: the pong tells that the bad line was dealt with. It is not a message, so say one too, for
    // twenty bad lines in a row end a connection.
    agent.say(1, "and on it goes");
    agent.wait("a pong", |reply| reply["type"] == "pong" && reply["id"] == format!("after {before}").as_str());
    let errors = agent.errors();
    assert!(errors.len() <= before + 1, "one answer a line: {errors:?}");
    errors.get(before).cloned()
}

#[test]
fn every_bad_line_is_refused_by_name_and_the_next_one_is_processed() {
    let (api, daemon, mut agent) = ground();
    let bomb = [b"[".repeat(30_000), b"]".repeat(30_000)].concat();
    let deep = format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let message = |fields: &str| format!("{{\"type\":\"message\",{fields}}}").into_bytes();
    let cases: Vec<(Vec<u8>, &str, Option<&str>)> = vec![
        (b"nonsense".to_vec(), "bad_json", None),
        (b"{".to_vec(), "bad_json", None),
        (b"[]".to_vec(), "bad_json", None),
        (b"7".to_vec(), "bad_json", None),
        (b"\"text\"".to_vec(), "bad_json", None),
        (b"{} {}".to_vec(), "bad_json", None),
        (b"{\"content\":\"\xff\xfe\"}".to_vec(), "bad_json", None),
        (b"\0\0\0".to_vec(), "bad_json", None),
        (bomb, "bad_json", None),
        (message(r#""chat_type":1,"content":"x","timestamp":NaN"#), "bad_json", None),
        (message(r#""chat_type":7,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":"robot","content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":1.5,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":null,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":1"#), "bad_field", Some("content")),
        (message(r#""chat_type":1,"content":7"#), "bad_field", Some("content")),
        (message(r#""chat_type":1,"content":"x","mac_address":"hello""#), "bad_field", Some("mac_address")),
        (message(r#""chat_type":1,"content":"x","session_id":7"#), "bad_field", Some("session_id")),
        (message(r#""chat_type":1,"content":"x","timestamp":"yesterday""#), "bad_field", Some("timestamp")),
        (message(r#""chat_type":1,"content":"x","seq":"one""#), "bad_field", Some("seq")),
        (message(r#""chat_type":1,"content":"x","seq":-1"#), "bad_field", Some("seq")),
        (vec![b'x'; 65_537], "line_too_long", None),
    ];
    let count = cases.len();
    for (bad, code, field) in cases {
        let shown = String::from_utf8_lossy(&bad[..bad.len().min(80)]).into_owned();
        let error = after(&mut agent, &bad).unwrap_or_else(|| panic!("no answer to {shown}"));
        assert_eq!(error["code"], code, "{shown}: {error}");
        assert_eq!(error["fatal"], false, "{shown}: {error}");
        if let Some(field) = field {
            assert_eq!(error["field"], field, "{shown}: {error}");
        }
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    let error = after(&mut agent, deep.as_bytes()).expect("an answer to a deep value");
    assert!(["bad_json", "bad_field"].contains(&error["code"].as_str().unwrap()), "{error}");
    assert_eq!(api.wait_for_rows("s", count + 1).len(), count + 1, "every good line between was stored");
    assert_eq!(daemon.metric("refusals"), count as u64 + 1);
    check_books(&daemon);
}

#[test]
fn odd_lines_that_are_no_errors_are_taken() {
    let (api, daemon, mut agent) = ground();
    for (line, stored) in [
        (&b"{\"type\":\"message\",\"chat_type\":\"user\",\"content\":\"carriage return\"}\r"[..], Some("carriage return")),
        (b"", None),
        (b"   ", None),
        (b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"half a \\ud83d pair\"}", Some("half a \u{fffd} pair")),
        (b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"  trimmed \\u0000\\u0007\"}", Some("trimmed")),
        (b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"   \"}", None),
        (
            b"{\"type\":\"message\",\"chat_type\":2,\"content\":\"unknown field\",\"colour\":{\"deep\":[1,2]}}",
            Some("unknown field"),
        ),
        (b"{\"type\":\"agent_state_changed\",\"old_state\":\"a\",\"new_state\":\"b\",\"created_at\":1758701973.5}", None),
        (b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"far future\",\"timestamp\":99999999999}", Some("far future")),
        (b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"bad audio\",\"audio_base64\":\"!!!\"}", Some("bad audio")),
    ] {
        let shown = String::from_utf8_lossy(line);
        let before = daemon.metric("delivered");
        agent.raw(line);
        agent.raw(b"\n");
        if let Some(stored) = stored {
            soon(&format!("{shown} is delivered"), || daemon.metric("delivered") == before + 1);
            assert_eq!(api.rows("s").last().unwrap().content, stored);
        }
    }
    agent.raw(b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"no newline at the end\"}");
    agent.finish();
    soon("the last line is delivered", || api.rows("s").last().is_some_and(|row| row.content == "no newline at the end"));
    assert_eq!(agent.errors(), Vec::<Value>::new());
    assert_eq!(daemon.metric("times_replaced"), 1);
    assert_eq!(daemon.metric("audio_invalid"), 1);
    check_books(&daemon);
}

#[test]
fn a_line_without_end_costs_no_memory() {
    let (api, daemon, mut agent) = ground();
    let before = daemon.rss();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..128 {
        agent.raw(&chunk);
    }
    let grown = daemon.rss().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more");
    agent.raw(b"\n");
    agent.say(1, "after it");
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "after it");
    assert_eq!(agent.errors().len(), 1);
    assert_eq!(agent.errors()[0]["code"], "line_too_long");
    check_books(&daemon);
}

#[test]
fn twenty_bad_lines_in_a_row_end_a_connection_and_no_other() {
    let (api, daemon, mut agent) = ground();
    let mut other = Agent::connect(&daemon);
    other.bind(MAC, "other");
    for _ in 0..20 {
        let _ = agent.try_raw(b"nonsense\n");
    }
    agent.wait_for_close();
    let last = agent.errors().pop().unwrap();
    assert_eq!((last["code"].as_str(), last["fatal"].as_bool()), (Some("too_many_errors"), Some(true)), "{last}");
    other.say(1, "still here");
    api.wait_for_rows("other", 1);
    check_books(&daemon);
}

#[test]
fn another_version_is_refused_for_good() {
    let (_api, daemon, _agent) = ground();
    let mut agent = Agent::connect(&daemon);
    agent.line(&json!({ "type": "session_start", "v": 2, "mac_address": MAC, "session_id": "s" }));
    agent.wait_for_close();
    let error = agent.errors().pop().unwrap();
    assert_eq!((error["code"].as_str(), error["fatal"].as_bool()), (Some("unsupported_version"), Some(true)));
}

#[test]
fn a_line_without_a_session_is_not_bound() {
    let (_api, daemon, _agent) = ground();
    let mut agent = Agent::connect(&daemon);
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "x" }));
    let error = agent.wait_for("error");
    assert_eq!((error["code"].as_str(), error["fatal"].as_bool()), (Some("not_bound"), Some(false)));
    // The device may be taken from a room name.
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "x", "session_id": "d3746a02-1c3e_6825ddba3978_story" }));
    agent.line(&json!({ "type": "ping" }));
    agent.wait_for("pong");
    assert_eq!(agent.errors().len(), 1);
}

#[test]
fn a_client_above_the_limit_is_refused_politely() {
    let daemon = Daemon::builder().set("socket.max_connections", "3").start();
    soon("the readiness check has gone", || daemon.metric("connections") == 0);
    let mut kept: Vec<Agent> = (0..3).map(|_| Agent::connect(&daemon)).collect();
    assert!(kept.iter_mut().all(Agent::is_answered));
    let refused = Agent::connect(&daemon);
    refused.wait_for_close();
    assert_eq!(refused.errors().pop().map(|error| error["code"].clone()), Some(json!("too_many_connections")));
    kept.pop();
    soon("there is room again", || Agent::connect(&daemon).is_answered());
}
