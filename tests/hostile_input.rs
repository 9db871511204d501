//! Bad lines are answered, counted and forgotten: the next line is processed, the connection lives, memory is bounded.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::disk::{Injection, strace_works};
use crate::support::eventually::{SOON, always, eventually};
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, Fault, ManagerApi, Oracle, Producer, Variant, soon};

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
        (message(r#""chat_type":1,"content":"x","timestamp":1e400"#), "bad_field", Some("timestamp")),
        (message(r#""chat_type":1,"chat_type":2,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":1,"chatType":1,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":1,"content":"x","content":"y""#), "bad_field", Some("content")),
        (message(r#""chat_type":true,"content":"x""#), "bad_field", Some("chat_type")),
        (message(r#""chat_type":1,"content":null"#), "bad_field", Some("content")),
        (message(r#""chat_type":1,"content":{"text":"x"}"#), "bad_field", Some("content")),
        (message(r#""chat_type":1,"content":"x","seq":1.5"#), "bad_field", Some("seq")),
        (message(r#""chat_type":1,"content":"x","seq":18446744073709551616"#), "bad_field", Some("seq")),
        (message(r#""chat_type":1,"content":"x","metadata":"y""#), "bad_field", Some("metadata")),
        (message(r#""chat_type":1,"content":"x","interrupted":"yes""#), "bad_field", Some("interrupted")),
        (message(r#""chat_type":3,"content":"a tool, and send_tools is off""#), "bad_field", Some("chat_type")),
        (b"\xef\xbb\xbf{\"type\":\"ping\"}".to_vec(), "bad_json", None),
        (b"{\"type\":\"mesage\",\"chat_type\":1,\"content\":\"misspelt\"}".to_vec(), "bad_field", Some("type")),
        (b"{\"type\":7}".to_vec(), "bad_field", Some("type")),
        (b"{}".to_vec(), "bad_field", Some("type")),
        (b"{\"type\":\"flush\",\"id\":1,\"level\":\"soon\"}".to_vec(), "bad_field", Some("level")),
        (b"{\"type\":\"flush\",\"id\":1,\"level\":\"durable\",\"timeout\":-1}".to_vec(), "bad_field", Some("timeout")),
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
        (b"{\"type\":\"an_event_of_tomorrow\",\"old_state\":\"a\",\"created_at\":1758701973.5}", None),
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

// ---- lines that never end ------------------------------------------------------------------------------------------

#[test]
fn an_oversized_line_is_answered_once_even_byte_by_byte() {
    let (api, daemon, mut agent) = ground();
    let daemon_small = Daemon::builder().set("socket.max_line_bytes", "1024").start();
    let mut slow = Agent::connect(&daemon_small);
    slow.bind(MAC, "s");
    for _ in 0..3000 {
        slow.raw(b"x");
    }
    // Said as soon as it is known, not when it ends.
    assert_eq!(slow.wait_for("error")["code"], "line_too_long");
    slow.raw(b"\n");
    for byte in b"{\"type\":\"ping\",\"id\":\"slow\"}\r\n" {
        slow.raw(&[*byte]);
    }
    assert_eq!(slow.wait_for("pong")["id"], "slow");
    assert_eq!(slow.errors().len(), 1);
    // Exactly at the limit is no error, one more is.
    let line = |length: usize| {
        let frame = json!({ "type": "message", "chat_type": 1, "content": "" }).to_string().len();
        json!({ "type": "message", "chat_type": 1, "content": "y".repeat(length - frame) }).to_string()
    };
    agent.text(&line(65_536));
    agent.text(&line(65_537));
    agent.text(&format!("{}\r", line(65_536)));
    agent.flush("durable");
    assert_eq!(agent.errors().iter().map(|error| error["code"].clone()).collect::<Vec<_>>(), [json!("line_too_long")]);
    assert_eq!(agent.errors()[0]["line"], 3, "{:?}", agent.errors());
    soon("both are stored", || daemon.metric("delivered") == 2);
    drop(api);
}

#[test]
fn many_clients_with_lines_without_end_cost_one_line_buffer_each() {
    let daemon = Daemon::builder().set("socket.max_line_bytes", "65536").start();
    let before = daemon.rss();
    let mut clients: Vec<UnixStream> = (0..200).map(|_| Agent::deaf(&daemon)).collect();
    for _ in 0..4 {
        for client in &mut clients {
            client.write_all(&[b'x'; 16_000]).unwrap();
        }
    }
    let mut agent = Agent::connect(&daemon);
    assert!(agent.is_answered());
    let grown = daemon.rss().saturating_sub(before);
    assert!(grown < 200 * 160 * 1024 + (8 << 20), "{grown} bytes for 200 clients");
}

#[test]
fn a_client_that_never_reads_delays_nobody_and_costs_a_bounded_memory() {
    let (api, daemon, mut agent) = ground();
    let before = daemon.rss();
    let mut deaf = Agent::deaf(&daemon);
    let ping = "{\"type\":\"ping\",\"id\":\"0123456789012345678901234567890123456789\"}\n".repeat(1000);
    for _ in 0..100 {
        deaf.write_all(ping.as_bytes()).expect("the daemon never requires a client to read");
    }
    // Its messages are stored all the same.
    let start = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "deaf", "stream": "deaf" });
    deaf.write_all(format!("{start}\n").as_bytes()).unwrap();
    for seq in 1..=200 {
        let line = json!({ "type": "message", "chat_type": 1, "content": format!("message {seq}"), "seq": seq });
        deaf.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    assert_eq!(api.wait_for_rows("deaf", 200).len(), 200);
    assert!(daemon.metric("replies_dropped") > 10_000);
    assert!(agent.is_answered());
    let grown = daemon.rss().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    // There is something to say and no room for it: no reason to be awake.
    soon("all threads sleep for a while", || (0..50).all(|_| daemon.thread_states().iter().all(|state| *state == 'S')));
    // The ack was not dropped: it waits until the socket takes it.
    deaf.set_read_timeout(Some(SOON)).unwrap();
    let mut reader = std::io::BufReader::new(deaf);
    let (mut line, mut bytes) = (String::new(), Vec::new());
    let end = Instant::now() + SOON;
    while !line.contains("\"ack\",\"seq\":200}") {
        assert!(Instant::now() < end, "the last ack never came");
        let read = std::io::BufRead::read_until(&mut reader, b'\n', &mut bytes).expect("replies");
        assert!(read > 0, "the connection ended");
        line = String::from_utf8_lossy(&bytes).into_owned();
        bytes.clear();
    }
}

#[test]
fn a_client_that_writes_and_hangs_up_unheard_loses_no_line() {
    let (api, daemon, mut agent) = ground();
    for round in 0..10 {
        let session = format!("unheard {round}");
        let mut deaf = Agent::deaf(&daemon);
        let mut said = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": session }).to_string();
        for number in 0..600 {
            let content = format!("message {number} {}", "and so on ".repeat(8));
            said.push_str(&format!("\n{}", json!({ "type": "message", "chat_type": 1, "content": content })));
        }
        // More than a few reads, and `ready` waits unread when the client is gone.
        deaf.write_all(said.as_bytes()).unwrap();
        deaf.write_all(b"\n").unwrap();
        drop(deaf);
    }
    for round in 0..10 {
        assert_eq!(api.wait_for_rows(&format!("unheard {round}"), 600).len(), 600);
    }
    assert!(agent.is_answered());
}

/// What `fs.epoll.max_user_watches` does when it is used up.
#[test]
fn clients_are_heard_though_the_kernel_will_not_tell_of_them() {
    if !strace_works() {
        return;
    }
    let (api, mut daemon, _) = ground();
    let hang_up_after = |daemon: &Daemon, session: &str| {
        let mut client = Agent::deaf(daemon);
        let mut said = json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": session }).to_string();
        for number in 0..10 {
            said.push_str(&format!("\n{}", json!({ "type": "message", "chat_type": 1, "content": format!("message {number}") })));
        }
        client.write_all(said.as_bytes()).unwrap();
        client.write_all(b"\n").unwrap();
    };
    let untold = Injection::attach(daemon.pid(), "epoll_ctl", "error=ENOSPC", &[]);
    (0..5).for_each(|number| hang_up_after(&daemon, &format!("untold {number}")));
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "untold and acked", "untold");
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "hear me", "seq": 1 }));
    agent.wait_for_ack(1);
    hang_up_after(&daemon, "untold at the end");
    assert!(daemon.term(SOON).success());
    drop(untold);
    assert_eq!(daemon.log().matches("max_user_watches").count(), 1, "told of once a minute");

    daemon.start();
    for session in (0..5).map(|number| format!("untold {number}")).chain(["untold at the end".to_owned()]) {
        assert_eq!(api.wait_for_rows(&session, 10).len(), 10, "{session}");
    }
}

#[test]
fn what_was_taken_before_a_fatal_error_is_acked() {
    let (_api, daemon, _) = ground();
    let message = |seq: u64| json!({ "type": "message", "chat_type": 1, "content": "good morning", "seq": seq }).to_string();
    let unknown = json!({ "type": "session_start", "v": 7, "mac_address": MAC, "session_id": "s" }).to_string();
    for (code, last) in [("unsupported_version", unknown), ("too_many_errors", "nonsense\n".repeat(20))] {
        for _ in 0..10 {
            let mut agent = Agent::connect(&daemon);
            agent.bind(MAC, "taken");
            let mut said: Vec<String> = (1..=100).map(message).collect();
            said.push(last.clone());
            agent.raw(format!("{}\n", said.join("\n")).as_bytes());
            agent.wait_for_close();
            let error = agent.errors().pop().unwrap();
            assert_eq!((error["code"].as_str(), error["fatal"].as_bool(), agent.acked()), (Some(code), Some(true), 100));
        }
    }
}

#[test]
fn a_client_that_says_no_more_gets_its_last_ack_and_is_let_go_at_once() {
    let (_api, daemon, _) = ground();
    for round in 0..20 {
        let mut agent = Agent::connect(&daemon);
        agent.bind_stream(MAC, "last words", &format!("last words {round}"));
        agent.line(&json!({ "type": "message", "chat_type": 1, "content": "good night", "seq": 1 }));
        agent.finish();
        // Nothing is left to be said: far sooner than the half minute that a client may take to listen.
        eventually(Duration::from_secs(10), "the connection ends", || agent.is_closed().then_some(()));
        assert_eq!(agent.acked(), 1);
    }
}

// ---- the protocol, promise by promise ------------------------------------------------------------------------------

#[test]
fn every_alias_of_the_report_payload_is_taken() {
    let (api, daemon, _) = ground();
    let mut agent = Agent::connect(&daemon);
    agent.text(&format!(
        r#"{{"macAddress":"{MAC}","sessionId":"alias","chatType":2,"content":"as the API spells it","audioBase64":null,"reportTime":1758701973}}"#
    ));
    agent.text(r#"{"type":"message","mac_address":"6825DDBA3978","session_id":"alias","chat_type":"user","content":"ours","timestamp":1758701974.25}"#);
    agent.text(r#"{"type":"message","mac_address":"68-25-dd-ba-39-78","session_id":"alias","chat_type":"agent","content":"ms","timestamp":1758701975250}"#);
    agent.text(r#"{"type":"message","mac_address":"68:25:DD:BA:39:78","session_id":"alias","chat_type":1,"content":"text","timestamp":"2025-09-24T08:19:36Z"}"#);
    let rows = api.wait_for_rows("alias", 4);
    assert_eq!(rows.iter().map(|row| row.chat_type).collect::<Vec<_>>(), [2, 1, 2, 1]);
    assert!(rows.iter().all(|row| row.mac == MAC));
    let seconds: Vec<i64> = rows.iter().map(|row| row.created_at_ms / 1000).collect();
    assert_eq!(seconds, [1_758_701_973, 1_758_701_974, 1_758_701_975, 1_758_701_976]);
    agent.line(&json!({ "type": "hello", "v": 1, "mac_address": MAC, "session_id": "alias" }));
    let ready = agent.wait_for("ready");
    assert_eq!(
        (ready["v"].as_u64(), ready["last_seq"].as_u64(), ready["max_line_bytes"].as_u64()),
        (Some(1), Some(0), Some(65_536))
    );
    assert!(ready["daemon"].as_str().is_some_and(|name| name.starts_with("chat-historyd/")));
    assert_eq!(agent.errors(), Vec::<Value>::new());
}

#[test]
fn ready_tells_the_highest_durable_line_over_connections_and_restarts() {
    let (_api, mut daemon, mut agent) = ground();
    assert_eq!(agent.bind_stream(MAC, "s", "stream"), 0);
    for seq in [1, 2, 5, 9] {
        agent.line(&json!({ "type": "message", "chat_type": 1, "content": format!("message {seq}"), "seq": seq }));
    }
    // A refused line settles, too, and so does an empty one and a duplicate.
    agent.line(&json!({ "type": "message", "chat_type": 7, "content": "refused", "seq": 11 }));
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "  ", "seq": 12 }));
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "message 9", "seq": 9 }));
    agent.line(&json!({ "type": "ping", "seq": 13 }));
    agent.wait_for_ack(13);
    let acks: Vec<u64> =
        agent.replies().iter().filter(|reply| reply["type"] == "ack").filter_map(|reply| reply["seq"].as_u64()).collect();
    assert!(acks.is_sorted(), "{acks:?}");
    assert_eq!(Agent::connect(&daemon).bind_stream(MAC, "s", "stream"), 13);
    daemon.kill9();
    daemon.start();
    assert_eq!(Agent::connect(&daemon).bind_stream(MAC, "s", "stream"), 13);
    let mut agent = Agent::connect(&daemon);
    assert_eq!(agent.bind_stream(MAC, "s", "another"), 0);
}

#[test]
fn no_ack_reaches_over_a_line_that_is_not_durable() {
    // The pong is nobody's: it is settled at once, its number comes after a message that is not, and nothing is bound.
    if !crate::support::disk::strace_works() {
        return;
    }
    let daemon = Daemon::builder().wrapper(&crate::support::disk::inject("fdatasync,fsync", "delay_enter=300000")).start();
    let mut agent = Agent::connect(&daemon);
    let message =
        json!({ "type": "message", "mac_address": MAC, "session_id": "s", "chat_type": 1, "content": "hello", "seq": 1 });
    let began = Instant::now();
    agent.raw(format!("{message}\n{}\n{{\"type\":\"nonsense\",\"seq\":3}}\n", json!({ "type": "ping", "seq": 2 })).as_bytes());
    agent.wait_for("pong");
    agent.wait_for("error");
    agent.wait("an ack", |reply| reply["type"] == "ack");
    assert!(began.elapsed() >= Duration::from_millis(300), "acknowledged after {:?}, and a sync takes 300 ms", began.elapsed());
    agent.wait_for_ack(3);
}

#[test]
fn an_ack_names_the_highest_line_though_a_lower_one_was_said_again_behind_it() {
    let daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "s", "stream");
    let line = |seq: u64| format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":\"x\",\"seq\":{seq}}}\n");
    agent.raw([line(10), line(3)].concat().as_bytes());
    agent.wait_for_ack(10);
}

#[test]
fn a_stream_belongs_to_one_session() {
    let (_api, daemon, _) = ground();
    // A connection of its own: on that of the ground a `ready` is there already, and would be taken for this one.
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "mine", "the-stream");
    let mut thief = Agent::connect(&daemon);
    thief.line(&json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "other", "stream": "the-stream" }));
    let error = thief.wait_for("error");
    assert_eq!(
        (error["code"].as_str(), error["field"].as_str(), error["fatal"].as_bool()),
        (Some("bad_field"), Some("stream"), Some(false))
    );
    // The connection lives and may do better.
    thief.bind(MAC, "other");
    agent
        .line(&json!({ "type": "message", "mac_address": MAC, "session_id": "other", "chat_type": 1, "content": "x", "seq": 1 }));
    let error = agent.wait_for("error");
    assert_eq!(
        (error["code"].as_str(), error["field"].as_str(), error["seq"].as_u64()),
        (Some("bad_field"), Some("session_id"), Some(1))
    );
    // Without a number any session may be named.
    agent.line(&json!({ "type": "message", "mac_address": MAC, "session_id": "other", "chat_type": 1, "content": "y" }));
    agent.flush("durable");
    assert_eq!(agent.errors().len(), 1);
}

#[test]
fn a_second_connection_takes_a_stream_over_and_nothing_is_lost_or_doubled() {
    let (api, daemon, _) = ground();
    let mut old = Agent::connect(&daemon);
    old.bind_stream(MAC, "s", "st");
    let line =
        |seq: u64| format!("{}\n", json!({ "type": "message", "chat_type": 1, "content": format!("message {seq}"), "seq": seq }));
    old.raw((1..=400).map(line).collect::<String>().as_bytes());
    let mut new = Agent::connect(&daemon);
    let last = new.bind_stream(MAC, "s", "st");
    new.raw((last + 1..=600).map(line).collect::<String>().as_bytes());
    // The older one is read to its end: it says again what the new one said, and something of its own.
    old.raw((300..=500).map(line).collect::<String>().as_bytes());
    new.wait_for_ack(600);
    old.wait_for_ack(500);
    let contents: Vec<String> = api.wait_for_rows("s", 600).into_iter().map(|row| row.content).collect();
    assert_eq!(contents, (1..=600).map(|seq| format!("message {seq}")).collect::<Vec<_>>());
    assert_eq!(old.errors(), Vec::<Value>::new());
    check_books(&daemon);
}

#[test]
fn binding_again_ends_nothing() {
    let (api, daemon, _) = ground();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "first");
    agent.say(1, "in the first");
    agent.line(&json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "second" }));
    agent.say(1, "in the second");
    agent.line(&json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "first" }));
    agent.say(2, "in the first again");
    assert_eq!(api.wait_for_rows("first", 2)[1].content, "in the first again");
    assert_eq!(api.wait_for_rows("second", 1)[0].content, "in the second");
    assert_eq!(daemon.metric("sessions_ended"), 0);
}

#[test]
fn unbound_lines_of_many_sessions_share_a_connection() {
    let (api, daemon, _) = ground();
    let mut agent = Agent::connect(&daemon);
    let mut oracle = Oracle::new(&daemon);
    for index in 0..300 {
        let (session, text) = (format!("s{}", index % 30), format!("message {index}"));
        agent.line(&json!({ "type": "message", "mac_address": MAC, "session_id": session, "chat_type": 1, "content": text, "seq": index + 1 }));
        oracle.owe_message(MAC, &session, 1, &text);
    }
    agent.wait_for_ack(300);
    for index in 0..30 {
        agent.line(&json!({ "type": "session_end", "mac_address": MAC, "session_id": format!("s{index}") }));
    }
    soon("all ended", || daemon.metric("sessions_ended") == 30);
    drop(agent);
    oracle.check(&daemon, &api);
}

#[test]
fn flush_answers_what_is_true() {
    let (api, daemon, mut agent) = ground();
    let flush = |agent: &mut Agent, id: Value, rest: Value| {
        let mut line = json!({ "type": "flush", "id": id });
        line.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        agent.line(&line);
        agent.wait("a flushed", |reply| reply["type"] == "flushed" && reply["id"] == id)
    };
    agent.say(1, "one");
    let answer = flush(&mut agent, json!("a"), json!({ "level": "delivered" }));
    assert_eq!(
        (answer["ok"].as_bool(), answer["delivered"].as_u64(), answer["pending"].as_u64()),
        (Some(true), Some(1), Some(0)),
        "{answer}"
    );
    assert_eq!(api.rows("s").len(), 1);
    // Nothing to do is done at once.
    assert_eq!(flush(&mut agent, json!(2), json!({ "level": "delivered" }))["ok"], true);
    // A hung API: the time is the client's to choose, and later lines are not blocked meanwhile.
    api.fault(Fault::HangBeforeHeaders);
    agent.say(1, "two");
    let began = Instant::now();
    agent.line(&json!({ "type": "flush", "id": "slow", "level": "delivered", "timeout": 1 }));
    agent.line(&json!({ "type": "ping", "id": "meanwhile" }));
    agent.wait("a pong", |reply| reply["type"] == "pong" && reply["id"] == "meanwhile");
    assert!(!agent.replies().iter().any(|reply| reply["id"] == "slow"), "it waits");
    let answer = agent.wait("a flushed", |reply| reply["id"] == "slow");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!((answer["ok"].as_bool(), answer["pending"].as_u64()), (Some(false), Some(1)), "{answer}");
    assert!(answer["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    // Durable is another question.
    let answer = flush(&mut agent, json!("durable"), json!({ "level": "durable" }));
    assert_eq!((answer["ok"].as_bool(), answer["pending"].as_u64()), (Some(true), Some(1)), "{answer}");
    // A closed gate and an unknown device: at once, with the reason.
    api.clear_faults();
    api.set_secret("another");
    soon("the gate closes", || daemon.status()["gate"]["state"] == "closed");
    let began = Instant::now();
    let answer = flush(&mut agent, json!("closed"), json!({ "level": "delivered", "timeout": 60 }));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(answer["ok"], false, "{answer}");
    api.set_secret(crate::support::manager_api::SECRET);
    soon("the gate opens", || daemon.status()["gate"]["state"] == "open");
    agent.line(&json!({ "type": "message", "mac_address": "02:00:00:00:00:77", "session_id": "unknown", "chat_type": 1, "content": "x" }));
    let rest = json!({ "level": "delivered", "timeout": 60, "mac_address": "02:00:00:00:00:77", "session_id": "unknown" });
    let began = Instant::now();
    let answer = flush(&mut agent, json!("unknown"), rest);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((answer["ok"].as_bool(), answer["pending"].as_u64()), (Some(false), Some(1)), "{answer}");
    // Unbound and unnamed: refused.
    let mut stranger = Agent::connect(&daemon);
    stranger.line(&json!({ "type": "flush", "id": 1, "level": "durable" }));
    assert_eq!(stranger.wait_for("error")["code"], "not_bound");
    assert_eq!(agent.errors(), Vec::<Value>::new());
}

#[test]
fn ping_gives_back_its_id() {
    let (_api, daemon, _) = ground();
    let mut agent = Agent::connect(&daemon);
    for id in [json!(1), json!("x"), json!(-1.5), json!("\u{1f42f}\n\"")] {
        agent.line(&json!({ "type": "ping", "id": id }));
        agent.wait("its pong", |reply| reply["type"] == "pong" && reply["id"] == id);
    }
    agent.line(&json!({ "type": "ping", "id": "z".repeat(5000) }));
    agent.line(&json!({ "type": "ping", "id": [1, { "a": null }] }));
    soon("both are refused: what is echoed is small and bounded", || agent.errors().len() == 2);
    assert!(agent.errors().iter().all(|error| error["code"] == "bad_field" && error["field"] == "id"), "{:?}", agent.errors());
}

#[test]
fn a_good_line_forgives_the_bad_ones_before_it() {
    let (_api, _daemon, mut agent) = ground();
    for _ in 0..5 {
        agent.raw("nonsense\n".repeat(19).as_bytes());
        agent.line(&json!({ "type": "ping" }));
    }
    soon("all are answered", || agent.errors().len() == 95);
    assert!(!agent.is_closed());
    assert!(agent.errors().iter().all(|error| error["code"] == "bad_json"));
}

#[test]
fn at_the_limit_of_sessions_new_ones_are_overloaded_and_old_ones_go_on() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("session.max_open", "3").set("session.idle_timeout", "'1s'").start();
    let mut kept: Vec<Producer> = (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let mut late = Agent::connect(&daemon);
    late.line(&json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "late", "stream": "late", "seq": 1 }));
    // The daemon may have hung up by then.
    late.try_raw(b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"not to be settled\",\"seq\":2}\n");
    late.wait_for_close();
    let last = late.errors().pop().unwrap();
    assert_eq!((last["code"].as_str(), last["fatal"].as_bool(), late.acked()), (Some("overloaded"), Some(true), 0), "{last}");
    // Nor does what was meant for it go to the session that the connection was bound to before.
    let mut bound = Agent::connect(&daemon);
    bound.bind(MAC, "s0");
    bound.line(&json!({ "type": "session_start", "v": 1, "mac_address": MAC, "session_id": "late" }));
    bound.try_raw(b"{\"type\":\"message\",\"chat_type\":1,\"content\":\"meant for another session\"}\n");
    bound.wait_for_close();
    // Numbered lines that cannot be taken end the connection: an ack must never reach over them.
    let mut unbound = Agent::connect(&daemon);
    let line = |session: &str, seq: u64| json!({ "type": "message", "mac_address": MAC, "session_id": session, "chat_type": 1, "content": "x", "seq": seq });
    unbound.line(&line("late", 1));
    unbound.try_raw(format!("{}\n", line("s0", 2)).as_bytes());
    unbound.wait_for_close();
    let last = unbound.errors().pop().unwrap();
    assert_eq!((last["code"].as_str(), last["fatal"].as_bool()), (Some("overloaded"), Some(true)), "{last}");
    assert_eq!(unbound.acked(), 0);
    for producer in &mut kept {
        producer.say(1, "still served");
        producer.wait_until_acked();
    }
    drop(kept);
    soon("there is room again", || {
        let mut again = Agent::connect(&daemon);
        again.line(&line("late", 1));
        again.wait("an answer", |reply| reply["type"] == "ack" || reply["type"] == "error")["type"] == "ack"
    });
    check_books(&daemon);
    assert!(api.rows("s0").iter().all(|row| row.content == "still served"), "{:?}", api.rows("s0"));
}

#[test]
fn after_overload_a_stream_has_no_hole() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").start();
    api.stop();
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let say = |producers: &mut [Producer], numbers: std::ops::Range<usize>| {
        for index in numbers {
            for producer in &mut *producers {
                producer.say(1, &format!("message {index}"));
            }
        }
    };
    say(&mut producers, 0..100);
    producers.iter_mut().for_each(Producer::wait_until_acked);
    // Recordings fill the store to its limit.
    let mut filler = Agent::connect(&daemon);
    filler.bind(MAC, "filler");
    let audio = "QUJD".repeat(500_000);
    soon("the store is full", || {
        let line = json!({ "type": "message", "chat_type": 1, "content": "x", "audio_base64": audio });
        let _ = filler.try_raw(format!("{line}\n").as_bytes());
        daemon.status()["store"]["full"] == true
    });
    say(&mut producers, 100..300);
    for producer in &mut producers {
        producer.agent().wait_for_close();
        let errors = producer.agent().errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!((errors[0]["code"].as_str(), errors[0]["fatal"].as_bool()), (Some("overloaded"), Some(true)), "{errors:?}");
        assert!((100..300).contains(&producer.acked()), "{}", producer.acked());
    }
    api.start_again();
    for producer in &mut producers {
        producer.disconnect();
    }
    soon("there is room again and all is taken", || {
        for producer in &mut producers {
            if producer.acked() == 300 {
                continue;
            }
            // A producer that is refused again comes back again.
            let Some(mut probe) = Agent::dial(&daemon.socket()) else { return false };
            if probe.is_answered() {
                producer.connect(&daemon);
                crate::support::eventually(SOON, "taken or refused", || {
                    (producer.acked() == 300 || producer.agent().is_closed()).then_some(())
                });
            }
        }
        producers.iter().all(|producer| producer.acked() == 300)
    });
    for producer in &producers {
        oracle.owe(producer);
    }
    oracle.check_arrivals(&api);
    check_books(&daemon);
    let rows = api.all_rows().iter().filter(|row| row.session != "filler").count();
    assert_eq!(rows, 900, "nothing came twice");
}

/// The store refuses the lines of a stream after its connection has gone over to another session.
#[test]
fn what_a_stream_that_was_left_could_not_bring_does_not_end_its_connection() {
    if !strace_works() {
        return;
    }
    let api = ManagerApi::start(Variant::Upstream);
    api.stop();
    let daemon = Daemon::builder().api(&api).set("store.max_bytes", "'16 MiB'").start();
    let mut next = Agent::connect(&daemon);
    next.bind(MAC, "next");
    assert_eq!(next.flush("durable")["ok"], true);
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "left", "left");
    let mut filler = Agent::connect(&daemon);
    filler.bind(MAC, "filler");
    let audio = "QUJD".repeat(500_000);
    soon("the store is full", || {
        let line = json!({ "type": "message", "chat_type": 1, "content": "x", "audio_base64": audio });
        let _ = filler.try_raw(format!("{line}\n").as_bytes());
        daemon.status()["store"]["full"] == true
    });
    let log = daemon.store().join("history.db-wal");
    let _slow = Injection::attach(daemon.pid(), "fdatasync", "delay_enter=2000000", &[&log]);
    let written = || std::fs::metadata(&log).unwrap().modified().unwrap();
    let before = written();
    let mut busy = Agent::connect(&daemon);
    busy.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "busy", "stream": "busy" }));
    soon("the store is busy", || written() > before);
    agent.line(&json!({ "type": "message", "chat_type": 1, "content": "there is no room for it", "seq": 7 }));
    agent.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "next" }));
    let is_late = |reply: &Value| reply["code"] == "overloaded" && reply["fatal"] == false && reply["seq"].is_null();
    agent.wait("news of the stream that was left", is_late);
    let kinds: Vec<_> = agent.replies().iter().map(|reply| reply["type"].clone()).collect();
    assert_eq!(kinds, ["ready", "ready", "error"], "only after the next one had begun");
    assert!(agent.is_answered(), "the next one goes on");
}

#[test]
fn draining_is_said_and_what_was_written_before_is_taken() {
    let (_api, mut daemon, mut agent) = ground();
    agent.bind_stream(MAC, "s", "st");
    for seq in 1..=50 {
        agent.line(&json!({ "type": "message", "chat_type": 1, "content": "x", "seq": seq }));
    }
    assert_eq!(daemon.term(SOON).code(), Some(0));
    agent.wait_for_close();
    assert_eq!(agent.acked(), 50);
    assert_eq!(agent.replies().iter().filter(|reply| reply["type"] == "draining").count(), 1);
}

#[test]
fn a_connection_without_a_word_is_left_alone() {
    let (_api, daemon, _) = ground();
    let mut silent = Agent::connect(&daemon);
    let mut half = Agent::connect(&daemon);
    half.raw(b"{\"type\":\"pi");
    always(Duration::from_secs(2), "both live", || !silent.is_closed() && !half.is_closed());
    half.raw(b"ng\"}\n");
    half.wait_for("pong");
    assert!(silent.is_answered());
}

#[test]
fn a_time_that_cannot_be_right_is_counted_wherever_it_stands() {
    let (_api, daemon, mut agent) = ground();
    let call = |time: f64| json!({ "id": format!("call-{time}"), "name": "weather", "arguments": "{}", "created_at": time });
    for line in [
        json!({ "type": "message", "chat_type": 1, "content": "in 1970", "timestamp": 5 }),
        json!({ "type": "user_input_transcribed", "is_final": true, "transcript": "in 1970", "created_at": 5 }),
        json!({ "type": "conversation_item_added", "item": { "type": "message", "role": "user", "content": ["x"], "created_at": 5 } }),
        json!({ "type": "function_tools_executed", "function_calls": [call(5.0), call(6.0), call(1_758_701_973.5)] }),
    ] {
        agent.line(&line);
    }
    assert_eq!(agent.flush("durable")["ok"], true);
    assert_eq!(daemon.metric("times_replaced"), 5);
}

#[test]
fn after_a_refused_session_start_nothing_goes_to_the_session_before() {
    let (api, daemon, mut agent) = ground();
    let mut other = Agent::connect(&daemon);
    other.bind_stream(MAC, "other", "taken");
    let refused = [
        json!({ "type": "session_start", "mac_address": "no MAC", "session_id": "next" }),
        json!({ "type": "hello", "mac_address": MAC, "session_id": "" }),
        json!({ "type": "session_start", "mac_address": MAC, "session_id": "next", "stream": "taken" }),
    ];
    for line in &refused {
        agent.say(1, "for the session before");
        agent.line(line);
        agent.say(1, "for the session that was refused");
        agent.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": "s" }));
    }
    soon("all is answered", || agent.errors().len() == 2 * refused.len());
    assert_eq!(agent.errors().iter().filter(|error| error["code"] == "not_bound").count(), refused.len());
    assert_eq!(agent.flush("delivered")["ok"], true);
    let rows = api.all_rows();
    assert!(rows.len() == refused.len() && rows.iter().all(|row| row.content == "for the session before"), "{rows:?}");
}
