//! The oracle of every delivery test: an acknowledged line is an obligation, and at the end all obligations are met, in
//! order, byte for byte, with no more duplicates than the promises allow, and the books balance.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::agent::Producer;
use super::daemon::{Daemon, metric};
use super::eventually::{SOON, eventually};
use super::manager_api::{ManagerApi, Row};

/// Descriptors a daemon may hold beyond its baseline: three more readers of the store with two files each, five connections
/// to the API (four requests, one probe or question), and the search index while it is fed.
const POOLED: usize = 16;

/// A device that belongs to the oracle alone.
const FRESH_MAC: &str = "02:00:00:00:fe:5f";

/// One message that a producer sent.
#[derive(Clone, Debug)]
struct Owed {
    chat_type: u8,
    content: String,
    /// Acknowledged: must arrive. Otherwise it may.
    must: bool,
}

/// What must be true at the end.
#[derive(Default)]
pub struct Oracle {
    owed: BTreeMap<(String, String), Vec<Owed>>,
    baseline_fds: Option<usize>,
    allowed_duplicates: u64,
    gone_ambiguous: u64,
}

/// A message as it arrived: its parts joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The UUID of its `Idempotency-Key`.
    pub key: String,
    /// 1 the user, 2 the agent, 3 a tool.
    pub chat_type: i8,
    /// The text, joined from its parts in the order of their offsets.
    pub content: String,
    /// `created_at` of its first part.
    pub created_at_ms: i64,
    /// How many rows its parts have, repetitions not counted.
    pub parts: usize,
}

impl Oracle {
    /// Takes the daemon's descriptors as the baseline.
    pub fn new(daemon: &Daemon) -> Self {
        Self { baseline_fds: Some(daemon.fd_count()), ..Self::default() }
    }

    /// Everything a producer said: what is acknowledged must arrive, the rest may. Ask it as late as possible; asking
    /// again replaces what was owed for that session.
    pub fn owe(&mut self, producer: &Producer) {
        let acked = producer.acked();
        let owed = producer.said().iter().map(|said| Owed {
            chat_type: said.chat_type,
            content: said.content.clone(),
            must: said.seq <= acked,
        });
        self.owed.insert((producer.mac.clone(), producer.session_id.clone()), owed.collect());
    }

    /// One more message that must arrive, for producers that are no [`Producer`].
    pub fn owe_message(&mut self, mac: &str, session_id: &str, chat_type: u8, content: &str) {
        let owed = Owed { chat_type, content: content.to_owned(), must: true };
        self.owed.entry((mac.to_owned(), session_id.to_owned())).or_default().push(owed);
    }

    /// Call right before each `kill -9`: at most two messages of each session being sent may come twice, and the
    /// daemon's own count of ambiguous attempts ends with it.
    pub fn before_kill(&mut self, daemon: &Daemon, sessions_being_sent: u64) {
        if let Some(status) = daemon.try_status() {
            self.gone_ambiguous += metric(&status, "ambiguous");
        }
        self.allowed_duplicates += 2 * sessions_being_sent;
    }

    /// So many duplicates may come of kills that happened out of its sight.
    pub fn allow_duplicates(&mut self, count: u64) {
        self.allowed_duplicates += count;
    }

    /// Call right before an orderly restart: the daemon's count of ambiguous attempts begins anew.
    pub fn before_restart(&mut self, daemon: &Daemon) {
        self.gone_ambiguous += metric(&daemon.status(), "ambiguous");
    }

    /// Waits until every obligation has arrived, and checks everything of promises P1, P6 and P7.
    #[track_caller]
    pub fn check(&self, daemon: &Daemon, api: &ManagerApi) {
        self.check_arrivals(api);
        self.check_duplicates(daemon, api);
        check_fresh(daemon, api);
        check_books(daemon);
        self.check_descriptors(daemon);
    }

    /// Every obligation arrived, in order, byte for byte.
    #[track_caller]
    pub fn check_arrivals(&self, api: &ManagerApi) {
        for ((mac, session_id), owed) in &self.owed {
            let session_id = &api.stored_session_id(session_id);
            let mut last = Vec::new();
            let deadline = std::time::Instant::now() + SOON;
            eventually(SOON * 2, "every acknowledged message is stored", || {
                last = arrived(api, session_id);
                let problem = compare(owed, &last);
                let late = std::time::Instant::now() > deadline;
                assert!(problem.is_none() || !late, "session {session_id}: {}", problem.unwrap_or_default());
                problem.is_none().then_some(())
            });
            let rows = api.rows(session_id);
            assert!(rows.iter().all(|row| row.mac == *mac), "session {session_id}: stored for another device");
            let times: Vec<i64> = last.iter().map(|message| message.created_at_ms).collect();
            assert!(times.is_sorted(), "session {session_id}: its stored times fall: {times:?}");
        }
        // After a kill the server may still be at work for the dead one when the next one sends again.
        assert!(self.allowed_duplicates > 0 || !api.overlap().1, "two reports of one session were in flight at once");
    }

    /// No more duplicates than ambiguous attempts and kills allow, and all under the same key.
    #[track_caller]
    fn check_duplicates(&self, daemon: &Daemon, api: &ManagerApi) {
        let rows: Vec<String> = api.keys().into_values().collect();
        let unique: HashSet<&String> = rows.iter().collect();
        let duplicates = (rows.len() - unique.len()) as u64;
        let ambiguous = self.gone_ambiguous + metric(&daemon.status(), "ambiguous");
        assert!(
            duplicates <= ambiguous + self.allowed_duplicates,
            "{duplicates} duplicates, but only {ambiguous} ambiguous attempts and {} allowed for kills",
            self.allowed_duplicates
        );
    }

    #[track_caller]
    fn check_descriptors(&self, daemon: &Daemon) {
        let Some(baseline) = self.baseline_fds else { return };
        let mut now = 0;
        eventually(SOON, "the descriptors are back to the baseline", || {
            now = daemon.fd_count();
            let producers = metric(&daemon.status(), "connections") as usize;
            (now <= baseline + POOLED + producers).then_some(())
        });
    }
}

/// Something new still gets through.
#[track_caller]
pub fn check_fresh(daemon: &Daemon, api: &ManagerApi) {
    if api.devices(FRESH_MAC) == 0 {
        api.register(FRESH_MAC);
    }
    let session_id = format!("fresh-{}", uuid::Uuid::now_v7().simple());
    let mut producer = Producer::connected(daemon, FRESH_MAC, &session_id);
    producer.say(1, "still there?");
    producer.wait_until_acked();
    producer.agent().end();
    let rows = api.wait_for_rows(&session_id, 1);
    assert_eq!(rows[0].content, "still there?");
}

/// received + pending and held at start = delivered + pending + held + rejected + skipped.
#[track_caller]
pub fn check_books(daemon: &Daemon) {
    let mut last = Value::Null;
    let end = std::time::Instant::now() + SOON;
    eventually(SOON * 2, "the books balance", || {
        last = daemon.status();
        let sum = |names: &[&str]| names.iter().map(|name| metric(&last, name)).sum::<u64>();
        let came = sum(&["received", "pending_at_start", "held_at_start"]);
        let went = sum(&["delivered", "pending", "held", "rejected", "skipped"]);
        assert!(came == went || std::time::Instant::now() < end, "the books do not balance, {came} came and {went} went: {last}");
        (came == went).then_some(())
    });
}

/// The messages of a session in the order of their first appearance in MariaDB, parts joined, repetitions left out.
///
/// # Panics
/// When a repetition differs from the first copy, or a row came without an `Idempotency-Key`.
#[track_caller]
pub fn arrived(api: &ManagerApi, session_id: &str) -> Vec<Arrived> {
    // Rows first: a report recorded after this look belongs to the next look.
    let rows = api.rows(session_id);
    let keys = api.keys();
    let mut order: Vec<String> = Vec::new();
    let mut parts: HashMap<String, BTreeMap<usize, Row>> = HashMap::new();
    for row in rows {
        // The stand-in notes the row's id a moment after the commit.
        let Some(key) = keys.get(&row.id) else { break };
        let (uuid, offset) = split_key(key);
        if !parts.contains_key(uuid) {
            order.push(uuid.to_owned());
        }
        let of_message = parts.entry(uuid.to_owned()).or_default();
        if let Some(first) = of_message.get(&offset) {
            let same = (&first.content, first.chat_type, first.created_at_ms) == (&row.content, row.chat_type, row.created_at_ms);
            assert!(same, "two different reports under the key {key}");
        } else {
            of_message.insert(offset, row);
        }
    }
    order
        .into_iter()
        .map(|key| {
            let parts = &parts[&key];
            let first = parts.values().next().expect("at least one");
            let content = parts.values().map(|row| row.content.as_str()).collect();
            Arrived { key, chat_type: first.chat_type, content, created_at_ms: first.created_at_ms, parts: parts.len() }
        })
        .collect()
}

/// `<uuid>` or `<uuid>-<byte offset>`.
#[track_caller]
fn split_key(key: &str) -> (&str, usize) {
    let uuid = key.get(..36).unwrap_or_else(|| panic!("the Idempotency-Key {key:?} is no UUID"));
    assert!(uuid.parse::<uuid::Uuid>().is_ok(), "the Idempotency-Key {key:?} is no UUID");
    match key[36..].strip_prefix('-') {
        None => (uuid, 0),
        Some(offset) => (uuid, offset.parse().unwrap_or_else(|_| panic!("no offset in the Idempotency-Key {key:?}"))),
    }
}

/// What is wrong, if anything.
fn compare(owed: &[Owed], arrived: &[Arrived]) -> Option<String> {
    let mut expected = owed.iter().enumerate();
    for (place, message) in arrived.iter().enumerate() {
        loop {
            let Some((index, next)) = expected.next() else {
                return Some(format!("arrival {place} was never said, or is altered or out of order: {:?}", message.content));
            };
            if next.content == message.content && i8::try_from(next.chat_type) == Ok(message.chat_type) {
                break;
            }
            if next.must {
                return Some(format!("message {index} {:?} is owed, but arrival {place} is {:?}", next.content, message.content));
            }
        }
    }
    let missing = expected.filter(|(_, next)| next.must).count();
    (missing > 0).then(|| format!("{missing} acknowledged messages have not arrived ({} have)", arrived.len()))
}

/// An oracle that cannot say no would be worth nothing.
mod tests {
    use super::{Arrived, Owed, compare, split_key};

    fn owed(texts: &[(&str, bool)]) -> Vec<Owed> {
        texts.iter().map(|(text, must)| Owed { chat_type: 1, content: (*text).to_owned(), must: *must }).collect()
    }

    fn came(texts: &[&str]) -> Vec<Arrived> {
        let message =
            |text: &&str| Arrived { key: String::new(), chat_type: 1, content: (*text).to_owned(), created_at_ms: 0, parts: 1 };
        texts.iter().map(message).collect()
    }

    #[test]
    fn the_oracle_accepts_what_is_promised() {
        let all = owed(&[("a", true), ("b", true), ("b", true), ("c", false)]);
        assert_eq!(compare(&all, &came(&["a", "b", "b"])), None);
        assert_eq!(compare(&all, &came(&["a", "b", "b", "c"])), None, "what was not acknowledged may arrive");
        assert_eq!(compare(&owed(&[("a", false), ("b", true)]), &came(&["b"])), None);
    }

    #[test]
    fn the_oracle_sees_loss_disorder_alteration_and_invention() {
        let all = owed(&[("a", true), ("b", true), ("c", true)]);
        for wrong in [
            &["a", "b"][..],
            &["a", "c", "b"],
            &["b", "a", "c"],
            &["a", "B", "c"],
            &["a", "b", "c", "d"],
            &["a", "b", "b", "c"],
            &[],
        ] {
            assert!(compare(&all, &came(wrong)).is_some(), "{wrong:?}");
        }
        let mut other_role = came(&["a", "b", "c"]);
        other_role[1].chat_type = 2;
        assert!(compare(&all, &other_role).is_some());
    }

    #[test]
    fn a_part_is_told_from_its_message_by_the_key() {
        let uuid = "01890000-0000-7000-8000-000000000001";
        assert_eq!(split_key(uuid), (uuid, 0));
        assert_eq!(split_key(&format!("{uuid}-1020")), (uuid, 1020));
    }
}
