//! `chat-historyd status`: asks the running daemon how it is. Exit code 69 when none answers.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{StatusArgs, StatusFormat};
use crate::config::{self, Sources};
use crate::exit::Exit;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest status that is read.
const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;

/// Prints the status of the running daemon.
pub fn status(arguments: &StatusArgs, sources: &Sources, out: &mut impl Write) -> Exit {
    let path = match socket(arguments, sources) {
        Ok(path) => path,
        Err(exit) => return exit,
    };
    let status = match ask(&path) {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("chat-historyd status: no daemon answers at {}: {failure} (is chat-historyd running?)", path.display());
            return Exit::Unavailable;
        }
    };
    let text = match arguments.format {
        StatusFormat::Json => format!("{status:#}\n"),
        StatusFormat::Text => describe(&status),
    };
    // A closed pipe is the reader's wish.
    let _ = out.write_all(text.as_bytes());
    Exit::Success
}

fn socket(arguments: &StatusArgs, sources: &Sources) -> Result<PathBuf, Exit> {
    if let Some(path) = &arguments.socket {
        return Ok(path.clone());
    }
    match config::load(sources) {
        Ok(loaded) => Ok(loaded.settings.status.socket),
        Err(problems) => {
            eprint!("{problems}");
            Err(Exit::Configuration)
        }
    }
}

fn ask(path: &Path) -> io::Result<Value> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(MAX_STATUS_BYTES).read_to_end(&mut text)?;
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up (too many ask at once)"));
    }
    serde_json::from_slice(&text).map_err(io::Error::other)
}

fn describe(status: &Value) -> String {
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let sum = |pointer: &str| {
        status
            .pointer(pointer)
            .and_then(Value::as_object)
            .map_or(0, |labels| labels.values().filter_map(Value::as_u64).sum::<u64>())
    };
    let gate = match text("/gate/state") {
        "closed" => format!("closed ({}: {}) for {} s", text("/gate/kind"), text("/gate/reason"), number("/gate/since_seconds")),
        "open" => "open".to_owned(),
        _ => "no manager_api.url is set: history is only kept here".to_owned(),
    };
    let store = match text("/store/failing/what") {
        "" if status.pointer("/store/full").and_then(Value::as_bool) == Some(true) => {
            "full: nothing is taken in (store.max_bytes)".to_owned()
        }
        "" => "sound".to_owned(),
        what => format!("failing for {} s: {what}", number("/store/failing/since_seconds")),
    };
    format!(
        "{daemon}, up {uptime} s, pid {pid}\n\
         gate       {gate}\n\
         store      {store}, {used} bytes, {shelf} messages on the shelf\n\
         sessions   {sessions} open, {backlog} with undelivered messages, {devices} devices unknown to the server\n\
         messages   {pending} pending, {held} held, {delivered} delivered, {rejected} rejected, {skipped} skipped\n\
         producers  {connections} connected, {lines} lines, {refused} refused\n",
        daemon = text("/daemon"),
        uptime = number("/uptime_seconds"),
        pid = number("/pid"),
        used = number("/store/used_bytes"),
        shelf = number("/store/shelf_messages"),
        sessions = number("/sessions_open"),
        backlog = number("/upload/sessions_pending"),
        devices = number("/upload/devices_waiting"),
        pending = number("/pending"),
        held = number("/held"),
        delivered = number("/metrics/delivered"),
        rejected = sum("/metrics/rejected"),
        skipped = sum("/metrics/skipped"),
        connections = number("/connections"),
        lines = number("/metrics/lines"),
        refused = sum("/metrics/refusals"),
    )
}
