//! The gate: whether reports may be sent at all, how many sessions at once, and when to knock while it is closed.
//!
//! Pure: it is given instants and random numbers. While it is closed nothing is dropped and one probe at a time knocks,
//! with backoff and jitter (on the first one, too, so that a fleet does not knock in step). After it opens, concurrency
//! grows one by one while answers are good and halves on trouble.

use std::time::Instant;

use super::backoff::Backoff;
use crate::store::SessionKey;

/// Different sessions refused in a row, with nothing accepted between, that close the gate.
const REFUSED_SESSIONS: usize = 3;

/// Why the gate is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closed {
    /// An operator must act: secret, path, server. Probed by an empty report.
    Operator(String),
    /// The server cannot be reached or fails. Probed by the oldest due message itself.
    Outage(String),
    /// It is not known which time unit the server wants. Probed by asking for the profile.
    ProfileUnknown(String),
}

impl Closed {
    /// The kind, as status and metrics name it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Operator(_) => "operator",
            Self::Outage(_) => "outage",
            Self::ProfileUnknown(_) => "profile_unknown",
        }
    }

    /// What was said, for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Operator(reason) | Self::Outage(reason) | Self::ProfileUnknown(reason) => reason,
        }
    }
}

/// What to knock with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// `POST {}`.
    EmptyReport,
    /// The oldest due message.
    OldestMessage,
    /// `GET user/pub-config`.
    Profile,
}

/// What changed: one log line each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing to say.
    None,
    /// Closed, or closed for another kind of reason.
    Closed,
    /// Open again.
    Opened,
}

#[derive(Debug)]
struct Shut {
    why: Closed,
    since: Instant,
    next_probe: Instant,
    probing: bool,
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    shut: Option<Shut>,
    concurrency: usize,
    allowed: usize,
    later_in_a_row: usize,
    refused: Vec<SessionKey>,
    backoff: Backoff,
}

impl Gate {
    /// An open gate for at most `concurrency` sessions at once.
    #[must_use]
    pub fn new(concurrency: usize, backoff: Backoff) -> Self {
        let concurrency = concurrency.max(1);
        Self { shut: None, concurrency, allowed: concurrency, later_in_a_row: 0, refused: Vec::new(), backoff }
    }

    /// Takes over changed settings.
    pub fn reconfigure(&mut self, concurrency: usize, backoff: Backoff) {
        let concurrency = concurrency.max(1);
        if self.allowed == self.concurrency {
            self.allowed = concurrency;
        }
        self.concurrency = concurrency;
        self.allowed = self.allowed.min(concurrency);
        self.backoff = backoff;
    }

    /// Why it is closed, and since when; `None` while it is open.
    #[must_use]
    pub fn closed(&self) -> Option<(&Closed, Instant)> {
        self.shut.as_ref().map(|shut| (&shut.why, shut.since))
    }

    /// Sessions that may be sent at once now.
    #[must_use]
    pub fn allowed(&self) -> usize {
        if self.shut.is_some() { 0 } else { self.allowed }
    }

    /// When to knock next; `None` while open or while a probe is under way.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        self.shut.as_ref().filter(|shut| !shut.probing).map(|shut| shut.next_probe)
    }

    /// The probe that is due, which is then under way.
    pub fn start_probe(&mut self, now: Instant) -> Option<Probe> {
        let shut = self.shut.as_mut().filter(|shut| !shut.probing && shut.next_probe <= now)?;
        shut.probing = true;
        Some(match shut.why {
            Closed::Operator(_) => Probe::EmptyReport,
            Closed::Outage(_) => Probe::OldestMessage,
            Closed::ProfileUnknown(_) => Probe::Profile,
        })
    }

    /// There was nothing to knock with: tried again when there is.
    pub fn probe_impossible(&mut self) {
        if let Some(shut) = &mut self.shut {
            shut.probing = false;
        }
    }

    /// Knock at once (a new secret, new settings).
    pub fn knock_now(&mut self, now: Instant) {
        if let Some(shut) = &mut self.shut {
            shut.next_probe = now;
        }
    }

    /// A message was accepted.
    pub fn accepted(&mut self) -> Change {
        self.refused.clear();
        self.later_in_a_row = 0;
        self.backoff.reset();
        let change = self.open();
        if change == Change::None && self.allowed < self.concurrency {
            self.allowed += 1;
        }
        change
    }

    /// The server answered with something that is neither acceptance nor trouble.
    pub fn answered(&mut self) -> Change {
        self.later_in_a_row = 0;
        self.open()
    }

    /// The server is there and wants us, though it was no message that said so.
    pub fn welcomed(&mut self) -> Change {
        self.open()
    }

    /// A session's message was refused.
    pub fn refused(&mut self, session: SessionKey, answer: &str, now: Instant, random: f64) -> Change {
        if !self.refused.contains(&session) {
            self.refused.push(session);
        }
        self.later_in_a_row = 0;
        if self.refused.len() >= REFUSED_SESSIONS {
            self.refused.clear();
            return self.close(Closed::Operator(format!("three sessions in a row were refused: {answer}")), now, random);
        }
        self.open()
    }

    /// An attempt failed and is to be repeated. `alone`: a connection could not be made, and nothing was accepted since
    /// that attempt began.
    pub fn later(&mut self, reason: &str, alone: bool, now: Instant, random: f64) -> Change {
        self.later_in_a_row += 1;
        self.allowed = (self.allowed / 2).max(1);
        let outage = self.shut.is_some() || alone || self.later_in_a_row >= 2 * self.concurrency;
        if outage { self.close(Closed::Outage(reason.to_owned()), now, random) } else { Change::None }
    }

    /// An operator must act.
    pub fn operator(&mut self, reason: &str, now: Instant, random: f64) -> Change {
        self.close(Closed::Operator(reason.to_owned()), now, random)
    }

    /// The server does not say which profile it has.
    pub fn profile_unknown(&mut self, reason: &str, now: Instant, random: f64) -> Change {
        self.close(Closed::ProfileUnknown(reason.to_owned()), now, random)
    }

    fn open(&mut self) -> Change {
        if self.shut.take().is_none() {
            return Change::None;
        }
        self.allowed = 1;
        self.later_in_a_row = 0;
        Change::Opened
    }

    fn close(&mut self, why: Closed, now: Instant, random: f64) -> Change {
        let before = self.shut.take();
        let answered_probe = before.as_ref().is_none_or(|shut| shut.probing);
        let next_probe = match &before {
            // Reports that were still under way when the gate closed change nothing about the next knock.
            Some(shut) if !answered_probe => shut.next_probe,
            _ => now + self.backoff.next_delay(None, random),
        };
        let same = before.as_ref().is_some_and(|shut| shut.why.kind() == why.kind());
        let since = before.map_or(now, |shut| shut.since);
        self.shut = Some(Shut { why, since, next_probe, probing: false });
        if same { Change::None } else { Change::Closed }
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(gate.later("reset", false, now, 0.5), Change::None);
        }
        gate.accepted();
        for _ in 0..7 {
            assert_eq!(gate.later("reset", false, now, 0.5), Change::None);
        }
        assert_eq!(gate.later("reset", false, now, 0.5), Change::Closed);
        assert_eq!(gate.allowed(), 0);
    }

    #[test]
    fn a_refused_connection_with_nothing_else_succeeding_closes_at_once() {
        let (mut gate, now) = (gate(), Instant::now());
        assert_eq!(gate.later("connection refused", true, now, 0.5), Change::Closed);
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
        assert_eq!(gate.later("timeout", false, later, 0.5), Change::Closed);
        let later = later + Duration::from_secs(3600);
        assert_eq!(gate.start_probe(later), Some(Probe::OldestMessage));
        assert_eq!(gate.accepted(), Change::Opened);
        gate.profile_unknown("html", later, 0.5);
        assert_eq!(gate.start_probe(later + Duration::from_secs(3600)), Some(Probe::Profile));
    }

    #[test]
    fn concurrency_grows_one_by_one_after_it_opened_and_halves_on_trouble() {
        let (mut gate, now) = (gate(), Instant::now());
        gate.operator("wrong secret", now, 0.5);
        assert_eq!(gate.welcomed(), Change::Opened);
        assert_eq!(gate.allowed(), 1);
        for expected in [2, 3, 4, 4] {
            gate.accepted();
            assert_eq!(gate.allowed(), expected);
        }
        gate.later("busy", false, now, 0.5);
        assert_eq!(gate.allowed(), 2);
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
        gate.later("down", true, now, 1.0);
        for _ in 0..8 {
            let at = gate.next_probe().unwrap();
            delays.push(at - now);
            now = at;
            gate.start_probe(now).unwrap();
            gate.later("down", true, now, 1.0);
        }
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]), "{delays:?}");
        assert_eq!(delays.last().copied(), Some(Duration::from_secs(60)));
    }

    proptest! {
        #[test]
        fn the_gate_never_sticks(events in prop::collection::vec(0_u8..7, 0..200)) {
            let (mut gate, mut now) = (gate(), Instant::now());
            for event in events {
                now += Duration::from_secs(1);
                match event {
                    0 => { gate.accepted(); }
                    1 => { gate.answered(); }
                    2 => { gate.later("x", false, now, 0.3); }
                    3 => { gate.later("x", true, now, 0.3); }
                    4 => { gate.operator("x", now, 0.3); }
                    5 => { gate.refused(SessionKey(i64::from(event)), "x", now, 0.3); }
                    _ => { gate.start_probe(now); }
                }
                // Open with room, or closed with a knock to come or under way.
                let under_way = gate.shut.as_ref().is_some_and(|shut| shut.probing);
                prop_assert!(gate.allowed() > 0 || gate.next_probe().is_some() || under_way);
            }
        }
    }
}
