//! Changes asked for over the status socket: a client that sends one JSON line first gets one JSON object for it, in
//! place of the status.
//!
//! Promises: only this daemon's own user and root may change anything; a request is done or it is not, and a client
//! whose line came too late gets the status, by which it knows that nothing was done.
//! Refuses: longer lines than [`REQUEST_BYTES`], and slow clients.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::history::change::{Answer, Changes, REQUEST_BYTES, Request};

/// How long a client may take until the first byte of its request is there.
const GRACE: Duration = Duration::from_millis(25);
/// How long it may take to send the whole line, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers a request, if the client makes one. `false`: it wants the status.
pub async fn attend(stream: &mut UnixStream, changes: &Changes) -> bool {
    let mut first = [0_u8; 1];
    let Ok(Ok(1)) = timeout(GRACE, stream.read(&mut first)).await else { return false };
    let answer = match timeout(PATIENCE, request(stream, first)).await {
        _ if !may_change(stream) => Answer::refused("only the daemon's own user and root may change the history (sudo?)"),
        Ok(Ok(request)) => changes.run(request).await,
        Ok(Err(problem)) => Answer::refused(problem),
        Err(_) => Answer::refused("the request did not come in time"),
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    let _ = timeout(PATIENCE, async {
        stream.write_all(&text).await?;
        stream.shutdown().await
    })
    .await;
    true
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
