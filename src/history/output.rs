//! Where an export goes: a stream, or a file that is whole or not there.
//!
//! Promises: the file is written without a name beside its place and gets its name when it is complete and on disk, so a
//! failure or a kill in the middle leaves nothing, and an older file of that name stays until then. It is 0600. Where the
//! file system knows no nameless files (NFS, some FUSE), a kill leaves `.chat-historyd-….tmp`; a failure does not.
//! Refuses: to write over a directory, and to follow what others may have put at the place (`place`).

mod place;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use uuid::Uuid;

use self::place::Place;

/// An export cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}{}", .path.display(), hint(.source))]
pub struct OutputError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (its directory does not exist)",
        io::ErrorKind::StorageFull => " (nothing was left behind; free some room)",
        io::ErrorKind::IsADirectory => " (name a file in it)",
        _ => "",
    }
}

/// An output under way.
#[derive(Debug)]
pub enum Output {
    /// Into a pipe or a device.
    Stream {
        /// What is not written yet.
        out: BufWriter<File>,
        /// As it was named, for messages.
        named: PathBuf,
    },
    /// Into a file.
    File(AtomicFile),
}

impl Output {
    /// Begins the output to `path`; through a symbolic link that may be trusted, to its target.
    ///
    /// # Errors
    /// When it cannot be written there, or somebody else put a link or a pipe there.
    pub fn begin(path: &Path) -> Result<Self, OutputError> {
        let named = path.to_path_buf();
        match Place::of(path) {
            Ok(Place::Stream(file)) => Ok(Self::Stream { out: BufWriter::with_capacity(1 << 16, file), named }),
            Ok(Place::File(place)) => AtomicFile::begin(named, place).map(Self::File),
            Err(source) => Err(OutputError { path: named, source }),
        }
    }

    /// Ends it; a file is put in place, durably.
    ///
    /// # Errors
    /// When it cannot be completed; the file that stood there before still stands.
    pub fn commit(self) -> Result<(), OutputError> {
        match self {
            Self::Stream { mut out, named } => out.flush().map_err(|source| OutputError { path: named, source }),
            Self::File(file) => file.commit(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream { out, .. } => out.write(bytes),
            Self::File(file) => file.out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream { out, .. } => out.flush(),
            Self::File(file) => file.out.flush(),
        }
    }
}

/// A file under way. Dropped before it is committed, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    out: BufWriter<File>,
    /// As it was named, for messages.
    named: PathBuf,
    place: PathBuf,
    directory: PathBuf,
    /// Has a name already, because the file system knows no nameless files.
    temporary: Option<PathBuf>,
}

impl AtomicFile {
    /// Begins the file that is to stand at `place`.
    fn begin(named: PathBuf, place: PathBuf) -> Result<Self, OutputError> {
        let failed = |source| OutputError { path: named.clone(), source };
        let directory = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let nameless = OpenOptions::new().write(true).mode(0o600).custom_flags(OFlag::O_TMPFILE.bits()).open(&directory);
        let (file, temporary) = match nameless {
            Ok(file) => (file, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(failed(error)),
            Err(_) => {
                let name = directory.join(temporary_name());
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name).map_err(failed)?;
                (file, Some(name))
            }
        };
        Ok(Self { out: BufWriter::with_capacity(1 << 16, file), named, place, directory, temporary })
    }

    fn commit(mut self) -> Result<(), OutputError> {
        self.finish().map_err(|source| OutputError { path: self.named.clone(), source })
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        if self.temporary.is_none() {
            // A link is not made over an existing name: it gets one of its own, and is renamed.
            let name = self.directory.join(temporary_name());
            let descriptor = format!("/proc/self/fd/{}", self.out.get_ref().as_raw_fd());
            linkat(AT_FDCWD, descriptor.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.temporary = Some(name);
        }
        if let Some(name) = &self.temporary {
            std::fs::rename(name, &self.place)?;
            self.temporary = None;
        }
        File::open(&self.directory)?.sync_all()
    }
}

fn temporary_name() -> String {
    format!(".chat-historyd-{}.tmp", Uuid::now_v7().simple())
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(name) = self.temporary.take() {
            let _ = std::fs::remove_file(name);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_appears_when_it_is_whole_and_replaces_the_old_one_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export.csv");
        std::fs::write(&path, "old").unwrap();
        let mut file = Output::begin(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        file.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = Output::begin(&directory.path().join("export.csv")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_said_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = Output::begin(directory.path()).unwrap_err().to_string();
        assert!(error.contains("name a file in it"), "{error}");
        let error = Output::begin(&directory.path().join("no/such")).unwrap_err().to_string();
        assert!(error.contains("its directory does not exist"), "{error}");
    }
}
