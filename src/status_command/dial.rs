//! Connecting to a socket of the daemon without waiting for ever: the queue of one that is stopped is full at some point,
//! and then a plain connect blocks until it goes on.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

/// A connection whose connecting, writing and reading each take at most so long.
///
/// # Errors
/// As connecting; a daemon that takes no connection in time is [`io::ErrorKind::TimedOut`].
pub(crate) fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(seconds, i64::from(patience.subsec_micros())))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?).map_err(|error| match error {
        nix::Error::EAGAIN => io::Error::new(io::ErrorKind::TimedOut, "it takes no connection (is it stopped or stuck?)"),
        other => other.into(),
    })?;
    let stream = UnixStream::from(fd);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}
