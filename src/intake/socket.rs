//! The server socket: adopted from systemd, or made as bind → chmod → chown → listen, so that its mode holds from the
//! first instant somebody could connect.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use tracing::warn;

use crate::config::SocketSettings;

/// Connections the kernel keeps waiting for an accept.
const BACKLOG: i32 = 1_024;

/// Why there is no server socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{0} is in use: a daemon answers there (stop it, or set another socket path)")]
    Live(PathBuf),
    /// Something else has that name.
    #[error("{0} is no socket and is left alone (remove it, or set another socket path)")]
    NotASocket(PathBuf),
    /// A directory that others could write to is no place for it.
    #[error("{path} is not safe: {what} (remove it, or set another socket path)")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The group does not exist.
    #[error("socket.group: there is no group {0:?} (create it, or mend the setting)")]
    NoSuchGroup(String),
    /// The system refused.
    #[error("cannot {verb} {path}: {source}{hint}")]
    System {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
        /// What helps.
        hint: &'static str,
    },
}

/// A listening socket and what is to be cleaned up after it.
#[derive(Debug)]
pub struct ServerSocket {
    listener: StdListener,
    path: PathGuard,
}

impl ServerSocket {
    /// The socket systemd passed, if it passed one.
    ///
    /// # Errors
    /// When what was passed is no listening Unix stream socket.
    pub fn adopt(path: &Path) -> Result<Option<Self>, ListenError> {
        let mut passed = listenfd::ListenFd::from_env();
        let listener = passed.take_unix_listener(0).map_err(|source| ListenError::System {
            verb: "adopt the socket systemd passed for",
            path: path.to_owned(),
            source,
            hint: " (the socket unit needs exactly one ListenStream= with a path)",
        })?;
        let Some(listener) = listener else { return Ok(None) };
        let path = listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_pathname().map(Path::to_owned))
            .unwrap_or_else(|| path.to_owned());
        listener.set_nonblocking(true).map_err(|source| system("set up", &path, source))?;
        let standing = standing_at(&path);
        Ok(Some(Self { listener, path: PathGuard { path, standing, ours: false } }))
    }

    /// Makes the socket of the settings. A stale one is replaced.
    ///
    /// # Errors
    /// When the path is taken by something alive or by no socket, or the system refuses.
    pub fn make(settings: &SocketSettings) -> Result<Self, ListenError> {
        let gid = settings.group.as_deref().map(group_id).transpose()?;
        Self::bind(&settings.path, settings.mode, gid, Err)
    }

    /// As [`Self::make`], but where the group cannot be given the daemon's own stays: what it serves is worth less than the
    /// daemon.
    ///
    /// # Errors
    /// As [`Self::make`], but for the group.
    pub fn make_with_what_group_there_is(settings: &SocketSettings) -> Result<Self, ListenError> {
        let gid = settings.group.as_deref().map(group_id).transpose()?;
        Self::bind(&settings.path, settings.mode, gid, |failure| {
            warn!(path = %settings.path.display(), %failure, "the socket keeps the daemon's own group");
            Ok(())
        })
    }

    fn bind(
        path: &Path,
        mode: u32,
        gid: Option<u32>,
        without_group: impl FnOnce(ListenError) -> Result<(), ListenError>,
    ) -> Result<Self, ListenError> {
        make_directory(path)?;
        clear(path)?;
        let address = UnixAddr::new(path).map_err(|error| ListenError::System {
            verb: "bind",
            path: path.to_owned(),
            source: error.into(),
            hint: " (a socket path has at most 107 bytes)",
        })?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|error| system("make a socket for", path, error.into()))?;
        // The path is born with the mode of the descriptor, less the umask: never wider than asked for, not even for the
        // moment until the exact mode is set.
        fchmod(&fd, Mode::from_bits_truncate(mode & 0o600)).map_err(|error| system("set the mode of", path, error.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|error| ListenError::System {
            verb: "bind",
            path: path.to_owned(),
            source: error.into(),
            hint: match error {
                nix::Error::ENOENT => " (its directory does not exist: set socket.path, or RuntimeDirectory= in the unit)",
                nix::Error::EACCES => " (the daemon's user may not write to its directory)",
                _ => "",
            },
        })?;
        // From here on a failure takes it along.
        let standing = standing_at(path);
        let guard = PathGuard { path: path.to_owned(), standing, ours: true };
        // Only where it differs: a sandbox may refuse a chown that would change nothing.
        if gid.is_some_and(|gid| fs::symlink_metadata(path).map_or(true, |metadata| metadata.gid() != gid)) {
            chown(path, None, gid)
                .map_err(|source| ListenError::System {
                    verb: "change the group of",
                    path: path.to_owned(),
                    source,
                    hint: " (run the daemon in that group, Group= in the unit, or leave socket.group out)",
                })
                .or_else(without_group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| system("set the mode of", path, source))?;
        let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXALLOWABLE);
        listen(&fd, backlog).map_err(|error| system("listen on", path, error.into()))?;
        Ok(Self { listener: StdListener::from(fd), path: guard })
    }

    /// What of the settings does not hold for a socket that was adopted: the key, what the socket has, and what in the
    /// socket unit decides it. Nothing for one of our own.
    #[must_use]
    pub fn unlike(&self, settings: &SocketSettings) -> Vec<(&'static str, String, &'static str)> {
        let mut unlike = Vec::new();
        let Ok(found) = fs::symlink_metadata(self.path()) else { return unlike };
        if !self.is_adopted() {
            return unlike;
        }
        // By inode: /var/run and /run are the same place.
        let is_there = fs::symlink_metadata(&settings.path).is_ok_and(|at| (at.dev(), at.ino()) == (found.dev(), found.ino()));
        if !is_there {
            unlike.push(("socket.path", self.path().display().to_string(), "ListenStream="));
        }
        if found.mode() & 0o777 != settings.mode {
            unlike.push(("socket.mode", format!("{:04o}", found.mode() & 0o777), "SocketMode="));
        }
        if settings.group.as_deref().is_some_and(|name| !group_id(name).is_ok_and(|gid| gid == found.gid())) {
            unlike.push(("socket.group", group_name(found.gid()), "SocketGroup="));
        }
        unlike
    }

    /// Where clients connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path.path
    }

    /// Whether systemd owns the path.
    #[must_use]
    pub const fn is_adopted(&self) -> bool {
        !self.path.ours
    }

    /// The listener for the runtime, and what removes the path when dropped.
    ///
    /// # Errors
    /// When the runtime cannot take it.
    pub fn into_listener(self) -> io::Result<(tokio::net::UnixListener, PathGuard)> {
        let (listener, path) = self.into_parts();
        Ok((tokio::net::UnixListener::from_std(listener)?, path))
    }

    /// The listener, which does not block, and what removes the path when dropped.
    #[must_use]
    pub fn into_parts(self) -> (StdListener, PathGuard) {
        (self.listener, self.path)
    }
}

/// Knows whether the socket's path still leads to the socket; removes one that was made here when dropped, if it does.
#[derive(Debug)]
pub struct PathGuard {
    path: PathBuf,
    /// Device and inode; `None` for a socket that never had a path to look at.
    standing: Option<(u64, u64)>,
    /// Whether it was made here: a supervisor's is the supervisor's to remove.
    ours: bool,
}

impl PathGuard {
    /// Where clients connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path was made here.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether whoever connects to the path reaches the socket. A path that cannot be looked at is no proof that it is gone.
    #[must_use]
    pub fn leads_there(&self) -> bool {
        let Some(standing) = self.standing else { return true };
        match fs::symlink_metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) == standing,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        if self.ours && self.standing.is_some() && standing_at(&self.path) == self.standing {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn standing_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn system(verb: &'static str, path: &Path, source: io::Error) -> ListenError {
    ListenError::System { verb, path: path.to_owned(), source, hint: "" }
}

fn group_id(name: &str) -> Result<u32, ListenError> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(ListenError::NoSuchGroup(name.to_owned())),
    }
}

fn group_name(gid: u32) -> String {
    let known = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    known.map_or_else(|| gid.to_string(), |group| group.name)
}

/// The last directory of the path is made when it is missing; under a directory everybody may write to (`/tmp`) it is
/// private and must be ours.
fn make_directory(path: &Path) -> Result<(), ListenError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) else { return Ok(()) };
    let shared = directory.parent().and_then(|parent| fs::metadata(parent).ok()).is_some_and(|parent| parent.mode() & 0o002 != 0);
    let mode = if shared { 0o700 } else { 0o755 };
    match fs::DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(ListenError::System {
                verb: "make the directory",
                path: directory.to_owned(),
                source,
                hint: " (set socket.path, or RuntimeDirectory= in the unit)",
            });
        }
    }
    if shared {
        let unsafe_because = |what| Err(ListenError::Unsafe { path: directory.to_owned(), what });
        let metadata = fs::symlink_metadata(directory).map_err(|source| system("look at", directory, source))?;
        if !metadata.is_dir() {
            return unsafe_because("it is no directory");
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return unsafe_because("it belongs to somebody else");
        }
        if metadata.mode() & 0o022 != 0 {
            return unsafe_because("others may write to it");
        }
    }
    Ok(())
}

/// Removes a stale socket. A live one and everything else is left alone.
fn clear(path: &Path) -> Result<(), ListenError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(system("look at", path, source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    // Without blocking: a daemon that hangs with a full queue is alive, too.
    let answer = UnixAddr::new(path).and_then(|address| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &address)
    });
    match answer {
        Err(nix::Error::ECONNREFUSED) => fs::remove_file(path).map_err(|source| system("remove the stale socket", path, source)),
        Err(nix::Error::ENOENT) => Ok(()),
        Err(error @ nix::Error::EACCES) => Err(system("connect to the existing", path, error.into())),
        Ok(()) | Err(_) => Err(ListenError::Live(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn bound(path: &Path, mode: u32) -> Result<ServerSocket, ListenError> {
        ServerSocket::bind(path, mode, None, Err)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_its_mode_is_set() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(StdListener::bind(&path).unwrap());
        let socket = bound(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(socket.path()).unwrap().mode() & 0o777, 0o600);
        StdStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _listener = StdListener::bind(&path).unwrap();
        assert!(matches!(bound(&path, 0o660), Err(ListenError::Live(_))));
        StdStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(bound(&path, 0o660), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(bound(&link, 0o660), Err(ListenError::NotASocket(_))));
    }

    #[test]
    fn a_path_that_somebody_else_took_over_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let first = bound(&path, 0o660).unwrap();
        let (_listener, guard) = first.into_parts();
        fs::remove_file(&path).unwrap();
        let _second = StdListener::bind(&path).unwrap();
        drop(guard);
        assert!(path.exists());
    }
}
