//! The accept loop: takes connections as long as there is room for them, and says politely when there is none.

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::connection::Connection;
use super::socket::{ListenError, PathGuard, ServerSocket};
use super::stream::listen;
use super::surroundings::Surroundings;
use crate::config::SocketSettings;
use crate::observe::Throttle;
use crate::protocol::RefusalCode;
use crate::protocol::reply::Reply;

/// First and longest pause after an accept failed for want of descriptors or memory.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Connections that may stand in the kernel's queue (`SOMAXCONN`, and `Backlog=` of a socket unit).
const QUEUE: usize = 4096;

/// How often the path is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long clients have after `draining` until their connections are cut.
const DRAIN: Duration = Duration::from_secs(1);

/// How often a drain looks whether a descriptor is free for the next in the queue.
const ROOM_EVERY: Duration = Duration::from_millis(10);

/// The listener and its connections. The runtime's own would close a connection that the kernel does not let it listen to.
pub struct Listener {
    socket: AsyncFd<UnixListener>,
    path: PathGuard,
    around: Surroundings,
    connections: TaskTracker,
    are_you_alive: mpsc::Receiver<oneshot::Sender<()>>,
    refused: Refused,
    is_unreachable: bool,
}

/// Refused connections are told of once a minute, those of strangers, those too many; so are
/// those that the kernel does not tell of.
#[derive(Default)]
struct Refused {
    strangers: Throttle,
    too_many: Throttle,
    untold: Throttle,
}

/// How the daemon reaches the running listener.
#[derive(Clone)]
pub struct Intake {
    ask: mpsc::Sender<oneshot::Sender<()>>,
}

impl Intake {
    /// Resolves when the accept loop has gone round: what the watchdog is fed with.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn heartbeat(&self) -> Result<(), ()> {
        let (answer, alive) = oneshot::channel();
        self.ask.send(answer).await.map_err(|_| ())?;
        alive.await.map_err(|_| ())
    }
}

impl Listener {
    /// A listener on a socket that is already listening and does not block.
    ///
    /// # Errors
    /// When the kernel does not let it be listened to.
    pub fn new(socket: UnixListener, path: PathGuard, around: Surroundings) -> io::Result<(Self, Intake)> {
        let (ask, are_you_alive) = mpsc::channel(4);
        let socket = listen(socket, Interest::READABLE)?;
        let listener = Self {
            socket,
            path,
            around,
            connections: TaskTracker::new(),
            are_you_alive,
            refused: Refused::default(),
            is_unreachable: false,
        };
        Ok((listener, Intake { ask }))
    }

    /// Accepts until `stop`, then drains: what the kernel has queued is accepted, the path goes, clients are told and
    /// read to their end or for a second, and everything read is with the sessions when this returns.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Before the queue, which somebody may fill as fast as it is emptied: who asks is answered all the same.
                Some(answer) = self.are_you_alive.recv() => { let _ = answer.send(()); }
                _ = look.tick() => self.look_for_the_path(),
                accepted = self.socket.async_io(Interest::READABLE, UnixListener::accept) => match accepted {
                    Ok((stream, _)) => {
                        if pause > PAUSE.0 {
                            info!("connections are accepted again");
                            pause = PAUSE.0;
                        }
                        welcome(&self.around, &self.connections, &mut self.refused, stream);
                    }
                    Err(error) => self.back_off(&error, &mut pause, &stop).await,
                },
            }
        }
        self.drain().await;
    }

    /// Somebody may have removed the path: then nobody can connect any more, and nothing else would tell. One that was made
    /// here is made anew; a supervisor's is the supervisor's to make.
    fn look_for_the_path(&mut self) {
        if self.path.leads_there() {
            if std::mem::take(&mut self.is_unreachable) {
                info!(path = %self.path.path().display(), "producers can connect again");
            }
        } else if self.path.is_ours() {
            match self.bind_anew() {
                Ok(()) => {
                    self.is_unreachable = false;
                    warn!(path = %self.path.path().display(), "the socket is bound anew: its path was gone");
                }
                Err(failure) => self.tell_unreachable(&failure.to_string()),
            }
        } else {
            self.tell_unreachable(
                "the supervisor's socket is not at its path (systemctl restart chat-historyd.socket chat-historyd.service)",
            );
        }
        self.around.metrics.socket_missing.set(u64::from(self.is_unreachable));
    }

    fn tell_unreachable(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.is_unreachable, true) {
            error!(path = %self.path.path().display(), cause, "no producer can connect");
        }
    }

    fn bind_anew(&mut self) -> Result<(), ListenError> {
        let settings = SocketSettings { path: self.path.path().to_owned(), ..self.around.settings.borrow().socket.clone() };
        let (socket, path) = ServerSocket::make(&settings)?.into_parts();
        let socket = listen(socket, Interest::READABLE).map_err(|source| ListenError::System {
            verb: "listen on",
            path: path.path().to_owned(),
            source,
            hint: "",
        })?;
        // Who came while the old path was there is welcomed.
        for _ in 0..QUEUE {
            let Ok((stream, _)) = self.socket.get_ref().accept() else { break };
            welcome(&self.around, &self.connections, &mut self.refused, stream);
        }
        (self.socket, self.path) = (socket, path);
        Ok(())
    }

    /// Out of descriptors or memory: waiting helps, spinning does not.
    async fn back_off(&self, error: &io::Error, pause: &mut Duration, stop: &CancellationToken) {
        if is_passing(error) || error.kind() == io::ErrorKind::WouldBlock {
            return;
        }
        if *pause == PAUSE.0 {
            warn!(%error, "connections cannot be accepted for now (raise LimitNOFILE=, or lower socket.max_connections)");
        }
        *pause = (*pause * 2).min(PAUSE.1);
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn drain(self) {
        let Self { socket, path, around, connections, mut refused, .. } = self;
        // The path goes first: who still found it stands in the queue and is welcomed, who comes later finds nobody. A
        // supervisor's path stays, and with it its queue, which the next daemon may work off as well as this one.
        drop(path);
        empty_queue(socket.get_ref(), &around, &connections, &mut refused).await;
        drop(socket);
        around.draining.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            around.cut_off.cancel();
            // Handing over what was read waits for the store only; last words are bounded by themselves.
            connections.wait().await;
        }
    }
}

/// Welcomes who stands in the kernel's queue: no more than may stand there, for a supervisor's fills again as fast as
/// somebody connects.
async fn empty_queue(socket: &UnixListener, around: &Surroundings, connections: &TaskTracker, refused: &mut Refused) {
    let time_is_up = Instant::now() + DRAIN;
    let mut welcomed = 0;
    while welcomed < QUEUE {
        // The kernel itself is asked: the runtime may not have heard yet of who came last.
        match socket.accept() {
            Ok((stream, _)) => {
                welcome(around, connections, refused, stream);
                welcomed += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if is_passing(&error) => {}
            Err(error) if Instant::now() >= time_is_up => {
                warn!(%error, "connections that wait could not be accepted: what they wrote was not taken in (raise LimitNOFILE=)");
                return;
            }
            // No descriptor is left. Those who are here are read to their end now, and each leaves one.
            Err(_) => {
                around.draining.cancel();
                tokio::time::sleep(ROOM_EVERY).await;
            }
        }
    }
}

/// The kernel has something to say of one connection; the next may be accepted at once.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

fn welcome(around: &Surroundings, connections: &TaskTracker, refused: &mut Refused, stream: UnixStream) {
    let settings = around.settings.borrow().clone();
    let metrics = &around.metrics;
    let allowed = &settings.socket.allowed_uids;
    if !allowed.is_empty() {
        let uid = getsockopt(&stream, sockopt::PeerCredentials).map(|peer| peer.uid());
        if !uid.as_ref().is_ok_and(|uid| allowed.contains(uid)) {
            metrics.peers_refused.increment();
            if let Some(more) = refused.strangers.permits(std::time::Instant::now()) {
                warn!(uid = ?uid.ok(), more, "a peer is not in socket.allowed_uids and was refused");
            }
            return;
        }
    }
    if connections.len() >= settings.socket.max_connections {
        metrics.refusals.increment(RefusalCode::TooManyConnections);
        if let Some(more) = refused.too_many.permits(std::time::Instant::now()) {
            let max_connections = settings.socket.max_connections;
            warn!(max_connections, more, "too many connections are open: another was refused (raise socket.max_connections)");
        }
        let mut line = Vec::new();
        Reply::Error {
            code: RefusalCode::TooManyConnections,
            field: None,
            message: "socket.max_connections is reached (come back later)".into(),
            seq: None,
            line: None,
            fatal: true,
        }
        .encode(&mut line);
        // Its buffer is empty: there is room.
        let _ = (&stream).write(&line);
        return;
    }
    match Connection::new(stream, around.clone()) {
        Ok(connection) => {
            if !connection.is_listened_to()
                && let Some(more) = refused.untold.permits(std::time::Instant::now())
            {
                warn!(more, "a connection cannot be listened to and is looked at now and then (raise fs.epoll.max_user_watches)");
            }
            metrics.connections_total.increment();
            metrics.connections.add(1);
            connections.spawn(connection.run());
        }
        Err(error) => warn!(%error, "a connection cannot be served and was closed"),
    }
}
