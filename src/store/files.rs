//! The files of the store: where they are, that they are ours alone, and how damaged ones are set aside.
//!
//! Promises: the directory is 0700 (but where it belongs to somebody else who lets us write) and every file in it 0600; a
//! symlink in place of a file is never followed; the three files of a database move together, and a move that was cut short
//! is finished before any of them is opened, also after a power cut. Refuses: to make private a directory that others use.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;
use nix::unistd::AccessFlags;
use tracing::warn;

use super::error::StoreError;

/// The database's file.
const DATABASE: &str = "history.db";
/// What SQLite appends to the name of a database.
pub(crate) const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
/// Stands where a database is set aside, from before it is moved there until it is salvaged.
const UNFINISHED: &str = "unfinished";

/// What is written to: the database, and its log.
const STANDING: [&str; 2] = ["", "-wal"];

/// Device and inode of the database and of its log, where they were there.
pub(super) type Standing = [Option<(u64, u64)>; 2];

/// A file that is open and no longer at its path.
pub(super) struct Stray {
    pub(super) path: PathBuf,
    pub(super) is_log: bool,
}

/// The paths of one store.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) database: PathBuf,
    pub(super) lock: PathBuf,
}

impl Files {
    /// Creates the directory when it is missing and makes it ours alone. The directory itself may be reached through a
    /// symlink (systemd's `StateDirectory=` makes one); what is in it may not.
    pub(super) fn prepare(directory: &Path) -> Result<Self, StoreError> {
        if !directory.exists() {
            if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent).map_err(StoreError::file("create the directory", parent))?;
            }
            private_directory(directory).map_err(StoreError::file("create the directory", directory))?;
        }
        let directory = directory.canonicalize().map_err(StoreError::file("open the directory", directory))?;
        let mode = directory.metadata().map_err(StoreError::file("open the directory", &directory))?.permissions().mode();
        if mode & 0o077 != 0 {
            make_private(&directory, mode)?;
        }
        Ok(Self { database: directory.join(DATABASE), lock: directory.join("lock"), directory })
    }

    fn member(&self, suffix: &str) -> PathBuf {
        let mut path = self.database.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// The first of the database's files that is there and is no regular file.
    pub(super) fn irregular(&self) -> Option<PathBuf> {
        SUFFIXES
            .iter()
            .map(|suffix| self.member(suffix))
            .find(|path| path.symlink_metadata().is_ok_and(|metadata| !metadata.file_type().is_file()))
    }

    /// Which files the database and its log are now.
    pub(super) fn standing(&self) -> Standing {
        STANDING.map(|suffix| self.member(suffix).symlink_metadata().ok().map(|found| (found.dev(), found.ino())))
    }

    /// The database or its log, where its path no longer leads to the file that stood there. A disk that does not tell is no
    /// proof of that.
    pub(super) fn strayed(&self, standing: Standing) -> Option<Stray> {
        STANDING.iter().zip(standing).find_map(|(suffix, stood)| {
            let path = self.member(suffix);
            let is_elsewhere = match path.symlink_metadata() {
                Ok(found) => (found.dev(), found.ino()) != stood?,
                Err(error) => stood.is_some() && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            };
            is_elsewhere.then_some(Stray { path, is_log: !suffix.is_empty() })
        })
    }

    /// Whether the database that stood there still does, on whatever device its disk is now. One that does not tell is no
    /// proof against it.
    pub(super) fn has_database_of(&self, standing: Standing) -> bool {
        match self.database.symlink_metadata() {
            Ok(found) => standing[0].is_none_or(|(_, inode)| inode == found.ino()),
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// The length of the database file; `None` when there is none.
    pub(super) fn database_len(&self) -> Option<u64> {
        self.database.symlink_metadata().ok().map(|metadata| metadata.len())
    }

    /// The length of the write-ahead log.
    pub(super) fn wal_len(&self) -> u64 {
        self.member("-wal").symlink_metadata().map_or(0, |metadata| metadata.len())
    }

    /// Makes an empty database file (SQLite gives its log the same mode), durable in its directory.
    pub(super) fn create_database(&self) -> Result<(), StoreError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&self.database)
            .map_err(StoreError::file("create", &self.database))?;
        sync(&self.directory)
    }

    /// Takes from others what an older or careless hand gave them.
    pub(super) fn make_private(&self) -> Result<(), StoreError> {
        for path in SUFFIXES.iter().map(|suffix| self.member(suffix)) {
            if let Ok(metadata) = path.symlink_metadata()
                && metadata.permissions().mode() & 0o077 != 0
            {
                fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(StoreError::file("make private", &path))?;
            }
        }
        Ok(())
    }

    /// The same store with the database that salvage fills, before it takes the place of the damaged one.
    pub(super) fn rebuilt(&self) -> Self {
        Self { database: self.directory.join("history.db.salvage"), ..self.clone() }
    }

    /// Removes the database, its log and its index: only ever called for [`Self::rebuilt`].
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        SUFFIXES
            .iter()
            .map(|suffix| self.member(suffix))
            .try_for_each(|path| ignore_missing(fs::remove_file(&path)).map_err(StoreError::file("remove", &path)))
    }

    /// Puts the rebuilt database (checkpointed and closed) in place, durably, and marks the salvage of `aside` as done.
    pub(super) fn put_in_place(&self, rebuilt: &Self, aside: &Path) -> Result<(), StoreError> {
        for path in SUFFIXES.iter().skip(1).map(|suffix| rebuilt.member(suffix)) {
            ignore_missing(fs::remove_file(&path)).map_err(StoreError::file("remove", &path))?;
        }
        fs::rename(&rebuilt.database, &self.database).map_err(StoreError::file("put in place", &rebuilt.database))?;
        sync(&self.directory)?;
        let marker = aside.with_file_name(UNFINISHED);
        ignore_missing(fs::remove_file(&marker)).map_err(StoreError::file("remove", &marker))
    }

    /// A database that was set aside by a daemon that died before its salvage was done. One that died in the middle of the
    /// move left a database here that lacks its log: the move is finished first.
    ///
    /// # Errors
    /// When that cannot be known, or the move not be finished: what is here must not be opened then.
    pub(super) fn unfinished(&self) -> Result<Option<PathBuf>, StoreError> {
        let places = self.unfinished_places()?;
        if let Some(place) = half_moved(&places) {
            return self.move_to(place).map(Some);
        }
        if self.database_len().is_some() {
            return Ok(None);
        }
        Ok(places.first().map(|place| place.join(DATABASE)))
    }

    /// The places whose salvage is not done, the youngest first.
    fn unfinished_places(&self) -> Result<Vec<PathBuf>, StoreError> {
        let corrupt = self.directory.join("corrupt");
        let failed = StoreError::file("read the directory", &corrupt);
        let entries = match fs::read_dir(&corrupt) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut places = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>().map_err(failed)?;
        places.retain(|place| place.join(UNFINISHED).exists());
        places.sort_by(|one, other| other.cmp(one));
        Ok(places)
    }

    /// Moves the database, its log and its index together into `corrupt/<name>/`, or to where a move that failed on the way
    /// has left the others; answers where the database is now. The place is marked as unfinished until
    /// [`Self::put_in_place`]. A power cut between two steps leaves what a kill there leaves: each is on the disk before the
    /// next, for a file system may keep a younger rename and lose an older one.
    pub(super) fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        if let Some(place) = half_moved(&self.unfinished_places()?) {
            return self.move_to(place);
        }
        let corrupt = self.directory.join("corrupt");
        if corrupt.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            let elsewhere = self.directory.join(format!("corrupt.{name}"));
            fs::rename(&corrupt, &elsewhere).map_err(StoreError::file("rename", &corrupt))?;
        }
        ignore_existing(private_directory(&corrupt)).map_err(StoreError::file("create the directory", &corrupt))?;
        let place = free(&corrupt, name);
        private_directory(&place).map_err(StoreError::file("create the directory", &place))?;
        let marker = place.join(UNFINISHED);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&marker).map_err(StoreError::file("create", &marker))?;
        [&place, &corrupt, &self.directory].into_iter().try_for_each(|directory| sync(directory))?;
        self.move_to(&place)
    }

    /// Moves what is here into a place. The database comes last: while it is not there the move is not done.
    fn move_to(&self, place: &Path) -> Result<PathBuf, StoreError> {
        // The log and the index first: a database left without its log for a moment is still a database, but a fresh
        // database must never find a stranger's log beside it.
        for suffix in SUFFIXES.iter().rev() {
            let from = self.member(suffix);
            if from.symlink_metadata().is_ok() {
                // Where the move was cut short a reader may have made a new log, which is not to stand for the moved one.
                let to = free(place, &format!("{DATABASE}{suffix}"));
                fs::rename(&from, to).map_err(StoreError::file("move aside", &from))?;
                // Where it came to first: a file must not be in neither.
                sync(place)?;
                sync(&self.directory)?;
            }
        }
        let database = place.join(DATABASE);
        if is_missing(&database) {
            // There was a log alone.
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&database)
                .map_err(StoreError::file("create", &database))?;
            sync(place)?;
        }
        Ok(database)
    }
}

/// What was made, renamed or removed in a directory survives a power cut from here on.
fn sync(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(StoreError::file("sync", directory))
}

/// Takes from others a directory that is the store's own.
fn make_private(directory: &Path, mode: u32) -> Result<(), StoreError> {
    if !is_own(directory).map_err(StoreError::file("look into the directory", directory))? {
        return Err(StoreError::Shared { directory: directory.to_owned(), mode: mode & 0o7777 });
    }
    match fs::set_permissions(directory, Permissions::from_mode(0o700)) {
        // A volume that an orchestrator gives to our group is not ours to change; what we put there is.
        Err(failure) if failure.kind() == io::ErrorKind::PermissionDenied && is_writable(directory) => {
            let mode = format!("{:04o}", mode & 0o7777);
            warn!(
                directory = %directory.display(),
                mode,
                "the store's directory belongs to another user and stays open to others; every file in it is private (chown it to the daemon's user)"
            );
            Ok(())
        }
        done => done.map_err(StoreError::file("make private the directory", directory)),
    }
}

/// Whether nobody else's files are in a directory: it is empty, or a store has been there before.
fn is_own(directory: &Path) -> io::Result<bool> {
    let mut is_empty = true;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_a_database = ["history.db", "search.db"].iter().any(|database| name.to_string_lossy().starts_with(database));
        // Only a file: /var has a symlink of that name.
        if is_a_database || (name == "lock" && entry.file_type()?.is_file()) {
            return Ok(true);
        }
        // A new file system has that, too.
        is_empty &= name == "lost+found";
    }
    Ok(is_empty)
}

fn is_writable(directory: &Path) -> bool {
    nix::unistd::access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// The place into which the log may have been moved, but not yet the database.
fn half_moved(places: &[PathBuf]) -> Option<&PathBuf> {
    places.iter().find(|place| is_missing(&place.join(DATABASE)))
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A path in `directory` where nothing is.
fn free(directory: &Path, name: &str) -> PathBuf {
    (0..1000)
        .map(|number| directory.join(if number == 0 { name.to_owned() } else { format!("{name}-{number}") }))
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_else(|| directory.join(name))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn ignore_existing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_failed_on_the_way_goes_on_to_the_place_where_the_log_is() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::prepare(&directory.path().join("state")).unwrap();
        let first = files.directory.join("corrupt/first");
        fs::create_dir_all(&first).unwrap();
        fs::write(first.join(UNFINISHED), b"").unwrap();
        fs::write(first.join("history.db-wal"), b"the log").unwrap();
        fs::write(&files.database, b"the database").unwrap();
        // As a reader makes it.
        fs::write(files.member("-wal"), b"").unwrap();
        let aside = files.set_aside("second").unwrap();
        assert_eq!(aside, first.join("history.db"));
        assert_eq!(fs::read(&aside).unwrap(), b"the database");
        assert_eq!(fs::read(first.join("history.db-wal")).unwrap(), b"the log");
        assert!(files.database_len().is_none() && files.wal_len() == 0);
        // Now it is whole: the next one is set aside elsewhere.
        fs::write(&files.database, b"another").unwrap();
        assert_ne!(files.set_aside("second").unwrap(), aside);
    }

    #[test]
    fn a_log_without_a_database_is_set_aside_whole_too() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::prepare(&directory.path().join("state")).unwrap();
        fs::write(files.member("-wal"), b"the log").unwrap();
        let aside = files.set_aside("first").unwrap();
        fs::write(&files.database, b"rebuilt from it").unwrap();
        assert_eq!(fs::read(aside.with_file_name("history.db-wal")).unwrap(), b"the log");
        assert_eq!(files.unfinished().unwrap(), None, "the rebuilt one stays");
    }
}
