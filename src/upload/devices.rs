//! The devices the server does not know: all their sessions wait, one message at a time tries again, and other devices
//! flow. Pure but for the instants it is given.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::{MacAddress, UnixMillis};
use crate::store::{SessionKey, WaitingDevice};

/// All waiting devices.
#[derive(Default)]
pub(super) struct Devices {
    waiting: HashMap<MacAddress, Device>,
    timers: BTreeSet<(Instant, MacAddress)>,
}

struct Device {
    record: WaitingDevice,
    parked: Vec<SessionKey>,
    /// A message of it may try.
    trying: bool,
}

/// Whether a session may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// Its device is not known to be unregistered.
    Free,
    /// One message of it tries whether the device is registered by now.
    Trial,
    /// As [`Self::Trial`], but the hold is over: refused once more, what waits for that long is rejected.
    HoldIsOver,
    /// It waits: it is parked here and to be parked in the queue.
    Parked,
}

/// A device's answer was "unregistered".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Noted {
    /// It was not known before: worth a log line.
    pub(super) fresh: bool,
    /// To be written down, when the number of its tries changed.
    pub(super) record: Option<WaitingDevice>,
}

impl Devices {
    /// A device that was waiting when the daemon stopped: its first message tries at once.
    pub(super) fn restore(&mut self, record: WaitingDevice) {
        self.waiting.insert(record.mac, Device { record, parked: Vec::new(), trying: true });
    }

    pub(super) fn is_waiting(&self, mac: MacAddress) -> bool {
        self.waiting.contains_key(&mac)
    }

    /// Devices with sessions that wait.
    pub(super) fn count(&self) -> usize {
        self.waiting.values().filter(|device| !device.parked.is_empty()).count()
    }

    /// Whether a session of the device may be sent now. Its hold is counted in tries, that of each message is told by
    /// [`super::ages`]: a jump of the clock rejects nothing.
    pub(super) fn admit(&mut self, key: SessionKey, mac: MacAddress, retry: Duration, hold: Duration) -> Admission {
        let Some(device) = self.waiting.get_mut(&mac) else { return Admission::Free };
        if !device.trying {
            device.parked.push(key);
            return Admission::Parked;
        }
        let tries = hold.as_millis().div_ceil(retry.as_millis().max(1)).max(1);
        if u128::from(device.record.tries) >= tries { Admission::HoldIsOver } else { Admission::Trial }
    }

    /// The server does not know the device of this session: it is parked here.
    pub(super) fn unregistered(&mut self, key: SessionKey, mac: MacAddress, since: UnixMillis, next: Instant) -> Noted {
        let fresh = !self.waiting.contains_key(&mac);
        let new = || Device { record: WaitingDevice { mac, since, tries: 0 }, parked: Vec::new(), trying: true };
        let device = self.waiting.entry(mac).or_insert_with(new);
        device.parked.push(key);
        if !device.trying {
            // Another session of it was under way at the same time.
            return Noted { fresh, record: None };
        }
        device.trying = false;
        device.record.tries = device.record.tries.saturating_add(1);
        self.timers.insert((next, mac));
        Noted { fresh, record: Some(device.record.clone()) }
    }

    /// The device is registered now: the sessions that waited.
    pub(super) fn registered(&mut self, mac: MacAddress) -> Option<Vec<SessionKey>> {
        self.waiting.remove(&mac).map(|device| device.parked)
    }

    /// Another server may know them all: those that waited, and their sessions.
    pub(super) fn forget(&mut self) -> Vec<(MacAddress, Vec<SessionKey>)> {
        self.timers.clear();
        self.waiting.drain().map(|(mac, device)| (mac, device.parked)).collect()
    }

    /// Nothing of the device is left to wait for, or one parked session of it is to try.
    pub(super) fn next_trial(&mut self, mac: MacAddress) -> Option<SessionKey> {
        let device = self.waiting.get_mut(&mac)?;
        device.trying = true;
        (!device.parked.is_empty()).then(|| device.parked.remove(0))
    }

    /// A session has nothing left to send, whatever became of it: where it was to try, another one that is parked is to.
    pub(super) fn left(&mut self, key: SessionKey, mac: MacAddress) -> Option<SessionKey> {
        let device = self.waiting.get_mut(&mac)?;
        let before = device.parked.len();
        device.parked.retain(|parked| *parked != key);
        let may_have_tried = device.trying && device.parked.len() == before;
        if may_have_tried { self.next_trial(mac) } else { None }
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// A device whose next try is due.
    pub(super) fn pop_timer(&mut self, now: Instant) -> Option<MacAddress> {
        let &(_, mac) = self.timers.first().filter(|(at, _)| *at <= now)?;
        self.timers.pop_first();
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(300);
    const HOLD: Duration = Duration::from_secs(900);
    const MAC: MacAddress = MacAddress::from_octets([1; 6]);
    const OTHER: MacAddress = MacAddress::from_octets([2; 6]);

    #[test]
    fn only_the_unregistered_device_waits_and_one_session_tries() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        let key = SessionKey;
        let noted = devices.unregistered(key(1), MAC, UnixMillis(5), now + RETRY);
        assert_eq!(noted.record.map(|record| record.tries), Some(1));
        assert_eq!(devices.unregistered(key(2), MAC, UnixMillis(5), now + RETRY).record, None, "it was under way meanwhile");
        assert_eq!(devices.admit(key(3), MAC, RETRY, HOLD), Admission::Parked);
        assert_eq!(devices.admit(key(4), OTHER, RETRY, HOLD), Admission::Free);
        assert_eq!(devices.pop_timer(now), None);
        assert_eq!(devices.pop_timer(now + RETRY), Some(MAC));
        assert_eq!(devices.next_trial(MAC), Some(key(1)));
        assert_eq!(devices.admit(key(1), MAC, RETRY, HOLD), Admission::Trial);
        assert_eq!(devices.registered(MAC), Some(vec![key(2), key(3)]));
        assert!(!devices.is_waiting(MAC));
    }

    #[test]
    fn a_device_whose_hold_is_over_goes_on_being_asked_about() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        for _ in 0..3 {
            devices.unregistered(SessionKey(1), MAC, UnixMillis(5), now + RETRY);
            devices.next_trial(MAC);
        }
        // All its sessions were given up: the next message that comes may try.
        assert_eq!(devices.count(), 0);
        assert_eq!(devices.admit(SessionKey(2), MAC, RETRY, HOLD), Admission::HoldIsOver);
        devices.unregistered(SessionKey(2), MAC, UnixMillis(5), now + RETRY);
        assert_eq!(devices.admit(SessionKey(3), MAC, RETRY, HOLD), Admission::Parked);
        assert_eq!((devices.next_trial(MAC), devices.next_trial(MAC)), (Some(SessionKey(2)), Some(SessionKey(3))));
        assert_eq!(devices.registered(MAC), Some(Vec::new()));
        assert_eq!(devices.admit(SessionKey(3), MAC, RETRY, HOLD), Admission::Free);
    }

    #[test]
    fn when_the_session_that_tries_leaves_the_next_one_tries_and_a_parked_one_may_leave() {
        let (mut devices, now, key) = (Devices::default(), Instant::now(), SessionKey);
        for parked in 1..=4 {
            devices.unregistered(key(parked), MAC, UnixMillis(5), now + RETRY);
        }
        assert_eq!(devices.left(key(2), MAC), None, "it was parked, and nobody tries before the time");
        assert_eq!(devices.next_trial(MAC), Some(key(1)));
        assert_eq!(devices.left(key(3), MAC), None, "another one tries");
        assert_eq!(devices.left(key(1), MAC), Some(key(4)));
        assert_eq!((devices.left(key(4), MAC), devices.count()), (None, 0));
        assert_eq!(devices.left(key(5), OTHER), None);
    }

    #[test]
    fn the_hold_is_over_after_as_many_tries_as_fit_into_it() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        for tries in 1..=3 {
            devices.unregistered(SessionKey(1), MAC, UnixMillis(5), now + RETRY);
            let key = devices.next_trial(MAC).unwrap();
            let expected = if tries < 3 { Admission::Trial } else { Admission::HoldIsOver };
            assert_eq!(devices.admit(key, MAC, RETRY, HOLD), expected);
        }
    }
}
