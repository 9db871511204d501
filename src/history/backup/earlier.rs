//! The backup that stands where a new one is to stand: what only it still holds goes into the new one.
//!
//! Promises: of two backups of a session every message comes through, in its order; of the earlier one no more is held in
//! memory than the UUIDs of its messages and one line.
//! Refuses: to take a file for a backup that is none, or another session's.
//! Called by `backup`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::Deserialize;
use uuid::Uuid;

use super::json::{FORMAT, VERSION};
use super::lines::{Line, Lines, invalid, parsed};
use crate::protocol::SessionIdentity;

/// What stands there.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing, or nothing that could hold a message.
    Free,
    /// A backup of the session.
    Taken(Earlier),
    /// A file that is no backup of the session as far as can be read.
    Unreadable(io::Error),
}

impl Place {
    /// Looks at it. No symbolic link is followed.
    pub(super) fn look(directory: &OwnedFd, name: &str, identity: &SessionIdentity) -> io::Result<Self> {
        // A FIFO must not be waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            // Nothing, a link, a socket.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(Self::Free),
            Err(error @ (Errno::EACCES | Errno::EPERM | Errno::EIO)) => return Ok(Self::Unreadable(error.into())),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(Self::Free);
        }
        Ok(Earlier::read(file, identity).map_or_else(Self::Unreadable, Self::Taken))
    }
}

/// The backup of the session that was written before.
#[derive(Debug)]
pub(super) struct Earlier {
    file: File,
    /// The messages that the new one does not hold yet.
    missed: HashSet<Uuid>,
}

impl Earlier {
    fn read(file: File, identity: &SessionIdentity) -> io::Result<Self> {
        let mut lines = Lines::of(file.try_clone()?)?;
        let head = [lines.head.as_slice(), b"}"].concat();
        let head: Head<'_> = parsed(&head)?;
        let is_ours = head.format == FORMAT && head.version == VERSION;
        if !is_ours || head.mac != identity.mac.to_string() || head.session_id != identity.session_id.as_str() {
            return Err(invalid("it is no backup of this session, or a newer chat-historyd wrote it"));
        }
        let mut missed = HashSet::new();
        while let Some(message) = lines.next()? {
            // A damaged row had nothing to lose, not even a name.
            if !message.uuid.is_nil() {
                missed.insert(message.uuid);
            }
        }
        Ok(Self { file, missed })
    }

    /// The new backup holds this message.
    pub(super) fn found(&mut self, uuid: Uuid) {
        self.missed.remove(&uuid);
    }

    /// Whether it holds a message that the new one does not.
    pub(super) fn is_fuller(&self) -> bool {
        !self.missed.is_empty()
    }

    /// The messages of both, in order: `new` says what the new backup holds.
    pub(super) fn merge(mut self, mut new: Lines, mut take: impl FnMut(&Line) -> io::Result<()>) -> io::Result<()> {
        let mut old = Lines::of(self.file)?;
        while let Some(message) = new.next()? {
            // A damaged row has no name to find its place by.
            if message.uuid.is_nil() {
                take(&message)?;
                continue;
            }
            // One that the earlier backup does not know is younger than all of it.
            while let Some(earlier) = old.next()?.filter(|earlier| earlier.uuid != message.uuid) {
                if self.missed.remove(&earlier.uuid) {
                    take(&earlier.left_behind())?;
                }
            }
            take(&message)?;
        }
        while let Some(earlier) = old.next()? {
            if self.missed.remove(&earlier.uuid) {
                take(&earlier.left_behind())?;
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    format: Cow<'a, str>,
    version: u32,
    mac: Cow<'a, str>,
    #[serde(borrow)]
    session_id: Cow<'a, str>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::super::wipe::delete_backups;
    use super::super::super::{MessageRecord, MessageState, sample};
    use super::super::{remove_leftovers, write};
    use super::*;
    use crate::protocol::SessionId;

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn uuids(backup: &Value) -> Vec<u128> {
        let uuid = |message: &Value| message["uuid"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128();
        backup["messages"].as_array().unwrap().iter().map(uuid).collect()
    }

    fn files(path: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(path.parent().unwrap()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    fn counted(backup: &Value) -> bool {
        let messages = backup["messages"].as_array().unwrap();
        let states = |name: &str| messages.iter().filter(|message| message["state"] == name).count() as u64;
        MessageState::NAMES.iter().all(|name| backup["counts"][name] == states(name))
    }

    #[test]
    fn what_has_left_the_store_stays_in_the_backup_and_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (mut session, all) = (sample::session(), sample::messages());
        let path = write(directory.path(), &session, &all).unwrap();
        let whole = read(&path);
        // The second is rejected, and all the store has left; it is tried again.
        let tried_again = MessageRecord { state: MessageState::Pending, ..all[1].clone() };
        session.end_reason = Some("once more".into());
        for _ in 0..2 {
            assert_eq!(write(directory.path(), &session, [&tried_again]).unwrap(), path);
            let backup = read(&path);
            assert_eq!(uuids(&backup), uuids(&whole));
            assert_eq!(backup["end_reason"], "once more");
            assert_eq!(backup["messages"][1]["state"], "pending");
            assert_eq!(backup["messages"][1]["left_store"], Value::Null);
            for (index, message) in backup["messages"].as_array().unwrap().iter().enumerate().filter(|(index, _)| *index != 1) {
                let mut expected = whole["messages"][index].clone();
                expected["left_store"] = true.into();
                assert_eq!(*message, expected);
            }
            assert!(counted(&backup), "{}", backup["counts"]);
            assert_eq!(files(&path), std::slice::from_ref(&path));
        }
    }

    #[test]
    fn a_message_whose_row_was_damaged_since_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (session, all) = (sample::session(), sample::messages());
        write(directory.path(), &session, &all[..3]).unwrap();
        let damaged = MessageRecord { uuid: Uuid::nil(), content: String::new(), state: MessageState::Damaged, ..all[1].clone() };
        for _ in 0..2 {
            let backup = read(&write(directory.path(), &session, [&all[0], &damaged, &all[2]]).unwrap());
            assert_eq!(uuids(&backup), [1, 0, 2, 3]);
            assert_eq!(backup["messages"][2]["content"], all[1].content.as_str());
            assert!(counted(&backup), "{}", backup["counts"]);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_stays_beside_the_new_backup_and_goes_with_it() {
        let (session, all) = (sample::session(), sample::messages());
        let mut other = session.clone();
        other.identity.session_id = SessionId::new("another").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let whole = fs::read_to_string(write(elsewhere.path(), &session, &all).unwrap()).unwrap();
        let of_another = fs::read(write(elsewhere.path(), &other, &all).unwrap()).unwrap();
        let mut bad_text = whole.clone().into_bytes();
        bad_text[whole.find("\"content\":\"").unwrap() + 11] = 0xff;
        let unreadable = [
            b"no backup".to_vec(),
            Vec::new(),
            whole.as_bytes()[..whole.len() / 2].to_vec(),
            whole.as_bytes()[..whole.rfind("\"counts").unwrap()].to_vec(),
            format!("{whole}and more").into_bytes(),
            whole.replace("\"version\":1", "\"version\":2").into_bytes(),
            whole.replacen("\"state\":\"delivered\"", "\"state\":\"unheard of\"", 1).into_bytes(),
            serde_json::to_vec_pretty(&serde_json::from_str::<Value>(&whole).unwrap()).unwrap(),
            bad_text,
            of_another,
        ];
        for bytes in unreadable {
            let directory = tempfile::tempdir().unwrap();
            let path = write(directory.path(), &session, &[]).unwrap();
            fs::write(&path, &bytes).unwrap();
            for _ in 0..2 {
                assert_eq!(write(directory.path(), &session, &all[..1]).unwrap(), path);
                remove_leftovers(directory.path());
                let there = files(&path);
                assert_eq!((there.len(), there[0].as_path()), (2, path.as_path()), "{there:?}");
                assert_eq!(fs::read(&there[1]).unwrap(), bytes);
                assert!(there[1].extension().is_some_and(|end| end == "json"), "a timer finds it as it finds backups");
                assert_eq!(uuids(&read(&path)), [1]);
            }
            let SessionIdentity { mac, session_id } = &session.identity;
            assert_eq!(delete_backups(directory.path(), Some(*mac), Some(session_id)).unwrap(), 2);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_no_file_is_neither_waited_for_nor_kept() {
        let directory = tempfile::tempdir().unwrap();
        let session = sample::session();
        let path = write(directory.path(), &session, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        write(directory.path(), &session, &sample::messages()).unwrap();
        assert_eq!(files(&path), std::slice::from_ref(&path));
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_backup_loses_what_an_earlier_one_held(
            stored in prop::collection::vec(prop::collection::btree_set(0_usize..12, 0..12), 1..5),
            is_shuffled in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let (session, sample) = (sample::session(), sample::messages());
            let of = |index: usize| {
                let uuid = Uuid::from_u128(1 + index as u128);
                MessageRecord { uuid, ..sample[index % sample.len()].clone() }
            };
            let mut expected = std::collections::BTreeSet::new();
            for indices in stored {
                let mut now: Vec<MessageRecord> = indices.iter().copied().map(of).collect();
                if is_shuffled {
                    now.reverse();
                }
                expected.extend(now.iter().map(|message| message.uuid.as_u128()));
                let backup = read(&write(directory.path(), &session, &now).unwrap());
                let mut held = uuids(&backup);
                prop_assert!(counted(&backup));
                let now: Vec<u128> = now.iter().map(|message| message.uuid.as_u128()).collect();
                let in_order: Vec<u128> = held.iter().copied().filter(|uuid| now.contains(uuid)).collect();
                prop_assert_eq!(in_order, now, "what the store holds keeps its order");
                held.sort_unstable();
                prop_assert_eq!(&held, &expected.iter().copied().collect::<Vec<_>>(), "each once");
            }
        }
    }
}
