//! Whether the daemon's user may use a file. Root may use any, so what root is allowed to do tells nothing.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{User, geteuid};

use super::finding::Finding;
use crate::config::Settings;
use crate::status_command::dial;

/// The user that the packages make for the daemon.
const USER_OF_THE_UNIT: &str = "chat-historyd";

/// What the daemon keeps open in its store.
const FILES: [&str; 4] = ["history.db", "history.db-wal", "history.db-shm", "lock"];

/// The user the daemon runs as.
#[derive(Clone, Copy, Debug)]
pub(super) struct DaemonsUser(u32);

impl DaemonsUser {
    /// Who that is: who listens at the status socket, else the unit's user. `None` when doctor itself is not root, whose
    /// own rights then tell as much, and when it is root, too.
    pub(super) fn find(settings: &Settings) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let listening = dial(&settings.status.socket, super::daemon::PATIENCE).ok().and_then(|call| call.user());
        let of_the_unit = || User::from_name(USER_OF_THE_UNIT).ok().flatten().map(|user| user.uid.as_raw());
        listening.or_else(of_the_unit).filter(|user| *user != 0).map(Self)
    }

    /// What of a directory the daemon cannot write for certain.
    pub(super) fn cannot_write(self, check: &'static str, directory: &Path) -> Option<Finding> {
        let places = std::iter::once(directory.to_owned()).chain(FILES.map(|name| directory.join(name)));
        let barred = |place: &Path| fs::metadata(place).is_ok_and(|found| self.is_barred(&found, 0o200, 0o022));
        let Some(place) = places.into_iter().find(|place| barred(place)) else { return self.cannot_make(check, directory) };
        let what = format!("the daemon (user {}) may not write {}", self.0, place.display());
        Some(Finding::broken(check, what, &format!("chown -R {} {}", self.0, directory.display())))
    }

    /// Whether the daemon for certain cannot make a directory that is not there: it would in the nearest one above that is.
    fn cannot_make(self, check: &'static str, directory: &Path) -> Option<Finding> {
        let is_missing = |place: &Path| fs::metadata(place).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let above = directory.ancestors().find(|place| !is_missing(place)).filter(|above| *above != directory)?;
        let barred = fs::metadata(above).is_ok_and(|found| self.is_barred(&found, 0o200, 0o022));
        barred.then(|| {
            let (user, directory) = (self.0, directory.display());
            let what = format!("the daemon (user {user}) cannot make {directory}: it may not write {}", above.display());
            Finding::broken(check, what, &format!("make it for the daemon: mkdir -p {directory} && chown {user} {directory}"))
        })
    }

    /// Whether the daemon for certain cannot read a file.
    pub(super) fn cannot_read(self, check: &'static str, file: &Path) -> Option<Finding> {
        let barred = fs::metadata(file).is_ok_and(|found| self.is_barred(&found, 0o400, 0o044));
        barred.then(|| {
            let what = format!("the daemon (user {}) may not read {}", self.0, file.display());
            Finding::broken(check, what, &format!("chown {} it and chmod 600 it", self.0))
        })
    }

    /// What group or others may do, also by an access list, is left to them: it may be meant.
    fn is_barred(self, found: &Metadata, own: u32, foreign: u32) -> bool {
        let needed = if found.uid() == self.0 { own } else { foreign };
        found.mode() & needed == 0
    }
}
