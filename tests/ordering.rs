//! The order within a session holds, whatever happens between two of its messages.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::support::oracle::{arrived, check_books};
use crate::support::{Agent, Daemon, Fault, ManagerApi, Oracle, Producer, Rule, Variant, clock, soon};

const MAC: &str = "68:25:dd:ba:39:78";

#[test]
fn order_holds_across_retries_restarts_and_partial_batches() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    let faults = [
        Fault::status(503),
        Fault::database_down(),
        Fault::ResetBeforeCommit,
        Fault::LoseAnswer,
        Fault::status(502),
        Fault::ResetMidBody,
        Fault::CutBody,
    ];
    for round in 0..12 {
        api.rule(Rule::new(faults[round % faults.len()].clone()).after(3).times(2));
        // Batches that are full, and rests that wait for the interval.
        for index in 0..=round {
            for producer in &mut producers {
                producer.say(1 + (index % 2) as u8, &format!("round {round}, message {index}"));
            }
        }
        if round % 4 == 2 {
            oracle.before_kill(&daemon, 3);
            daemon.restart();
            for producer in &mut producers {
                producer.connect(&daemon);
            }
        }
    }
    for producer in &mut producers {
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    api.clear_faults();
    oracle.check(&daemon, &api);
}

#[test]
fn order_holds_around_a_rejected_message() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    api.rule(Rule::new(Fault::code(10034)).content("refused"));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..30 {
        let text = if index % 7 == 3 { format!("refused {index}") } else { format!("message {index}") };
        producer.say(1, &text);
    }
    producer.wait_until_acked();
    let expected: Vec<String> =
        producer.said().iter().map(|said| said.content.clone()).filter(|text| !text.starts_with("refused")).collect();
    api.wait_for_rows("s", expected.len());
    soon("nothing is pending", || daemon.metric("pending") == 0);
    let texts: Vec<String> = arrived(&api, "s").into_iter().map(|message| message.content).collect();
    assert_eq!(texts, expected);
    assert_eq!(daemon.metric("rejected"), 4);
    check_books(&daemon);
}

#[test]
fn a_falling_clock_of_the_producer_does_not_reorder() {
    for variant in [Variant::Fork, Variant::Upstream] {
        let api = ManagerApi::start(variant);
        api.register(MAC);
        let daemon = Daemon::start_for(&api);
        let mut agent = crate::support::Agent::connect(&daemon);
        agent.bind(MAC, "s");
        let texts: Vec<String> = (0..12).map(|index| format!("message {index}")).collect();
        for (index, text) in texts.iter().enumerate() {
            let timestamp = 1_758_701_973 - 10 * index as u64;
            agent.line(&serde_json::json!({ "type": "message", "chat_type": 1, "content": text, "timestamp": timestamp }));
        }
        let rows = api.wait_for_rows("s", 12);
        assert_eq!(rows.iter().map(|row| row.content.clone()).collect::<Vec<_>>(), texts);
        assert!(rows.iter().map(|row| row.created_at_ms).is_sorted(), "readers sort by this column");
    }
}

#[test]
fn order_holds_across_kills_with_many_sessions_in_parallel() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> = (0..24).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for round in 0..6 {
        api.rule(Rule::new(Fault::LoseAnswer).after(5).times(1));
        api.rule(Rule::new(Fault::status(503)).after(9).times(3));
        for index in 0..7 {
            for producer in &mut producers {
                producer.say(1 + (index % 2) as u8, &format!("round {round}, message {index}"));
            }
        }
        // In the middle of it: some of the lines are read, some sent, some on their way.
        let stored = api.row_count();
        soon("some are stored", || api.row_count() > stored);
        oracle.before_kill(&daemon, 4 * 4);
        daemon.kill9();
        daemon.start();
        for producer in &mut producers {
            producer.connect(&daemon);
        }
    }
    for mut producer in producers {
        producer.wait_until_acked();
        oracle.owe(&producer);
    }
    api.clear_faults();
    oracle.check(&daemon, &api);
}

#[test]
fn a_split_message_goes_on_where_it_stopped_after_a_kill() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    api.fault(Fault::Delay(Duration::from_millis(30)));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    let long = (0..4000).map(|index| format!("word{index}")).collect::<Vec<_>>().join(" ");
    producer.say(1, "first");
    producer.say(2, &long);
    producer.say(1, "last");
    producer.wait_until_acked();
    producer.agent().end();
    for kill in 1..=4 {
        soon("a few parts are stored", || api.rows("s").len() >= 6 * kill);
        oracle.before_kill(&daemon, 1);
        daemon.kill9();
        daemon.start();
    }
    api.clear_faults();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    let parts = arrived(&api, "s")[1].parts;
    let repeated = api.rows("s").len() - parts - 2;
    assert!(repeated <= 2 * 4, "{repeated} repetitions in four kills");
    // The parts themselves stand in order, too: a reader of the table joins them as they come.
    let rows = api.rows("s");
    let firsts = rows.iter().filter_map(|row| row.content.split(' ').next()?.strip_prefix("word")?.parse::<u32>().ok());
    let mut highest = 0;
    for first in firsts {
        assert!(first >= highest || rows.iter().filter(|row| row.content.starts_with(&format!("word{first} "))).count() > 1);
        highest = highest.max(first);
    }
}

#[test]
fn order_holds_around_poison_and_what_came_after_it() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    api.rule(Rule::new(Fault::database_down()).content("poison"));
    let mut poisoned = Producer::connected(&daemon, MAC, "poisoned");
    for index in 0..20 {
        poisoned.say(1, &if index == 7 { "poison".to_owned() } else { format!("message {index}") });
    }
    poisoned.wait_until_acked();
    api.wait_for_rows("poisoned", 7);
    // Strikes do not survive a restart, order does.
    oracle.before_restart(&daemon);
    daemon.restart();
    let mut other = Producer::connected(&daemon, MAC, "other");
    let mut said = 0;
    soon("the poison is rejected", || {
        if api.rows("other").len() == said {
            other.say(1, &format!("message {said}"));
            said += 1;
        }
        daemon.metric("rejected") == 1
    });
    let expected: Vec<String> = (0..20).filter(|index| *index != 7).map(|index| format!("message {index}")).collect();
    api.wait_for_rows("poisoned", expected.len());
    let texts: Vec<String> = arrived(&api, "poisoned").into_iter().map(|message| message.content).collect();
    assert_eq!(texts, expected);
    other.wait_until_acked();
    oracle.owe(&other);
    oracle.check(&daemon, &api);
}

#[test]
fn held_transcripts_take_their_place_in_the_order_across_a_kill() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let mut daemon = Daemon::start_for(&api);
    let item = |id: &str, role: &str, text: &str| json!({ "type": "conversation_item_added", "item": { "id": id, "type": "message", "role": role, "content": [text], "created_at": 1_758_701_973.5 } });
    let heard = |text: &str| json!({ "type": "user_input_transcribed", "transcript": text, "is_final": true, "created_at": 1_758_701_974.0 });
    let mut lines = [
        item("a", "assistant", "Hello, who are you?"),
        heard("I am a tiger."),
        item("b", "user", "I am a tiger."),
        // Never becomes an item, for the next one is the agent's: it is held over everything that follows.
        heard("And I am hungry."),
        item("c", "assistant", "Nice to meet you."),
        heard("Feed me."),
    ];
    for (line, seq) in lines.iter_mut().zip(1..) {
        line["seq"] = json!(seq);
    }
    for _ in 0..2 {
        let mut agent = Agent::connect(&daemon);
        let last = agent.bind_stream(MAC, "s", "the-stream");
        for line in lines.iter().skip(last as usize) {
            agent.line(line);
        }
        agent.wait_for_ack(6);
        daemon.kill9();
        daemon.start();
    }
    assert_eq!(daemon.metric("held"), 2, "durable, and not yet said");
    let mut agent = Agent::connect(&daemon);
    agent.bind_stream(MAC, "s", "the-stream");
    agent.end();
    let flushed = agent.flush("delivered");
    assert_eq!(flushed["ok"], true, "{flushed}");
    let texts: Vec<String> = arrived(&api, "s").into_iter().map(|message| message.content).collect();
    assert_eq!(texts, ["Hello, who are you?", "I am a tiger.", "Nice to meet you.", "And I am hungry.", "Feed me."]);
    check_books(&daemon);
}

#[test]
fn never_more_than_the_concurrency_at_once_and_never_two_of_one_session() {
    for concurrency in [1, 3, 4] {
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let daemon = Daemon::builder().api(&api).set("upload.concurrency", &concurrency.to_string()).start();
        api.fault(Fault::Delay(Duration::from_millis(20)));
        let mut oracle = Oracle::new(&daemon);
        let mut producers: Vec<Producer> = (0..12).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
        for index in 0..8 {
            for producer in &mut producers {
                producer.say(1, &format!("message {index}"));
                // A flush makes a session due while it is being sent.
                producer.agent().line(&json!({ "type": "flush", "id": index, "level": "delivered" }));
            }
        }
        for mut producer in producers {
            producer.wait_until_acked();
            oracle.owe(&producer);
        }
        oracle.check(&daemon, &api);
        let (most, same_session) = api.overlap();
        assert!(!same_session);
        assert_eq!(most, concurrency, "as many as allowed, and no more");
    }
}

#[test]
fn no_session_starves_beside_one_that_never_stops_talking() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("upload.concurrency", "1").start();
    let mut talker = Producer::connected(&daemon, MAC, "talker");
    for index in 0..400 {
        talker.say(1, &format!("message {index}"));
    }
    talker.wait_until_acked();
    let mut quiet = Producer::connected(&daemon, MAC, "quiet");
    for index in 0..5 {
        quiet.say(1, &format!("message {index}"));
    }
    quiet.wait_until_acked();
    api.wait_for_rows("quiet", 5);
    api.wait_for_rows("talker", 400);
    let rows = api.all_rows();
    let first = rows.iter().position(|row| row.session == "quiet").unwrap();
    assert!(first <= 64 * 4, "the quiet session had its turn only after {first} messages of the other");
    // Turns are whole: the rest of a full turn does not wait for the interval.
    let mut oracle = Oracle::new(&daemon);
    talker.agent().end();
    oracle.owe(&talker);
    oracle.owe(&quiet);
    oracle.check(&daemon, &api);
}

/// A message that is sent in hundreds of parts is hundreds of messages to everybody else.
#[test]
fn no_session_starves_beside_messages_of_many_parts() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("upload.concurrency", "1").start();
    let mut oracle = Oracle::new(&daemon);
    api.fault(Fault::Delay(Duration::from_millis(2)));
    let long = "word ".repeat(50_000);
    let mut talkers = ["long-0", "long-1"].map(|session| Producer::connected(&daemon, MAC, session));
    for talker in &mut talkers {
        talker.say(2, long.trim_end());
        talker.wait_until_acked();
        talker.agent().end();
    }
    soon("its first parts arrive", || api.row_count() >= 4);
    let mut quiet = Producer::connected(&daemon, MAC, "quiet");
    quiet.say(1, "Hello");
    quiet.wait_until_acked();
    quiet.agent().end();
    let before = api.row_count();
    for producer in talkers.iter().chain([&quiet]) {
        oracle.owe(producer);
    }
    soon("all is delivered", || daemon.metric("pending") == 0);
    let rows = api.all_rows();
    let turn = rows.iter().position(|row| row.session == "quiet").unwrap() as u64;
    assert!(turn <= before + 2 * 64, "the quiet session had its turn {} parts later, of {}", turn - before, rows.len());
    oracle.check(&daemon, &api);
}

#[test]
fn sessions_take_turns_as_before_when_a_clock_that_ran_ahead_is_set_right() {
    const SESSIONS: usize = 4;
    const MESSAGES: usize = 256;
    let directory = tempfile::tempdir().unwrap();
    let wall = directory.path().join("wall");
    fs::write(&wall, "+1y").unwrap();
    let Some(clock) = clock::faketime_from(&wall) else { return };
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = Daemon::builder().api(&api).set("upload.concurrency", "1").environments(&clock).start();
    api.fault(Fault::Delay(Duration::from_millis(1)));
    let mut producers: Vec<Producer> =
        (0..SESSIONS).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for index in 0..MESSAGES {
        for producer in &mut producers {
            producer.say(1, &format!("message {index}"));
        }
    }
    producers.iter_mut().for_each(Producer::wait_until_acked);
    soon("every session has had a turn", || api.row_count() > 64 * SESSIONS as u64);
    fs::write(&wall, "+0d").unwrap();
    soon("all is delivered", || daemon.metric("pending") == 0);
    // In the order in which they came.
    let mut arrived = HashMap::<String, usize>::new();
    for session in api.reports().into_iter().filter_map(|recorded| Some(recorded.report?.session_id)) {
        *arrived.entry(session).or_default() += 1;
        if arrived.values().any(|&count| count == MESSAGES) {
            break;
        }
    }
    let behind = arrived.values().min().copied().unwrap_or_default();
    assert!(arrived.len() == SESSIONS && behind >= MESSAGES - 2 * 64, "one had all its turns before others: {arrived:?}");
    check_books(&daemon);
}

#[test]
fn the_rest_behind_a_full_turn_does_not_wait_for_the_interval() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut daemon = Daemon::builder().api(&api).set("session.send_interval", "'10m'").start();
    api.stop();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..66 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    daemon.kill9();
    api.start_again();
    daemon.start();
    assert_eq!(api.wait_for_rows("s", 66).len(), 66, "what stood in the store at the start has waited long enough");
}
