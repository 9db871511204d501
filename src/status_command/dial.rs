//! Talking to a socket of the daemon without waiting for ever: the queue of one that is stopped is full at some point, and
//! then a plain connect blocks until it goes on; and an answer that drips never ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

/// A connection that is over at a fixed time, whatever is still to be said.
pub(crate) struct Call {
    stream: UnixStream,
    end: Instant,
}

/// A connection whose connecting, writing and reading take at most so long, all together.
///
/// # Errors
/// As connecting; a daemon that takes no connection in time is [`io::ErrorKind::TimedOut`].
pub(crate) fn dial(path: &Path, patience: Duration) -> io::Result<Call> {
    let end = Instant::now() + patience;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(seconds, i64::from(patience.subsec_micros())))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?).map_err(|error| match error {
        nix::Error::EAGAIN => io::Error::new(io::ErrorKind::TimedOut, "it takes no connection (is it stopped or stuck?)"),
        other => other.into(),
    })?;
    Ok(Call { stream: UnixStream::from(fd), end })
}

impl Call {
    /// The user of the process that listens.
    pub(crate) fn user(&self) -> Option<u32> {
        getsockopt(&self.stream, sockopt::PeerCredentials).ok().map(|peer| peer.uid())
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(left) }
    }
}

impl Read for Call {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Call {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
