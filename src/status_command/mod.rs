//! `chat-historyd status`: asks the running daemon how it is. Exit code 69 when none answers.

mod describe;

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{StatusArgs, StatusFormat};
use crate::config::{self, Sources};
use crate::exit::Exit;
use crate::observe::prometheus;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest status that is read.
const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;

/// Cursor home, and everything below it gone.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Prints the status of the running daemon.
pub fn status(arguments: &StatusArgs, sources: &Sources, out: &mut impl Write) -> Exit {
    let path = match socket(arguments, sources) {
        Ok(path) => path,
        Err(exit) => return exit,
    };
    if let Some(pause) = arguments.watch {
        watch(arguments.format, &path, pause, out);
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

/// Until it is interrupted or the reader is gone. A daemon that is away may come back.
fn watch(format: StatusFormat, path: &Path, pause: Duration, out: &mut impl Write) {
    let terminal = io::stdout().is_terminal() && format == StatusFormat::Text;
    loop {
        let text = match (ask(path), format) {
            // One object a line, for programs.
            (Ok(status), StatusFormat::Json) => format!("{status}\n"),
            (Ok(status), _) => render(&status, format),
            (Err(failure), StatusFormat::Text) => format!("{}\n", absent(path, &failure)),
            (Err(failure), _) => {
                eprintln!("chat-historyd status: {}", absent(path, &failure));
                String::new()
            }
        };
        let frame = match format {
            StatusFormat::Text if terminal => format!("{REDRAW}{text}"),
            StatusFormat::Text | StatusFormat::Prometheus => format!("{text}\n"),
            StatusFormat::Json => text,
        };
        if out.write_all(frame.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
        std::thread::sleep(pause);
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
    format!("no daemon answers at {}: {failure} (is chat-historyd running?)", path.display())
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

/// The status of the daemon behind a status socket.
///
/// # Errors
/// When none answers, or not with a status.
pub fn ask(path: &Path) -> io::Result<Value> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(MAX_STATUS_BYTES).read_to_end(&mut text)?;
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up (too many ask at once)"));
    }
    serde_json::from_slice(&text).map_err(io::Error::other)
}
