//! The secret as the header that carries it.
//!
//! Promises: the secret in use stays until a new one was read whole; it is never in a text. Called by the client.

use std::sync::{PoisonError, RwLock};

use reqwest::header::HeaderValue;

use crate::config::SecretSource;

/// The secret's source, and the header made of it or why there is none.
pub(super) struct Credential {
    source: Option<SecretSource>,
    header: RwLock<Result<HeaderValue, String>>,
}

impl Credential {
    /// A credential, missing until [`Self::reload`] succeeds.
    pub(super) fn new(source: Option<SecretSource>) -> Self {
        Self { source, header: RwLock::new(Err("its file does not answer".to_owned())) }
    }

    /// `Authorization: Bearer …`, or why there is none, for the operator.
    pub(super) fn header(&self) -> Result<HeaderValue, String> {
        self.header.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it comes from a file.
    pub(super) const fn has_file(&self) -> bool {
        matches!(self.source, Some(SecretSource::File(_) | SecretSource::Credential(_)))
    }

    /// What it takes until a new secret is used, for the operator.
    pub(super) const fn renewal(&self) -> &'static str {
        match self.source {
            Some(SecretSource::File(_)) => "the secret's file is read anew at every probe",
            Some(SecretSource::Credential(_)) => "the secret is a systemd credential: a new one needs a restart of the service",
            Some(SecretSource::Inline(_)) => "the secret stands in the configuration: a new one needs a reload",
            None => "there is no secret",
        }
    }

    /// Reads the secret again; `true` when it changed. One that cannot be read now does not replace one that could.
    pub(super) fn reload(&self) -> Result<bool, String> {
        let new = header(self.source.as_ref());
        let mut current = self.header.write().unwrap_or_else(PoisonError::into_inner);
        match (&new, current.is_ok()) {
            (Err(reason), true) => Err(reason.clone()),
            (Err(reason), false) => {
                let reason = reason.clone();
                *current = new;
                Err(reason)
            }
            (Ok(_), _) => {
                let changed = *current != new;
                *current = new;
                Ok(changed)
            }
        }
    }
}

fn header(source: Option<&SecretSource>) -> Result<HeaderValue, String> {
    let source = source.ok_or("none is configured (set manager_api.secret_file or the credential manager-api-secret)")?;
    let secret = source.read().map_err(|error| error.to_string())?;
    if secret.expose().is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
        .map_err(|_| "it holds characters that no HTTP header can carry".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn read(source: SecretSource) -> Credential {
        let credential = Credential::new(Some(source));
        let _ = credential.reload();
        credential
    }

    fn sent(credential: &Credential) -> Option<String> {
        credential.header().ok().map(|header| header.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_rotated_secret_is_used_after_it_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let credential = read(SecretSource::File(path.clone()));
        assert!(credential.header().unwrap_err().contains("secret"));
        assert!(credential.reload().is_err());
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(credential.reload(), Ok(true));
        assert_eq!(sent(&credential).as_deref(), Some("Bearer first"));
        assert_eq!(credential.reload(), Ok(false));
        std::fs::write(&path, "second").unwrap();
        assert_eq!(sent(&credential).as_deref(), Some("Bearer first"));
        assert_eq!(credential.reload(), Ok(true));
        assert_eq!(sent(&credential).as_deref(), Some("Bearer second"));
    }

    #[test]
    fn a_secret_that_cannot_be_read_does_not_replace_one_that_could() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "good").unwrap();
        let credential = read(SecretSource::Credential(path.clone()));
        for bad in [&b""[..], b" \n", b"\xff", b"a\nb", &[b'x'; 5000]] {
            std::fs::write(&path, bad).unwrap();
            assert!(credential.reload().is_err(), "{bad:?}");
            assert_eq!(sent(&credential).as_deref(), Some("Bearer good"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(credential.reload().is_err());
        assert_eq!(sent(&credential).as_deref(), Some("Bearer good"));
    }

    #[test]
    fn no_reason_holds_the_secret() {
        let credential = read(SecretSource::Inline(Secret::new("hunter\n2".to_owned())));
        assert!(!credential.header().unwrap_err().contains("hunter"));
        let shown = format!("{:?}", read(SecretSource::Inline(Secret::new("hunter2".to_owned()))).header());
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
