//! The log: one line per change of state, the right level, nothing repeated.

use serde_json::Value;

use crate::support::{Agent, Daemon, Fault, ManagerApi, Producer, Rule, Variant, soon};

const MAC: &str = "68:25:dd:ba:39:78";

fn api() -> ManagerApi {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api
}

fn lines(daemon: &Daemon, level: &str, text: &str) -> Vec<String> {
    let log = daemon.log();
    // That a test's store stands in a temporary directory is said at each start.
    let lines = log.lines().filter(|line| !line.contains("will not last"));
    lines.filter(|line| line.contains(&format!(" {level} ")) && line.contains(text)).map(str::to_owned).collect()
}

/// Waits until it is told so often, and sees that it is not told more often.
#[track_caller]
fn is_told(daemon: &Daemon, count: usize, level: &str, text: &str) {
    soon("it is told", || lines(daemon, level, text).len() >= count);
    assert_eq!(lines(daemon, level, text).len(), count, "{}", daemon.log());
}

#[test]
fn a_report_that_fails_again_and_again_is_one_warning_and_one_line_when_it_is_over() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    api.rule(Rule::new(Fault::status(503)).times(5));
    producer.say(1, "Hello");
    api.wait_for_rows("s", 1);
    soon("its end is told", || !lines(&daemon, "INFO", "the session's reports go through again").is_empty());
    assert_eq!(daemon.metric("retries"), 5);
    assert_eq!(lines(&daemon, "WARN", "a report failed and is repeated").len(), 1, "{}", daemon.log());
    assert_eq!(lines(&daemon, "WARN", "").len(), 1, "{}", daemon.log());
    assert_eq!(lines(&daemon, "DEBUG", "a report failed again").len(), 4, "{}", daemon.log());
    assert!(lines(&daemon, "INFO", "go through again")[0].contains("failures=5"), "{}", daemon.log());
    assert_eq!(lines(&daemon, "INFO", "batch delivered").len(), 1, "{}", daemon.log());
}

#[test]
fn an_outage_is_one_warning_of_the_gate_and_one_line_when_it_opens() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    api.fault(Fault::status(503));
    let mut producers: Vec<Producer> = (0..6).map(|index| Producer::connected(&daemon, MAC, &format!("s{index}"))).collect();
    for producer in &mut producers {
        producer.say(1, "Hello");
    }
    soon("the gate closes", || daemon.status()["gate"]["state"] == "closed");
    let probes = api.count(crate::support::Endpoint::Report);
    api.wait_for_requests(crate::support::Endpoint::Report, probes + 4);
    api.clear_faults();
    soon("all is delivered", || daemon.metric("delivered") == 6);
    assert_eq!(lines(&daemon, "WARN", "the gate is closed").len(), 1, "{}", daemon.log());
    is_told(&daemon, 1, "INFO", "the gate is open: messages are sent after=");
    assert!(lines(&daemon, "WARN", "").len() <= 7, "one a session and one of the gate: {}", daemon.log());
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_as_json_where_the_environment_wants_that() {
    let mut daemon = Daemon::builder().set("session.batch_size", "0").environment("CHAT_HISTORYD__LOG__FORMAT", "json").prepare();
    daemon.spawn();
    assert_eq!(daemon.wait(crate::support::eventually::SOON).code(), Some(78));
    let told = || daemon.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    soon("its reason is told", || {
        told().iter().any(|line| line["fields"]["message"].as_str().is_some_and(|text| text.contains("session.batch_size")))
    });
    assert!(
        told().iter().all(|line| line["level"] == "ERROR") && told().len() == daemon.log().lines().count(),
        "{}",
        daemon.log()
    );
}

#[test]
fn cut_text_is_one_warning_a_minute() {
    let api = api();
    let daemon = Daemon::builder().api(&api).set("manager_api.on_long_content", "'truncate'");
    let daemon = daemon.set("manager_api.max_content", "64").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for _ in 0..3 {
        producer.say(1, &"word ".repeat(40));
    }
    api.wait_for_rows("s", 3);
    soon("all are booked", || daemon.metric("messages_truncated") == 3);
    is_told(&daemon, 1, "WARN", "a message was cut");
    is_told(&daemon, 2, "DEBUG", "a message was cut");
}

#[test]
fn undelivered_messages_that_leave_a_full_store_without_a_server_are_one_warning() {
    let daemon = Daemon::builder().set("store.max_bytes", "'16 MiB'").set("log.level", "'info'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    soon("some had to go", || {
        for _ in 0..20 {
            producer.say(1, &"z".repeat(30_000));
        }
        producer.wait_until_acked();
        daemon.labelled("skipped", "expired") > 0
    });
    is_told(&daemon, 1, "WARN", "never delivered leave the store");
}

#[test]
fn every_call_of_the_manager_api_is_a_line_at_debug() {
    let api = api();
    let daemon = Daemon::builder().api(&api).set("log.level", "'debug'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "Hello");
    api.wait_for_rows("s", 1);
    soon("the profile was asked for", || !lines(&daemon, "DEBUG", "question call=\"user/pub-config\" status=200").is_empty());
    soon("so was the agent", || !lines(&daemon, "DEBUG", "question call=\"agent-id\"").is_empty());
    api.set_secret("another");
    producer.say(1, "Hello again");
    soon("the door was tried", || !lines(&daemon, "DEBUG", "empty report outcome=").is_empty());
    // In an outage, too, nothing stands still: it knocks by asking.
    api.stop();
    let asked = || lines(&daemon, "DEBUG", "question call=").len() + lines(&daemon, "DEBUG", "empty report").len();
    let before = asked();
    soon("it goes on", || asked() > before + 2);
}

#[test]
fn refused_lines_are_one_warning_a_minute_and_the_rest_is_debug() {
    let daemon = Daemon::builder().start();
    for _ in 0..4 {
        let mut agent = Agent::connect(&daemon);
        for _ in 0..5 {
            agent.text("no json at all");
        }
        soon("five errors", || agent.errors().len() == 5);
    }
    assert_eq!(lines(&daemon, "WARN", "a line was refused").len(), 1, "{}", daemon.log());
    assert_eq!(lines(&daemon, "DEBUG", "a line was refused").len(), 19, "{}", daemon.log());
    assert!(!daemon.log().contains("no json at all"));
}

#[test]
fn each_kind_of_refused_lines_has_a_warning_of_its_own_with_whose_it_was() {
    let daemon = Daemon::builder().start();
    let mut noisy = Agent::connect(&daemon);
    noisy.text("no json at all");
    noisy.wait_for("error");
    let mut other = Agent::connect(&daemon);
    other.bind(MAC, "s");
    other.text(r#"{"type":"message","chat_type":7,"content":"x"}"#);
    other.wait_for("error");
    is_told(&daemon, 1, "WARN", "bad_json");
    is_told(&daemon, 1, "WARN", "bad_field");
    let (bad_json, bad_field) = (lines(&daemon, "WARN", "bad_json"), lines(&daemon, "WARN", "bad_field"));
    let process = format!("pid={} ", std::process::id());
    assert!(bad_json[0].contains(&process) && !bad_json[0].contains("mac="), "{bad_json:?}");
    assert!(bad_field[0].contains(&process) && bad_field[0].contains("mac=..39:78"), "{bad_field:?}");
}

#[test]
fn lines_of_sessions_beyond_the_limit_are_one_error_and_their_producer_is_told_why() {
    let daemon = Daemon::builder().set("session.max_open", "1").start();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    for count in 1..=3 {
        agent.text(&format!(r#"{{"mac_address":"{MAC}","session_id":"another","chat_type":1,"content":"x"}}"#));
        soon("it is refused", || agent.errors().len() == count);
    }
    assert!(agent.errors()[0]["message"].as_str().unwrap().contains("session.max_open"), "{:?}", agent.errors());
    is_told(&daemon, 1, "ERROR", "too many sessions are open");
    assert_eq!((daemon.labelled("refusals", "overloaded"), daemon.labelled("skipped", "overloaded")), (3, 3));
}

#[test]
fn connections_beyond_the_limit_are_one_warning() {
    let daemon = Daemon::builder().set("socket.max_connections", "1").start();
    soon("the readiness check has gone", || daemon.metric("connections") == 0);
    let mut kept = Agent::connect(&daemon);
    assert!(kept.is_answered());
    for _ in 0..3 {
        Agent::connect(&daemon).wait_for_close();
    }
    is_told(&daemon, 1, "WARN", "too many connections are open");
}

#[test]
fn refused_peers_are_one_warning() {
    let mut daemon = Daemon::builder().set("socket.allowed_uids", "[54321]").prepare();
    daemon.spawn();
    soon("it listens", || daemon.try_status().is_some() && Agent::dial(&daemon.socket()).is_some());
    for _ in 0..20 {
        drop(Agent::dial(&daemon.socket()));
    }
    soon("all were refused", || daemon.metric("peers_refused") >= 20);
    assert_eq!(lines(&daemon, "WARN", "socket.allowed_uids").len(), 1, "{}", daemon.log());
}

#[test]
fn backups_that_cannot_be_written_are_one_warning_and_one_line_when_they_can() {
    let mut daemon = Daemon::builder().prepare();
    std::fs::write(daemon.backups(), "in the way").unwrap();
    daemon.start();
    let end_of = |name: &str| {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, name);
        agent.say(1, "Hello");
        agent.end();
        agent.flush("durable");
    };
    for index in 0..5 {
        end_of(&format!("s{index}"));
        soon("it was tried", || daemon.metric("backup_errors") > index);
    }
    std::fs::remove_file(daemon.backups()).unwrap();
    end_of("last");
    soon("all are written, the earlier ones, too", || daemon.metric("backups_written") == 6);
    assert_eq!(lines(&daemon, "WARN", "a backup cannot be written").len(), 1, "{}", daemon.log());
    soon("its end is told", || !lines(&daemon, "INFO", "backups can be written again").is_empty());
}

#[test]
fn loss_is_an_error_with_its_reason_and_without_content() {
    let api = api();
    let daemon = Daemon::start_for(&api);
    api.rule(Rule::new(Fault::code(10034)).times(2));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "lost words");
    producer.say(1, "lost words");
    producer.say(1, "kept");
    api.wait_for_rows("s", 1);
    soon("it is told", || !lines(&daemon, "ERROR", "never be delivered").is_empty());
    let told = lines(&daemon, "ERROR", "never be delivered");
    assert!(told.iter().all(|line| line.contains("reason=\"invalid\"")), "{told:?}");
    producer.agent().text(r#"{"type":"session_end","seq":9,"dropped":3}"#);
    soon("the producer's loss is told", || !lines(&daemon, "ERROR", "dropped=3").is_empty());
    assert!(!daemon.log().contains("lost words"));
}

#[test]
fn at_info_a_quiet_conversation_is_its_batches_and_its_end() {
    let api = api();
    let daemon = Daemon::builder().api(&api).set("log.level", "'info'").set("log.format", "'json'").start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..5 {
        producer.say(1, &format!("message {index}"));
    }
    producer.wait_until_acked();
    producer.agent().end();
    api.wait_for_rows("s", 5);
    soon("its end is told", || daemon.log().contains("session ended"));
    let log = daemon.log();
    let lines = log.lines().filter(|line| !line.contains("will not last"));
    let told: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect();
    assert!(told.iter().all(|line| line["level"] == "INFO"), "{log}");
    assert!(told.len() <= 10, "{log}");
}

#[test]
fn a_history_that_would_be_swept_away_is_told_of_at_the_start() {
    let store = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = store.path().join("store").display().to_string();
    let daemon = Daemon::builder().set("store.directory", &format!("'{store}'")).start();
    let told =
        |line: &str| line.contains(" WARN ") && line.contains(&format!("{store} will not last")) && line.contains("/var/lib/");
    assert!(daemon.log().lines().any(told), "{}", daemon.log());
}
