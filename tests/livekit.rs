//! The main job on real input: what a real LiveKit `AgentSession` emitted goes line by line into the real socket, and all
//! sixteen chat messages of each conversation stand in MariaDB: once, in order, with the right role, time and text.

use serde_json::{Value, json};

use crate::support::daemon::Builder;
use crate::support::manager_api::{Row, now_ms};
use crate::support::oracle::{arrived, check_books};
use crate::support::{Agent, Daemon, ManagerApi, Oracle, Variant, clock};

const FIXTURES: [(&str, &str); 2] =
    [("1.2.8", include_str!("fixtures/livekit-1.2.8.ndjson")), ("1.8.9", include_str!("fixtures/livekit-1.8.9.ndjson"))];
const MAC: &str = "68:25:dd:ba:39:78";
/// A room name as the MQTT gateway makes it: 62 characters, over the width of one server's column.
const ROOM: &str = "d3746a02-1c3e-4f5a-9b7d-8e6f5a4b3c2d_6825ddba3978_conversation";

/// One chat message of a fixture.
struct Spoken {
    chat_type: i8,
    content: String,
    time_ms: i64,
}

fn spoken(fixture: &str) -> Vec<Spoken> {
    let lines = fixture.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let items = lines.filter(|event| event["type"] == "conversation_item_added").map(|event| event["item"].clone());
    items
        .filter_map(|item| {
            let chat_type = match item["role"].as_str()? {
                "user" => 1,
                "assistant" => 2,
                other => panic!("a role of {other}"),
            };
            let parts: Vec<&str> = item["content"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let time_ms = (item["created_at"].as_f64().unwrap() * 1000.0) as i64;
            Some(Spoken { chat_type, content: parts.join("\n"), time_ms })
        })
        .collect()
}

/// A daemon whose clock is not far behind the recording, for it would rightly not believe lines from the future.
fn daemon_for(api: &ManagerApi, fixture: &str) -> Option<Builder> {
    let builder = Daemon::builder().api(api);
    let recorded = spoken(fixture).iter().map(|spoken| spoken.time_ms).max().unwrap();
    if recorded < now_ms() + 12 * 3_600_000 {
        return Some(builder);
    }
    let later = clock::faketime(&format!("+{}", (recorded - now_ms()) / 1000 + 60))?;
    Some(later.iter().fold(builder, |builder, (name, value)| builder.environment(name, value)))
}

#[track_caller]
fn assert_is_the_conversation(rows: &[Row], fixture: &str, variant: Variant) {
    let spoken = spoken(fixture);
    assert_eq!(spoken.len(), 16);
    let texts = |rows: &[Row]| rows.iter().map(|row| (row.chat_type, row.content.clone())).collect::<Vec<_>>();
    let expected: Vec<_> = spoken.iter().map(|spoken| (spoken.chat_type, spoken.content.clone())).collect();
    assert_eq!(texts(rows), expected);
    let mut last = i64::MIN;
    for (row, spoken) in rows.iter().zip(&spoken) {
        assert_eq!(row.mac, MAC);
        let (wanted, tolerance) = match variant {
            Variant::Fork => ((spoken.time_ms / 1000 * 1000).max(last), 0),
            // The decimal fraction of a float second may be rounded either way.
            Variant::Upstream => (spoken.time_ms.max(last + 1), 1),
        };
        assert!((row.created_at_ms - wanted).abs() <= tolerance, "{}: {} is not {wanted}", row.content, row.created_at_ms);
        last = row.created_at_ms;
    }
}

#[test]
fn a_real_conversation_arrives_once_in_order_with_role_time_and_text() {
    for variant in [Variant::Fork, Variant::Upstream] {
        for (version, fixture) in FIXTURES {
            let api = ManagerApi::start(variant);
            api.register(MAC);
            let Some(builder) = daemon_for(&api, fixture) else { return };
            let daemon = builder.start();
            let mut agent = Agent::connect(&daemon);
            agent.bind(MAC, ROOM);
            for line in fixture.lines() {
                agent.text(line);
            }
            agent.end();
            let flushed = agent.flush("delivered");
            assert_eq!(flushed["ok"], true, "{version} {variant:?}: {flushed}");
            let rows = api.rows(&api.stored_session_id(ROOM));
            assert_is_the_conversation(&rows, fixture, variant);
            assert_eq!(rows[0].content, "Hello! I am Cheeko. How can I help you today?");
            assert_eq!(api.row_count(), 16);
            assert_eq!(agent.errors(), Vec::<Value>::new());
            check_books(&daemon);
        }
    }
}

#[test]
fn the_session_may_be_named_in_every_line_instead_of_once() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (_, fixture) = FIXTURES[1];
    let Some(builder) = daemon_for(&api, fixture) else { return };
    let daemon = builder.start();
    let mut agent = Agent::connect(&daemon);
    for line in fixture.lines() {
        agent.text(&line.replacen('{', &format!(r#"{{"mac_address":"{MAC}","session_id":"{ROOM}","#), 1));
    }
    // No session_end: a producer that dies is normal.
    drop(agent);
    assert_is_the_conversation(&api.wait_for_rows(ROOM, 16), fixture, Variant::Fork);
    check_books(&daemon);
}

#[test]
fn a_producer_that_sends_everything_again_adds_nothing() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let (_, fixture) = FIXTURES[0];
    let Some(builder) = daemon_for(&api, fixture) else { return };
    let mut daemon = builder.start();
    let lines: Vec<String> =
        (1..).zip(fixture.lines()).map(|(seq, line)| line.replacen('{', &format!(r#"{{"seq":{seq},"#), 1)).collect();
    for round in 0..3 {
        let mut agent = Agent::connect(&daemon);
        let last = agent.bind_stream(MAC, ROOM, "the-stream");
        assert_eq!(last, if round == 0 { 0 } else { lines.len() as u64 });
        for line in &lines {
            agent.text(line);
        }
        agent.wait_for_ack(lines.len() as u64);
        drop(agent);
        if round == 1 {
            daemon.restart();
        }
    }
    assert_is_the_conversation(&api.wait_for_rows(ROOM, 16), fixture, Variant::Fork);
    check_books(&daemon);
    assert_eq!(api.row_count(), 16);
}

#[test]
fn a_conversation_survives_kills_in_its_middle() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let (_, fixture) = FIXTURES[1];
    let Some(builder) = daemon_for(&api, fixture) else { return };
    let mut daemon = builder.start();
    let mut oracle = Oracle::new(&daemon);
    let lines: Vec<&str> = fixture.lines().collect();
    let mut sent = 0;
    while sent < lines.len() {
        let mut agent = Agent::connect(&daemon);
        let last = agent.bind_stream(MAC, ROOM, "the-stream") as usize;
        let upto = (sent + lines.len() / 4 + 1).min(lines.len());
        for (index, line) in lines.iter().enumerate().take(upto).skip(last) {
            agent.text(&line.replacen('{', &format!(r#"{{"seq":{},"#, index + 1), 1));
        }
        sent = upto;
        if sent == lines.len() {
            agent.wait_for_ack(sent as u64);
            agent.end();
            agent.flush("delivered");
            break;
        }
        oracle.before_kill(&daemon, 1);
        daemon.kill9();
        daemon.start();
    }
    let stored = api.stored_session_id(ROOM);
    let texts: Vec<(i8, String)> = arrived(&api, &stored).into_iter().map(|one| (one.chat_type, one.content)).collect();
    let expected: Vec<(i8, String)> = spoken(fixture).into_iter().map(|one| (one.chat_type, one.content)).collect();
    assert_eq!(texts, expected);
    oracle.check(&daemon, &api);
}

/// More items than are remembered of a session: a restart must not forget the last ones, whose transcripts may be late.
#[test]
fn a_late_transcript_of_the_last_item_before_a_restart_is_no_second_message() {
    let mut daemon = Daemon::builder().start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, ROOM);
    for number in 1..=600 {
        let item = json!({ "id": format!("item_{number}"), "type": "message", "role": "user", "content": [format!("sentence {number}")] });
        agent.line(&json!({ "type": "conversation_item_added", "item": item, "created_at": 1_758_701_973.5 }));
    }
    assert_eq!(agent.flush("durable")["ok"], true);
    drop(agent);
    daemon.restart();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, ROOM);
    agent.line(
        &json!({ "type": "user_input_transcribed", "transcript": "sentence 600", "is_final": true, "item_id": "item_600" }),
    );
    agent.end();
    assert_eq!(agent.flush("durable")["ok"], true);
    assert_eq!((daemon.labelled("skipped", "superseded"), daemon.metric("pending")), (1, 600));
    check_books(&daemon);
}

/// As a real session emits it: the words are recognised, a line is typed before their turn ends, then they become an item.
#[test]
fn what_is_typed_while_somebody_speaks_doubles_no_sentence() {
    for (version, fixture) in FIXTURES {
        let events: Vec<&str> = fixture.lines().collect();
        let of = |wanted: fn(&Value) -> bool| {
            let position = events.iter().position(|line| wanted(&serde_json::from_str(line).unwrap()));
            events[position.expect("the recording has one")]
        };
        let recognised = of(|event| event["type"] == "user_input_transcribed" && event["is_final"] == true);
        let spoken = of(|event| event["item"]["role"] == "user");
        let typed = of(|event| event["item"]["role"] == "user" && event["item"]["transcript_confidence"].is_null());
        let daemon = Daemon::builder().start();
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, ROOM);
        for line in [recognised, typed, spoken] {
            agent.text(line);
        }
        agent.end();
        assert_eq!(agent.flush("durable")["ok"], true);
        assert_eq!((daemon.metric("pending"), daemon.labelled("skipped", "superseded")), (2, 1), "{version}");
        check_books(&daemon);
    }
}
