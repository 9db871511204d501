//! Whose store it is: a file that root made in it, the daemon could not open.
//!
//! Promises: while this process is the store's owner, everything it makes there is the owner's; what was opened before
//! stays open.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid};

use super::failure::Failure;

const ROOT: Uid = Uid::from_raw(0);

/// Root, at work as the user to whom a store belongs.
pub(super) struct AsOwner {
    own_group: Gid,
}

impl AsOwner {
    /// Becomes the owner of the store in this directory. `None` when that is nobody else: this is not root, or the store is
    /// root's, or not there yet. It is whose files these are: a daemon may run as root in a directory of somebody else's.
    pub(super) fn of(directory: &Path) -> Result<Option<Self>, Failure> {
        let of_file = |name: &str| directory.join(name).metadata().ok();
        // Where they disagree one of them was made by mistake.
        let files = of_file("lock").zip(of_file("history.db")).filter(|(lock, database)| lock.uid() == database.uid());
        let Some(found) = files.map(|(_, database)| database).or_else(|| directory.metadata().ok()) else { return Ok(None) };
        if !geteuid().is_root() || found.uid() == ROOT.as_raw() {
            return Ok(None);
        }
        let (owner, own_group) = (found.uid(), getegid());
        let became = setegid(Gid::from_raw(found.gid())).and_then(|()| seteuid(Uid::from_raw(owner)));
        let place = directory.display();
        became.map_err(|error| {
            Failure::Daemon(format!("{place} belongs to user {owner}, who this cannot become: {error} (run this as that user)"))
        })?;
        // Directories above it may let only root pass: those of a container's volume do.
        std::fs::read_dir(directory).map_err(|error| {
            Failure::Daemon(format!(
                "{place} belongs to user {owner}, who cannot reach it: {error} (run this where the daemon runs)"
            ))
        })?;
        Ok(Some(Self { own_group }))
    }

    /// Is root again.
    pub(super) fn leave(self) {
        // Best effort: without it, root's own files are not seen.
        let _ = seteuid(ROOT).and_then(|()| setegid(self.own_group));
    }
}
