//! Changes asked for over the status socket: a client that sends one JSON line first gets one JSON object for it, in
//! place of the status.
//!
//! Promises: only this daemon's own user and root may change anything; a request is done or it is not, and a client
//! whose line came too late gets the status, by which it knows that nothing was done. At most `AT_ONCE` changes are under
//! way or waited for: whoever asks for the status has a room of his own and never stands behind them.
//! Refuses: longer lines than [`REQUEST_BYTES`], and slow clients.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::history::change::{Answer, Changes, REQUEST_BYTES, Request};

/// How long a client may take until the first byte of its request is there.
const GRACE: Duration = Duration::from_millis(25);
/// How long it may take to send the whole line, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Changes at once.
const AT_ONCE: usize = 8;

/// Where changes are asked for. Clones share the room.
#[derive(Clone)]
pub struct Desk {
    changes: Changes,
    room: Arc<Semaphore>,
}

/// Somebody who may ask for a change, and what came of it so far.
pub struct Change {
    stream: UnixStream,
    first: [u8; 1],
    _permit: OwnedSemaphorePermit,
}

/// The beginning of a request, if the client makes one. `None`: it wants the status.
pub async fn first_byte(stream: &mut UnixStream) -> Option<[u8; 1]> {
    let mut first = [0_u8; 1];
    matches!(timeout(GRACE, stream.read(&mut first)).await, Ok(Ok(1))).then_some(first)
}

impl Desk {
    /// A desk for these changes.
    #[must_use]
    pub fn new(changes: Changes) -> Self {
        Self { changes, room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Lets a client in. Who may not is told so after its line, within the time the caller has; who finds no room finds
    /// the door shut, and comes again.
    pub async fn admit(&self, mut stream: UnixStream, first: [u8; 1]) -> Option<Change> {
        if may_change(&stream) {
            let permit = Arc::clone(&self.room).try_acquire_owned().ok()?;
            return Some(Change { stream, first, _permit: permit });
        }
        let _ = request(&mut stream, first).await;
        let refusal = Answer::refused("only the daemon's own user and root may change the history (sudo?)");
        answer(&mut stream, &refusal).await;
        None
    }

    /// Does what is asked, and answers.
    pub async fn serve(&self, change: Change) {
        let Change { mut stream, first, _permit } = change;
        let done = match timeout(PATIENCE, request(&mut stream, first)).await {
            Ok(Ok(request)) => self.changes.run(request).await,
            Ok(Err(problem)) => Answer::refused(problem),
            Err(_) => Answer::refused("the request did not come in time"),
        };
        let _ = timeout(PATIENCE, answer(&mut stream, &done)).await;
    }
}

async fn answer(stream: &mut UnixStream, answer: &Answer) {
    let mut text = serde_json::to_vec(answer).unwrap_or_default();
    text.push(b'\n');
    if stream.write_all(&text).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

fn may_change(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn request(stream: &mut UnixStream, first: [u8; 1]) -> Result<Request, String> {
    let mut line = first.to_vec();
    let mut chunk = vec![0_u8; 1 << 16];
    while line.last() != Some(&b'\n') {
        match stream.read(&mut chunk).await {
            Ok(0) => break,
            Ok(count) => line.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) => return Err(format!("the request cannot be read: {error}")),
        }
        if line.len() > REQUEST_BYTES {
            return Err(format!("the request is longer than {REQUEST_BYTES} bytes"));
        }
    }
    serde_json::from_slice(&line).map_err(|error| format!("this is no request: {}", position(&error)))
}

/// Where it is wrong, without what stands there.
fn position(error: &serde_json::Error) -> String {
    format!("{:?} error at column {}", error.classify(), error.column())
}
