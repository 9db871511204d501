//! What one connection still has to say. Acks of a stream are coalesced and never dropped: the newest waits until the socket
//! takes it, or the connection goes over to another stream. All other replies to a client that does not read are dropped and counted.
//!
//! An ack is written by whoever settled the line, if the socket takes it: a thread less is woken on its way.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tracing::debug;

use super::stream::Stream;
use crate::observe::Metrics;
use crate::protocol::RefusalCode;
use crate::protocol::reply::Reply;
use crate::store::NoRoom;

/// Bytes of replies that may wait for a client.
const MAX_WAITING_BYTES: usize = 64 * 1024;

/// The replies and acks of one connection; shared with the store's thread, which settles lines.
pub struct Outbox {
    inner: Mutex<Inner>,
    changed: Notify,
    /// The connection's, as long as it lasts.
    socket: Weak<UnixStream>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    written: usize,
    /// Numbered lines in the order they were read: the number, and whether it is settled.
    open: VecDeque<(u64, bool)>,
    /// How many were taken off the front of `open`: makes tickets stable.
    taken: u64,
    /// The first place whose lines were not taken: it is never settled, and no ack reaches over it.
    hole: Option<u64>,
    /// The newest settled number that was not yet said.
    ack: Option<u64>,
    /// How many streams the connection has left.
    era: u64,
    /// A fatal reply was said: nothing more is read.
    closing: bool,
    /// The client will never hear anything again; it may have said much that is still to be read.
    deaf: bool,
    /// The connection waits for lines to be settled.
    watched: bool,
}

/// The place of a numbered line in the order of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Lines that were handed over together, as whoever cannot take them tells of them.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How many they are.
    pub lines: u64,
    /// The highest number among them.
    pub last_seq: Option<u64>,
    /// The place of that number, when its ack is wanted.
    pub ticket: Option<Ticket>,
    /// Whether the connection ends if they are not taken.
    pub fatal: bool,
    /// See [`Outbox::era`].
    pub era: u64,
}

impl Outbox {
    /// An empty outbox.
    #[must_use]
    pub fn new(socket: Weak<UnixStream>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: Notify::new(), socket, metrics })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something, unless too much is waiting already. After a fatal error only acks may follow, of lines before it.
    pub fn say(&self, reply: &Reply) {
        self.say_locked(self.inner(), reply);
    }

    fn say_locked(&self, mut inner: MutexGuard<'_, Inner>, reply: &Reply) {
        if inner.closing {
            drop(inner);
            self.changed.notify_one();
            return;
        }
        let fatal = matches!(reply, Reply::Error { fatal: true, .. });
        inner.closing = fatal;
        if inner.deaf || inner.bytes.len() - inner.written >= MAX_WAITING_BYTES {
            self.metrics.replies_dropped.increment();
        } else {
            reply.encode(&mut inner.bytes);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Opens a place for a numbered line (or for a run of lines, by its last number).
    pub fn open(&self, seq: u64) -> Ticket {
        let mut inner = self.inner();
        inner.open.push_back((seq, false));
        Ticket(inner.taken + inner.open.len() as u64 - 1)
    }

    /// The line is settled; it is acked as soon as all earlier ones are, too.
    pub fn settle(&self, ticket: Ticket) {
        let mut inner = self.inner();
        // It may be one of a stream that this connection has left.
        let place = ticket.0.checked_sub(inner.taken).and_then(|place| usize::try_from(place).ok());
        if let Some(line) = place.and_then(|place| inner.open.get_mut(place)) {
            line.1 = true;
        }
        if inner.ack_what_is_settled() {
            let said = self.socket.upgrade().is_some_and(|socket| inner.write(|bytes| (&*socket).write(bytes)));
            let is_heard_of = said && !inner.watched;
            drop(inner);
            if !is_heard_of {
                self.changed.notify_one();
            }
        }
    }

    /// A line that is settled as it is read: its place follows the open ones. A run of such lines takes one place.
    pub fn settled(&self, seq: u64) {
        let mut inner = self.inner();
        match inner.open.back_mut() {
            Some(last) if last.1 => last.0 = seq.max(last.0),
            _ => inner.open.push_back((seq, true)),
        }
        let acked = inner.ack_what_is_settled();
        drop(inner);
        if acked {
            self.changed.notify_one();
        }
    }

    /// Whether [`Self::changed`] tells of every settled line, also when it is acked already.
    pub fn watch(&self, watched: bool) {
        self.inner().watched = watched;
    }

    /// The numbers that follow are those of another stream, and an ack does not say whose: what is settled is acked before
    /// anything else is said, what is still open never.
    pub fn change_stream(&self) {
        let mut inner = self.inner();
        inner.taken += inner.open.len() as u64;
        inner.open.clear();
        inner.hole = None;
        inner.era += 1;
        let Some(seq) = inner.ack.take() else { return };
        if inner.bytes.len() - inner.written < MAX_WAITING_BYTES {
            Reply::Ack { seq }.encode(&mut inner.bytes);
        } else {
            // Who binds that stream again is told how far it is.
            self.metrics.replies_dropped.increment();
        }
    }

    /// The stretch of the connection between two changes of the stream.
    pub fn era(&self) -> u64 {
        self.inner().era
    }

    /// Lines were not taken, and keep the place they had. On a stream that is fatal, for a stream must not have a hole; of
    /// one that the connection has left it is news, and says neither a number, which would be one of the stream it has now,
    /// nor the end.
    pub fn overloaded(&self, run: Run, why: NoRoom) {
        let Run { lines, last_seq, ticket, fatal, era } = run;
        self.metrics.refusals.add(RefusalCode::Overloaded, lines);
        let mut inner = self.inner();
        let is_left = (last_seq.is_some() || fatal) && era != inner.era;
        if let Some(Ticket(place)) = ticket.filter(|_| !is_left) {
            inner.hole = Some(inner.hole.map_or(place, |hole| hole.min(place)));
        }
        let remedy = if is_left { "bind the stream they are of again and send them again" } else { "send them again later" };
        let error = Reply::Error {
            code: RefusalCode::Overloaded,
            field: None,
            message: format!("{lines} lines were not taken: {} ({remedy})", why.as_str()).into(),
            seq: last_seq.filter(|_| !is_left),
            line: None,
            fatal: fatal && !is_left,
        };
        self.say_locked(inner, &error);
    }

    /// Resolves when there may be something new to write.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether a fatal reply ends the connection.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.inner().closing
    }

    /// Whether everything was said and every numbered line is settled that will ever be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let inner = self.inner();
        inner.is_settled() && inner.ack.is_none() && inner.written == inner.bytes.len()
    }

    /// Whether every numbered line is settled that will ever be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.inner().is_settled()
    }

    /// Writes what the socket takes now. `false`: it takes no more, and something is left. A client that is gone is told
    /// nothing more: what it said is read to its end all the same.
    pub fn write_to(&self, stream: &Stream) -> bool {
        self.inner().write(|bytes| stream.try_write(bytes))
    }
}

impl Inner {
    fn is_settled(&self) -> bool {
        self.open.is_empty() || self.hole == Some(self.taken)
    }

    /// Acks the settled lines before the first open one. `false`: there are none.
    fn ack_what_is_settled(&mut self) -> bool {
        let mut acked = None;
        while let Some(&(seq, true)) = self.open.front() {
            self.open.pop_front();
            self.taken += 1;
            acked = Some(seq);
        }
        self.ack = acked.or(self.ack);
        acked.is_some()
    }

    /// `false`: the socket takes no more, and something is left.
    fn write(&mut self, try_write: impl Fn(&[u8]) -> io::Result<usize>) -> bool {
        loop {
            if self.deaf {
                (self.bytes, self.written, self.ack) = (Vec::new(), 0, None);
                return true;
            }
            if self.written == self.bytes.len() {
                self.bytes.clear();
                self.written = 0;
                let Some(seq) = self.ack.take() else {
                    self.bytes = Vec::new();
                    return true;
                };
                Reply::Ack { seq }.encode(&mut self.bytes);
            }
            let rest = self.bytes.get(self.written..).unwrap_or_default();
            match try_write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    debug!(%error, "a client hears nothing more");
                    self.deaf = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(outbox: &Outbox) -> Option<u64> {
        outbox.inner().ack
    }

    fn run(outbox: &Outbox, ticket: Option<Ticket>, seq: u64) -> Run {
        Run { lines: 1, last_seq: Some(seq), ticket, fatal: true, era: outbox.era() }
    }

    #[test]
    fn what_a_stream_that_was_left_could_not_bring_does_not_end_the_next_one() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        let late = run(&outbox, Some(outbox.open(5)), 5);
        let late_without_acks = run(&outbox, None, 6);
        outbox.change_stream();
        let of_the_next = outbox.open(5);
        outbox.overloaded(late, NoRoom::Store);
        outbox.overloaded(late_without_acks, NoRoom::Store);
        assert!(!outbox.is_closing());
        let said = String::from_utf8(outbox.inner().bytes.clone()).unwrap();
        assert_eq!(said.matches("\"overloaded\"").count(), 2);
        assert!(!said.contains("\"seq\"") && !said.contains("\"fatal\":true"), "{said}");
        outbox.settle(of_the_next);
        assert_eq!(acked(&outbox), Some(5));
        outbox.overloaded(run(&outbox, Some(outbox.open(6)), 6), NoRoom::Store);
        assert!(outbox.is_closing());
    }

    #[test]
    fn an_ack_waits_for_all_earlier_lines() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        let (first, second, third) = (outbox.open(1), outbox.open(2), outbox.open(7));
        outbox.settle(second);
        assert_eq!(acked(&outbox), None);
        outbox.settle(first);
        assert_eq!(acked(&outbox), Some(2));
        outbox.settle(third);
        assert_eq!(acked(&outbox), Some(7));
        assert!(outbox.inner().open.is_empty());
    }

    #[test]
    fn lines_settled_at_once_wait_for_the_open_ones_in_one_place() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        let first = outbox.open(1);
        for seq in 2..1_000 {
            outbox.settled(seq);
        }
        assert_eq!((acked(&outbox), outbox.inner().open.len()), (None, 2));
        let later = outbox.open(1_000);
        outbox.settle(first);
        assert_eq!(acked(&outbox), Some(999));
        outbox.settle(later);
        assert_eq!(acked(&outbox), Some(1_000));
    }

    #[test]
    fn lines_of_a_stream_that_was_left_are_acked_before_the_next_one_begins_or_never() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        let (first, second) = (outbox.open(1), outbox.open(2));
        outbox.settle(first);
        outbox.change_stream();
        outbox.say(&Reply::Pong { id: None });
        let of_the_next = outbox.open(1);
        outbox.settle(second);
        assert_eq!(acked(&outbox), None, "nobody could tell whose it is");
        assert!(outbox.inner().bytes.starts_with(b"{\"type\":\"ack\",\"seq\":1}\n{\"type\":\"pong\""));
        outbox.settle(of_the_next);
        assert_eq!(acked(&outbox), Some(1));
    }

    #[test]
    fn replies_to_a_deaf_client_are_bounded_and_counted_but_acks_stay() {
        let metrics = Arc::new(Metrics::default());
        let outbox = Outbox::new(Weak::new(), Arc::clone(&metrics));
        for _ in 0..100_000 {
            outbox.say(&Reply::Pong { id: None });
        }
        let ticket = outbox.open(3);
        outbox.settle(ticket);
        assert!(outbox.inner().bytes.len() <= MAX_WAITING_BYTES + 200);
        assert!(metrics.replies_dropped.get() > 90_000);
        assert_eq!(acked(&outbox), Some(3));
    }

    #[test]
    fn after_a_fatal_reply_nothing_more_is_said() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        outbox.overloaded(run(&outbox, None, 4), NoRoom::Stopping);
        let length = outbox.inner().bytes.len();
        outbox.say(&Reply::Draining);
        assert_eq!(outbox.inner().bytes.len(), length);
        assert!(outbox.is_closing());
    }

    #[test]
    fn who_waits_for_the_last_acks_does_not_wait_for_what_was_not_taken() {
        let outbox = Outbox::new(Weak::new(), Arc::default());
        let (first, second, third) = (outbox.open(1), outbox.open(2), outbox.open(3));
        outbox.overloaded(run(&outbox, Some(third), 3), NoRoom::Stopping);
        outbox.overloaded(run(&outbox, Some(second), 2), NoRoom::Stopping);
        outbox.inner().bytes.clear();
        assert!(!outbox.is_done(), "the first is on its way");
        outbox.settle(first);
        assert_eq!(outbox.inner().ack.take(), Some(1));
        assert!(outbox.is_done());
    }
}
