//! The order within a session holds, whatever happens between two of its messages.

use crate::support::oracle::{arrived, check_books};
use crate::support::{Daemon, Fault, ManagerApi, Oracle, Producer, Rule, Variant, soon};

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
