use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn gate() -> Gate {
    Gate::new(4, Backoff::new(Duration::from_secs(1), Duration::from_secs(60)))
}

#[test]
fn eight_failures_in_a_row_are_an_outage_and_one_success_between_is_none() {
    let (mut gate, now) = (gate(), Instant::now());
    for _ in 0..7 {
        assert_eq!(gate.later("reset", false, None, now, 0.5), Change::None);
    }
    gate.accepted();
    for _ in 0..7 {
        assert_eq!(gate.later("reset", false, None, now, 0.5), Change::None);
    }
    assert_eq!(gate.later("reset", false, None, now, 0.5), Change::Closed);
    assert_eq!(gate.allowed(), 0);
}

#[test]
fn a_refused_connection_with_nothing_else_succeeding_closes_at_once() {
    let (mut gate, now) = (gate(), Instant::now());
    assert_eq!(gate.later("connection refused", true, None, now, 0.5), Change::Closed);
    assert!(gate.next_probe().is_some_and(|at| at > now), "the first knock has backoff, too");
    assert_eq!(gate.start_probe(now), None);
}

#[test]
fn one_probe_at_a_time_of_the_right_kind() {
    let (mut gate, now) = (gate(), Instant::now());
    gate.operator("wrong secret", now, 0.5);
    let later = now + Duration::from_secs(3600);
    assert_eq!(gate.start_probe(later), Some(Probe::EmptyReport));
    assert_eq!(gate.start_probe(later), None);
    gate.probe_over();
    assert_eq!(gate.later("timeout", false, None, later, 0.5), Change::Closed);
    let later = later + Duration::from_secs(3600);
    assert_eq!(gate.start_probe(later), Some(Probe::OldestMessage));
    gate.probe_over();
    assert_eq!(gate.accepted(), Change::Opened);
    gate.profile_unknown("html", later, 0.5);
    assert_eq!(gate.start_probe(later + Duration::from_secs(3600)), Some(Probe::Profile));
}

#[test]
fn concurrency_grows_one_by_one_after_it_opened_and_halves_on_trouble() {
    let (mut gate, now) = (gate(), Instant::now());
    gate.operator("wrong secret", now, 0.5);
    gate.start_probe(now + Duration::from_secs(1));
    gate.probe_over();
    assert_eq!(gate.welcomed(), Change::Opened);
    assert_eq!(gate.allowed(), 1);
    // One more for as many reports as may be in flight.
    for (accepted, allowed) in [(1, 2), (2, 2), (3, 3), (5, 3), (6, 4), (9, 4)] {
        gate.grow(accepted, gate.allowed());
        assert_eq!(gate.allowed(), allowed, "after {accepted}");
    }
    gate.later("busy", false, None, now, 0.5);
    assert_eq!(gate.allowed(), 2);
    gate.grow(10, 2);
    assert_eq!(gate.allowed(), 2, "what was accepted before is no credit");
    gate.later("busy", false, None, now, 0.5);
    assert_eq!(gate.allowed(), 1);
    gate.grow(16, 1);
    assert_eq!(gate.allowed(), 4, "told late of many, it has missed nothing");
}

#[test]
fn nothing_grows_behind_a_closed_gate_nor_while_fewer_or_more_than_may_take_turns() {
    let (mut gate, now) = (gate(), Instant::now());
    gate.operator("wrong secret", now, 0.5);
    gate.grow(100, 0);
    gate.start_probe(now + Duration::from_secs(1));
    gate.probe_over();
    assert_eq!(gate.welcomed(), Change::Opened);
    assert_eq!(gate.allowed(), 1);
    gate.grow(200, 2);
    assert_eq!(gate.allowed(), 1, "there are turns that began when more were let in");
    gate.grow(201, 1);
    assert_eq!(gate.allowed(), 2);
    gate.grow(300, 1);
    assert_eq!(gate.allowed(), 2, "nobody has seen what the server does with two");
    gate.grow(302, 2);
    assert_eq!(gate.allowed(), 3);
}

/// Rounds of as many reports at once as are let in: how many were accepted, how many failed, and what was let in on average.
fn rounds(mut gate: Gate, mut fails: impl FnMut(u64, usize) -> bool) -> (u64, u64, f64) {
    let (mut accepted, mut failed, mut sum) = (0, 0, 0);
    for round in 0..20_000 {
        let (began, at_once) = (accepted, gate.allowed());
        sum += at_once;
        let failures = (0..at_once).filter(|place| fails(round * 8 + *place as u64, *place)).count();
        accepted += (at_once - failures) as u64;
        gate.grow(accepted, at_once);
        for _ in 0..failures {
            failed += 1;
            gate.flowing();
            let _ = gate.blame(began);
            gate.later("busy", false, None, Instant::now(), 0.5);
        }
    }
    (accepted, failed, f64::from(u32::try_from(sum).unwrap()) / 20_000.0)
}

#[test]
fn a_server_that_takes_only_so_many_at_once_is_seldom_asked_for_more() {
    for most in 1..8 {
        let gate = Gate::new(8, Backoff::new(Duration::from_secs(1), Duration::from_secs(60)));
        let (accepted, failed, let_in) = rounds(gate, |_, place| place >= most);
        assert!(failed * 50 <= accepted, "{most} at once: {failed} failed, {accepted} accepted");
        assert!(let_in >= f64::from(u32::try_from(most).unwrap()) * 0.7, "{most} at once: {let_in} were let in");
    }
}

#[test]
fn failures_that_have_nothing_to_do_with_how_many_are_in_flight_cost_few_of_them() {
    let mut state = 1_u64;
    let (accepted, failed, let_in) = rounds(gate(), |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).is_multiple_of(50)
    });
    assert!(let_in >= 3.0, "{let_in} of 4 were let in, {failed} failed, {accepted} accepted");
}

#[test]
fn after_a_change_of_settings_it_grows_into_what_may_be_in_flight() {
    let (mut gate, now) = (gate(), Instant::now());
    let backoff = || Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    gate.later("busy", false, None, now, 0.5);
    gate.reconfigure(1, backoff());
    assert_eq!((gate.allowed(), gate.turns()), (1, TURNS_A_REQUEST));
    gate.reconfigure(8, backoff());
    assert_eq!((gate.allowed(), gate.turns()), (1, 1), "a reload is no proof that the server is well");
    gate.grow(100, 1);
    assert_eq!(gate.allowed(), 8);
    gate.grow(1_000, 8);
    gate.reconfigure(16, backoff());
    gate.grow(1_001, 8);
    assert_eq!(gate.allowed(), 8, "what was accepted while there was no more to let in is no credit");
}

#[test]
fn more_sessions_take_turns_than_requests_are_allowed_only_when_it_is_wide_open() {
    let (mut gate, now) = (gate(), Instant::now());
    assert_eq!((gate.allowed(), gate.turns()), (4, 4 * TURNS_A_REQUEST));
    gate.later("busy", false, None, now, 0.5);
    assert_eq!((gate.allowed(), gate.turns()), (2, 2));
    gate.operator("wrong secret", now, 0.5);
    assert_eq!((gate.allowed(), gate.turns()), (0, 0));
}

#[test]
fn three_different_refused_sessions_close_the_gate_and_an_acceptance_between_does_not() {
    let (mut gate, now) = (gate(), Instant::now());
    let session = SessionKey;
    for _ in 0..10 {
        assert_eq!(gate.refused(session(1), "x", now, 0.5), Change::None);
    }
    gate.refused(session(2), "x", now, 0.5);
    gate.accepted();
    gate.refused(session(3), "x", now, 0.5);
    assert_eq!(gate.refused(session(1), "x", now, 0.5), Change::None);
    assert_eq!(gate.refused(session(2), "x", now, 0.5), Change::Closed);
}

#[test]
fn knocks_come_slower_until_something_is_accepted() {
    let (mut gate, mut now) = (gate(), Instant::now());
    let mut delays = Vec::new();
    gate.later("down", true, None, now, 1.0);
    for _ in 0..8 {
        let at = gate.next_probe().unwrap();
        delays.push(at - now);
        now = at;
        gate.start_probe(now).unwrap();
        gate.probe_over();
        gate.later("down", true, None, now, 1.0);
    }
    assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]), "{delays:?}");
    assert_eq!(delays.last().copied(), Some(Duration::from_secs(60)));
}

#[test]
fn what_was_under_way_when_it_closed_neither_opens_it_nor_knocks_nor_ends_the_knock() {
    let (mut gate, now) = (gate(), Instant::now());
    gate.operator("wrong secret", now, 0.5);
    let at = gate.next_probe().unwrap();
    assert_eq!((gate.accepted(), gate.answered()), (Change::None, Change::None), "accepted under the old secret");
    assert_eq!(gate.later("timeout", true, None, now, 0.5), Change::None);
    assert_eq!((gate.closed().unwrap().0.kind(), gate.next_probe()), ("operator", Some(at)));
    assert_eq!(gate.start_probe(at), Some(Probe::EmptyReport));
    gate.later("timeout", true, None, at, 0.5);
    gate.operator("still wrong", at, 0.5);
    gate.probe_judged(at);
    assert_eq!(gate.start_probe(at + Duration::from_secs(3600)), None, "one knock at a time");
    gate.probe_over();
    assert_eq!(gate.welcomed(), Change::Opened);
}

#[test]
fn the_next_knock_honours_what_the_server_asks_for() {
    let (mut gate, now, minutes) = (gate(), Instant::now(), Duration::from_secs(600));
    for _ in 0..8 {
        gate.later("HTTP 503", false, Some(minutes), now, 0.0);
    }
    assert_eq!(gate.next_probe(), Some(now + minutes));
    gate.later("HTTP 503", false, Some(2 * minutes), now, 0.0);
    assert_eq!(gate.next_probe(), Some(now + 2 * minutes), "by the word of one that was under way");
    let now = now + 2 * minutes;
    gate.start_probe(now).unwrap();
    gate.probe_over();
    gate.later("HTTP 429", false, Some(minutes), now, 0.0);
    assert!(gate.next_probe() >= Some(now + minutes));
}

#[test]
fn a_reload_during_a_knock_is_not_forgotten() {
    let (mut gate, now) = (gate(), Instant::now());
    gate.operator("wrong secret", now, 1.0);
    let now = now + Duration::from_secs(1);
    gate.start_probe(now).unwrap();
    gate.knock_now(now);
    gate.probe_over();
    gate.operator("wrong secret", now, 1.0);
    assert_eq!(gate.start_probe(now), Some(Probe::EmptyReport), "with the new secret, at once");
    gate.probe_over();
    gate.operator("wrong secret", now, 1.0);
    assert_eq!(gate.start_probe(now), None, "and only once");
}

#[test]
fn failures_between_acceptances_are_no_outage() {
    let (mut gate, now) = (gate(), Instant::now());
    for _ in 0..100 {
        assert_eq!(gate.later("code 500", false, None, now, 0.5), Change::None);
        gate.flowing();
    }
}

proptest! {
    #[test]
    fn the_gate_never_sticks_and_knocks_one_at_a_time(events in prop::collection::vec(0_u8..12, 0..200)) {
        let (mut gate, mut now, mut under_way, mut accepted) = (gate(), Instant::now(), false, 0);
        for event in events {
            now += Duration::from_secs(1);
            match event {
                0 => { gate.accepted(); }
                1 => { gate.answered(); }
                2 => { gate.later("x", false, None, now, 0.3); }
                3 => { gate.later("x", true, Some(Duration::from_secs(1)), now, 0.3); }
                4 => { gate.operator("x", now, 0.3); }
                5 => { gate.refused(SessionKey(i64::from(event)), "x", now, 0.3); }
                6 => { gate.knock_now(now); }
                10 => { accepted += 3; gate.grow(accepted, gate.allowed()); }
                11 => drop(gate.blame(accepted)),
                7 | 8 if under_way => {
                    gate.probe_over();
                    match event {
                        7 => { gate.later("x", true, None, now, 0.3); }
                        _ => { gate.accepted(); }
                    }
                    gate.probe_judged(now);
                    under_way = false;
                }
                _ => {
                    let started = gate.start_probe(now).is_some();
                    prop_assert!(!(started && under_way), "two knocks at once");
                    under_way |= started;
                }
            }
            // Open with room, or closed with a knock to come or under way.
            prop_assert!(gate.allowed() > 0 || gate.next_probe().is_some() || under_way);
            prop_assert!(gate.closed().is_some() || !under_way, "a knock is under way at an open gate");
            prop_assert!(gate.allowed() <= gate.concurrency());
        }
    }
}
