//! Checks what settings name outside of themselves: the secret's file, the certificate file, the group. Reads only.

use std::path::Path;

use super::Purpose;
use super::layers::Origin;
use super::reader::Reader;
use super::secret::is_open_to_others;
use super::settings::Settings;

/// Looks whether what the settings name is there. To serve it must be; to look it is only said.
pub(super) fn check(settings: &Settings, purpose: Purpose, reader: &mut Reader) {
    let mut missing: Vec<(&str, String, String)> = Vec::new();
    let refused = reader.is_refused("manager_api.secret") || reader.is_refused("manager_api.secret_file");
    if let Some(source) = settings.manager_api.secret.as_ref().filter(|_| !refused) {
        if let Err(error) = source.read() {
            missing.push(("manager_api.secret_file", error.to_string(), error.hint().to_owned()));
        } else if source.is_exposed() {
            reader.warn("manager_api.secret_file", "others than its owner may read the secret", "chmod 600 the file");
        } else if let Origin::File { path, .. } = reader.origin("manager_api.secret")
            && is_open_to_others(&path)
        {
            reader.warn("manager_api.secret", "others than its owner may read this file", "chmod 600 it, or use secret_file");
        }
    }
    if let Some(file) = settings.manager_api.ca_file.as_ref().filter(|_| !reader.is_refused("manager_api.ca_file"))
        && let Err(reason) = readable(file)
    {
        let message = format!("{} {reason}", file.display());
        missing.push(("manager_api.ca_file", message, "name a PEM file with the authorities to trust".to_owned()));
    }
    if let Some(group) = settings.socket.group.as_ref().filter(|_| !reader.is_refused("socket.group"))
        && matches!(nix::unistd::Group::from_name(group), Ok(None))
    {
        missing.push(("socket.group", format!("there is no group {group:?}"), "create it (groupadd) or name another".to_owned()));
    }
    for (key, message, hint) in missing {
        match purpose {
            Purpose::Serve => reader.problem(key, message, hint),
            Purpose::Look => reader.warn(key, message, hint),
        }
    }
}

fn readable(file: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    std::fs::File::open(file).map(drop).map_err(failed)
}
