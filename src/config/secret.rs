//! The server secret: where it comes from, and a type that cannot be printed.

use std::path::PathBuf;

/// A secret. Has no `Debug` with content, no `Display`, no `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
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
