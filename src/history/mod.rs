//! What was said, for people: the JSON backup of a session, its transcript as a readable table, exports in five formats.
//!
//! Promises: a backup or an export is whole or not there; names are safe for any session id; a history of any length
//! passes through in constant memory, message by message.
//! Refuses: to hold a whole session in memory: it reads the store page by page.
//! Called by `daemon` (backups) and the command line (`demo`, `history`, `rejected`).

pub mod backup;
pub mod backup_task;
pub mod change;
pub mod export;
pub mod filter;
pub mod json;
pub mod listing;
pub(crate) mod name;
pub mod output;
pub(crate) mod restore;
pub mod search;
pub mod table;
pub mod wipe;

pub use self::backup::{Backup, BackupError};
pub use self::filter::{Filter, State, When};
pub use self::name::{date_of, file_name};
use crate::protocol::{ChatType, UnixMillis};
pub use crate::store::{
    HeldTranscriptRecord as HeldRecord, MessageState, SessionSnapshot as SessionRecord, TranscriptMessage as MessageRecord,
};

impl MessageState {
    /// All names, in the order of [`Self::index`].
    pub const NAMES: [&str; 5] = ["pending", "delivered", "rejected", "kept", "damaged"];

    /// Its name in backups and tables.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Rejected { .. } => "rejected",
            Self::Kept => "kept",
            Self::Damaged => "damaged",
        }
    }

    /// Its place in [`Self::NAMES`].
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            Self::Pending => 0,
            Self::Delivered => 1,
            Self::Rejected { .. } => 2,
            Self::Kept => 3,
            Self::Damaged => 4,
        }
    }
}

impl MessageRecord {
    /// Whether its row could be read. Of one that fails its checksum nothing is known, not even its identity.
    const fn is_readable(&self) -> bool {
        !self.uuid.is_nil()
    }

    /// Who spoke, as backups and tables name it.
    pub(crate) const fn role(&self) -> &'static str {
        if self.is_readable() { role(self.chat_type) } else { "unknown" }
    }

    /// When it was said, when that is known.
    pub(crate) fn said(&self) -> Option<UnixMillis> {
        self.is_readable().then_some(self.time)
    }
}

/// The role of a speaker, as backups and tables name it.
pub(crate) const fn role(chat_type: ChatType) -> &'static str {
    match chat_type {
        ChatType::User => "user",
        ChatType::Agent => "agent",
        ChatType::Tool => "tool",
    }
}

#[cfg(test)]
pub(crate) mod sample;
