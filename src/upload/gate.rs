//! The gate: whether reports may be sent at all, how many at once, and when to knock while it is closed.
//!
//! Pure: it is given instants and random numbers. While it is closed nothing is dropped and one probe at a time knocks,
//! with backoff and jitter (on the first one, too, so that a fleet does not knock in step). Only the answer to a knock
//! opens it or sets the time of the next: what comes back from reports that were under way when it closed is old news.
//! After it opens, concurrency grows one by one while answers are good and halves on trouble. One more costs as many accepted
//! reports as may be in flight, times a price. The price doubles when attempts fail as soon as there is one more, for then the
//! server cannot take so many; it halves when they fail at another time.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::store::SessionKey;

/// Different sessions refused in a row, with nothing accepted between, that close the gate.
const REFUSED_SESSIONS: usize = 3;

/// Sessions that share a request's place when the gate is wide open. With one each, the places are empty half of the time
/// at a server that answers at once; the more there are, the more cursors share a sync. More than four gain little, and a kill
/// repeats messages of them all.
pub const TURNS_A_REQUEST: usize = 4;

/// The highest price of one more request in flight: a server that can take no more than it has fails at one of so many then.
const HIGHEST_PRICE: u64 = 64;

/// An attempt that began before so many answers for each request in flight since there was one more fails because of that one.
const SOON: u64 = 2;

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
    knock: Knock,
    /// Something changed while a knock was under way: when it fails, the next follows at once.
    hurry: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Knock {
    At(Instant),
    UnderWay,
    /// It came back, and its answer is being judged.
    Answered,
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    shut: Option<Shut>,
    concurrency: usize,
    allowed: usize,
    /// Reports accepted towards one more.
    credit: u64,
    /// What one more costs, in reports for each one that is allowed already.
    price: u64,
    /// Reports accepted by all so far.
    accepted: u64,
    /// How many they were when `allowed` grew last, until an attempt fails.
    grew_at: Option<u64>,
    later_in_a_row: usize,
    refused: Vec<SessionKey>,
    backoff: Backoff,
}

impl Gate {
    /// An open gate for at most `concurrency` requests at once.
    #[must_use]
    pub fn new(concurrency: usize, backoff: Backoff) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            shut: None,
            concurrency,
            allowed: concurrency,
            credit: 0,
            price: 1,
            accepted: 0,
            grew_at: None,
            later_in_a_row: 0,
            refused: Vec::new(),
            backoff,
        }
    }

    /// Takes over changed settings. Where more may be in flight, it grows into it.
    pub fn reconfigure(&mut self, concurrency: usize, backoff: Backoff) {
        self.concurrency = concurrency.max(1);
        self.allowed = self.allowed.min(self.concurrency);
        self.backoff = backoff;
    }

    /// Why it is closed, and since when; `None` while it is open.
    #[must_use]
    pub fn closed(&self) -> Option<(&Closed, Instant)> {
        self.shut.as_ref().map(|shut| (&shut.why, shut.since))
    }

    /// Requests that may be in flight when nothing is wrong.
    #[must_use]
    pub const fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Requests that may be in flight now.
    #[must_use]
    pub fn allowed(&self) -> usize {
        if self.shut.is_some() { 0 } else { self.allowed }
    }

    /// Sessions that may take turns now. Wide open, there are more than requests: some send while the cursors of others
    /// become durable.
    #[must_use]
    pub fn turns(&self) -> usize {
        let allowed = self.allowed();
        if allowed == self.concurrency { allowed * TURNS_A_REQUEST } else { allowed }
    }

    /// When to knock next; `None` while open or while a probe is under way.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        self.shut.as_ref().and_then(|shut| if let Knock::At(at) = shut.knock { Some(at) } else { None })
    }

    /// The probe that is due, which is then under way.
    pub fn start_probe(&mut self, now: Instant) -> Option<Probe> {
        let shut = self.shut.as_mut().filter(|shut| matches!(shut.knock, Knock::At(at) if at <= now))?;
        shut.knock = Knock::UnderWay;
        Some(match shut.why {
            Closed::Operator(_) => Probe::EmptyReport,
            Closed::Outage(_) => Probe::OldestMessage,
            Closed::ProfileUnknown(_) => Probe::Profile,
        })
    }

    /// The probe came back. Called before its answer is told.
    pub fn probe_over(&mut self) {
        if let Some(shut) = self.shut.as_mut().filter(|shut| shut.knock == Knock::UnderWay) {
            shut.knock = Knock::Answered;
        }
    }

    /// The probe told nothing about the server, or there was nothing to knock with: again, as soon as there is.
    pub fn probe_again(&mut self, now: Instant) {
        if let Some(shut) = self.shut.as_mut().filter(|shut| !matches!(shut.knock, Knock::At(_))) {
            shut.knock = Knock::At(now);
        }
    }

    /// The probe came back and was judged: one that told nothing is repeated.
    pub fn probe_judged(&mut self, now: Instant) {
        if self.is_answered() {
            self.probe_again(now);
        }
    }

    /// Knock at once (a new secret, new settings).
    pub fn knock_now(&mut self, now: Instant) {
        if let Some(shut) = &mut self.shut {
            match shut.knock {
                Knock::At(_) => shut.knock = Knock::At(now),
                Knock::UnderWay | Knock::Answered => shut.hurry = true,
            }
        }
    }

    /// Messages were accepted.
    pub fn accepted(&mut self) -> Change {
        self.flowing();
        if self.shut.is_none() || self.is_answered() {
            self.backoff.reset();
        }
        self.open()
    }

    /// So many reports were accepted by now, and so many sessions take turns: more may be in flight, if those that may be are.
    /// While there are turns that began when more were let in, what is accepted is no reason to let in more again.
    pub fn grow(&mut self, accepted: u64, sending: usize) {
        let more = accepted.saturating_sub(self.accepted);
        self.accepted = accepted;
        if self.shut.is_some() || self.allowed == self.concurrency || self.allowed != sending {
            return;
        }
        self.credit += more;
        while self.allowed < self.concurrency && self.credit >= self.cost() {
            self.credit -= self.cost();
            self.allowed += 1;
            self.grew_at = Some(accepted);
        }
        if self.allowed == self.concurrency {
            self.credit = 0;
        }
    }

    /// Reports that one more in flight costs.
    const fn cost(&self) -> u64 {
        self.allowed as u64 * self.price
    }

    /// An attempt failed that began when so many reports had been accepted: is it because one more was let in? It may also be
    /// one that began before. To be said before [`Self::later`].
    pub fn blame(&mut self, began: u64) -> bool {
        let Some(grew_at) = self.grew_at.take() else { return false };
        let soon = began < grew_at + SOON * self.allowed as u64;
        self.price = if soon { (2 * self.price).min(HIGHEST_PRICE) } else { (self.price / 2).max(1) };
        soon
    }

    /// Messages were accepted since the failure before: failures are not in a row.
    pub fn flowing(&mut self) {
        self.refused.clear();
        self.later_in_a_row = 0;
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
            let reason = format!("three sessions in a row were refused: {answer}");
            return self.close(Closed::Operator(reason), None, now, random);
        }
        self.open()
    }

    /// An attempt failed and is to be repeated. `unreachable`: a connection could not be made, and nothing was accepted since
    /// that attempt began. `wait`: the server's `Retry-After`, which the next knock honours.
    pub fn later(&mut self, reason: &str, unreachable: bool, wait: Option<Duration>, now: Instant, random: f64) -> Change {
        self.later_in_a_row += 1;
        (self.allowed, self.credit) = ((self.allowed / 2).max(1), 0);
        if self.shut.is_none() {
            let outage = unreachable || self.later_in_a_row >= 2 * self.concurrency;
            return if outage { self.close(Closed::Outage(reason.to_owned()), wait, now, random) } else { Change::None };
        }
        if self.is_answered() {
            return self.close(Closed::Outage(reason.to_owned()), wait, now, random);
        }
        // It was under way when the gate closed. Why that happened is known better; a wish to be left alone counts.
        if let (Some(wait), Some(Shut { knock: Knock::At(at), .. })) = (wait, self.shut.as_mut()) {
            *at = (*at).max(now + wait);
        }
        Change::None
    }

    /// An operator must act.
    pub fn operator(&mut self, reason: &str, now: Instant, random: f64) -> Change {
        self.close(Closed::Operator(reason.to_owned()), None, now, random)
    }

    /// The server does not say which profile it has.
    pub fn profile_unknown(&mut self, reason: &str, now: Instant, random: f64) -> Change {
        self.close(Closed::ProfileUnknown(reason.to_owned()), None, now, random)
    }

    fn is_answered(&self) -> bool {
        self.shut.as_ref().is_some_and(|shut| shut.knock == Knock::Answered)
    }

    fn open(&mut self) -> Change {
        if !self.is_answered() {
            return Change::None;
        }
        self.shut = None;
        (self.allowed, self.credit, self.price, self.grew_at) = (1, 0, 1, None);
        self.later_in_a_row = 0;
        Change::Opened
    }

    fn close(&mut self, why: Closed, wait: Option<Duration>, now: Instant, random: f64) -> Change {
        let before = self.shut.take();
        let knock = match &before {
            Some(shut) if shut.knock != Knock::Answered => shut.knock,
            Some(shut) if shut.hurry => Knock::At(now),
            _ => Knock::At(now + self.backoff.next_delay(wait, random)),
        };
        let hurry = before.as_ref().is_some_and(|shut| shut.hurry && shut.knock == Knock::UnderWay);
        let same = before.as_ref().is_some_and(|shut| shut.why.kind() == why.kind());
        let since = before.map_or(now, |shut| shut.since);
        self.shut = Some(Shut { why, since, knock, hurry });
        if same { Change::None } else { Change::Closed }
    }
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
