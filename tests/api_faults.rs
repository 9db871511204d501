//! What the Manager API and the network between do wrong, and what the daemon makes of it.

use std::time::{Duration, Instant, SystemTime};

use crate::support::manager_api::Recorded;
use crate::support::oracle::{check_books, check_fresh};
use crate::support::{Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

pub(crate) const MAC: &str = "68:25:dd:ba:39:78";
pub(crate) const OTHER_MAC: &str = "00:16:3e:ac:b5:38";

pub(crate) fn ground(variant: Variant) -> (ManagerApi, Daemon) {
    let api = ManagerApi::start(variant);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    (api, daemon)
}

/// One acknowledged message in a session of its own.
#[track_caller]
pub(crate) fn say(daemon: &Daemon, mac: &str, session: &str, text: &str) {
    let mut producer = Producer::connected(daemon, mac, session);
    producer.say(1, text);
    producer.wait_until_acked();
}

fn attempted(sent: &Recorded, session: &str) -> bool {
    sent.report.as_ref().is_some_and(|report| report.session_id == session)
}

/// How often a session was tried.
pub(crate) fn attempts(api: &ManagerApi, session: &str) -> usize {
    api.reports().iter().filter(|sent| attempted(sent, session)).count()
}

#[test]
fn two_hundred_is_not_enough() {
    let (api, daemon) = ground(Variant::Fork);
    let answers = [
        r#"{"code":500,"msg":"x","data":null}"#,
        r#"{"code":401,"msg":"x","data":null}"#,
        r#"{"code":403,"msg":"x","data":true}"#,
        r#"{"code":10053,"msg":"x","data":null}"#,
        r#"{"code":0,"msg":"success","data":false}"#,
        r#"{"code":0,"msg":"success"}"#,
        r#"{"code":0,"data":"true"}"#,
        r#"{"code":0,"data":1}"#,
        r#"{"code":"0","data":true}"#,
        r#"{"data":true}"#,
        r#"{"code":0,"da"#,
        r#"{"code":0,"data":null}"#,
        r#"{"code":0,"data":{"ok":true}}"#,
        r#"{"code":0.0,"data":true}"#,
        r#"{"code":-0,"data":true}"#,
        r#"{"code":1,"data":true}"#,
        r#"{"code":500,"data":true,"code":0}"#,
        r#"{"code":0,"data":true}{"code":0,"data":true}"#,
        r#"[{"code":0,"data":true}]"#,
        r#"{"code":0,"data":true"#,
        "{}",
        "{",
        "\"true\"",
        "null",
        "true",
        "[]",
        "",
        "<!doctype html><title>Welcome to nginx!</title>",
    ];
    for (index, answer) in answers.iter().enumerate() {
        let session = format!("session-{index}");
        api.fault(Fault::json(answer));
        let before = api.count(Endpoint::Report);
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{answer}: tried and tried again"), || api.count(Endpoint::Report) >= before + 2);
        assert_eq!(daemon.metric("delivered"), index as u64, "{answer} is no success");
        assert_eq!(daemon.metric("rejected"), 0, "{answer} rejects nothing");
        api.clear_faults();
        api.wait_for_rows(&session, 1);
        soon(&format!("{answer}: delivered in the end"), || daemon.metric("delivered") == index as u64 + 1);
        assert_eq!(api.rows(&session).len(), 1, "{answer}");
    }
    check_books(&daemon);
}

#[test]
fn wrong_secret_parks_everything() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.set_secret("the-new-secret");
    let mut producers: Vec<Producer> =
        (0..6).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    for producer in &mut producers {
        for index in 0..6 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    soon("the gate closes", || daemon.metric("gate_closings") == 1);
    soon("probes", || api.count(Endpoint::Report) >= 8);
    let probe = |body: &[u8]| body == b"{}";
    let others = api.requests().iter().filter(|sent| sent.endpoint == Endpoint::Report && !probe(&sent.request.body)).count();
    assert!(others <= 4, "behind a closed gate only probes are sent, not {others} reports");
    assert_eq!((daemon.metric("rejected"), daemon.metric("delivered"), api.row_count()), (0, 0, 0));
    std::fs::write(daemon.secret_file(), "the-new-secret\n").unwrap();
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("gate_closings"), 1, "closed once");
    let log = daemon.log();
    for secret in ["the-new-secret", crate::support::manager_api::SECRET] {
        assert!(!log.contains(secret), "a secret in the log");
    }
}

#[test]
fn an_operators_error_holds_everything_and_follows_nobody() {
    let trap = ManagerApi::start(Variant::Fork);
    let (api, daemon) = ground(Variant::Fork);
    let faults = [
        Fault::status(401),
        Fault::status(403),
        Fault::status(404),
        Fault::status(405),
        Fault::redirect(&format!("{}/user/pub-config", trap.url())),
        Fault::code(403),
        Fault::code(404),
        Fault::html(),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let session = format!("session-{index}");
        api.fault(fault.clone());
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{fault:?} closes the gate"), || daemon.metric("gate_closings") as usize == index + 1);
        assert_eq!(daemon.metric("rejected"), 0, "{fault:?}");
        api.clear_faults();
        assert_eq!(api.wait_for_rows(&session, 1).len(), 1, "{fault:?}");
    }
    assert!(trap.requests().is_empty(), "a redirect was followed");
    check_books(&daemon);
}

#[test]
fn what_the_validator_refuses_is_rejected_at_once() {
    let (api, daemon) = ground(Variant::Fork);
    api.rule(Rule::new(Fault::code(10034)).content("refused"));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for text in ["first", "refused", "last"] {
        producer.say(1, text);
    }
    producer.wait_until_acked();
    let texts: Vec<String> = api.wait_for_rows("s", 2).into_iter().map(|row| row.content).collect();
    assert_eq!(texts, ["first", "last"]);
    assert_eq!((daemon.metric("rejected"), attempts(&api, "s")), (1, 3));
    check_books(&daemon);
}

#[test]
fn retry_after_is_honoured() {
    let seconds = || "2".to_owned();
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
    let cases: [(u16, &dyn Fn() -> String); 4] = [(503, &seconds), (429, &seconds), (503, &date), (429, &date)];
    for (status, value) in cases {
        let (api, daemon) = ground(Variant::Fork);
        let value = value();
        api.rule(Rule::new(Fault::status_with(status, "Retry-After", &value)).times(1));
        say(&daemon, MAC, "s", "Hello");
        api.wait_for_rows("s", 1);
        let times: Vec<Instant> = api.reports().iter().map(|sent| sent.at).collect();
        let gap = times[1] - times[0];
        assert!(gap >= Duration::from_millis(1900), "{status} Retry-After {value}: tried again after {gap:?}");
        assert!(gap < Duration::from_secs(12), "{status} Retry-After {value}: tried again only after {gap:?}");
        assert_eq!((daemon.metric("rejected"), daemon.metric("gate_closings")), (0, 0));
    }
}

#[test]
fn a_server_that_asks_everybody_to_wait_is_left_alone() {
    for status in [429, 503] {
        let (api, daemon) = ground(Variant::Fork);
        api.fault(Fault::status_with(status, "Retry-After", "3"));
        for index in 0..20 {
            say(&daemon, MAC, &format!("session-{index}"), "Hello");
        }
        soon("the gate closes", || daemon.status()["gate"]["kind"] == "outage");
        soon("what was under way is answered", || daemon.status()["upload"]["sending"] == 0);
        let asked = api.count(Endpoint::Report);
        assert!(asked <= 12, "{asked} reports before the server was understood");
        // An early knock would be welcome from now on.
        api.clear_faults();
        soon("all is through", || daemon.metric("delivered") == 20);
        let last_refused = api.reports().iter().filter(|sent| sent.faulted).map(|sent| sent.at).max().unwrap();
        let next = api.reports().iter().filter(|sent| !sent.faulted).map(|sent| sent.at).min().unwrap();
        assert!(next - last_refused >= Duration::from_millis(2900), "{status}: knocked after {:?}", next - last_refused);
        assert_eq!(daemon.metric("rejected"), 0);
        check_books(&daemon);
    }
}

#[test]
fn nonsense_in_retry_after_is_no_reason_to_wait_long() {
    for value in ["", "soon", "-1", "1.5", "0", "Thu, 01 Jan 1970 00:00:00 GMT"] {
        let (api, daemon) = ground(Variant::Fork);
        api.rule(Rule::new(Fault::status_with(503, "Retry-After", value)).times(2));
        let began = Instant::now();
        say(&daemon, MAC, "s", "Hello");
        api.wait_for_rows("s", 1);
        assert!(began.elapsed() < Duration::from_secs(10), "{value:?}: {:?}", began.elapsed());
    }
}

/// What may come of one failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copies {
    One,
    /// The server had stored it, and could not say so.
    Two,
}

#[test]
fn a_bad_answer_costs_bounded_time_and_memory() {
    let trap = ManagerApi::start(Variant::Fork);
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon =
        Daemon::builder().api(&api).set("manager_api.timeout", "'1s'").set("manager_api.connect_timeout", "'1s'").start();
    check_fresh(&daemon, &api);
    let memory = daemon.rss();
    let page = || b"<html>gateway</html>".to_vec();
    let faults = [
        (Fault::status(500), Copies::One),
        (Fault::status(502), Copies::One),
        (Fault::status(503), Copies::One),
        (Fault::status(504), Copies::One),
        (Fault::AnswerAfterCommit(504, Vec::new(), page()), Copies::Two),
        (Fault::status(408), Copies::One),
        (Fault::status(425), Copies::One),
        (Fault::status(599), Copies::One),
        (Fault::redirect(&format!("{}/user/pub-config", trap.url())), Copies::One),
        (Fault::status_with(308, "Location", &format!("{}/agent/chat-history/report", trap.url())), Copies::One),
        (Fault::HangBeforeHeaders, Copies::One),
        (Fault::HangAfterHeaders, Copies::One),
        (Fault::Trickle(Duration::from_millis(100)), Copies::Two),
        (Fault::EndlessBody, Copies::One),
        (Fault::GzipBomb, Copies::One),
        (Fault::Garbage, Copies::One),
        (Fault::HalfClose, Copies::Two),
        (Fault::CutBody, Copies::Two),
        (Fault::ResetMidBody, Copies::One),
        (Fault::ResetBeforeCommit, Copies::One),
        (Fault::ResetAfterCommit, Copies::Two),
        (Fault::LoseAnswer, Copies::Two),
    ];
    for (index, (fault, copies)) in faults.into_iter().enumerate() {
        let session = format!("session-{index}");
        api.clear_faults();
        api.rule(Rule::new(fault.clone()).times(1));
        let began = Instant::now();
        say(&daemon, MAC, &session, "Hello");
        soon(&format!("{fault:?}: delivered"), || daemon.metric("delivered") == index as u64 + 2);
        assert!(began.elapsed() < Duration::from_secs(15), "{fault:?} cost {:?}", began.elapsed());
        let rows = api.rows(&session);
        assert_eq!(rows.len(), if copies == Copies::Two { 2 } else { 1 }, "{fault:?}");
        let keys: Vec<_> = api.reports().into_iter().filter(|sent| attempted(sent, &session)).map(|sent| sent.key).collect();
        assert!(keys.len() <= 3 && keys.iter().all(|key| key.is_some() && *key == keys[0]), "{fault:?}: {keys:?}");
    }
    assert!(trap.requests().is_empty(), "a redirect was followed");
    assert_eq!(daemon.metric("rejected"), 0);
    let grown = daemon.rss().saturating_sub(memory);
    assert!(grown < 24 * 1024 * 1024, "{grown} bytes more after the faults");
    check_books(&daemon);
}

#[test]
fn endless_answers_one_after_the_other_cost_no_more_than_one() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::builder()
        .api(&api)
        .set("manager_api.timeout", "'1s'")
        .set("manager_api.connect_timeout", "'1s'")
        .set("upload.backoff_max", "'50ms'")
        .start();
    check_fresh(&daemon, &api);
    let memory = daemon.rss();
    for fault in [Fault::EndlessBody, Fault::GzipBomb] {
        api.fault(fault.clone());
        for index in 0..8 {
            say(&daemon, MAC, &format!("session-{index}"), "Hello");
        }
        let before = api.count(Endpoint::Report);
        let mut most = 0;
        soon(&format!("{fault:?} thirty times"), || {
            most = most.max(daemon.rss());
            api.count(Endpoint::Report) >= before + 30
        });
        let grown = most.saturating_sub(memory);
        assert!(grown < 24 * 1024 * 1024, "{fault:?}: {grown} bytes more");
        api.clear_faults();
        soon("all is through", || daemon.metric("pending") == 0);
    }
    check_books(&daemon);
}

#[test]
fn a_connection_that_went_stale_costs_no_message() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for index in 0..6 {
        producer.say(1, &format!("message {index}"));
        producer.wait_until_acked();
        api.wait_for_rows("s", index + 1);
        // Every kept connection is cut while nothing is on it, as by a proxy that restarts.
        api.stop();
        api.start_again();
    }
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
}

#[test]
fn an_idempotency_key_belongs_to_one_message_for_ever() {
    let (api, mut daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.rule(Rule::new(Fault::ResetBeforeCommit).after(1).times(2));
    api.rule(Rule::new(Fault::status(503)).times(20));
    let mut producer = Producer::connected(&daemon, MAC, "s");
    for text in ["yes", "yes", &"word ".repeat(500), "yes"] {
        producer.say(1, text.trim_end());
    }
    producer.wait_until_acked();
    soon("tried", || attempts(&api, "s") >= 2);
    oracle.before_restart(&daemon);
    daemon.restart();
    soon("tried again", || attempts(&api, "s") >= 4);
    api.clear_faults();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    let mut contents = std::collections::HashMap::new();
    for sent in api.reports().into_iter().filter(|sent| attempted(sent, "s")) {
        let key = sent.key.expect("an Idempotency-Key");
        let body = sent.request.body;
        assert_eq!(*contents.entry(key).or_insert_with(|| body.clone()), body, "every attempt of a message is the same");
    }
    assert_eq!(contents.len(), 3 + 3, "three short messages and three parts of a long one");
}
