//! `chat-historyd status`: asks the running daemon how it is. Exit code 69 when none answers.

mod describe;
mod dial;
mod watch;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{StatusArgs, StatusFormat};
use crate::config::{self, Sources};
use crate::exit::Exit;
use crate::observe::logging::escape_controls;
use crate::observe::prometheus;
pub(crate) use dial::dial;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pause before a daemon whose places were all taken is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest status that is read.
const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;

/// Prints the status of the running daemon.
pub fn status(arguments: &StatusArgs, sources: &Sources, out: &mut impl Write) -> Exit {
    let path = match socket(arguments, sources) {
        Ok(path) => path,
        Err(exit) => return exit,
    };
    if let Some(pause) = arguments.watch {
        watch::watch(arguments.format, &path, pause, out);
        return Exit::Success;
    }
    match ask(&path) {
        Ok(status) => {
            // A closed pipe is the reader's wish.
            let _ = out.write_all(render(&status, arguments.format).as_bytes());
            Exit::Success
        }
        Err(failure) => {
            eprintln!("chat-historyd status: {}", absent(&path, &failure));
            Exit::Unavailable
        }
    }
}

fn render(status: &Value, format: StatusFormat) -> String {
    match format {
        StatusFormat::Json => format!("{status:#}\n"),
        StatusFormat::Text => describe::describe(status),
        StatusFormat::Prometheus => prometheus::render(status),
    }
}

fn absent(path: &Path, failure: &io::Error) -> String {
    let hint = match failure.kind() {
        io::ErrorKind::PermissionDenied => "your user may not: use sudo, or join the socket's group",
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "is chat-historyd running?",
        _ => "journalctl -u chat-historyd tells more",
    };
    format!("no daemon answers at {}: {} ({hint})", path.display(), words(failure))
}

/// A failure in words: what the system says of a time that is up is no help.
fn words(failure: &io::Error) -> String {
    match failure.kind() {
        io::ErrorKind::WouldBlock => format!("it does not answer within {} s", PATIENCE.as_secs()),
        _ => failure.to_string(),
    }
}

fn socket(arguments: &StatusArgs, sources: &Sources) -> Result<PathBuf, Exit> {
    if let Some(path) = &arguments.socket {
        return Ok(path.clone());
    }
    match config::load_to_call(sources) {
        Ok(loaded) => Ok(loaded.settings.status.socket),
        Err(problems) => {
            eprint!("{problems}");
            Err(Exit::Configuration)
        }
    }
}

/// The status of the daemon behind a status socket.
///
/// # Errors
/// When none answers, or not with a status.
pub fn ask(path: &Path) -> io::Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut text = Vec::new();
        let read =
            dial(path, end.saturating_duration_since(Instant::now()).max(PAUSE))?.take(MAX_STATUS_BYTES).read_to_end(&mut text);
        if !text.is_empty() {
            read?;
            let status: Value = serde_json::from_slice(&text).map_err(io::Error::other)?;
            if let Some(why) = status.get("refused").and_then(Value::as_str) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, escape_controls(why)));
            }
            return if status.is_object() { Ok(status) } else { Err(io::Error::other("what answers there gives no status")) };
        }
        // All its places are taken, for half a second at most.
        if Instant::now() >= end || read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            read?;
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hangs up without an answer (too many ask at once)"));
        }
        std::thread::sleep(PAUSE);
    }
}
