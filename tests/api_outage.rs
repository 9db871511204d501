//! Outage or poison? The server gives the same answer to both, and the daemon must not mistake one for the other:
//! a poison message blocks nobody and ends rejected, an outage rejects nothing and costs nothing.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::api_faults::{MAC, OTHER_MAC, attempts, ground, say};
use crate::support::daemon::Builder;
use crate::support::eventually::{SOON, eventually};
use crate::support::oracle::{arrived, check_books};
use crate::support::{Agent, Daemon, Endpoint, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

/// A daemon that goes through hundreds of attempts in the time of a test.
fn hasty(api: &ManagerApi) -> Builder {
    Daemon::builder().api(api).set("upload.backoff_initial", "'10ms'").set("upload.backoff_max", "'40ms'")
}

/// Connected producers of as many sessions, with as many acknowledged messages each.
fn talk(daemon: &Daemon, oracle: &mut Oracle, sessions: usize, messages: usize) -> Vec<Producer> {
    let mut producers: Vec<Producer> =
        (0..sessions).map(|index| Producer::connected(daemon, MAC, &format!("session-{index}"))).collect();
    for index in 0..messages {
        for producer in &mut producers {
            producer.say(1 + (index % 2) as u8, &format!("message {index}"));
        }
    }
    for producer in &mut producers {
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    producers
}

/// The messages of the one backup in which a session's messages stand.
fn backup_of(daemon: &Daemon, session: &str) -> Vec<Value> {
    eventually(SOON, "a backup with every message settled", || {
        let days = std::fs::read_dir(daemon.backups()).ok()?.flatten();
        let files = days.filter_map(|day| std::fs::read_dir(day.path()).ok()).flat_map(Iterator::flatten);
        let backups = files.filter_map(|file| serde_json::from_slice::<Value>(&std::fs::read(file.path()).ok()?).ok());
        backups.filter(|backup| backup.to_string().contains(session)).find_map(|backup| {
            let messages = backup["messages"].as_array()?.clone();
            messages.iter().all(|message| message["state"] != "pending").then_some(messages)
        })
    })
}

#[test]
fn poison_alone_waits_and_is_rejected_once_others_get_through() {
    let (api, daemon) = ground(Variant::Fork);
    api.rule(Rule::new(Fault::code(500)).content("poison"));
    let mut poisoned = Producer::connected(&daemon, MAC, "poisoned");
    for text in ["first", "poison", "last"] {
        poisoned.say(1, text);
    }
    poisoned.wait_until_acked();
    api.wait_for_rows("poisoned", 1);
    soon("alone, it is tried and not given up", || attempts(&api, "poisoned") >= 9);
    assert_eq!(daemon.metric("rejected"), 0, "nobody else got through since: it may be an outage");
    let mut oracle = Oracle::new(&daemon);
    let mut other = Producer::connected(&daemon, MAC, "other");
    let mut said = 0;
    soon("others get through, and the poison is rejected", || {
        if api.rows("other").len() == said {
            other.say(1, &format!("message {said}"));
            said += 1;
        }
        daemon.labelled("rejected", "refused_by_server") == 1
    });
    other.wait_until_acked();
    oracle.owe(&other);
    let rest: Vec<String> = api.wait_for_rows("poisoned", 2).into_iter().map(|row| row.content).collect();
    assert_eq!(rest, ["first", "last"]);
    assert!(said >= 5, "rejected after the success of only {said} others");
    oracle.check(&daemon, &api);
}

#[test]
fn a_short_outage_rejects_nothing() {
    let (api, daemon) = ground(Variant::Fork);
    let mut oracle = Oracle::new(&daemon);
    api.fault(Fault::database_down());
    let mut producers: Vec<Producer> =
        (0..10).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    for producer in &mut producers {
        for index in 0..5 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
        oracle.owe(producer);
    }
    soon("it is an outage, probed again and again", || api.count(Endpoint::Report) >= 20);
    assert_eq!((daemon.metric("rejected"), daemon.metric("delivered")), (0, 0));
    drop(producers);
    api.clear_faults();
    oracle.check(&daemon, &api);
    assert_eq!(api.row_count(), 51);
    assert_eq!(daemon.metric("rejected"), 0);
}

#[test]
fn poison_is_isolated() {
    let (api, _) = ground(Variant::Fork);
    let daemon = hasty(&api).start();
    let mut oracle = Oracle::new(&daemon);
    api.rule(Rule::new(Fault::code(500)).content("poison"));
    let mut producers: Vec<Producer> =
        (0..50).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
    for index in 0..6 {
        for (number, producer) in producers.iter_mut().enumerate() {
            let poisonous = number == 17 && index == 2;
            producer.say(1, &if poisonous { "poison".to_owned() } else { format!("message {index}") });
        }
    }
    let mut round = 6;
    soon("the poison is rejected", || {
        // The others go on, as they would.
        for producer in producers.iter_mut().skip(18).step_by(4) {
            producer.say(1, &format!("message {round}"));
        }
        round += 1;
        daemon.metric("rejected") >= 1
    });
    let mut poisoned = producers.remove(17);
    poisoned.wait_until_acked();
    poisoned.agent().end();
    for mut producer in producers {
        producer.wait_until_acked();
        oracle.owe(&producer);
    }
    drop(poisoned);
    oracle.check(&daemon, &api);
    let texts: Vec<String> = arrived(&api, "session-17").into_iter().map(|message| message.content).collect();
    assert_eq!(texts, ["message 0", "message 1", "message 3", "message 4", "message 5"], "its own session went on, in order");
    assert_eq!((daemon.labelled("rejected", "refused_by_server"), daemon.metric("rejected")), (1, 1));
    assert!(attempts(&api, "session-17") >= 5 + 6, "five strikes after the first attempt");
    let backup = backup_of(&daemon, "session-17");
    let rejected: Vec<&Value> = backup.iter().filter(|message| message["state"] == "rejected").collect();
    assert_eq!(rejected.len(), 1, "{backup:?}");
    assert_eq!((&rejected[0]["reason"], &rejected[0]["answer"]), (&"refused_by_server".into(), &"code 500".into()));
}

#[test]
fn every_kind_of_poison_is_found_and_what_is_no_word_about_the_message_is_none() {
    let poisons = [Fault::code(10002), Fault::status(413), Fault::status(422), Fault::status(500), Fault::ResetBeforeCommit];
    let patience = [Fault::status_with(503, "Retry-After", "0"), Fault::status(429)];
    for (fault, is_poison) in poisons.into_iter().map(|fault| (fault, true)).chain(patience.map(|fault| (fault, false))) {
        let (api, _) = ground(Variant::Fork);
        let daemon = hasty(&api).start();
        api.rule(Rule::new(fault.clone()).content("poison"));
        say(&daemon, MAC, "poisoned", "poison");
        let mut others: Vec<Producer> =
            (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
        let mut said = 0;
        soon(&format!("{fault:?}: tried often while others got through"), || {
            for other in &mut others {
                other.say(1, &format!("message {said}"));
            }
            said += 1;
            daemon.metric("rejected") >= 1 || (!is_poison && attempts(&api, "poisoned") >= 20)
        });
        assert_eq!(daemon.metric("rejected"), u64::from(is_poison), "{fault:?}");
        let mut oracle = Oracle::new(&daemon);
        api.clear_faults();
        for other in &mut others {
            other.wait_until_acked();
            oracle.owe(other);
        }
        oracle.check_arrivals(&api);
        soon("all is through", || daemon.metric("pending") == 0);
        assert_eq!(api.rows("poisoned").len(), usize::from(!is_poison), "{fault:?}");
        check_books(&daemon);
    }
}

/// What stands before a server (a firewall that reads along, a block page) may refuse one text as a server refuses a wrong secret.
#[test]
fn what_is_forbidden_for_one_message_holds_up_no_other_session() {
    for fault in [Fault::status(403), Fault::html(), Fault::redirect("/blocked")] {
        let (api, _) = ground(Variant::Fork);
        let daemon = hasty(&api).start();
        api.rule(Rule::new(fault.clone()).content("forbidden words"));
        say(&daemon, MAC, "forbidden", "forbidden words");
        let mut others: Vec<Producer> =
            (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
        let mut said = 0;
        soon(&format!("{fault:?}: it is found to be the message's"), || {
            for other in &mut others {
                other.say(1, &format!("message {said}"));
            }
            said += 1;
            daemon.labelled("rejected", "refused_by_server") == 1
        });
        let mut oracle = Oracle::new(&daemon);
        for other in &mut others {
            other.wait_until_acked();
            oracle.owe(other);
        }
        oracle.check_arrivals(&api);
        soon("all is through", || daemon.metric("pending") == 0);
        assert_eq!(daemon.metric("gate_closings"), 1, "only the first time");
        check_books(&daemon);
    }
}

#[test]
fn a_session_is_no_witness_against_its_own_message() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = hasty(&api).start();
    let mut oracle = Oracle::new(&daemon);
    // Twelve parts, and a server that fails once at each of them, and nobody else on the host.
    let text: Vec<String> = (0..12).map(|part| format!("mark{part:02} {}", "word ".repeat(190))).collect();
    for part in 0..12 {
        api.rule(Rule::new(Fault::database_down()).content(&format!("mark{part:02} ")).times(1));
    }
    let mut producer = Producer::connected(&daemon, MAC, "s");
    producer.say(2, text.concat().trim_end());
    producer.say(1, "and on");
    producer.wait_until_acked();
    oracle.owe(&producer);
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("rejected"), 0);
    let failed = api.reports().iter().filter(|report| report.faulted).count();
    assert!(failed >= 8, "only {failed} attempts failed");
}

#[test]
fn three_sessions_refused_in_a_row_are_the_operators_business() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = hasty(&api).start();
    api.fault(Fault::status(413));
    let mut oracle = Oracle::new(&daemon);
    talk(&daemon, &mut oracle, 6, 1);
    soon("the gate closes", || daemon.status()["gate"]["kind"] == "operator");
    let gate = daemon.status()["gate"].clone();
    assert!(gate["reason"].as_str().is_some_and(|reason| reason.contains("HTTP 413")), "{gate}");
    assert_eq!(daemon.metric("rejected"), 0);
    api.clear_faults();
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("rejected"), 0);
}

/// One of two instances behind a balancer, say: others get through, but they, too, must often try twice.
#[test]
fn an_outage_of_a_part_of_the_server_rejects_nothing() {
    for fault in [Fault::status(502), Fault::database_down(), Fault::ResetBeforeCommit] {
        let (api, _) = ground(Variant::Fork);
        let daemon = hasty(&api).start();
        let mut oracle = Oracle::new(&daemon);
        api.rule(Rule::new(fault.clone()).content("unlucky").times(20));
        let mut unlucky = Producer::connected(&daemon, MAC, "unlucky");
        unlucky.say(1, "an unlucky message");
        let mut others: Vec<Producer> =
            (0..3).map(|index| Producer::connected(&daemon, MAC, &format!("session-{index}"))).collect();
        let mut said = 0;
        soon(&format!("{fault:?}: taken at last"), || {
            if daemon.metric("pending") < 5 {
                for other in &mut others {
                    api.rule(Rule::new(fault.clone()).content(&format!("message {said}.")).times(1));
                    other.say(1, &format!("message {said}."));
                    said += 1;
                }
            }
            api.rows("unlucky").len() == 1 || daemon.metric("rejected") > 0
        });
        assert_eq!(daemon.metric("rejected"), 0, "{fault:?}");
        for mut producer in others.into_iter().chain([unlucky]) {
            producer.wait_until_acked();
            oracle.owe(&producer);
        }
        oracle.check_arrivals(&api);
        soon("all is through", || daemon.metric("pending") == 0);
        check_books(&daemon);
    }
}

/// One of two instances that fails, behind a balancer that sends a device always to the same one: others get through always.
#[test]
fn an_outage_that_always_meets_the_same_devices_costs_them_no_whole_conversation() {
    let (api, _) = ground(Variant::Fork);
    api.register(OTHER_MAC);
    let daemon = hasty(&api).start();
    api.rule(Rule::new(Fault::database_down()).mac(OTHER_MAC));
    let mut unlucky = Producer::connected(&daemon, OTHER_MAC, "unlucky");
    for index in 0..20 {
        unlucky.say(1, &format!("message {index}"));
    }
    unlucky.wait_until_acked();
    let mut other = Producer::connected(&daemon, MAC, "other");
    let (mut said, mut tried) = (0, 0);
    eventually(3 * SOON, "another one gets through between its failures", || {
        let now = attempts(&api, "unlucky");
        if now > tried && api.rows("other").len() == said {
            other.say(1, &format!("message {said}"));
            (said, tried) = (said + 1, now);
        }
        (said >= 36).then_some(())
    });
    assert!(daemon.metric("rejected") <= 3, "5, 10, 20, 40 strikes: {}", daemon.metric("rejected"));
    api.clear_faults();
    soon("all else is through", || daemon.metric("pending") == 0);
    assert_eq!(api.rows("unlucky").len() as u64, 20 - daemon.metric("rejected"));
    check_books(&daemon);
}

/// It wants something else than it did, a field that is new, or it reads the body wrongly: that is no fault of the messages.
#[test]
fn a_server_that_finds_everything_invalid_is_soon_not_believed() {
    let (api, _) = ground(Variant::Fork);
    let daemon = hasty(&api).start();
    api.fault(Fault::code(10034));
    for session in 0..6 {
        let mut producer = Producer::connected(&daemon, MAC, &format!("session-{session}"));
        for index in 0..10 {
            producer.say(1, &format!("message {index}"));
        }
        producer.wait_until_acked();
    }
    soon("it is tried again and again", || api.reports().len() >= 60);
    soon("the gate was closed", || daemon.log().contains("three sessions in a row were refused"));
    assert_eq!((daemon.labelled("rejected", "invalid"), daemon.metric("rejected")), (3, 3));
    api.clear_faults();
    soon("all else is through", || daemon.metric("pending") == 0);
    assert_eq!((daemon.metric("delivered"), daemon.metric("rejected")), (57, 3));
    assert_eq!(api.row_count(), 57);
    // Beside others that get through it is believed at once.
    api.rule(Rule::new(Fault::code(10034)).content("invalid"));
    for index in 0..5 {
        say(&daemon, MAC, "session-0", &format!("invalid {index}"));
        say(&daemon, MAC, "session-0", "valid");
    }
    soon("all else is through", || daemon.metric("pending") == 0);
    assert_eq!((api.row_count(), daemon.labelled("rejected", "invalid")), (62, 8));
    check_books(&daemon);
}

fn outage(sessions: usize, messages: usize, fault: &Fault, builder: Builder, api: &ManagerApi, failures: usize, span: Duration) {
    let daemon = builder.start();
    let mut oracle = Oracle::new(&daemon);
    api.fault(fault.clone());
    let began = Instant::now();
    drop(talk(&daemon, &mut oracle, sessions, messages));
    eventually(span + 6 * SOON, "hundreds of attempts", || {
        (api.count(Endpoint::Report) >= failures && began.elapsed() >= span).then_some(())
    });
    let attempts = daemon.metric("attempts");
    assert_eq!((daemon.metric("rejected"), daemon.metric("delivered")), (0, 0), "in an outage nothing is rejected");
    assert_eq!(daemon.metric("pending"), (sessions * messages) as u64);
    assert_eq!(daemon.status()["gate"]["kind"], "outage");
    api.clear_faults();
    let recovered = Instant::now();
    eventually(8 * SOON, "the backlog drains", || (daemon.metric("pending") == 0).then_some(()));
    oracle.check(&daemon, api);
    eprintln!(
        "{attempts} attempts in {:?} failed, {sessions} × {messages} drained in {:?}",
        recovered - began,
        recovered.elapsed()
    );
    assert_eq!(daemon.metric("rejected"), 0);
    assert_eq!(api.row_count(), (sessions * messages) as u64 + 1);
}

#[test]
fn outage_rejects_nothing() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    // Of the same answer that makes a poison message; as many attempts as in hours at the usual pace.
    outage(100, 100, &Fault::database_down(), hasty(&api).set("upload.concurrency", "6"), &api, 400, Duration::ZERO);
}

/// In the length and the size that matter: a minute in which everything fails, and ten thousand messages in front of it.
#[test]
fn an_outage_of_a_minute_with_ten_thousand_messages_rejects_nothing() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let builder = Daemon::builder().api(&api).set("upload.backoff_initial", "'100ms'").set("upload.backoff_max", "'2s'");
    outage(500, 20, &Fault::status(500), builder, &api, 30, Duration::from_secs(60));
}

#[test]
fn a_flaky_server_gets_everything_and_a_busy_line_is_no_outage() {
    let api = ManagerApi::start(Variant::Upstream);
    api.register(MAC);
    let daemon = hasty(&api).start();
    let mut oracle = Oracle::new(&daemon);
    // One of three reports fails, in turn by each of these.
    for (offset, fault) in [Fault::database_down(), Fault::status(502), Fault::ResetBeforeCommit].into_iter().enumerate() {
        for round in 0..15 {
            api.rule(Rule::new(fault.clone()).after((offset + 3 * round) as u32 % 7 + 2).times(1));
        }
    }
    talk(&daemon, &mut oracle, 8, 20);
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("rejected"), 0);
}

#[test]
fn after_an_outage_requests_grow_one_by_one_with_the_answers_and_a_failure_costs_half_of_them_only_for_a_while() {
    let (api, _) = ground(Variant::Fork);
    let builder = Daemon::builder().api(&api).set("manager_api.timeout", "'5s'");
    // No session that failed comes back meanwhile: what happens is the work of the answers.
    let mut daemon = builder.set("upload.backoff_initial", "'60s'").set("upload.backoff_max", "'60s'").start();
    let mut oracle = Oracle::new(&daemon);
    say(&daemon, MAC, "before", "Hello");
    soon("the server's profile is known", || daemon.metric("pending") == 0);
    let before = api.reports().len();
    api.stop();
    // More than a turn's messages each: it is the answers that count, not the turns that end.
    drop(talk(&daemon, &mut oracle, 12, 100));
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "outage");
    api.rule(Rule::new(Fault::status(500)).after(20).times(1));
    api.rule(Rule::new(Fault::HangBeforeHeaders).after(40));
    api.rule(Rule::new(Fault::Delay(Duration::from_millis(5))));
    api.start_again();
    // It knocks at once.
    daemon.hup();
    soon("as many as may be are in flight again", || {
        api.reports().iter().filter(|report| report.finished.is_none()).count() == 4
    });
    assert_eq!(api.overlap(), (4, false));
    let mut reports = api.reports().split_off(before);
    reports.sort_by_key(|report| report.at);
    for (index, report) in reports.iter().enumerate().take(20) {
        let before = reports[..index].iter().filter(|other| other.finished.is_none_or(|finished| finished > report.at)).count();
        let answered = index - before;
        assert!(answered >= before * (before + 1) / 2, "{before} others under way after {answered} answers");
    }
    api.clear_faults();
    // Nor would those come back soon that failed.
    daemon.restart();
    eventually(6 * SOON, "all is through", || (daemon.metric("pending") == 0).then_some(()));
    oracle.check(&daemon, &api);
    assert_eq!(daemon.metric("rejected"), 0);
}

/// Its pool of connections to the database is nearly empty, for instance.
#[test]
fn a_server_that_takes_few_reports_at_a_time_gets_them_all_and_is_seldom_asked_for_more() {
    for (most, messages) in [(1, 30), (2, 40)] {
        let api = ManagerApi::start(Variant::Upstream);
        api.register(MAC);
        api.fault(Fault::Overload(most, Duration::from_millis(5)));
        // A refusal of a request too many is not even one strike.
        let daemon = hasty(&api).set("upload.poison_attempts", "1").start();
        let mut oracle = Oracle::new(&daemon);
        drop(talk(&daemon, &mut oracle, 16, messages));
        eventually(6 * SOON, "all is through", || (daemon.metric("pending") == 0).then_some(()));
        oracle.check(&daemon, &api);
        let (failed, delivered) = (daemon.labelled("attempts", "later"), daemon.metric("delivered"));
        eprintln!("{most} at a time: {failed} failed, {delivered} delivered");
        assert_eq!(daemon.metric("rejected"), 0);
        assert!(failed * 10 <= delivered, "{most} at a time: {failed} failed, {delivered} delivered");
    }
}

#[test]
fn a_closed_gate_costs_no_processor_time() {
    let (api, _) = ground(Variant::Fork);
    let daemon = Daemon::builder().api(&api).set("upload.backoff_initial", "'500ms'").set("upload.backoff_max", "'1s'").start();
    let mut oracle = Oracle::new(&daemon);
    talk(&daemon, &mut oracle, 40, 10);
    soon("all is through", || daemon.metric("pending") == 0);
    for fault in [None, Some(Fault::status(401)), Some(Fault::status(503)), Some(Fault::HangBeforeHeaders)] {
        match &fault {
            None => api.stop(),
            Some(fault) => api.fault(fault.clone()),
        }
        for index in 0..40 {
            say(&daemon, MAC, &format!("session-{index}"), "during");
        }
        if !matches!(fault, Some(Fault::HangBeforeHeaders)) {
            soon("the gate is closed", || daemon.status()["gate"]["state"] == "closed");
        }
        let (cpu, began) = (daemon.cpu(), Instant::now());
        soon("two seconds", || began.elapsed() > Duration::from_secs(2));
        let (used, span) = (daemon.cpu().saturating_sub(cpu), began.elapsed());
        eprintln!("{fault:?}: {used:?} of processor time in {span:?}");
        assert!(used < span / 10, "a closed gate is no work");
        match &fault {
            None => api.start_again(),
            Some(_) => api.clear_faults(),
        }
        soon("all is through", || daemon.metric("pending") == 0);
    }
    check_books(&daemon);
}

#[test]
fn the_status_tells_the_gates_state_and_whoever_waits_is_told_at_once() {
    let (api, daemon) = ground(Variant::Fork);
    say(&daemon, MAC, "s", "before");
    api.wait_for_rows("s", 1);
    assert_eq!(daemon.status()["gate"]["state"], "open");
    let closings: [(&dyn Fn(), &str, &str); 3] = [
        (&|| api.stop(), "outage", "connection refused"),
        (&|| api.fault(Fault::status(403)), "operator", "HTTP 403"),
        (&|| api.rule(Rule::new(Fault::code(500)).on(Endpoint::PubConfig)), "profile_unknown", "code 500"),
    ];
    for (close, kind, reason) in closings {
        close();
        if kind == "profile_unknown" {
            // It is asked for after a lost connection.
            api.rule(Rule::new(Fault::ResetBeforeCommit).times(1));
        }
        say(&daemon, MAC, "s", "during");
        soon(&format!("{kind}: closed"), || daemon.status()["gate"]["kind"] == kind);
        let gate = daemon.status()["gate"].clone();
        assert!(gate["reason"].as_str().is_some_and(|text| text.contains(reason)), "{kind}: {gate}");
        assert!(gate["since_seconds"].is_u64(), "{gate}");
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, "s");
        agent.say(1, "and I want to know");
        let asked = Instant::now();
        let flushed = agent.flush("delivered");
        assert_eq!(flushed["ok"], false, "{flushed}");
        assert!(flushed["pending"].as_u64() >= Some(1) && flushed["reason"].is_string(), "{flushed}");
        assert!(asked.elapsed() < Duration::from_secs(5), "the answer took {:?}", asked.elapsed());
        assert_eq!(agent.flush("durable")["ok"], true, "durability does not depend on the gate");
        api.clear_faults();
        if kind == "outage" {
            api.start_again();
        }
        soon("open again", || daemon.status()["gate"]["state"] == "open" && daemon.metric("pending") == 0);
        assert_eq!(agent.flush("delivered")["ok"], true);
    }
    check_books(&daemon);
}

#[test]
fn one_probe_at_a_time_knocks_while_old_reports_still_hang() {
    let (api, _) = ground(Variant::Fork);
    for mac in [OTHER_MAC, "02:00:00:00:00:01", "02:00:00:00:00:02"] {
        api.register(mac);
    }
    let daemon =
        Daemon::builder().api(&api).set("manager_api.timeout", "'3s'").set("manager_api.connect_timeout", "'3s'").start();
    // Three reports hang; the fourth learns that the secret is wrong, and the knocks hang, too.
    for index in 0..3 {
        api.rule(Rule::new(Fault::HangBeforeHeaders).session(&format!("hangs-{index}")).times(1));
        say(&daemon, MAC, &format!("hangs-{index}"), "Hello");
    }
    soon("three hang", || api.reports().len() == 3);
    api.rule(Rule::new(Fault::status(401)).session("refused").times(1));
    // The rules for sessions come first: these are for the knocks.
    api.rule(Rule::new(Fault::HangBeforeHeaders).times(2));
    let before = Instant::now();
    say(&daemon, MAC, "refused", "Hello");
    soon("the gate is closed", || daemon.status()["gate"]["kind"] == "operator");
    soon("all is through", || daemon.metric("pending") == 0);
    let mut knocks: Vec<_> = api.requests().into_iter().filter(|request| request.at > before).collect();
    knocks.sort_by_key(|knock| knock.at);
    // The report that closed the gate is none.
    knocks.remove(0);
    let taken = knocks.iter().position(|knock| knock.row.is_some()).unwrap();
    assert!(knocks.iter().take(taken).filter(|knock| knock.faulted).count() == 2, "two knocks hung");
    for pair in knocks[..=taken].windows(2) {
        assert!(pair[0].finished.is_some_and(|finished| finished <= pair[1].at), "two knocks at once");
    }
    assert_eq!(daemon.metric("rejected"), 0);
}
