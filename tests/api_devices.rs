//! Devices the Manager API does not know: they wait, alone, as long as they may, and not a moment longer than they must.

use std::fs;
use std::time::{Duration, Instant};

use crate::api_faults::{MAC, OTHER_MAC, attempts, ground, say};
use crate::support::daemon::Builder;
use crate::support::eventually::{SOON, always};
use crate::support::oracle::{check_books, check_fresh};
use crate::support::{Daemon, Fault, ManagerApi, Oracle, Producer, Rule, Variant, clock, soon};

fn holding(api: &ManagerApi, hold: &str) -> Builder {
    Daemon::builder().api(api).set("upload.unknown_device_retry", "'1s'").set("upload.unknown_device_hold", hold)
}

#[test]
fn unknown_device_waits_alone() {
    let (api, daemon) = ground(Variant::Upstream);
    let mut unknown = Producer::connected(&daemon, OTHER_MAC, "unknown");
    for index in 0..4 {
        unknown.say(1, &format!("message {index}"));
    }
    unknown.wait_until_acked();
    soon("it is tried", || attempts(&api, "unknown") >= 1);
    let mut oracle = Oracle::new(&daemon);
    let mut known = Producer::connected(&daemon, MAC, "known");
    for index in 0..20 {
        known.say(2, &format!("message {index}"));
    }
    known.wait_until_acked();
    api.wait_for_rows("known", 20);
    soon("the wait goes on", || attempts(&api, "unknown") >= 3);
    assert_eq!((daemon.metric("pending"), daemon.metric("rejected"), daemon.metric("gate_closings")), (4, 0, 0));
    api.register(OTHER_MAC);
    oracle.owe(&known);
    oracle.owe(&unknown);
    oracle.check(&daemon, &api);
    assert_eq!(api.rows("unknown").len(), 4);
}

#[test]
fn what_one_server_did_not_know_does_not_keep_waiting_for_the_next() {
    let (first, second) = (ManagerApi::start(Variant::Upstream), ManagerApi::start(Variant::Upstream));
    second.register(OTHER_MAC);
    let mut daemon = Daemon::builder().api(&first).set("upload.unknown_device_retry", "'1h'").start();
    say(&daemon, OTHER_MAC, "s", "Hello");
    soon("it waits", || daemon.status()["upload"]["devices_waiting"] == 1);
    daemon.set("manager_api.url", &format!("'{}'", second.url()));
    daemon.hup();
    assert_eq!(second.wait_for_rows("s", 1).len(), 1);
    soon("nothing waits", || daemon.metric("pending") == 0);
    assert_eq!(daemon.status()["upload"]["devices_waiting"], 0);
    check_books(&daemon);
}

#[test]
fn an_unknown_device_is_given_up_after_the_hold() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon =
        Daemon::builder().api(&api).set("upload.unknown_device_retry", "'1s'").set("upload.unknown_device_hold", "'2s'").start();
    say(&daemon, OTHER_MAC, "unknown", "Hello");
    soon("rejected", || daemon.labelled("rejected", "device_not_registered") == 1);
    assert_eq!(daemon.metric("pending"), 0);
    check_fresh(&daemon, &api);
    check_books(&daemon);
}

#[test]
fn a_device_registered_after_the_hold_is_served_from_then_on() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = holding(&api, "'2s'").start();
    say(&daemon, OTHER_MAC, "old", "too old");
    soon("given up", || daemon.labelled("rejected", "device_not_registered") == 1);
    // It goes on talking, and one day somebody registers it.
    let mut producer = Producer::connected(&daemon, OTHER_MAC, "new");
    producer.say(1, "said before the registration");
    producer.wait_until_acked();
    soon("tried and refused", || attempts(&api, "new") >= 1);
    let mut oracle = Oracle::new(&daemon);
    api.register(OTHER_MAC);
    producer.say(1, "said after it");
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    assert_eq!((daemon.metric("rejected"), daemon.status()["upload"]["devices_waiting"].as_u64()), (1, Some(0)));
}

/// A host without a clock of its own learns the time when the network is there, and its first messages may be there before.
#[test]
fn what_is_said_before_the_clock_is_set_right_is_held_as_long_as_anything_else() {
    let directory = tempfile::tempdir().unwrap();
    let wall = directory.path().join("wall");
    fs::write(&wall, "+0d").unwrap();
    let Some(clock) = clock::faketime_from(&wall) else { return };
    let api = ManagerApi::start(Variant::Fork);
    let daemon = holding(&api, "'12s'").environments(&clock).start();
    say(&daemon, OTHER_MAC, "old", "Hello");
    soon("the device is unknown for long", || daemon.labelled("rejected", "device_not_registered") == 1);
    say(&daemon, OTHER_MAC, "new", "Is anybody there?");
    soon("tried and refused", || attempts(&api, "new") >= 1);
    let before = attempts(&api, "new");
    fs::write(&wall, "+1d").unwrap();
    soon("tried again", || attempts(&api, "new") >= before + 2);
    api.register(OTHER_MAC);
    assert_eq!(api.wait_for_rows("new", 1).len(), 1);
    assert_eq!(daemon.metric("rejected"), 1);
    check_books(&daemon);
}

#[test]
fn after_the_hold_the_server_is_asked_once_more_before_anything_is_given_up() {
    let api = ManagerApi::start(Variant::Fork);
    let mut daemon = holding(&api, "'1s'").start();
    say(&daemon, OTHER_MAC, "s", "Hello");
    let said = Instant::now();
    soon("it waits", || daemon.status()["upload"]["devices_waiting"] == 1);
    // The daemon is away while the hold passes and the device is registered.
    assert!(daemon.term(SOON).success());
    soon("the hold is over", || said.elapsed() > Duration::from_millis(1200));
    api.register(OTHER_MAC);
    daemon.start();
    assert_eq!(api.wait_for_rows("s", 1).len(), 1);
    assert_eq!(daemon.metric("rejected"), 0);
}

#[test]
fn the_tries_of_a_hold_are_counted_across_restarts() {
    let api = ManagerApi::start(Variant::Fork);
    let mut daemon = holding(&api, "'3s'").start();
    say(&daemon, OTHER_MAC, "s", "Hello");
    soon("tried three times", || attempts(&api, "s") >= 3);
    daemon.restart();
    soon("given up", || daemon.labelled("rejected", "device_not_registered") == 1);
    let tried = attempts(&api, "s");
    assert!(tried <= 6, "tried {tried} times: the count began anew with the restart");
    check_fresh(&daemon, &api);
    check_books(&daemon);
}

#[test]
fn many_sessions_of_one_unknown_device_send_one_try_at_a_time_and_all_arrive_when_it_is_registered() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    let mut oracle = Oracle::new(&daemon);
    let mut producers: Vec<Producer> =
        (0..24).map(|index| Producer::connected(&daemon, OTHER_MAC, &format!("unknown-{index}"))).collect();
    for producer in &mut producers {
        for index in 0..6 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
    }
    soon("it waits", || daemon.status()["upload"]["devices_waiting"] == 1);
    let before = api.reports().len();
    soon("tried again and again", || api.reports().len() >= before + 3);
    // As many as may be under way at once, and those that took their places before the first answer was judged.
    assert!(before <= 4 * 4, "{before} tries at the beginning");
    let tries = api.reports().len() - before;
    always(Duration::from_millis(300), "a second between tries", || api.reports().len() - before <= tries + 1);
    // Whoever waits for the delivery of a waiting device is told so at once.
    let flushed = producers[5].agent().flush("delivered");
    assert_eq!((flushed["ok"].as_bool(), flushed["pending"].as_u64()), (Some(false), Some(6)), "{flushed}");
    assert!(flushed["reason"].as_str().is_some_and(|reason| reason.contains("does not know the device")), "{flushed}");
    api.register(OTHER_MAC);
    for producer in producers {
        oracle.owe(&producer);
    }
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("rejected"), 0);
}

#[test]
fn all_sessions_of_a_device_are_given_up_when_their_hold_is_over_and_others_flow_meanwhile() {
    let (api, _) = ground(Variant::Fork);
    let daemon = holding(&api, "'2s'").start();
    for index in 0..5 {
        say(&daemon, OTHER_MAC, &format!("unknown-{index}"), "Hello");
    }
    let mut oracle = Oracle::new(&daemon);
    let mut known = Producer::connected(&daemon, MAC, "known");
    let mut said = 0;
    soon("all given up", || {
        if api.rows("known").len() == said {
            known.say(1, &format!("message {said}"));
            said += 1;
        }
        daemon.labelled("rejected", "device_not_registered") == 5
    });
    known.wait_until_acked();
    oracle.owe(&known);
    oracle.check(&daemon, &api);
    assert!(said >= 3, "the other device waited");
}

#[test]
fn when_the_message_that_tries_for_a_waiting_device_is_rejected_another_session_tries() {
    let (api, _) = ground(Variant::Fork);
    let daemon = Daemon::builder().api(&api).set("upload.poison_attempts", "1").start();
    for session in ["poison", "waits"] {
        say(&daemon, OTHER_MAC, session, "Hello");
    }
    soon("both wait", || daemon.status()["upload"]["sessions_pending"] == 2);
    api.rule(Rule::new(Fault::database_down()).session("poison"));
    // Only what fails while others get through is the message's fault.
    let mut known = Producer::connected(&daemon, MAC, "known");
    let mut said = 0;
    soon("it is rejected", || {
        if api.rows("known").len() == said {
            known.say(1, &format!("message {said}"));
            said += 1;
        }
        daemon.labelled("rejected", "refused_by_server") == 1
    });
    api.register(OTHER_MAC);
    api.wait_for_rows("waits", 1);
    check_books(&daemon);
}
