//! The JSON backup of one session, one message a line, written beside its final name and renamed when it is whole.
//!
//! Promises: a reader sees the old backup or the new one, never half of one; a new one holds every message that the old one
//! held, also those that have left the store since; after [`Backup::commit`] it survives a power cut; files are 0600 and directories 0700; below the backup directory no symbolic link is followed and nothing that
//! stands there is written into (a link in place of the backup is replaced, not followed).
//! Refuses: to hold a session in memory.

mod earlier;
mod json;
mod lines;

use std::fs::{DirBuilder, DirEntry, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use self::earlier::Place;
use self::json::{MessageJson, SessionJson};
use self::lines::{Line, Lines};
use super::name::{aside_name, date_of, file_name, is_date, of_temporary, temporary_name};
use super::{MessageRecord, MessageState, SessionRecord};

/// A backup could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {}: {source} (look at backup.directory)", .path.display())]
pub struct BackupError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A backup that is being written. Dropped before [`Self::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Backup {
    root: OwnedFd,
    directory: OwnedFd,
    path: PathBuf,
    name: String,
    temporary: String,
    out: BufWriter<File>,
    counts: [u64; MessageState::NAMES.len()],
    /// What stands where it is to stand.
    place: Place,
    committed: bool,
}

impl Backup {
    /// Begins the backup of a session below `root`, which is created where it is missing.
    ///
    /// # Errors
    /// When the directories or the temporary file cannot be made.
    pub fn begin(root: &Path, session: &SessionRecord) -> Result<Self, BackupError> {
        let date = date_of(session.started);
        let (place, name) = (root.join(&date), file_name(&session.identity));
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed("create the directory", root))?;
        let root_fd = OwnedFd::from(File::open(root).map_err(failed("open the directory", root))?);
        match mkdirat(&root_fd, date.as_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed("create the directory", &place)(error.into())),
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(&root_fd, date.as_str(), flags, Mode::empty())
            .map_err(|error| failed("open the directory (a symbolic link is not followed)", &place)(error.into()))?;
        let path = place.join(&name);
        let place = Place::look(&directory, &name, &session.identity).map_err(failed("read the earlier", &path))?;
        let (temporary, out) = make_temporary(&directory, &name).map_err(failed("write", &path))?;
        let counts = [0; MessageState::NAMES.len()];
        let mut backup = Self { root: root_fd, directory, path, name, temporary, out, counts, place, committed: false };
        backup.head(session).map_err(failed("write", &backup.path))?;
        Ok(backup)
    }

    /// Adds the next message.
    ///
    /// # Errors
    /// When it cannot be written; the backup is then to be dropped.
    pub fn message(&mut self, message: &MessageRecord) -> Result<(), BackupError> {
        if let Place::Taken(earlier) = &mut self.place {
            earlier.found(message.uuid);
        }
        let write = |out: &mut BufWriter<File>| Ok(serde_json::to_writer(out, &MessageJson::of(message))?);
        self.entry(message.state.index(), write).map_err(failed("write", &self.path))
    }

    /// Puts the backup in place, durably, and answers where it stands.
    ///
    /// # Errors
    /// When it cannot be completed; an older backup of the session is then still there.
    pub fn commit(mut self) -> Result<PathBuf, BackupError> {
        self.finish().map_err(failed("write", &self.path))?;
        self.committed = true;
        Ok(self.path.clone())
    }

    fn head(&mut self, session: &SessionRecord) -> io::Result<()> {
        let mut head = serde_json::to_vec(&SessionJson::of(session))?;
        head.pop(); // the closing brace: the messages follow inside
        self.begin_messages(&head)
    }

    fn begin_messages(&mut self, head: &[u8]) -> io::Result<()> {
        self.out.write_all(head)?;
        self.out.write_all(b",\n\"messages\":[")
    }

    fn entry(&mut self, state: usize, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        let first = self.counts.iter().all(|count| *count == 0);
        if let Some(count) = self.counts.get_mut(state) {
            *count += 1;
        }
        self.out.write_all(if first { b"\n  " } else { b",\n  " })?;
        write(&mut self.out)
    }

    fn foot(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n],\n\"counts\":{")?;
        for (index, (name, count)) in MessageState::NAMES.iter().zip(self.counts).enumerate() {
            write!(self.out, "{}\"{name}\":{count}", if index == 0 { "" } else { "," })?;
        }
        self.out.write_all(b"}}\n")?;
        self.out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.foot()?;
        let mut unreadable = None;
        match std::mem::replace(&mut self.place, Place::Free) {
            Place::Taken(earlier) if earlier.is_fuller() => {
                let new = self.begin_anew()?;
                self.begin_messages(&new.head)?;
                earlier.merge(new, |Line { state, json, .. }| self.entry(*state, |out| out.write_all(json)))?;
                self.foot()?;
            }
            Place::Taken(_) | Place::Free => {}
            Place::Unreadable(cause) => unreadable = Some(cause),
        }
        self.out.get_ref().sync_all()?;
        if let Some(cause) = unreadable {
            self.keep_aside(&cause)?;
        }
        renameat(&self.directory, self.temporary.as_str(), &self.directory, self.name.as_str())?;
        nix::unistd::fsync(&self.directory)?;
        nix::unistd::fsync(&self.root)?;
        Ok(())
    }

    /// Another temporary file in place of the one just filled, which can still be read.
    fn begin_anew(&mut self) -> io::Result<Lines> {
        let filled = Lines::of(self.out.get_ref().try_clone()?)?;
        let (temporary, out) = make_temporary(&self.directory, &self.name)?;
        let used = std::mem::replace(&mut self.temporary, temporary);
        (self.out, self.counts) = (out, [0; MessageState::NAMES.len()]);
        unlinkat(&self.directory, used.as_str(), UnlinkatFlags::NoRemoveDir)?;
        Ok(filled)
    }

    /// What cannot be read may still be the last that there is of the session. Its new name begins and ends as that of a
    /// backup: whatever deletes those deletes it, too.
    fn keep_aside(&self, cause: &io::Error) -> io::Result<()> {
        let aside = aside_name(&self.name);
        // A second name, so that there is one under the first at any moment; not every file system has that.
        linkat(&self.directory, self.name.as_str(), &self.directory, aside.as_str(), AtFlags::empty())
            .or_else(|_| renameat(&self.directory, self.name.as_str(), &self.directory, aside.as_str()))?;
        tracing::warn!(
            aside = %self.path.with_file_name(&aside).display(),
            %cause,
            "a backup that cannot be read is kept beside the new one (see what it still holds, then delete it)"
        );
        Ok(())
    }
}

/// The temporary file of a backup and its name.
fn make_temporary(directory: &OwnedFd, name: &str) -> io::Result<(String, BufWriter<File>)> {
    let temporary = temporary_name(name);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok((temporary, BufWriter::with_capacity(1 << 16, File::from(file))))
}

impl Drop for Backup {
    fn drop(&mut self) {
        if !self.committed {
            let _ = unlinkat(&self.directory, self.temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Writes the whole backup of a session.
///
/// # Errors
/// When it cannot be written; an older backup of the session is then still there.
pub fn write<'m>(
    root: &Path,
    session: &SessionRecord,
    messages: impl IntoIterator<Item = &'m MessageRecord>,
) -> Result<PathBuf, BackupError> {
    let mut backup = Backup::begin(root, session)?;
    messages.into_iter().try_for_each(|message| backup.message(message))?;
    backup.commit()
}

/// Removes what a kill in the middle of a backup left behind; for the start, before any backup is begun. Best effort.
pub fn remove_leftovers(root: &Path) {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let is_ours = |entry: &DirEntry| entry.file_name().to_str().is_some_and(is_date);
    for date in entries(root).filter(|entry| is_ours(entry) && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let ours =
            |entry: &DirEntry| entry.file_name().to_str().is_some_and(|name| of_temporary(name).is_some()) && is_file(entry);
        for file in entries(&date.path()).filter(ours) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

fn is_file(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_path_buf();
    move |source| BackupError { op, path, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::sample;
    use super::*;
    use crate::protocol::SessionId;

    fn read(path: &Path) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_real_conversation_is_backed_up_word_by_word() {
        let directory = tempfile::tempdir().unwrap();
        let (session, messages) = (sample::session(), sample::messages());
        let path = write(directory.path(), &session, &messages).unwrap();
        let backup = read(&path);
        assert_eq!(backup["mac"], "68:25:dd:ba:39:78");
        assert_eq!(backup["agent_id"], "agent-1");
        assert_eq!(backup["held"][0]["state"], "held");
        let stored = backup["messages"].as_array().unwrap();
        assert_eq!(stored.len(), messages.len());
        for (json, message) in stored.iter().zip(&messages) {
            assert_eq!(json["content"], message.content.as_str());
            assert_eq!(json["uuid"], message.uuid.to_string());
            assert_eq!(json["chat_type"], u64::from(message.chat_type.code()));
            assert_eq!(json["time_ms"], message.time.0);
            let time: jiff::Timestamp = json["time"].as_str().unwrap().parse().unwrap();
            assert_eq!(time.as_millisecond(), message.time.0);
        }
        assert_eq!(backup["counts"]["delivered"], messages.len() - 2);
        assert_eq!((&stored[1]["state"], &stored[1]["reason"]), (&"rejected".into(), &"invalid".into()));
        assert_eq!(stored[2]["extra"]["confidence"], 0.5);
        assert_eq!(stored[3]["extra"], "not json");
    }

    #[test]
    fn only_the_owner_can_read_a_backup() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("state/backup");
        let path = write(&root, &sample::session(), &[]).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap()), mode(&root)), (0o600, 0o700, 0o700));
        assert_eq!(read(&path)["messages"], serde_json::json!([]));
    }

    #[test]
    fn a_later_backup_replaces_the_earlier_one_and_an_abandoned_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (session, messages) = (sample::session(), sample::messages());
        let path = write(directory.path(), &session, &messages[..1]).unwrap();
        let mut abandoned = Backup::begin(directory.path(), &session).unwrap();
        abandoned.message(&messages[1]).unwrap();
        drop(abandoned);
        assert_eq!(read(&path)["messages"].as_array().unwrap().len(), 1);
        assert_eq!(write(directory.path(), &session, &messages).unwrap(), path);
        assert_eq!(read(&path)["messages"].as_array().unwrap().len(), messages.len());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_kill_are_removed_and_backups_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let session = sample::session();
        let path = write(directory.path(), &session, &[]).unwrap();
        std::mem::forget(Backup::begin(directory.path(), &session).unwrap());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
        // The directory may be shared: what looks like a temporary file of somebody else's stays.
        let elsewhere = directory.path().join("theirs");
        std::fs::create_dir(&elsewhere).unwrap();
        let foreign = [
            path.with_file_name(".notes.tmp"),
            path.with_file_name(format!(".{}.tmp", file_name(&session.identity))),
            elsewhere.join(temporary_name(&file_name(&session.identity))),
        ];
        for path in &foreign {
            std::fs::write(path, "theirs").unwrap();
        }
        let link = path.with_file_name(temporary_name(&file_name(&session.identity)));
        symlink(&path, &link).unwrap();
        remove_leftovers(directory.path());
        assert!(foreign.iter().all(|path| path.exists()) && link.is_symlink());
        for path in foreign.iter().take(2).chain([&link]) {
            std::fs::remove_file(path).unwrap();
        }
        remove_leftovers(Path::new("/nonexistent"));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(path.exists());
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (directory.path().join("backup"), directory.path().join("elsewhere"));
        let session = sample::session();
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        let date = root.join(date_of(session.started));
        symlink(&elsewhere, &date).unwrap();
        let refused = write(&root, &session, &[]).unwrap_err().to_string();
        assert!(refused.contains("symbolic link") && refused.contains("backup.directory"), "{refused}");
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);

        std::fs::remove_file(&date).unwrap();
        let victim = elsewhere.join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        std::fs::create_dir(&date).unwrap();
        symlink(&victim, date.join(file_name(&session.identity))).unwrap();
        let path = write(&root, &session, &[]).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_hostile_session_id_stays_inside() {
        let directory = tempfile::tempdir().unwrap();
        for id in ["../../etc/cron.d/x", "..", "/", "🐘 कहानी"] {
            let mut session = sample::session();
            session.identity.session_id = SessionId::new(id).unwrap();
            let path = write(directory.path(), &session, &[]).unwrap();
            assert!(path.canonicalize().unwrap().starts_with(directory.path().canonicalize().unwrap()));
            assert_eq!(read(&path)["session_id"], id);
        }
    }

    #[test]
    fn an_unwritable_place_is_named_with_its_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = write(&file, &sample::session(), &[]).unwrap_err().to_string();
        assert!(refused.starts_with("cannot create the directory ") && refused.contains("backup.directory"), "{refused}");
    }

    #[test]
    fn a_session_of_a_hundred_thousand_messages_is_written_message_by_message() {
        let directory = tempfile::tempdir().unwrap();
        let message = sample::messages().remove(0);
        let many = std::iter::repeat_n(&message, 100_000);
        let path = write(directory.path(), &sample::session(), many).unwrap();
        assert_eq!(read(&path)["counts"]["delivered"], 100_000);
    }
}
