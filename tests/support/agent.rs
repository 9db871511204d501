//! A producer on the Unix socket: [`Agent`] says exactly what a test wants, [`Producer`] behaves as the real client does
//! (numbered lines, keeps what is not acknowledged, resumes).

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::canary;
use super::daemon::Daemon;
use super::eventually::{SOON, eventually};

#[derive(Default)]
struct Heard {
    replies: Vec<Value>,
    closed: bool,
}

/// One connection; a thread reads all replies as they come.
pub struct Agent {
    stream: UnixStream,
    /// The socket, by which its daemon's log is searched for what was said.
    socket: PathBuf,
    heard: Arc<Mutex<Heard>>,
}

impl Agent {
    /// Connects.
    #[track_caller]
    pub fn connect(daemon: &Daemon) -> Self {
        Self::connect_to(&daemon.socket())
    }

    /// Connects to a path.
    #[track_caller]
    pub fn connect_to(path: &Path) -> Self {
        Self::dial(path).unwrap_or_else(|| panic!("cannot connect to {}", path.display()))
    }

    /// Connects if somebody listens.
    pub fn dial(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_write_timeout(Some(Duration::from_secs(20))).ok()?;
        let reader = BufReader::new(stream.try_clone().ok()?);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mine = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in reader.split(b'\n') {
                let Ok(line) = line else { break };
                let reply =
                    serde_json::from_slice(&line).unwrap_or_else(|_| json!({ "unreadable": String::from_utf8_lossy(&line) }));
                mine.lock().unwrap_or_else(PoisonError::into_inner).replies.push(reply);
            }
            mine.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        });
        Some(Self { stream, socket: path.to_owned(), heard })
    }

    /// A connection that nobody reads: for what a daemon does about a client that does not listen.
    pub fn deaf(daemon: &Daemon) -> UnixStream {
        UnixStream::connect(daemon.socket()).expect("the daemon listens")
    }

    // ---- saying --------------------------------------------------------------------------------------------------

    /// Writes bytes as they are; whether the daemon still took them.
    pub fn try_raw(&mut self, bytes: &[u8]) -> bool {
        canary::remember(&self.socket, bytes);
        self.stream.write_all(bytes).is_ok()
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub fn raw(&mut self, bytes: &[u8]) {
        canary::remember(&self.socket, bytes);
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    /// Writes text and a newline.
    #[track_caller]
    pub fn text(&mut self, line: &str) {
        self.raw(format!("{line}\n").as_bytes());
    }

    /// Writes one JSON object and a newline.
    #[track_caller]
    pub fn line(&mut self, value: &Value) {
        self.text(&value.to_string());
    }

    /// `session_start` without a stream; waits for `ready`.
    #[track_caller]
    pub fn bind(&mut self, mac: &str, session_id: &str) -> Value {
        self.line(&json!({ "type": "session_start", "v": 1, "mac_address": mac, "session_id": session_id }));
        self.wait_for("ready")
    }

    /// `session_start` with a stream; waits for `ready` and returns its `last_seq`.
    #[track_caller]
    pub fn bind_stream(&mut self, mac: &str, session_id: &str, stream: &str) -> u64 {
        self.line(&json!({ "type": "session_start", "v": 1, "mac_address": mac, "session_id": session_id, "stream": stream }));
        self.wait_for("ready")["last_seq"].as_u64().expect("last_seq")
    }

    /// One message of the bound session.
    #[track_caller]
    pub fn say(&mut self, chat_type: u8, content: &str) {
        self.line(&json!({ "type": "message", "chat_type": chat_type, "content": content }));
    }

    /// `session_end`.
    #[track_caller]
    pub fn end(&mut self) {
        self.line(&json!({ "type": "session_end", "reason": "test" }));
    }

    /// `flush`; waits for its `flushed`.
    #[track_caller]
    pub fn flush(&mut self, level: &str) -> Value {
        let id = uuid::Uuid::now_v7().to_string();
        self.line(&json!({ "type": "flush", "id": id, "level": level, "timeout": 15 }));
        self.wait("the flush is answered", |reply| reply["type"] == "flushed" && reply["id"] == id.as_str())
    }

    /// Whether a `ping` is answered within two seconds.
    pub fn is_answered(&mut self) -> bool {
        if !self.try_raw(b"{\"type\":\"ping\",\"id\":\"ready?\"}\n") {
            return false;
        }
        let end = std::time::Instant::now() + Duration::from_secs(2);
        eventually(Duration::from_secs(5), "a pong, an end or two seconds", || {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let answered = heard.replies.iter().any(|reply| reply["type"] == "pong");
            (answered || heard.closed || std::time::Instant::now() > end).then_some(answered)
        })
    }

    /// Closes the writing half: the daemon sees EOF and can still answer.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    // ---- hearing -------------------------------------------------------------------------------------------------

    /// All replies so far.
    pub fn replies(&self) -> Vec<Value> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).replies.clone()
    }

    /// All `error` replies so far.
    pub fn errors(&self) -> Vec<Value> {
        self.replies().into_iter().filter(|reply| reply["type"] == "error").collect()
    }

    /// The highest acknowledged number, 0 before the first.
    pub fn acked(&self) -> u64 {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |reply: &Value| match reply["type"].as_str() {
            Some("ack") => reply["seq"].as_u64(),
            Some("ready") => reply["last_seq"].as_u64(),
            _ => None,
        };
        heard.replies.iter().filter_map(number).max().unwrap_or(0)
    }

    /// Whether the daemon closed the connection.
    pub fn is_closed(&self) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// The first reply of this type.
    #[track_caller]
    pub fn wait_for(&self, kind: &str) -> Value {
        self.wait(&format!("a reply of type {kind}"), |reply| reply["type"] == kind)
    }

    /// The first reply that is so.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = eventually(SOON, what, || {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let found = heard.replies.iter().find(|reply| wanted(reply)).cloned();
            if found.is_none() && heard.closed { Some(Err(heard.replies.clone())) } else { found.map(Ok) }
        });
        found.unwrap_or_else(|replies| panic!("the connection closed before: {what}; replies: {replies:?}"))
    }

    /// Waits until this number is acknowledged.
    #[track_caller]
    pub fn wait_for_ack(&self, seq: u64) {
        eventually(SOON, &format!("line {seq} is acknowledged"), || (self.acked() >= seq).then_some(()));
    }

    /// Waits until the daemon has closed the connection.
    #[track_caller]
    pub fn wait_for_close(&self) {
        eventually(SOON, "the daemon closes the connection", || self.is_closed().then_some(()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The reading thread holds a clone; without this the connection would stay open.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// One message as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its number in the stream.
    pub seq: u64,
    /// 1 the user, 2 the agent.
    pub chat_type: u8,
    /// The text.
    pub content: String,
    /// When, in milliseconds since the epoch.
    pub time_ms: i64,
}

/// A producer with a stream: numbers its lines, remembers them, and after a reconnect resends what was not durable.
pub struct Producer {
    /// The device.
    pub mac: String,
    /// The conversation.
    pub session_id: String,
    stream: String,
    said: Vec<Said>,
    acked: u64,
    agent: Option<Agent>,
}

impl Producer {
    /// A producer that is not connected yet.
    pub fn new(mac: &str, session_id: &str) -> Self {
        let stream = uuid::Uuid::now_v7().to_string();
        Self { mac: mac.to_owned(), session_id: session_id.to_owned(), stream, said: Vec::new(), acked: 0, agent: None }
    }

    /// A connected producer.
    #[track_caller]
    pub fn connected(daemon: &Daemon, mac: &str, session_id: &str) -> Self {
        let mut producer = Self::new(mac, session_id);
        producer.connect(daemon);
        producer
    }

    /// Connects (again), and resends everything after the daemon's `last_seq`.
    #[track_caller]
    pub fn connect(&mut self, daemon: &Daemon) {
        self.disconnect();
        let mut agent = Agent::connect(daemon);
        let last = agent.bind_stream(&self.mac, &self.session_id, &self.stream);
        assert!(last >= self.acked, "the daemon acknowledged line {} and now knows only up to {last}", self.acked);
        for said in self.said.iter().filter(|said| said.seq > last) {
            // A daemon that takes no more hangs up: the producer keeps the rest and comes back.
            let _ = agent.try_raw(format!("{}\n", line_of(said)).as_bytes());
        }
        self.agent = Some(agent);
    }

    /// As [`Self::connect`] with a daemon that may have forgotten lines it acknowledged: only what was never acknowledged is
    /// sent again. The highest line that the daemon knows.
    #[track_caller]
    pub fn resume(&mut self, daemon: &Daemon) -> u64 {
        self.disconnect();
        let mut agent = Agent::connect(daemon);
        let last = agent.bind_stream(&self.mac, &self.session_id, &self.stream);
        for said in self.said.iter().filter(|said| said.seq > last.max(self.acked)) {
            // A daemon that takes no more hangs up: the producer keeps the rest and comes back.
            let _ = agent.try_raw(format!("{}\n", line_of(said)).as_bytes());
        }
        self.agent = Some(agent);
        last
    }

    /// Comes back as the real client does, to a daemon that may send it away again while it still resends.
    pub fn come_back(&mut self, daemon: &Daemon) {
        self.disconnect();
        if self.try_connect(daemon) {
            let acked = self.acked();
            let rest: Vec<String> =
                self.said.iter().filter(|said| said.seq > acked).map(|said| format!("{}\n", line_of(said))).collect();
            let agent = self.agent();
            let _ = rest.iter().all(|line| agent.try_raw(line.as_bytes()));
        }
    }

    /// Whether there is a connection, as far as it is known here.
    pub fn is_connected(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| !agent.is_closed())
    }

    /// As [`Self::connect`], but a daemon that dies meanwhile is no failure; whether it is connected.
    pub fn try_connect(&mut self, daemon: &Daemon) -> bool {
        let Some(mut agent) = Agent::dial(&daemon.socket()) else { return false };
        let start = json!({ "type": "session_start", "v": 1, "mac_address": self.mac, "session_id": self.session_id, "stream": self.stream });
        if !agent.try_raw(format!("{start}\n").as_bytes()) {
            return false;
        }
        let ready = || agent.replies().iter().any(|reply| reply["type"] == "ready");
        let connected = eventually(SOON, "ready, or the end", || (ready() || agent.is_closed()).then(ready));
        self.agent = connected.then_some(agent);
        connected
    }

    /// Drops the connection, keeping what was acknowledged until now.
    pub fn disconnect(&mut self) {
        self.acked = self.acked();
        self.agent = None;
    }

    /// Says something; it counts as said even when the daemon is gone just now. Returns its number.
    pub fn say(&mut self, chat_type: u8, content: &str) -> u64 {
        let seq = self.said.last().map_or(1, |last| last.seq + 1);
        let said = Said { seq, chat_type, content: content.to_owned(), time_ms: super::manager_api::now_ms() };
        if let Some(agent) = &mut self.agent {
            let _ = agent.try_raw(format!("{}\n", line_of(&said)).as_bytes());
        }
        self.said.push(said);
        seq
    }

    /// Waits until everything said is acknowledged.
    #[track_caller]
    pub fn wait_until_acked(&mut self) {
        let last = self.said.last().map_or(0, |last| last.seq);
        if self.acked() < last {
            self.agent.as_ref().expect("connected").wait_for_ack(last);
        }
        self.acked = self.acked();
    }

    /// The highest number acknowledged over all connections.
    pub fn acked(&self) -> u64 {
        self.acked.max(self.agent.as_ref().map_or(0, Agent::acked))
    }

    /// Everything said, in order.
    pub fn said(&self) -> &[Said] {
        &self.said
    }

    /// The connection.
    #[track_caller]
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("connected")
    }
}

fn line_of(said: &Said) -> Value {
    let timestamp = said.time_ms as f64 / 1000.0;
    json!({ "type": "message", "seq": said.seq, "chat_type": said.chat_type, "content": said.content, "timestamp": timestamp })
}
