//! `chat-historyd demo`: the main job for a newcomer with nothing installed. A throw-away daemon (this very program) in
//! a temporary directory, a bundled conversation that a real agent session emitted, played line by line through the
//! real socket, and the transcript printed from the store.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::{Environment, Settings, StoreSettings};
use crate::exit::Exit;
use crate::history::table::Table;
use crate::history::{MessageRecord, SessionRecord};
use crate::observe::Metrics;
use crate::protocol::ChatType;
use crate::store::{RowId, SessionKey, Store};

/// What a `livekit-agents` 1.8.9 session emitted, one event a line.
const CONVERSATION: &str = include_str!("../tests/fixtures/livekit-1.8.9.ndjson");

const MAC: &str = "68:25:dd:ba:39:78";
const SESSION: &str = "d3746a02-8f2c-4b6e-9a51-0c7e5d1b42f0_6825ddba3978_conversation";

/// The width of the printed table, in cells.
const TABLE_WIDTH: usize = 96;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the conversation and prints the transcript.
pub fn demo(out: &mut impl Write) -> Exit {
    match play(out) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            eprintln!("chat-historyd demo: {failure}");
            Exit::CoreTask
        }
    }
}

/// The throw-away daemon and its directory; both go when it is dropped.
struct ThrowAway {
    directory: PathBuf,
    daemon: Child,
}

impl Drop for ThrowAway {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl ThrowAway {
    fn start() -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("chat-historyd-demo-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&directory)?;
        let settings = directory.join("chat-historyd.toml");
        let quoted = |path: PathBuf| json!(path.to_string_lossy()).to_string();
        fs::write(
            &settings,
            format!(
                "[socket]\npath = {}\n[store]\ndirectory = {}\n[status]\nsocket = {}\n[log]\nlevel = \"error\"\n",
                quoted(directory.join("events.sock")),
                quoted(directory.join("state")),
                quoted(directory.join("status.sock")),
            ),
        )?;
        let daemon =
            Command::new(std::env::current_exe()?).arg("--config").arg(&settings).env_clear().stdin(Stdio::null()).spawn();
        match daemon {
            Ok(daemon) => Ok(Self { directory, daemon }),
            Err(failure) => {
                let _ = fs::remove_dir_all(&directory);
                Err(failure)
            }
        }
    }

    /// A connection, as soon as the daemon accepts.
    fn connect(&mut self) -> io::Result<UnixStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.directory.join("events.sock")) {
                Ok(stream) => return Ok(stream),
                Err(_) if Instant::now() < deadline && self.daemon.try_wait()?.is_none() => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(failure) => {
                    return Err(io::Error::other(format!("the throw-away daemon does not accept connections: {failure}")));
                }
            }
        }
    }

    /// Ends the daemon in an orderly way: through the same signal a supervisor sends.
    fn stop(&mut self) -> io::Result<()> {
        let pid = i32::try_from(self.daemon.id()).map_err(io::Error::other)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        let status = self.daemon.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the throw-away daemon ended with {status}"))) }
    }
}

fn play(out: &mut impl Write) -> io::Result<()> {
    let mut daemon = ThrowAway::start()?;
    let stream = daemon.connect()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let began = Instant::now();
    let lines = speak(&stream)?;
    drop(stream);
    let took = began.elapsed();
    daemon.stop()?;
    writeln!(
        out,
        "{lines} events of a real voice-agent session went into the socket; all were durable {} ms later.",
        took.as_millis()
    )?;
    writeln!(out, "This is what the store holds for the Manager API:\n")?;
    print_transcript(&daemon.directory, out)
}

/// Says the whole conversation, numbered, and waits until the last line is durable.
fn speak(stream: &UnixStream) -> io::Result<usize> {
    use std::fmt::Write as _;
    let mut writer = stream;
    let start = json!({"type": "session_start", "v": 1, "mac_address": MAC, "session_id": SESSION, "stream": "demo"});
    let mut text = format!("{start}\n");
    let mut count = 0;
    for line in CONVERSATION.lines() {
        count += 1;
        let mut event: Value = serde_json::from_str(line).map_err(io::Error::other)?;
        if let Some(fields) = event.as_object_mut() {
            fields.insert("seq".to_owned(), json!(count));
        }
        let _ = writeln!(text, "{event}");
    }
    let last = count + 1;
    let end = json!({"type": "session_end", "reason": "the end of the demo", "seq": last});
    let _ = writeln!(text, "{end}");
    writer.write_all(text.as_bytes())?;
    for answer in BufReader::new(stream).lines() {
        let answer: Value = serde_json::from_str(&answer?).map_err(io::Error::other)?;
        match answer.get("type").and_then(Value::as_str) {
            Some("ack") if answer.get("seq").and_then(Value::as_u64) == Some(last as u64) => return Ok(count),
            Some("error") => return Err(io::Error::other(format!("the daemon refused a line: {answer}"))),
            _ => {}
        }
    }
    Err(io::Error::other("the daemon hung up before all was durable"))
}

fn print_transcript(directory: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut settings = Settings::defaults(&Environment::default()).store;
    settings.directory = directory.join("state");
    let (session, messages) = read(&settings)?;
    let spoken: Vec<&MessageRecord> = messages.iter().filter(|message| message.chat_type != ChatType::Tool).collect();
    let mut table = Table::begin(&mut *out, &session, TABLE_WIDTH)?;
    spoken.iter().try_for_each(|message| table.message(message))?;
    table.finish()?;
    let (count, tools) = (spoken.len(), messages.len() - spoken.len());
    writeln!(
        out,
        "\n{count} messages are pending; with manager_api.url set they would be delivered now. {tools} records of a tool are kept beside them."
    )
}

fn read(settings: &StoreSettings) -> io::Result<(SessionRecord, Vec<MessageRecord>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(settings, Arc::new(Metrics::default())).map_err(io::Error::other)?;
        let session = store.snapshot(SessionKey(1)).await.map_err(io::Error::other)?;
        let mut messages = Vec::new();
        let mut after = RowId::default();
        loop {
            let page = store.transcript(SessionKey(1), after, 500).await.map_err(io::Error::other)?;
            let Some(last) = page.last() else { break };
            after = last.row;
            messages.extend(page);
        }
        store.close().await;
        let session = session.ok_or_else(|| io::Error::other("the store holds no session"))?;
        Ok((session, messages))
    })
}
