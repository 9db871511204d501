//! One producer's connection: reads lines, hands their events to the sessions they name, writes what is to be said.

mod ending;
mod refusals;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::yield_now;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::refusals::too_long;
use super::binding::{self, Bound};
use super::flush;
use super::lines::{LineItem, Lines};
use super::long_lines::{FREE_BYTES, Room};
use super::outbox::{Outbox, Run};
use super::stream::Stream;
use super::surroundings::Surroundings;
use crate::clock::wall_clock;
use crate::observe::Skip;
use crate::protocol::reply::Reply;
use crate::protocol::{
    Command, DecodeOptions, Flush, Line, LiveKitEvent, Refusal, RefusalCode, SessionIdentity, SessionStart, Target, UnixMillis,
    decode, starts_a_session,
};
use crate::session::actor::BindRefused;
use crate::session::{Batch, Entry, Event, Input, ProducerLink, SessionRef};
use crate::store::{NoRoom, Settled, StreamStand};

/// Lines handed to a session at once.
const BATCH_LINES: usize = 256;

/// Flushes one connection may have under way.
const MAX_FLUSHES: usize = 64;

/// How long a stream that is left for another may wait for its last acks.
const LINGER_ON_A_STREAM: Duration = Duration::from_millis(200);

/// Lines that wait to be handed over together.
struct Gathered {
    identity: SessionIdentity,
    entries: Vec<Entry>,
    last_seq: Option<u64>,
    /// That of the long line among them.
    share: Option<OwnedSemaphorePermit>,
}

/// What a look into the socket's buffer found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Read {
    /// It is empty now.
    Empty,
    /// There may be more.
    More,
    /// There is no room for more of the line that is under way.
    NoRoom,
    /// Nothing more is to be read, ever.
    Ended,
}

/// Serves one connection until it ends.
pub struct Connection {
    stream: Stream,
    lines: Lines,
    /// Held while a long line is under way.
    room: Option<Room>,
    /// The longest line: as it was when the client came, for it was told so.
    max_line_bytes: usize,
    outbox: Arc<Outbox>,
    link: Arc<ProducerLink>,
    around: Surroundings,
    flushes: TaskTracker,
    bound: Option<Bound>,
    /// The stream whose numbers the lines have, also after a binding that was refused; `None`: the connection's own.
    numbers_of: Option<Arc<str>>,
    /// The session unbound lines last named, so that it is not looked up for each.
    named: Option<(SessionIdentity, SessionRef)>,
    gathered: Option<Gathered>,
    errors_in_a_row: u32,
    /// The wall clock when the bytes being worked on were read.
    read_at: UnixMillis,
}

impl Connection {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// When the stream cannot be told not to block.
    pub fn new(stream: UnixStream, around: Surroundings) -> io::Result<Self> {
        let max_line_bytes = around.settings.borrow().socket.max_line_bytes;
        let stream = Stream::new(stream)?;
        let outbox = Outbox::new(stream.writer(), Arc::clone(&around.metrics));
        Ok(Self {
            stream,
            lines: Lines::new(max_line_bytes),
            room: None,
            max_line_bytes,
            outbox,
            link: Arc::default(),
            around,
            flushes: TaskTracker::new(),
            bound: None,
            numbers_of: None,
            named: None,
            gathered: None,
            errors_in_a_row: 0,
            read_at: UnixMillis(0),
        })
    }

    /// Whether the kernel tells of it; if not, it is looked at now and then.
    #[must_use]
    pub const fn is_listened_to(&self) -> bool {
        self.stream.is_listened_to()
    }

    /// Works until the client is gone, a fatal error was said, or the daemon stops; leaves the books of open connections.
    pub async fn run(mut self) {
        let ended = self.converse().await;
        if let Err(error) = ended {
            debug!(%error, "a client is gone");
        }
        Box::pin(self.leave_session()).await;
        self.around.metrics.connections.subtract(1);
    }

    async fn converse(&mut self) -> io::Result<()> {
        let outbox = Arc::clone(&self.outbox);
        let draining = self.around.draining.clone();
        loop {
            let written = outbox.write_to(&self.stream);
            self.stream.listen_for_room(!written);
            if outbox.is_closing() {
                return Box::pin(self.say_last_words()).await;
            }
            let lacks_room = self.lacks_room();
            // What is done is boxed: a connection that waits is small, and nearly all of them wait.
            tokio::select! {
                readable = self.stream.readable(), if !lacks_room => {
                    readable?;
                    match Box::pin(self.read()).await? {
                        Read::Ended => return Box::pin(self.say_last_words()).await,
                        Read::Empty | Read::NoRoom => {}
                        // The thread is everybody's: who never stops talking waits for the others.
                        Read::More => yield_now().await,
                    }
                }
                room = self.around.long_lines.room(self.max_line_bytes), if lacks_room => self.room = Some(room),
                () = self.around.long_lines.overdue(self.room.as_ref()), if self.room.is_some() => self.give_up_the_line(),
                () = outbox.changed() => {}
                room = self.stream.room(), if !written => room?,
                () = draining.cancelled() => {
                    outbox.say(&Reply::Draining);
                    Box::pin(self.read_what_is_written()).await?;
                    return Box::pin(self.say_last_words()).await;
                }
            }
        }
    }

    /// Whether the next bytes of the line under way have no place yet.
    fn lacks_room(&self) -> bool {
        self.room.is_none() && self.lines.is_long()
    }

    /// Takes what is there, at most a few buffers, so that many connections share the thread.
    async fn read(&mut self) -> io::Result<Read> {
        for _ in 0..4 {
            if self.lacks_room() {
                self.room = self.around.long_lines.try_room(self.max_line_bytes);
                if self.room.is_none() {
                    return Ok(Read::NoRoom);
                }
            }
            match self.stream.try_read(self.lines.read_target()) {
                Ok(0) => {
                    self.work_off(true).await;
                    return Ok(Read::Ended);
                }
                Ok(_) => {
                    self.work_off(false).await;
                    if self.outbox.is_closing() {
                        return Ok(Read::Ended);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lines.release();
                    // A quiet connection holds no session open but the one it is bound to.
                    self.named = None;
                    return Ok(Read::Empty);
                }
                Err(error) => {
                    self.work_off(true).await;
                    return Err(error);
                }
            }
        }
        Ok(Read::More)
    }

    /// Every complete line in the buffer; at the end of the stream the last one, too.
    async fn work_off(&mut self, at_end: bool) {
        let mut lines = std::mem::replace(&mut self.lines, Lines::new(0));
        self.read_at = wall_clock();
        let options = DecodeOptions::at(self.read_at, self.around.settings.borrow().manager_api.send_tools);
        loop {
            if self.outbox.is_closing() || self.link.is_cut() {
                break;
            }
            let item = match lines.next_line() {
                Some(item) => item,
                None if at_end => match lines.finish() {
                    Some(item) => item,
                    None => break,
                },
                None => break,
            };
            self.around.metrics.lines.increment();
            let is_long = matches!(item, LineItem::Line { bytes, .. } if bytes.len() >= FREE_BYTES);
            let (number, decoded) = match item {
                LineItem::Line { number, bytes } => {
                    let decoded = decode(bytes, &options);
                    if decoded.is_err() && starts_a_session(bytes) {
                        self.unbind().await;
                    }
                    (number, decoded)
                }
                LineItem::TooLong { number } => (number, Err(too_long(self.max_line_bytes))),
            };
            match decoded {
                Ok(line) => {
                    if matches!(line.command, Command::SessionStart(_)) {
                        // The session is opened by the store: all who come at once wait for it at once.
                        lines.shrink();
                    }
                    if let Err(refusal) = self.take(line, number).await {
                        self.refuse(refusal, number).await;
                    } else {
                        self.errors_in_a_row = 0;
                    }
                }
                Err(refusal) => self.refuse(refusal, number).await,
            }
            if is_long
                && let Some(gathered) = &mut self.gathered
                && let Some(room) = self.room.take()
            {
                // It takes its share with it, and once: its bytes are decoded.
                gathered.share = Some(room.into_share());
                lines.shrink();
            }
        }
        if !lines.is_long() {
            self.room = None;
        }
        self.hand_over().await;
        self.lines = lines;
    }

    async fn take(&mut self, line: Line, number: u64) -> Result<(), Refusal> {
        let Line { seq, target, command } = line;
        let event = match command {
            Command::Ping { id } => {
                self.outbox.say(&Reply::Pong { id });
                return self.settle_control(seq, Event::Nothing).await;
            }
            Command::SessionStart(start) => return self.start(start, &target, seq, number).await,
            Command::Flush(flush) => {
                let identity = binding::identity(self.bound.as_ref(), &target, seq)?;
                self.flush(flush, &identity).await;
                return self.settle_control(seq, Event::Nothing).await;
            }
            Command::SessionEnd(end) => Event::End(end),
            Command::Message(message) => Event::Message(message),
            Command::LiveKit(event) => Event::LiveKit(event),
        };
        let identity = binding::identity(self.bound.as_ref(), &target, seq)?;
        self.count(&event);
        self.gather(identity, Entry { seq, event }).await;
        Ok(())
    }

    /// Books what came in.
    fn count(&self, event: &Event) {
        let metrics = &self.around.metrics;
        metrics.received.add(event.weight());
        let (messages, replaced) = match event {
            Event::Message(message) | Event::LiveKit(LiveKitEvent::Item { message, .. }) => {
                (std::slice::from_ref(message), false)
            }
            Event::LiveKit(LiveKitEvent::Tools(records)) => (records.as_slice(), false),
            Event::LiveKit(LiveKitEvent::FinalTranscript(transcript)) => (&[][..], transcript.time_replaced),
            _ => (&[][..], false),
        };
        let times = messages.iter().filter(|message| message.time_replaced).count() + usize::from(replaced);
        metrics.times_replaced.add(times as u64);
        metrics.audio_invalid.add(messages.iter().filter(|message| message.audio_invalid).count() as u64);
    }

    async fn gather(&mut self, identity: SessionIdentity, entry: Entry) {
        if self.gathered.as_ref().is_some_and(|gathered| gathered.entries.len() >= BATCH_LINES || gathered.identity != identity) {
            self.hand_over().await;
        }
        let gathered =
            self.gathered.get_or_insert_with(|| Gathered { identity, entries: Vec::new(), last_seq: None, share: None });
        // A line that is said again may stand behind higher ones.
        gathered.last_seq = entry.seq.max(gathered.last_seq);
        gathered.entries.push(entry);
    }

    /// A control line's number takes its place in the order of the stream.
    async fn settle_control(&mut self, seq: Option<u64>, event: Event) -> Result<(), Refusal> {
        if let Some(number) = seq {
            if let Some(identity) = self.bound.as_ref().map(|bound| bound.identity.clone()) {
                self.gather(identity, Entry { seq, event }).await;
            } else {
                // Its ack covers the lines before it: they must have their places first.
                self.hand_over().await;
                self.outbox.settled(number);
            }
        }
        Ok(())
    }

    /// Hands the gathered lines to their session.
    async fn hand_over(&mut self) {
        let Some(Gathered { identity, entries, last_seq, share }) = self.gathered.take() else { return };
        let bound = self.bound.as_ref().filter(|bound| bound.identity == identity);
        let stream = bound.and_then(|bound| bound.stream.clone());
        let wants_acks = self.bound.as_ref().and_then(|bound| bound.ack).unwrap_or(true);
        let ticket = last_seq.filter(|_| wants_acks).map(|seq| self.outbox.open(seq));
        let lines = entries.len() as u64;
        // Acks are cumulative, so what is not taken must be the last: no ack may ever reach over it.
        let fatal = ticket.is_some() || (stream.is_some() && last_seq.is_some());
        let run = Run { lines, last_seq, ticket, fatal, era: self.outbox.era() };
        let (outbox, link) = (Arc::clone(&self.outbox), Arc::clone(&self.link));
        let on_settled = Box::new(move |settled| match (settled, ticket) {
            (Settled::Durable, Some(ticket)) => outbox.settle(ticket),
            (Settled::Durable, None) => {}
            (Settled::Overloaded(why), _) => {
                if fatal {
                    link.cut();
                }
                outbox.overloaded(run, why);
            }
        });
        let batch = Batch { entries, stream, link: Arc::clone(&self.link), recorded: self.read_at, on_settled, share };
        let Ok(session) = self.session(&identity) else {
            self.around.metrics.skipped.add(Skip::Overloaded, batch.entries.iter().map(|entry| entry.event.weight()).sum());
            self.tell_of_too_many_sessions(&identity, lines);
            (batch.on_settled)(Settled::Overloaded(NoRoom::Sessions));
            return;
        };
        session.send(Input::Batch(batch)).await;
    }

    fn session(&mut self, identity: &SessionIdentity) -> Result<SessionRef, ()> {
        if let Some(bound) = self.bound.as_ref().filter(|bound| bound.identity == *identity) {
            return Ok(bound.session.clone());
        }
        if let Some((_, session)) = self.named.as_ref().filter(|(named, _)| named == identity) {
            return Ok(session.clone());
        }
        let session = self.around.registry.session(identity).map_err(|_| ())?;
        self.named = Some((identity.clone(), session.clone()));
        Ok(session)
    }

    async fn start(&mut self, start: SessionStart, target: &Target, seq: Option<u64>, number: u64) -> Result<(), Refusal> {
        self.hand_over().await;
        let Some(identity) = target.identity() else {
            return Err(Refusal {
                code: RefusalCode::BadField,
                field: Some("session_id".into()),
                message: "session_start needs mac_address and session_id".into(),
                seq,
            });
        };
        let overloaded =
            |message: &'static str| Refusal { code: RefusalCode::Overloaded, field: None, message: message.into(), seq };
        let Ok(session) = self.around.registry.session(&identity) else {
            // What follows is meant for the session that could not be opened. Read on, it would be settled as `not_bound`,
            // or go to the session of the binding before.
            self.refuse_fatally(overloaded("too many sessions are open (come back later, or raise session.max_open)"), number);
            return Ok(());
        };
        let (reply, answer) = oneshot::channel();
        let (stream, ack) = (start.stream.as_deref().map(Arc::from), start.ack);
        session.send(Input::Start { start, recorded: self.read_at, reply }).await;
        let stand = match answer.await {
            Ok(Ok(stand)) => stand,
            Ok(Err(BindRefused::Taken)) => {
                self.unbind().await;
                return Err(Refusal {
                    code: RefusalCode::BadField,
                    field: Some("stream".into()),
                    message: "the stream belongs to another session (use a new random stream for each session)".into(),
                    seq,
                });
            }
            Ok(Err(BindRefused::Unavailable)) | Err(_) => {
                self.refuse_fatally(overloaded("the session cannot be opened now (come back later)"), number);
                return Ok(());
            }
        };
        let known = self.bound.as_ref().is_some_and(|bound| bound.identity == identity);
        if !known {
            self.leave_session().await;
        }
        self.named = None;
        if self.numbers_of != stream {
            // Boxed: no connection carries what nearly none waits for.
            Box::pin(self.settle_the_stream_before()).await;
            self.numbers_of.clone_from(&stream);
        }
        self.bound = Some(Bound { identity, session, stream, ack });
        // What stands in memory alone the producer must keep: it is not the last line that is settled.
        let StreamStand { settled: last_seq, taken: taken_seq } = stand;
        self.outbox.say(&Reply::Ready { last_seq, taken_seq, max_line_bytes: self.max_line_bytes });
        self.settle_control(seq, Event::Nothing).await
    }

    /// An ack does not say of which stream it is: those of the stream before come before the `ready` of the next.
    async fn settle_the_stream_before(&mut self) {
        let outbox = Arc::clone(&self.outbox);
        let settled = async {
            while !outbox.is_settled() {
                outbox.changed().await;
            }
        };
        outbox.watch(true);
        tokio::select! {
            () = settled => {}
            () = self.around.cut_off.cancelled() => {}
            // It must not be held up by what a failing disk holds up: who needs those acks binds the stream again.
            () = tokio::time::sleep(LINGER_ON_A_STREAM) => {}
        }
        outbox.watch(false);
        outbox.change_stream();
        // What is refused of the stream before from here on cuts off its own lines alone.
        if !outbox.is_closing() {
            self.link = Arc::default();
        }
    }

    /// A flush covers the lines before it and holds up none after it: its answer is waited for beside the connection.
    async fn flush(&mut self, flush: Flush, identity: &SessionIdentity) {
        self.hand_over().await;
        if self.flushes.len() >= MAX_FLUSHES {
            return self.outbox.say(&flush::refusal(flush.id, 0, "too many flushes are under way on this connection"));
        }
        let Ok(session) = self.session(identity) else {
            return self.outbox.say(&flush::refusal(flush.id, 0, "too many sessions are open"));
        };
        let (reply, barrier) = oneshot::channel();
        session.send(Input::Barrier { reply }).await;
        let (outbox, deliveries) = (Arc::clone(&self.outbox), self.around.deliveries.clone());
        self.flushes.spawn(async move { outbox.say(&flush::answer(flush, barrier, &deliveries).await) });
    }

    /// After a `session_start` that was refused: what follows is not for the session of the binding before.
    async fn unbind(&mut self) {
        self.hand_over().await;
        self.leave_session().await;
    }

    async fn leave_session(&mut self) {
        self.named = None;
        if let Some(Bound { session, .. }) = self.bound.take() {
            session.send_and_leave(Input::ProducerLeft).await;
        }
    }
}
