//! What was said stands in the store, in backups and at the API, and nowhere else: the daemons of these tests log at the
//! finest level, and when one goes its whole log is searched for the secret and for every text that an agent of these
//! tests wrote to its socket.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::manager_api::SECRET;

/// Shorter texts stand in every log by chance.
const SHORTEST: usize = 9;

/// Of a line that is no JSON nobody knows which words are the protocol's own; its longest piece must be longer than those.
const SHORTEST_OF_RUBBISH: usize = 24;

/// Texts remembered of one socket.
const MOST: usize = 5000;

static SAID: Mutex<Option<HashMap<PathBuf, BTreeSet<String>>>> = Mutex::new(None);

/// Remembers what these lines say, if they say anything.
pub fn remember(socket: &Path, lines: &[u8]) {
    let mut texts = Vec::new();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| line.len() >= SHORTEST) {
        if let Ok(value) = serde_json::from_slice(line) {
            collect(&value, false, &mut texts);
        } else {
            let line = String::from_utf8_lossy(line).into_owned();
            texts.extend(longest_piece(&line).filter(|piece| piece.len() >= SHORTEST_OF_RUBBISH).map(str::to_owned));
        }
    }
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let said = said.get_or_insert_with(HashMap::new).entry(socket.to_owned()).or_default();
    for piece in texts.iter().filter_map(|text| longest_piece(text)) {
        if said.len() < MOST && !said.contains(piece) {
            said.insert(piece.to_owned());
        }
    }
}

/// Every string that is content, however deep it stands.
fn collect(value: &Value, is_content: bool, texts: &mut Vec<String>) {
    match value {
        Value::String(text) if is_content => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, is_content, texts)),
        Value::Object(fields) => {
            let says = |name: &str| matches!(name, "content" | "transcript" | "text" | "audio_base64" | "audioBase64" | "output");
            fields.iter().for_each(|(name, value)| collect(value, says(name), texts));
        }
        _ => {}
    }
}

/// A log escapes some characters: the longest piece without them is looked for.
fn longest_piece(text: &str) -> Option<&str> {
    let pieces = text.split(|c: char| c.is_control() || matches!(c, '"' | '\\')).map(str::trim);
    pieces.max_by_key(|piece| piece.len()).filter(|piece| piece.len() >= SHORTEST)
}

/// What stands in a log and must not, of what was said on this socket. It is forgotten then.
pub fn found_in(log: &str, socket: &Path) -> Option<String> {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let mut texts = said.get_or_insert_with(HashMap::new).remove(socket).unwrap_or_default();
    drop(said);
    texts.insert(SECRET.to_owned());
    search(log, &texts)
}

/// One pass over the log, however many texts: by their first eight bytes.
fn search(log: &str, texts: &BTreeSet<String>) -> Option<String> {
    const SLOTS: u64 = 1 << 16;
    let slot = |key: u64| (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SLOTS - 1)) as usize;
    let mut by_beginning: HashMap<u64, Vec<&str>> = HashMap::new();
    let mut taken = vec![false; SLOTS as usize];
    for text in texts {
        let key = text.bytes().take(8).fold(0, |key, byte| key << 8 | u64::from(byte));
        taken[slot(key)] = true;
        by_beginning.entry(key).or_default().push(text);
    }
    let mut key: u64 = 0;
    for (end, byte) in log.bytes().enumerate() {
        key = key << 8 | u64::from(byte);
        if end >= 7 && taken[slot(key)] {
            let rest = &log.as_bytes()[end - 7..];
            let candidates = by_beginning.get(&key).into_iter().flatten();
            if let Some(text) = candidates.into_iter().find(|text| rest.starts_with(text.as_bytes())) {
                return Some((*text).to_owned());
            }
        }
    }
    None
}

/// A canary that cannot fall would be worth nothing.
mod tests {
    use super::*;
    use crate::support::{Agent, Daemon};

    #[test]
    fn the_canary_sees_what_was_said_in_any_field_and_the_secret() {
        let socket = Path::new("/nowhere/canary.sock");
        let lines = [
            r#"{"type":"message","content":"a sentence nobody may log","id":"an id may be logged"}"#,
            r#"{"type":"conversation_item_added","item":{"content":["in an item, too",{"transcript":"said into a microphone"}]}}"#,
            "not even what is no JSON",
            r#"{"content":"first line\nand a much longer second line"}"#,
        ];
        let leaks = [
            "a sentence nobody may log",
            "in an item, too",
            "said into a microphone",
            "not even what is no JSON",
            "and a much longer second line",
            SECRET,
        ];
        for leak in leaks {
            remember(socket, lines.join("\n").as_bytes());
            assert!(found_in(&format!("2026 DEBUG a line={leak} seq=1\n"), socket).is_some(), "{leak}");
        }
        remember(socket, lines.join("\n").as_bytes());
        assert_eq!(found_in("2026 DEBUG session opened id=\"an id may be logged\"\n", socket), None);
    }

    #[test]
    fn a_daemon_that_logs_what_was_said_fails_its_test() {
        let leak = "a sentence that stands in the log";
        let daemon = Daemon::builder().wrapper(&["sh", "-c", &format!("echo '{leak}' >&2; exec \"$@\""), "sh"]).start();
        let mut agent = Agent::connect(&daemon);
        agent.bind("68:25:dd:ba:39:78", "s");
        agent.say(1, leak);
        agent.flush("durable");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(daemon)));
        assert!(outcome.is_err(), "the log was not searched");
    }
}
