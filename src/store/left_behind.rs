//! What a salvage could not carry over stands in the files that were set aside and nowhere else. A note beside them says how
//! much that is, for as long as they stand there: whoever takes the files away takes the note along.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NOFOLLOW;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::salvage::SalvageReport;

/// The note's name.
const NOTE: &str = "left-behind.json";
/// The longest note that is read.
const NOTE_BYTES: u64 = 4096;

/// What one salvage left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LeftBehind {
    messages_damaged: u64,
    messages_without_session: u64,
    held_damaged: u64,
    held_without_session: u64,
    sessions_lost: u64,
}

impl LeftBehind {
    pub(super) const fn of(report: &SalvageReport) -> Self {
        Self {
            messages_damaged: report.messages_damaged,
            messages_without_session: report.messages_without_session,
            held_damaged: report.held_damaged,
            held_without_session: report.held_without_session,
            sessions_lost: report.sessions_lost,
        }
    }

    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// Messages and transcripts.
    const fn messages(self) -> u64 {
        let messages = self.messages_damaged.saturating_add(self.messages_without_session);
        messages.saturating_add(self.held_damaged).saturating_add(self.held_without_session)
    }

    /// Puts the note beside the database that was set aside; none where nothing was left.
    pub(super) fn note_beside(self, aside: &Path) -> Result<(), StoreError> {
        if self.is_nothing() {
            return Ok(());
        }
        let path = aside.with_file_name(NOTE);
        let text = serde_json::to_vec(&self).unwrap_or_default();
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(O_NOFOLLOW);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .map_err(StoreError::file("write", &path))
    }
}

/// The messages and transcripts that stand only in the damaged files of a store's directory, by the notes there.
#[must_use]
pub fn left_behind(directory: &Path) -> u64 {
    let places = fs::read_dir(directory.join("corrupt")).into_iter().flatten().flatten();
    let note = |path: &Path| {
        // Not a pipe, and nothing large: doctor reads this as root.
        let is_note = path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() <= NOTE_BYTES);
        is_note.then(|| fs::read(path).ok()).flatten().and_then(|text| serde_json::from_slice::<LeftBehind>(&text).ok())
    };
    places.filter_map(|place| note(&place.path().join(NOTE))).map(LeftBehind::messages).fold(0, u64::saturating_add)
}
