//! The file with the certificate authorities to trust: read in one way by whoever checks the settings and whoever uses them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use reqwest::Certificate;

/// The most that is read of it: a whole distribution's bundle has a quarter of a megabyte.
const CAP_BYTES: u64 = 4 << 20;

/// What stands in the file.
///
/// # Errors
/// What is wrong with it, in words that go on from its name.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut pem = Vec::new();
    File::open(file).map_err(failed)?.take(CAP_BYTES).read_to_end(&mut pem).map_err(failed)?;
    Ok(pem)
}

/// The authorities in it: one at least.
///
/// # Errors
/// As for [`read`].
pub fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let certificates = Certificate::from_pem_bundle(pem).map_err(|_| "is no PEM file".to_owned())?;
    if certificates.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(certificates) }
}
