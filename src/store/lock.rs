//! The instance lock: two daemons never share a store. It is held as long as the value lives, and the kernel lets go of it
//! when the process dies, however it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NOFOLLOW;

use super::error::StoreError;

/// The held lock.
#[derive(Debug)]
pub(super) struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Takes the lock at `path`, or says at once that somebody else has it.
    pub(super) fn take(path: &Path, directory: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(path)
            .map_err(StoreError::file("open the instance lock", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::AlreadyRunning { directory: directory.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(StoreError::file("take the instance lock", path)(source)),
        }
    }
}
