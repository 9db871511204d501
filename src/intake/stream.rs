//! A connection as the kernel tells of it: when there is something to read, and only while somebody waits for it, when
//! there is room to write.
//!
//! Promises: a client that reads its acks wakes nobody (the runtime's own stream listens for both from its beginning to its
//! end, and is told of the room that each ack leaves behind); a kernel that will not tell is asked, and no line is lost by it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tracing::debug;

/// Bytes taken by one read at most.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Between two looks at a socket that the kernel does not tell of: it counts what it watches
/// (`fs.epoll.max_user_watches`), and may have no place left when a connection wants to listen for something else.
const LOOK_EVERY: Duration = Duration::from_millis(20);

thread_local! {
    /// Where all reads of a thread go first: the buffer of a connection is touched as far as the client has spoken.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stream of one connection.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<UnixStream>,
    /// `None` while the kernel does not let it be listened to.
    listening: Option<AsyncFd<Arc<UnixStream>>>,
    for_room: bool,
    /// The process at the other end, if the kernel says.
    pub peer_pid: Option<i32>,
}

impl Stream {
    /// A stream that was just accepted.
    ///
    /// # Errors
    /// When it cannot be told not to block.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let peer_pid = getsockopt(&socket, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
        let mut stream = Self { socket: Arc::new(socket), listening: None, for_room: false, peer_pid };
        stream.listen_for_room(false);
        Ok(stream)
    }

    /// Whether the kernel tells of it.
    #[must_use]
    pub const fn is_listened_to(&self) -> bool {
        self.listening.is_some()
    }

    /// For those who write to it now and then, as long as it is there.
    #[must_use]
    pub fn writer(&self) -> Weak<UnixStream> {
        Arc::downgrade(&self.socket)
    }

    /// Whether somebody waits for room to write. What the kernel refuses is tried again by the next call.
    pub fn listen_for_room(&mut self, for_room: bool) {
        if for_room == self.for_room && self.listening.is_some() {
            return;
        }
        let interest = if for_room { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        // The kernel knows a socket once: the old registration goes first.
        self.listening = None;
        self.for_room = for_room;
        match listen(Arc::clone(&self.socket), interest) {
            Ok(listening) => self.listening = Some(listening),
            Err(error) => debug!(%error, "a connection cannot be listened to: it is looked at now and then"),
        }
    }

    /// Waits until there is something to read, or may be. One task waits at a time.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancel safety
    /// Cancel safe: it only waits.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.listening {
            // Polled by hand: the runtime's own future is made for many who wait, and ten thousand connections wait.
            Some(fd) => poll_fn(|context| fd.poll_read_ready(context).map_ok(|mut ready| ready.retain_ready())).await,
            None => look_again().await,
        }
    }

    /// Waits until there is room to write, or may be; for ever if that is not listened for. One task waits at a time.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancel safety
    /// Cancel safe: it only waits.
    pub async fn room(&self) -> io::Result<()> {
        match &self.listening {
            Some(fd) => poll_fn(|context| fd.poll_write_ready(context).map_ok(|mut ready| ready.retain_ready())).await,
            None => look_again().await,
        }
    }

    /// Reads once, behind what the buffer holds.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; when the client is gone.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let room = (buffer.capacity() - buffer.len()).min(SCRATCH_BYTES);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_BYTES, 0);
            let target = scratch.get_mut(..room).unwrap_or_default();
            let mut heard = None;
            if let Some(fd) = &self.listening {
                let mut asked = false;
                let read = fd.try_io(Interest::READABLE, |socket| {
                    asked = true;
                    (&**socket).read(target)
                });
                heard = asked.then_some(read);
            }
            // The runtime has not heard of anything, but it may not have listened yet: whoever drains must not believe it.
            let read = heard.unwrap_or_else(|| (&*self.socket).read(target));
            buffer.extend_from_slice(target.get(..read.as_ref().copied().unwrap_or(0)).unwrap_or_default());
            read
        })
    }

    /// Writes once.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; when the client is gone.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.listening {
            // Also forgets the room that is used up.
            Some(fd) if self.for_room => fd.try_io(Interest::WRITABLE, |socket| (&**socket).write(bytes)),
            _ => (&*self.socket).write(bytes),
        }
    }
}

/// Boxed: no connection carries a timer that nearly none needs.
async fn look_again() -> io::Result<()> {
    Box::pin(sleep(LOOK_EVERY)).await;
    Ok(())
}

#[expect(
    deprecated,
    reason = "the other constructor is unsafe, for types that close or change their descriptor; the sockets of the standard library \
              do neither"
)]
pub(super) fn listen<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn what_is_there_is_read_before_the_runtime_has_heard_of_it() {
        let (stream, mut client) = pair();
        client.write_all(b"one\n").unwrap();
        drop(client);
        let mut buffer = BytesMut::with_capacity(64);
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 4);
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 0, "the end");
        assert_eq!(buffer, b"one\n"[..]);
    }

    #[tokio::test]
    async fn it_is_told_of_lines_and_of_room_whatever_it_listened_for_before() {
        let (mut stream, mut client) = pair();
        let mut buffer = BytesMut::with_capacity(1 << 20);
        for round in 0..3 {
            while stream.try_write(&[b'a'; 4096]).is_ok() {}
            stream.listen_for_room(true);
            assert!(timeout(Duration::from_millis(20), stream.room()).await.is_err(), "{round}: there is none");
            client.write_all(b"said meanwhile").unwrap();
            timeout(SOON, stream.readable()).await.unwrap().unwrap();
            assert_eq!(stream.try_read(&mut buffer).unwrap(), 14);
            assert_eq!(stream.try_read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);

            client.set_nonblocking(true).unwrap();
            while client.read(&mut [0; 4096]).is_ok() {}
            client.set_nonblocking(false).unwrap();
            timeout(SOON, stream.room()).await.unwrap().unwrap();
            assert_eq!(stream.try_write(b"heard").unwrap(), 5);
            stream.listen_for_room(false);
            client.write_all(b"and now").unwrap();
            timeout(SOON, stream.readable()).await.unwrap().unwrap();
            assert_eq!(stream.try_read(&mut buffer).unwrap(), 7);
        }
        assert_eq!(buffer.len(), 63);
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_tell_of_is_looked_at() {
        let (mut stream, mut client) = pair();
        // As after a change of what is listened for that the kernel refused: `fs.epoll.max_user_watches` counts them.
        stream.listening = None;
        let mut buffer = BytesMut::with_capacity(1 << 20);
        client.write_all(b"one").unwrap();
        timeout(SOON, stream.readable()).await.unwrap().unwrap();
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 3);
        assert_eq!(stream.try_read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        timeout(SOON, stream.room()).await.unwrap().unwrap();
        assert_eq!(stream.try_write(b"heard").unwrap(), 5);

        stream.listen_for_room(false);
        assert!(stream.listening.is_some(), "it is tried again");
        assert!(timeout(Duration::from_millis(60), stream.readable()).await.is_err(), "and nobody looks any more");
        client.write_all(b"two").unwrap();
        timeout(SOON, stream.readable()).await.unwrap().unwrap();
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 3);
    }
}
