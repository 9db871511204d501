//! What of the history is asked for: device, agent, session, time, state. Pure: it is given "now".
//!
//! Promises: a time means one moment in UTC; a date as the end includes that day.
//! Refuses: times it would have to guess.

use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use super::MessageRecord;
use crate::protocol::{MacAddress, SessionId, UnixMillis};
use crate::store::archive::{SessionEntry, SessionQuery};

const DAY_MS: i64 = 86_400_000;

/// A moment or a day on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// A moment.
    At(UnixMillis),
    /// A whole day in UTC, by its first moment.
    Day(UnixMillis),
    /// So long ago.
    Ago(Duration),
    /// A whole day, so many days ago.
    DaysAgo(i64),
}

/// A text that is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no time: 2025-09-24, 2025-09-24T08:19:33Z, 2h, 3 days, today or yesterday (all in UTC)")]
pub struct NoTime;

impl FromStr for When {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let text = text.trim();
        match text.to_ascii_lowercase().as_str() {
            "now" => return Ok(Self::Ago(Duration::ZERO)),
            "today" => return Ok(Self::DaysAgo(0)),
            "yesterday" => return Ok(Self::DaysAgo(1)),
            _ => {}
        }
        // A time zone by its name would be read over.
        if text.contains('[') {
            return Err(NoTime);
        }
        if let Ok(moment) = text.parse::<Timestamp>() {
            return Ok(Self::At(UnixMillis(moment.as_millisecond())));
        }
        let midnight = |moment: DateTime| moment.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp().as_millisecond());
        // `Date` takes a date and time, too: the shorter form first.
        if text.len() == 10
            && let Some(day) =
                text.parse::<Date>().ok().and_then(|date| midnight(date.to_datetime(jiff::civil::Time::midnight())).ok())
        {
            return Ok(Self::Day(UnixMillis(day)));
        }
        if let Some(moment) = text.parse::<DateTime>().ok().filter(|_| text.len() > 10).and_then(|moment| midnight(moment).ok()) {
            return Ok(Self::At(UnixMillis(moment)));
        }
        let span = text.strip_suffix("ago").unwrap_or(text).trim();
        humantime::parse_duration(span).map(Self::Ago).map_err(|_| NoTime)
    }
}

impl When {
    fn first(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::At(moment) | Self::Day(moment) => moment,
            Self::Ago(span) => UnixMillis(now.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))),
            Self::DaysAgo(days) => UnixMillis((now.0.div_euclid(DAY_MS) - days) * DAY_MS),
        }
    }

    /// The moment as a beginning.
    #[must_use]
    pub fn as_from(self, now: UnixMillis) -> UnixMillis {
        self.first(now)
    }

    /// The moment as an end, which is not part of it: for a day, the beginning of the next.
    #[must_use]
    pub fn as_to(self, now: UnixMillis) -> UnixMillis {
        let whole_day = matches!(self, Self::Day(_) | Self::DaysAgo(_));
        UnixMillis(self.first(now).0.saturating_add(if whole_day { DAY_MS } else { 0 }))
    }
}

/// The state of a message, as a filter names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    /// Waits for delivery.
    Pending,
    /// The server has it.
    Delivered,
    /// It will never be delivered.
    Rejected,
    /// Kept here, never sent.
    Kept,
    /// Its row fails its checksum.
    Damaged,
    /// A transcript that waits for its item.
    Held,
}

impl State {
    /// Its name, as [`crate::store::MessageState`] has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Kept => "kept",
            Self::Damaged => "damaged",
            Self::Held => "held",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this device.
    pub mac: Option<MacAddress>,
    /// Of this agent.
    pub agent: Option<String>,
    /// Of this session.
    pub session: Option<SessionId>,
    /// Said at this moment or later.
    pub from: Option<UnixMillis>,
    /// Said before this moment.
    pub to: Option<UnixMillis>,
    /// In this state.
    pub state: Option<State>,
}

impl Filter {
    /// The sessions that may hold what is asked for. `exact`: the times are those of the sessions themselves; else of
    /// messages, which may be older than their session's row or younger than its end, so they decide.
    #[must_use]
    pub fn query(&self, exact: bool) -> SessionQuery {
        SessionQuery {
            mac: self.mac.map(|mac| mac.to_string()),
            agent: self.agent.clone(),
            session_id: self.session.as_ref().map(|id| id.as_str().to_owned()),
            from: self.from.filter(|_| exact),
            to: self.to.filter(|_| exact),
        }
    }

    /// Whether a session belongs into a list: the state is that of any of its messages.
    #[must_use]
    pub fn lists(&self, entry: &SessionEntry) -> bool {
        match self.state {
            None => true,
            Some(State::Pending) => entry.pending > 0,
            // It waits for its rejection among the pending ones; nobody knows it before it is read.
            Some(State::Damaged) => false,
            Some(State::Delivered) => entry.delivered > 0,
            Some(State::Rejected) => entry.rejected > 0,
            Some(State::Kept) => entry.kept > 0,
            Some(State::Held) => !entry.session.held.is_empty(),
        }
    }

    /// Whether a message is asked for.
    #[must_use]
    pub fn takes(&self, message: &MessageRecord) -> bool {
        self.takes_time(message.time) && self.state.is_none_or(|state| state.as_str() == message.state.as_str())
    }

    /// Whether held transcripts of this time are asked for.
    #[must_use]
    pub fn takes_held(&self, time: UnixMillis) -> bool {
        self.takes_time(time) && self.state.is_none_or(|state| state == State::Held)
    }

    fn takes_time(&self, time: UnixMillis) -> bool {
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// 2025-09-24T08:19:33Z
    const NOW: UnixMillis = UnixMillis(1_758_701_973_000);
    const MIDNIGHT: i64 = 1_758_672_000_000;

    fn from(text: &str) -> i64 {
        text.parse::<When>().unwrap().as_from(NOW).0
    }

    fn to(text: &str) -> i64 {
        text.parse::<When>().unwrap().as_to(NOW).0
    }

    #[test]
    fn dates_moments_and_spans_are_moments_in_utc() {
        assert_eq!(from("2025-09-24"), MIDNIGHT);
        assert_eq!(from("2025-09-24T08:19:33Z"), NOW.0);
        assert_eq!(from("2025-09-24 08:19:33Z"), NOW.0);
        assert_eq!(from("2025-09-24T10:19:33+02:00"), NOW.0);
        assert_eq!(from("2025-09-24T08:19:33"), NOW.0);
        assert_eq!(from("2h"), NOW.0 - 7_200_000);
        assert_eq!(from("2 hours ago"), NOW.0 - 7_200_000);
        assert_eq!(from("today"), MIDNIGHT);
        assert_eq!(from("Yesterday"), MIDNIGHT - DAY_MS);
        assert_eq!(from("now"), NOW.0);
    }

    #[test]
    fn a_day_as_the_end_is_part_of_it_and_a_moment_is_not() {
        assert_eq!(to("2025-09-24"), MIDNIGHT + DAY_MS);
        assert_eq!(to("yesterday"), MIDNIGHT);
        assert_eq!(to("2025-09-24T08:19:33Z"), NOW.0);
        assert_eq!(to("2h"), NOW.0 - 7_200_000);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "tomorrow-ish",
            "2025-13-01",
            "24.09.2025",
            "2025-09-24Tx",
            "12",
            "-2h",
            "2025-02-30",
            "1e9",
            "2025-09-24T10:00:00[Europe/Berlin]",
            "2025-09-24T10:00:00+02:00[Europe/Berlin]",
        ] {
            assert_eq!(text.parse::<When>(), Err(NoTime), "{text}");
        }
    }
}
