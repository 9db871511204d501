//! Checks what settings name outside of themselves: the secret's file, the certificate file, the group. Reads only, and waits
//! for no file that does not answer.

use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::Purpose;
use super::authorities;
use super::layers::Origin;
use super::reader::Reader;
use super::secret::is_open_to_others;
use super::settings::Settings;
use crate::patience::within;

/// How long a file may take to answer: a start waits for the secret, the authorities and the client made of them, each so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// What helps against a file that does not answer.
const LOOK_AT_THE_MOUNT: &str = "look at the file system it is on (dmesg), or keep the file on a disk of this machine";

/// Descriptors that the daemon needs beside connections of producers and reports, rounded up: store and readers, threads, the
/// log, 16 status connections and 32 of the HTTP face.
const DESCRIPTORS_OF_ITS_OWN: u64 = 128;

/// Looks whether what the settings name is there. To serve it must be, but for what only delivery needs, the secret and the
/// authorities, which are read again at every knock; to look it is only said.
pub(super) fn check(settings: &Settings, purpose: Purpose, reader: &mut Reader) {
    let mut missing: Vec<(&str, String, String)> = Vec::new();
    // No reason to take nothing in: the gate stays closed until they can be read, and nothing is lost.
    let mut late: Vec<(&str, String, String)> = Vec::new();
    let refused = reader.is_refused("manager_api.secret") || reader.is_refused("manager_api.secret_file");
    if let Some(source) = settings.manager_api.secret.as_ref().filter(|_| !refused) {
        let reading = source.clone();
        match within(PATIENCE, move || reading.read().map(|_| reading.is_exposed())) {
            None => {
                let file = source.path().unwrap_or_else(|| Path::new("")).display();
                late.push(("manager_api.secret_file", format!("{file} does not answer"), LOOK_AT_THE_MOUNT.to_owned()));
            }
            Some(Err(error)) => late.push(("manager_api.secret_file", error.to_string(), error.hint().to_owned())),
            Some(Ok(true)) => {
                reader.warn("manager_api.secret_file", "others than its owner may read the secret", "chmod 600 the file");
            }
            Some(Ok(false)) => {
                if let Origin::File { path, .. } = reader.origin("manager_api.secret")
                    && is_open_to_others(&path)
                {
                    reader.warn(
                        "manager_api.secret",
                        "others than its owner may read this file",
                        "chmod 600 it, or use secret_file",
                    );
                }
            }
        }
    }
    if let Some(file) = settings.manager_api.ca_file.as_ref().filter(|_| !reader.is_refused("manager_api.ca_file")) {
        let reading = file.clone();
        let wrong = match within(PATIENCE, move || authorities::certificates(&authorities::read(&reading)?)) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some((reason, "name a PEM file with the authorities to trust")),
            None => Some(("does not answer".to_owned(), LOOK_AT_THE_MOUNT)),
        };
        if let Some((reason, hint)) = wrong {
            late.push(("manager_api.ca_file", format!("{} {reason}", file.display()), hint.to_owned()));
        }
    }
    if let Some(group) = settings.socket.group.as_ref().filter(|_| !reader.is_refused("socket.group"))
        && matches!(nix::unistd::Group::from_name(group), Ok(None))
    {
        missing.push(("socket.group", format!("there is no group {group:?}"), "create it (groupadd) or name another".to_owned()));
    }
    if let Ok((_, limit)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Some((message, hint)) = too_many_connections(settings, limit)
    {
        reader.warn("socket.max_connections", message, hint);
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

/// Whether a process that may open so many descriptors (the hard limit, to which a start raises its own) has one for each
/// connection; if not, what to say, and what helps.
fn too_many_connections(settings: &Settings, limit: u64) -> Option<(String, String)> {
    let needed_otherwise = DESCRIPTORS_OF_ITS_OWN + 2 * settings.upload.concurrency as u64;
    let fit = limit.saturating_sub(needed_otherwise);
    let wanted = settings.socket.max_connections as u64;
    (wanted > fit).then(|| {
        let message = format!("{wanted} connections do not fit: a process started from here may open {limit} files, so {fit} do");
        let needed = wanted + needed_otherwise;
        (
            message,
            format!("raise the limit to {needed} (LimitNOFILE= in the unit, --ulimit of a container), or lower the setting"),
        )
    })
}
