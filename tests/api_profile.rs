//! What the daemon learns of the server: its time unit, which follows the server, and agents, which nobody waits for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api_faults::{MAC, ground, say};
use crate::support::oracle::check_books;
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, clock, soon};

#[test]
fn time_unit_follows_the_server() {
    let (api, daemon) = ground(Variant::Fork);
    let at = |session: &str, millis: i64| {
        let mut agent = Agent::connect(&daemon);
        agent.line(&serde_json::json!({ "mac_address": MAC, "session_id": session, "chat_type": 1, "content": "x", "timestamp": millis }));
        let rows = api.wait_for_rows(session, 1);
        rows[0].created_at_ms
    };
    assert_eq!(at("before", 1_758_701_973_250), 1_758_701_973_000);
    api.stop();
    api.upgrade();
    let mut agent = Agent::connect(&daemon);
    agent.line(&serde_json::json!({ "mac_address": MAC, "session_id": "meanwhile", "chat_type": 1, "content": "x" }));
    soon("the outage is noticed", || daemon.metric("gate_closings") >= 1);
    api.start_again();
    api.wait_for_rows("meanwhile", 1);
    assert_eq!(at("after", 1_758_701_973_250), 1_758_701_973_250);
    assert!(api.all_rows().iter().all(|row| row.created_at_ms > 1_700_000_000_000), "nothing stands in January 1970");
}

#[test]
fn nothing_is_sent_to_a_server_of_unknown_kind() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    api.rule(Rule::new(Fault::status(503)).on(Endpoint::PubConfig));
    let daemon = Daemon::start_for(&api);
    say(&daemon, MAC, "s", "Hello");
    soon("it asks for the version", || api.count(Endpoint::PubConfig) >= 2);
    assert_eq!(api.reports().len(), 0, "a wrong unit would be stored as January 1970");
    api.clear_faults();
    let rows = api.wait_for_rows("s", 1);
    assert!(rows[0].created_at_ms > 1_700_000_000_000);
    check_books(&daemon);
}

#[test]
fn a_server_without_a_version_takes_seconds() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.set_version(None);
    let daemon = Daemon::start_for(&api);
    say(&daemon, MAC, "s", "Hello");
    assert!(api.wait_for_rows("s", 1)[0].created_at_ms > 1_700_000_000_000);
}

#[test]
fn delivery_never_waits_for_the_agent_lookup() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.rule(Rule::new(Fault::HangBeforeHeaders).on(Endpoint::AgentId));
    let daemon = Daemon::start_for(&api);
    let began = Instant::now();
    say(&daemon, MAC, "s", "Hello");
    api.wait_for_rows("s", 1);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn only_the_documented_requests_are_ever_made() {
    let (api, daemon) = ground(Variant::Fork);
    for index in 0..5 {
        say(&daemon, MAC, &format!("session-{index}"), "Hello");
    }
    soon("all delivered", || daemon.metric("delivered") == 5);
    assert_eq!(api.count(Endpoint::Other), 0);
    assert!(api.count(Endpoint::PubConfig) >= 1);
    for sent in api.reports() {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&sent.request.body).unwrap();
        let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["audioBase64", "chatType", "content", "macAddress", "reportTime", "sessionId"]);
        assert_eq!(object["macAddress"], MAC);
    }
}

#[test]
fn an_unclear_profile_holds_everything_whatever_way_it_is_unclear() {
    for fault in [
        Fault::status(500),
        Fault::status(403),
        Fault::html(),
        Fault::code(500),
        Fault::json(r#"{"code":0,"data":{}}"#),
        Fault::json(r#"{"code":0,"data":{"version":"newest"}}"#),
        Fault::redirect("/elsewhere"),
        Fault::ResetBeforeCommit,
        Fault::CutBody,
        Fault::EndlessBody,
    ] {
        let api = ManagerApi::start(Variant::Upstream);
        api.register(MAC);
        api.rule(Rule::new(fault.clone()).on(Endpoint::PubConfig));
        let daemon = Daemon::start_for(&api);
        say(&daemon, MAC, "s", "Hello");
        soon(&format!("{fault:?}: asked again"), || api.count(Endpoint::PubConfig) >= 2);
        assert_eq!(api.count(Endpoint::Report), 0, "{fault:?}: a wrong unit would be stored as January 1970");
        let status = daemon.status();
        assert_eq!((&status["gate"]["state"], &status["gate"]["kind"]), (&"closed".into(), &"profile_unknown".into()));
        assert_eq!(status["upload"]["time_unit"], serde_json::Value::Null);
        api.clear_faults();
        assert!(api.wait_for_rows("s", 1)[0].created_at_ms > 1_700_000_000_000, "{fault:?}");
        assert_eq!(daemon.status()["upload"]["time_unit"], "milliseconds");
    }
}

#[test]
fn a_fixed_unit_is_used_without_asking() {
    for (variant, unit) in [(Variant::Fork, "seconds"), (Variant::Upstream, "milliseconds")] {
        let api = ManagerApi::start(variant);
        api.register(MAC);
        api.rule(Rule::new(Fault::status(500)).on(Endpoint::PubConfig));
        let daemon = Daemon::builder().api(&api).set("manager_api.report_time_unit", &format!("'{unit}'")).start();
        let mut oracle = Oracle::new(&daemon);
        let mut producer = Producer::connected(&daemon, MAC, "s");
        producer.say(1, "Hello");
        // The limits of the unit's line of servers hold, too.
        producer.say(2, "word ".repeat(400).trim_end());
        producer.wait_until_acked();
        api.stop();
        producer.say(1, "during an outage");
        producer.wait_until_acked();
        api.start_again();
        oracle.owe(&producer);
        oracle.check(&daemon, &api);
        assert_eq!(api.count(Endpoint::PubConfig), 0, "{unit}");
        assert!(api.all_rows().iter().all(|row| row.created_at_ms > 1_700_000_000_000), "{unit}");
        assert_eq!(daemon.metric("messages_split"), u64::from(unit == "seconds"));
    }
}

#[test]
fn the_profile_is_asked_again_before_the_first_report_after_a_lost_connection() {
    let (api, daemon) = ground(Variant::Fork);
    say(&daemon, MAC, "before", "Hello");
    api.wait_for_rows("before", 1);
    let asked = api.count(Endpoint::PubConfig);
    // No outage: one connection is reset, and behind the port stands another server from then on.
    api.rule(Rule::new(Fault::ResetBeforeCommit).times(1));
    say(&daemon, MAC, "during", "Hello");
    soon("the reset", || api.requests().iter().any(|request| request.faulted));
    api.upgrade();
    let rows = api.wait_for_rows("during", 1);
    assert!(rows[0].created_at_ms > 1_700_000_000_000, "stored as January 1970");
    assert!(api.count(Endpoint::PubConfig) > asked);
    let requests = api.requests();
    let reset = requests.iter().position(|request| request.faulted).unwrap();
    assert_eq!(requests[reset + 1].endpoint, Endpoint::PubConfig, "its question comes before any report");
}

/// A proxy that answers for a server that is being replaced, and a server in trouble: neither breaks a connection.
#[test]
fn the_profile_is_asked_again_before_the_first_report_after_an_outage_that_was_answered() {
    for fault in [Fault::status(502), Fault::status(500)] {
        let (api, daemon) = ground(Variant::Fork);
        say(&daemon, MAC, "before", "Hello");
        api.wait_for_rows("before", 1);
        api.rule(Rule::new(fault.clone()));
        for session in 0..20 {
            say(&daemon, MAC, &format!("during {session}"), "Hello");
        }
        soon("the gate is closed", || daemon.status()["gate"]["open"] == false);
        api.upgrade();
        api.clear_faults();
        for session in 0..20 {
            let rows = api.wait_for_rows(&format!("during {session}"), 1);
            assert!(rows[0].created_at_ms > 1_700_000_000_000, "{fault:?}, {session}: stored as January 1970");
        }
    }
}

/// As one that limits what it lets through does: with 503, to reports and to questions.
#[test]
fn a_proxy_that_refuses_now_and_then_holds_up_nobody_else() {
    let (api, _) = ground(Variant::Fork);
    let daemon = Daemon::builder().api(&api).set("session.batch_size", "1");
    let daemon = daemon.set("upload.backoff_initial", "'1s'").set("upload.backoff_max", "'1s'").start();
    let mut others: Vec<Producer> = (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    let mut said = 0;
    let mut talk = |until: &dyn Fn() -> bool| {
        soon("said and delivered meanwhile", || {
            for other in &mut others {
                other.say(1, &format!("message {said}"));
            }
            said += 1;
            until()
        });
    };
    talk(&|| daemon.metric("delivered") > 3);
    api.rule(Rule::new(Fault::status(503)).content("refused"));
    api.rule(Rule::new(Fault::status(503)).on(Endpoint::PubConfig));
    say(&daemon, MAC, "refused", "refused");
    let attempts = || api.reports().iter().filter(|report| report.faulted).count();
    talk(&|| attempts() >= 3);
    assert_eq!(daemon.metric("gate_closings"), 0, "{}", daemon.log());
    api.clear_faults();
    api.wait_for_rows("refused", 1);
}

/// A proxy that is loaded anew, or one replica that is not ready.
#[test]
fn a_server_that_named_its_version_is_not_taken_for_an_old_one_because_the_page_is_gone_for_a_moment() {
    let (api, daemon) = ground(Variant::Upstream);
    say(&daemon, MAC, "before", "Hello");
    api.wait_for_rows("before", 1);
    api.rule(Rule::new(Fault::status(404)).on(Endpoint::PubConfig).times(1));
    api.rule(Rule::new(Fault::ResetBeforeCommit).times(1));
    say(&daemon, MAC, "during", "Hello");
    let rows = api.wait_for_rows("during", 1);
    assert!((1_700_000_000_000..4_000_000_000_000).contains(&rows[0].created_at_ms), "{rows:?}");
    assert_eq!(daemon.status()["upload"]["time_unit"], "milliseconds");
}

#[test]
fn an_agent_is_asked_for_once_per_device_and_a_server_without_the_endpoint_once() {
    for (variant, most) in [(Variant::Fork, 2), (Variant::Upstream, 1)] {
        let api = ManagerApi::start(variant);
        let other = "00:16:3e:ac:b5:38";
        api.register(MAC);
        api.register(other);
        let daemon = Daemon::start_for(&api);
        for index in 0..6 {
            say(&daemon, if index % 2 == 0 { MAC } else { other }, &format!("session-{index}"), "Hello");
        }
        soon("all delivered", || daemon.metric("delivered") == 6);
        soon("asked", || api.requests().iter().any(|request| request.request.path.ends_with("/agent-id")));
        let asked: Vec<_> = api.requests().into_iter().filter(|request| request.request.path.ends_with("/agent-id")).collect();
        assert!(asked.len() <= most, "{variant:?}: asked {} times", asked.len());
        let header = format!("Bearer {}", crate::support::manager_api::SECRET);
        assert!(asked.iter().all(|request| request.request.header("authorization") == Some(header.as_str())));
        assert!(asked.iter().any(|request| request.request.path.contains("/agent/device/6825ddba3978/")));
    }
}

#[test]
fn what_was_said_of_an_agent_is_not_believed_under_another_secret() {
    let api = ManagerApi::start(Variant::Fork);
    api.register_without_agent(MAC);
    let daemon = Daemon::start_for(&api);
    say(&daemon, MAC, "before", "Hello");
    soon("asked for the agent", || api.count(Endpoint::AgentId) == 1);
    api.set_secret("another");
    std::fs::write(daemon.secret_file(), "another").expect("the secret file");
    daemon.hup();
    soon("reloaded", || daemon.log().contains("configuration reloaded"));
    say(&daemon, MAC, "after", "Hello");
    soon("asked again", || api.count(Endpoint::AgentId) == 2);
}

#[test]
fn nothing_that_one_server_said_is_believed_of_the_next() {
    let (upstream, fork) = (ManagerApi::start(Variant::Upstream), ManagerApi::start(Variant::Fork));
    upstream.register(MAC);
    let agent = fork.register(MAC);
    let mut daemon = Daemon::start_for(&upstream);
    say(&daemon, MAC, "before", "Hello");
    upstream.wait_for_rows("before", 1);
    soon("it has no agent lookup", || upstream.requests().iter().any(|sent| sent.request.path.ends_with("/agent-id")));
    daemon.set("manager_api.url", &format!("'{}'", fork.url()));
    daemon.hup();
    soon("reloaded", || daemon.log().contains("configuration reloaded"));
    say(&daemon, MAC, "after", "Hello");
    let rows = fork.wait_for_rows("after", 1);
    assert!((1_700_000_000_000..4_000_000_000_000).contains(&rows[0].created_at_ms), "milliseconds were sent: {rows:?}");
    assert_eq!((rows[0].agent.as_str(), upstream.rows("after").len()), (agent.as_str(), 0));
    soon("asked for the agent", || fork.count(Endpoint::AgentId) >= 1);
    check_books(&daemon);
}

#[test]
fn an_answer_that_was_on_its_way_when_the_server_changed_is_not_believed_of_the_next() {
    let (upstream, fork) = (ManagerApi::start(Variant::Upstream), ManagerApi::start(Variant::Fork));
    fork.register(MAC);
    upstream.rule(Rule::new(Fault::Delay(Duration::from_secs(3))).on(Endpoint::PubConfig));
    // The next one is slower still: what the first says comes while the second is waited for.
    fork.rule(Rule::new(Fault::Delay(Duration::from_secs(5))).on(Endpoint::PubConfig).times(1));
    let mut daemon = Daemon::builder().api(&upstream).set("manager_api.timeout", "'20s'").start();
    say(&daemon, MAC, "s", "Hello");
    soon("the first was asked", || upstream.count(Endpoint::PubConfig) == 1);
    daemon.set("manager_api.url", &format!("'{}'", fork.url()));
    daemon.hup();
    soon("reloaded", || daemon.log().contains("configuration reloaded"));
    let rows = fork.wait_for_rows("s", 1);
    assert!((1_700_000_000_000..4_000_000_000_000).contains(&rows[0].created_at_ms), "milliseconds were sent: {rows:?}");
    assert_eq!(daemon.metric("retries"), 0, "it refuses a time that far away");
    assert!(fork.count(Endpoint::PubConfig) >= 1);
    check_books(&daemon);
}

/// Five minutes after it was asked, the server is asked again: what is known serves until the answer is there.
#[test]
fn a_profile_that_is_slow_to_be_renewed_holds_up_no_delivery() {
    let Some(fast) = clock::faketime("+0 x30") else { return };
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let mut builder =
        Daemon::builder().api(&api).set("manager_api.timeout", "'10min'").set("manager_api.connect_timeout", "'1min'");
    // All its clocks run thirty times as fast.
    for (name, value) in fast.iter().filter(|(name, _)| name != "FAKETIME_DONT_FAKE_MONOTONIC") {
        builder = builder.environment(name, value);
    }
    let daemon = builder.start();
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(1, "before");
    api.wait_for_rows("s", 1);
    let asked = api.count(Endpoint::PubConfig);
    api.rule(Rule::new(Fault::HangBeforeHeaders).on(Endpoint::PubConfig));
    let mut said = 1;
    soon("it is asked again, and does not answer", || {
        producer.say(1, &format!("message {said}"));
        said += 1;
        api.wait_for_rows("s", said);
        api.count(Endpoint::PubConfig) > asked
    });
    for _ in 0..5 {
        producer.say(1, &format!("message {said}"));
        said += 1;
    }
    assert_eq!(api.wait_for_rows("s", said).len(), said);
    assert!(api.requests().iter().any(|request| request.endpoint == Endpoint::PubConfig && request.finished.is_none()));
}

#[test]
fn what_the_producer_says_of_its_agent_stands() {
    let api = ManagerApi::start(Variant::Fork);
    let devices_agent = api.register(MAC);
    let daemon = Daemon::start_for(&api);
    for (session, agent_id) in [("s", Some("the-producers-own")), ("other", None)] {
        let mut agent = Agent::connect(&daemon);
        agent.line(&json!({ "type": "session_start", "mac_address": MAC, "session_id": session, "agent_id": agent_id }));
        agent.wait_for("ready");
        soon("the server was asked", || api.count(Endpoint::AgentId) >= 1);
        agent.say(1, "Hello");
        api.wait_for_rows(session, 1);
        agent.end();
        let expected = agent_id.unwrap_or(&devices_agent);
        soon("the backup names the agent", || backup(&daemon, session).is_some_and(|backup| backup["agent_id"] == expected));
    }
}

fn backup(daemon: &Daemon, session: &str) -> Option<Value> {
    let days = std::fs::read_dir(daemon.backups()).ok()?.flatten();
    let files = days.filter_map(|day| std::fs::read_dir(day.path()).ok()).flat_map(Iterator::flatten);
    let backups = files.filter_map(|file| serde_json::from_slice::<Value>(&std::fs::read(file.path()).ok()?).ok());
    backups.into_iter().find(|backup| backup["session_id"] == session)
}
