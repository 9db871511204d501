//! `chat-historyd send`: one message from the shell, answered when it is durable.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::SendArgs;
use crate::config::{self, Sources};
use crate::exit::Exit;
use crate::protocol::MacAddress;
use crate::status_command::dial;

/// How long the daemon may take to make the message durable.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest text taken from standard input.
const MAX_TEXT_BYTES: u64 = 1024 * 1024;

/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Sends the message of the arguments to the running daemon.
#[must_use]
pub fn send(arguments: &SendArgs, sources: &Sources) -> Exit {
    let path = match socket(arguments, sources) {
        Ok(path) => path,
        Err(exit) => return exit,
    };
    let line = match line(arguments) {
        Ok(line) => line,
        Err(problem) => return complain(&problem, Exit::Usage),
    };
    match exchange(&path, &line) {
        Ok(answer) => judge(&answer),
        Err(failure) => complain(&unconfirmed(&path, &failure, arguments.id.is_some()), Exit::Unavailable),
    }
}

/// How far a message came that was not confirmed.
#[derive(Debug)]
enum Unconfirmed {
    /// Nobody took it.
    Unheard(io::Error),
    /// The connection was ended without an answer.
    HungUp,
    /// It is with the daemon, which has not said that it is stored.
    Unanswered,
    /// What came was no answer.
    Unreadable(io::Error),
}

/// What happened, and what to do.
fn unconfirmed(path: &Path, failure: &Unconfirmed, has_id: bool) -> String {
    let shown = path.display();
    match failure {
        Unconfirmed::Unheard(failure) => {
            let hint = match failure.kind() {
                io::ErrorKind::PermissionDenied => "your user may not: join the socket's group, or use sudo",
                _ => "is chat-historyd running?",
            };
            format!("no daemon answers at {shown}: {failure} ({hint})")
        }
        Unconfirmed::HungUp => {
            let us = nix::unistd::geteuid();
            format!(
                "the daemon at {shown} hung up without an answer (is your user, {us}, left out of socket.allowed_uids? its log tells)"
            )
        }
        Unconfirmed::Unanswered => {
            let again = if has_id {
                "sent again with the same --id it is not stored twice"
            } else {
                "look before you send it again, which may store it twice: --id prevents that"
            };
            format!(
                "the daemon at {shown} has the message and did not confirm within {} s that it is stored; it may be yet ({again}; \
                 chat-historyd doctor tells what holds it up)",
                PATIENCE.as_secs()
            )
        }
        Unconfirmed::Unreadable(failure) => format!("the daemon at {shown} gives no good answer: {failure}"),
    }
}

fn complain(problem: &str, exit: Exit) -> Exit {
    eprintln!("chat-historyd send: {problem}");
    exit
}

fn socket(arguments: &SendArgs, sources: &Sources) -> Result<PathBuf, Exit> {
    if let Some(path) = &arguments.socket {
        return Ok(path.clone());
    }
    match config::load_to_call(sources) {
        Ok(loaded) => Ok(loaded.settings.socket.path),
        Err(problems) => {
            eprint!("{problems}");
            Err(Exit::Configuration)
        }
    }
}

fn line(arguments: &SendArgs) -> Result<String, String> {
    let text = if arguments.text == "-" { from_stdin()? } else { arguments.text.clone() };
    if text.trim().is_empty() {
        return Err("there is nothing to send: the text is empty".to_owned());
    }
    if arguments.mac.is_none() && MacAddress::from_session_id(arguments.session.as_str()).is_none() {
        return Err("which device? (give --mac, or a session id that ends in _<12 hex digits>[_<type>])".to_owned());
    }
    let mut line = json!({
        "type": "message",
        "seq": 1,
        "session_id": arguments.session.as_str(),
        "chat_type": arguments.role.code(),
        "content": text,
    });
    if let Some(fields) = line.as_object_mut() {
        if let Some(mac) = arguments.mac {
            fields.insert("mac_address".to_owned(), json!(mac.to_string()));
        }
        if let Some(id) = &arguments.id {
            fields.insert("id".to_owned(), json!(id));
        }
        if let Some(time) = &arguments.time {
            let seconds = time.parse::<f64>().ok().filter(|seconds| seconds.is_finite());
            fields.insert("timestamp".to_owned(), seconds.map_or_else(|| json!(time), |seconds| json!(seconds)));
        }
    }
    Ok(line.to_string())
}

fn from_stdin() -> Result<String, String> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_TEXT_BYTES + 1).read_to_string(&mut text);
    match read {
        Ok(length) if length as u64 > MAX_TEXT_BYTES => Err("standard input is longer than 1 MiB".to_owned()),
        Ok(_) => Ok(text),
        Err(failure) => Err(format!("standard input is no UTF-8 text: {failure}")),
    }
}

/// Writes the line and reads until its ack or its refusal.
fn exchange(path: &Path, line: &str) -> Result<Value, Unconfirmed> {
    let mut stream = dial(path, PATIENCE).map_err(Unconfirmed::Unheard)?;
    // A daemon that refuses the connection says so and hangs up, maybe before it has read anything: its answer counts.
    let sent = stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(b"\n"));
    if let Err(failure) = sent
        && is_late(&failure)
    {
        return Err(Unconfirmed::Unheard(failure));
    }
    for answer in BufReader::new(stream.take(MAX_ANSWER_BYTES)).split(b'\n') {
        let answer = answer.map_err(|failure| match failure.kind() {
            _ if is_late(&failure) => Unconfirmed::Unanswered,
            io::ErrorKind::ConnectionReset => Unconfirmed::HungUp,
            _ => Unconfirmed::Unreadable(failure),
        })?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|failure| Unconfirmed::Unreadable(failure.into()))?;
        if matches!(answer.get("type").and_then(Value::as_str), Some("ack" | "error")) {
            return Ok(answer);
        }
    }
    Err(Unconfirmed::HungUp)
}

fn is_late(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn judge(answer: &Value) -> Exit {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if text("type") == "ack" {
        eprintln!("stored");
        return Exit::Success;
    }
    let (code, field, message) = (text("code"), text("field"), text("message"));
    let place = if field.is_empty() { code.clone() } else { format!("{code}: {field}") };
    let exit = if matches!(code.as_str(), "overloaded" | "too_many_connections") { Exit::Unavailable } else { Exit::Usage };
    complain(&format!("the daemon refused it: {place}: {message}"), exit)
}
