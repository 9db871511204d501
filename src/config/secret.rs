//! The server secret: where it comes from, and a type that cannot be printed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest secret, and the most that is read of its file.
const LONGEST: usize = 4_096;

/// A secret. Has no `Debug` with content, no `Display`, no `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Trims and checks a secret: it must fit into an HTTP header.
    ///
    /// # Errors
    /// When it is empty, too long, or holds anything but visible ASCII; the error does not repeat it.
    pub fn check(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidSecret::Empty);
        }
        if text.len() > LONGEST {
            return Err(InvalidSecret::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(InvalidSecret::Unprintable);
        }
        Ok(Self(text.to_owned()))
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Where the secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `manager_api.secret_file`: read anew at every probe and on SIGHUP.
    File(PathBuf),
    /// The systemd credential `manager-api-secret`: fixed while the service runs.
    Credential(PathBuf),
    /// `manager_api.secret` in the configuration.
    Inline(Secret),
}

/// Why there is no secret. Names the file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the secret cannot be read from {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is a directory, a pipe or a device.
    #[error("{path} is no regular file")]
    NoFile {
        /// What was named.
        path: PathBuf,
    },
    /// What is in it is no secret.
    #[error("the secret in {path} {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: InvalidSecret,
    },
}

/// Why a text is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// Longer than any secret.
    #[error("is longer than {LONGEST} bytes")]
    TooLong,
    /// Bytes that cannot stand in an HTTP header.
    #[error("holds control characters or other bytes that no HTTP header can carry")]
    Unprintable,
}

impl InvalidSecret {
    /// How to mend it.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Empty => "put server.secret of the Manager API there, on one line",
            Self::TooLong | Self::Unprintable => "it must be server.secret of the Manager API alone, on one line",
        }
    }
}

impl SecretError {
    /// How to mend it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "create the file and let the daemon's user read it (mode 0600)",
            Self::NoFile { .. } => "name a file that holds the secret alone",
            Self::Unusable { reason, .. } => reason.hint(),
        }
    }
}

impl SecretSource {
    /// The secret as it is now. A file is read anew; blocking, but of a bounded size.
    ///
    /// # Errors
    /// When the file cannot be read or holds no usable secret.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) | Self::Credential(path) => read_file(path),
        }
    }

    /// The file, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Inline(_) => None,
            Self::File(path) | Self::Credential(path) => Some(path),
        }
    }

    /// Whether others than the owner may read the secret's file.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        // A credential is guarded by the directory that systemd puts it into.
        matches!(self, Self::File(path) if is_open_to_others(path))
    }
}

/// Whether others than the owner have any right on a file.
pub(super) fn is_open_to_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.mode() & 0o077 != 0)
}

fn read_file(path: &Path) -> Result<Secret, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(SecretError::NoFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    // Room for white space around the longest secret.
    let most = 2 * LONGEST as u64;
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| InvalidSecret::Unprintable);
    text.and_then(Secret::check).map_err(|reason| SecretError::Unusable { path: path.to_owned(), reason })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, SecretSource) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, content).unwrap();
        (directory, SecretSource::File(path))
    }

    #[test]
    fn the_newline_of_an_editor_does_not_belong_to_the_secret() {
        for content in ["da11cd7f-0012\n", " da11cd7f-0012\r\n", "da11cd7f-0012"] {
            let (_directory, source) = file(content.as_bytes());
            assert_eq!(source.read().unwrap().expose(), "da11cd7f-0012");
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_without_being_repeated() {
        let cases: [&[u8]; 6] = [b"", b" \n", b"hunter2\nhunter3", b"hunter2\0", b"hunter2\xff", "hünter2".as_bytes()];
        for content in cases {
            let (_directory, source) = file(content);
            let error = source.read().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter"), "{error:?}");
        }
        let (_directory, source) = file(&vec![b'x'; 1 << 20]);
        assert!(matches!(source.read(), Err(SecretError::Unusable { reason: InvalidSecret::TooLong, .. })));
    }

    #[test]
    fn a_directory_or_a_missing_file_is_named() {
        let (directory, source) = file(b"x");
        assert!(matches!(SecretSource::File(directory.path().to_owned()).read(), Err(SecretError::NoFile { .. })));
        std::fs::remove_file(source.path().unwrap()).unwrap();
        let error = source.read().unwrap_err();
        assert!(error.to_string().contains("/secret: No such file"), "{error}");
    }

    #[test]
    fn a_secret_that_the_group_can_read_is_exposed() {
        let (_directory, source) = file(b"x");
        for (mode, exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            let path = source.path().unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(source.is_exposed(), exposed, "{mode:o}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let source = SecretSource::Inline(Secret::new("hunter2".into()));
        assert_eq!(format!("{source:?}"), "Inline(***)");
    }
}
