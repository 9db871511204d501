//! A connection as the kernel tells of it: when there is something to read, and only while somebody waits for it, when
//! there is room to write.
//!
//! Promises: a client that reads its acks wakes nobody. The runtime's own stream listens for both from its beginning to its
//! end, and is told of the room that each ack leaves behind.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes taken by one read at most.
const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    /// Where all reads of a thread go first: the buffer of a connection is touched as far as the client has spoken.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stream of one connection.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<UnixStream>,
    /// `None` only while it changes what it listens for.
    listening: Option<AsyncFd<Arc<UnixStream>>>,
    for_room: bool,
    /// The process at the other end, if the kernel says.
    pub peer_pid: Option<i32>,
}

impl Stream {
    /// Takes a stream over from the runtime.
    ///
    /// # Errors
    /// When the kernel does not let it be listened to.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let peer_pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let socket = Arc::new(stream.into_std()?);
        let listening = Some(listen(&socket, Interest::READABLE)?);
        Ok(Self { socket, listening, for_room: false, peer_pid })
    }

    /// For those who write to it now and then, as long as it is there.
    #[must_use]
    pub fn writer(&self) -> Weak<UnixStream> {
        Arc::downgrade(&self.socket)
    }

    /// Whether somebody waits for room to write.
    ///
    /// # Errors
    /// When the kernel does not let it be listened to.
    pub fn listen_for_room(&mut self, for_room: bool) -> io::Result<()> {
        if for_room != self.for_room {
            let interest = if for_room { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // The kernel knows a socket once: the old registration goes first.
            self.listening = None;
            self.listening = Some(listen(&self.socket, interest)?);
            self.for_room = for_room;
        }
        Ok(())
    }

    fn listening(&self) -> io::Result<&AsyncFd<Arc<UnixStream>>> {
        self.listening.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Waits until there is something to read. One task waits at a time.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancel safety
    /// Cancel safe: it only waits.
    pub async fn readable(&self) -> io::Result<()> {
        // Polled by hand: the runtime's own future is made for many who wait, and ten thousand connections wait.
        poll_fn(|context| self.listening()?.poll_read_ready(context).map_ok(|mut ready| ready.retain_ready())).await
    }

    /// Waits until there is room to write; for ever if that is not listened for. One task waits at a time.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancel safety
    /// Cancel safe: it only waits.
    pub async fn room(&self) -> io::Result<()> {
        poll_fn(|context| self.listening()?.poll_write_ready(context).map_ok(|mut ready| ready.retain_ready())).await
    }

    /// Reads once, behind what the buffer holds.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; when the client is gone.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let listening = self.listening()?;
        let room = (buffer.capacity() - buffer.len()).min(SCRATCH_BYTES);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_BYTES, 0);
            let target = scratch.get_mut(..room).unwrap_or_default();
            let mut asked = false;
            let mut read = listening.try_io(Interest::READABLE, |socket| {
                asked = true;
                (&**socket).read(target)
            });
            if !asked {
                // The runtime has not heard of anything, but it may not have listened yet: whoever drains must not believe it.
                read = (&*self.socket).read(target);
            }
            buffer.extend_from_slice(target.get(..read.as_ref().copied().unwrap_or(0)).unwrap_or_default());
            read
        })
    }

    /// Writes once.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; when the client is gone.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.for_room {
            // Also forgets the room that is used up.
            self.listening()?.try_io(Interest::WRITABLE, |socket| (&**socket).write(bytes))
        } else {
            (&*self.socket).write(bytes)
        }
    }
}

#[expect(
    deprecated,
    reason = "the other constructor is unsafe, for types that close or change their descriptor; a shared `UnixStream` does neither"
)]
fn listen(socket: &Arc<UnixStream>, interest: Interest) -> io::Result<AsyncFd<Arc<UnixStream>>> {
    AsyncFd::with_interest(Arc::clone(socket), interest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Stream::new(tokio::net::UnixStream::from_std(ours).unwrap()).unwrap(), theirs)
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
            stream.listen_for_room(true).unwrap();
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
            stream.listen_for_room(false).unwrap();
            client.write_all(b"and now").unwrap();
            timeout(SOON, stream.readable()).await.unwrap().unwrap();
            assert_eq!(stream.try_read(&mut buffer).unwrap(), 7);
        }
        assert_eq!(buffer.len(), 63);
    }
}
