//! Checks what settings name outside of themselves: the secret's file, the certificate file, the group. Reads only.

use std::io::Read;
use std::path::Path;

use super::Purpose;
use super::layers::Origin;
use super::reader::Reader;
use super::secret::is_open_to_others;
use super::settings::Settings;

/// The most that is read of a certificate file.
const LARGEST_CA_FILE: u64 = 4 << 20;

/// Looks whether what the settings name is there. To serve it must be, but for what only delivery needs, the secret and the
/// authorities, which are read again at every knock; to look it is only said.
pub(super) fn check(settings: &Settings, purpose: Purpose, reader: &mut Reader) {
    let mut missing: Vec<(&str, String, String)> = Vec::new();
    // No reason to take nothing in: the gate stays closed until they can be read, and nothing is lost.
    let mut late: Vec<(&str, String, String)> = Vec::new();
    let refused = reader.is_refused("manager_api.secret") || reader.is_refused("manager_api.secret_file");
    if let Some(source) = settings.manager_api.secret.as_ref().filter(|_| !refused) {
        if let Err(error) = source.read() {
            late.push(("manager_api.secret_file", error.to_string(), error.hint().to_owned()));
        } else if source.is_exposed() {
            reader.warn("manager_api.secret_file", "others than its owner may read the secret", "chmod 600 the file");
        } else if let Origin::File { path, .. } = reader.origin("manager_api.secret")
            && is_open_to_others(&path)
        {
            reader.warn("manager_api.secret", "others than its owner may read this file", "chmod 600 it, or use secret_file");
        }
    }
    if let Some(file) = settings.manager_api.ca_file.as_ref().filter(|_| !reader.is_refused("manager_api.ca_file"))
        && let Err(reason) = certificates(file)
    {
        let message = format!("{} {reason}", file.display());
        late.push(("manager_api.ca_file", message, "name a PEM file with the authorities to trust".to_owned()));
    }
    if let Some(group) = settings.socket.group.as_ref().filter(|_| !reader.is_refused("socket.group"))
        && matches!(nix::unistd::Group::from_name(group), Ok(None))
    {
        missing.push(("socket.group", format!("there is no group {group:?}"), "create it (groupadd) or name another".to_owned()));
    }
    let late = late.into_iter().map(|found| (found, purpose == Purpose::Reload));
    let missing = missing.into_iter().map(|found| (found, purpose != Purpose::Look));
    for ((key, message, hint), is_problem) in late.chain(missing) {
        if is_problem {
            reader.problem(key, message, hint);
        } else {
            reader.warn(key, message, hint);
        }
    }
}

/// Whether a file holds certificates, as far as can be told without using it.
fn certificates(file: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut text = Vec::new();
    std::fs::File::open(file).map_err(failed)?.take(LARGEST_CA_FILE).read_to_end(&mut text).map_err(failed)?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    if text.windows(begins.len()).any(|window| window == begins) { Ok(()) } else { Err("holds no certificate in PEM".to_owned()) }
}
