//! Whether a daemon serves, and what it says of itself.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use serde_json::Value;

use super::finding::Finding;
use crate::config::{Settings, SocketSettings};
use crate::status_command::{ask, dial};

/// How long the daemon may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Starts the daemon, and makes the socket of its unit anew where that is gone.
const RESTART: &str = "systemctl restart chat-historyd.socket chat-historyd.service";

/// The most that is read of its answer.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// What is found, and whether the running daemon has a Manager API, wherever it knows it from.
pub(super) fn examine(settings: &Settings) -> (Vec<Finding>, bool) {
    let mut findings = vec![socket(&settings.socket)];
    let mut has_url = false;
    match ask(&settings.status.socket) {
        Ok(status) => {
            has_url = matches!(status.pointer("/gate/state").and_then(Value::as_str), Some("open" | "closed"));
            findings.extend(told(&status));
        }
        Err(error) => findings.push(unanswered("status", &settings.status.socket, &error)),
    }
    (findings, has_url)
}

fn socket(settings: &SocketSettings) -> Finding {
    let SocketSettings { path, allowed_uids, .. } = settings;
    let us = geteuid().as_raw();
    if !allowed_uids.is_empty() && !allowed_uids.contains(&us) {
        let what = format!("doctor does not connect to {}: its user {us} is not in socket.allowed_uids", path.display());
        return Finding::advice("socket", what, "run doctor as one of these users, too: producers need this socket");
    }
    match ping(path) {
        Ok(()) => Finding::sound("socket", format!("a daemon answers at {}", path.display())),
        Err(error) => unanswered("socket", path, &error),
    }
}

fn ping(path: &Path) -> std::io::Result<()> {
    let mut stream = dial(path, PATIENCE)?;
    // A daemon that has no room says so and hangs up, maybe before it is asked: that answer is read all the same.
    let asked = stream.write_all(b"{\"type\":\"ping\",\"id\":\"doctor\"}\n");
    for line in BufReader::new(stream.take(MAX_ANSWER_BYTES)).split(b'\n') {
        let answer: Value = serde_json::from_slice(&line?).map_err(Error::other)?;
        match answer.get("type").and_then(Value::as_str) {
            Some("pong") => return Ok(()),
            Some("error") if answer.get("code").is_some_and(|code| code == "too_many_connections") => {
                return Err(ErrorKind::ResourceBusy.into());
            }
            Some("error") => {
                return Err(Error::other(answer.get("code").and_then(Value::as_str).unwrap_or("an error").to_owned()));
            }
            _ => {}
        }
    }
    asked?;
    Err(Error::new(ErrorKind::UnexpectedEof, "it hung up without an answer"))
}

fn unanswered(check: &'static str, path: &Path, error: &Error) -> Finding {
    let shown = path.display();
    match error.kind() {
        ErrorKind::NotFound => {
            let mend = format!("{RESTART}; if it runs, doctor may look at other settings than it does");
            Finding::broken(check, format!("there is no socket at {shown}"), &mend)
        }
        ErrorKind::ConnectionRefused => {
            let mend = "start the daemon (systemctl start chat-historyd): it replaces the stale socket";
            Finding::broken(check, format!("nobody listens at {shown} any more"), mend)
        }
        ErrorKind::PermissionDenied => {
            let mend = "run doctor as root or as the daemon's user, or join its group (chat-history)";
            Finding::broken(check, format!("this user may not connect to {shown}"), mend)
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let mend = "the daemon may be starting or stuck: look at its log (journalctl -u chat-historyd)";
            Finding::broken(check, format!("the daemon at {shown} does not answer within {} s", PATIENCE.as_secs()), mend)
        }
        ErrorKind::ResourceBusy => {
            let mend = "raise socket.max_connections, or look for a producer that leaves its connections open";
            Finding::broken(check, format!("the daemon at {shown} has no room for one connection more"), mend)
        }
        _ => {
            let mend = "look at the daemon's log (journalctl -u chat-historyd)";
            Finding::broken(check, format!("the daemon at {shown} gives no good answer: {error}"), mend)
        }
    }
}

/// What the status tells of troubles.
fn told(status: &Value) -> Vec<Finding> {
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let mut findings = Vec::new();
    let ours = concat!("chat-historyd/", env!("CARGO_PKG_VERSION"));
    if text("/daemon") == ours {
        findings.push(Finding::sound("status", format!("{ours} runs for {} s", number("/uptime_seconds"))));
    } else {
        let what = format!("{} runs, and {ours} is installed", text("/daemon"));
        findings.push(Finding::advice("status", what, "restart the daemon"));
    }
    findings.push(match text("/gate/state") {
        "closed" => {
            let (kind, reason, since) = (text("/gate/kind"), text("/gate/reason"), number("/gate/since_seconds"));
            let what = format!("nothing has been sent for {since} s ({kind}: {reason}); {} messages wait", number("/pending"));
            Finding::broken("gate", what, "nothing is lost: mend what the findings about the Manager API name")
        }
        "open" => Finding::sound("gate", "messages are sent".to_owned()),
        "unknown" => Finding::broken("gate", text("/gate/reason").to_owned(), "restart the daemon, and look at its log"),
        "no_url" => {
            Finding::advice("gate", "the running daemon has no manager_api.url".to_owned(), "set it and reload the daemon")
        }
        _ => Finding::advice("gate", "the daemon does not tell of its gate".to_owned(), "restart it, if it is another version"),
    });
    if number("/metrics/socket_missing") > 0 {
        let what = "no producer can connect: the events socket is not at its path, though the daemon runs".to_owned();
        findings.push(Finding::broken("producers", what, RESTART));
    }
    if number("/metrics/http_missing") > 0 {
        let what = "status.http_listen cannot be listened on: nobody can read the metrics there".to_owned();
        let mend = "free the address, which the daemon tries again every 5 s, or choose another port; its log tells why";
        findings.push(Finding::advice("http", what, mend));
    }
    if let Some(what) = status.pointer("/store/failing/what").and_then(Value::as_str) {
        let what =
            format!("the daemon has not been able to write its store for {} s: {what}", number("/store/failing/since_seconds"));
        findings.push(Finding::broken("writing", what, "mend the disk; messages stand in memory meanwhile (store.shelf_bytes)"));
        let refused = number("/store/failing/refused_messages");
        if refused > 0 {
            let what = format!("the shelf in memory had no room for {refused} messages: they were refused");
            findings.push(Finding::broken("refusing", what, "mend the disk, or the delivery, which makes room on the shelf"));
        }
    }
    if status.pointer("/store/full").and_then(Value::as_bool) == Some(true) {
        let what = "the store is full: nothing is taken in".to_owned();
        findings.push(Finding::broken(
            "writing",
            what,
            "raise store.max_bytes, mend the delivery, or end what reads the database for long: its log grows meanwhile",
        ));
    }
    let backups = number("/metrics/backups_due");
    if backups > 0 {
        let mend = "look at backup.directory and the daemon's log (journalctl -u chat-historyd -p warning); they are tried again by themselves";
        findings.push(Finding::advice("backup", format!("ended sessions whose backup cannot be written now: {backups}"), mend));
    }
    if status.pointer("/metrics/config_last_reload_successful").and_then(Value::as_u64) == Some(0) {
        let what = "the last reload was refused: the daemon runs with older settings than its file's".to_owned();
        findings.push(Finding::advice("reload", what, "mend what chat-historyd --check-config names, then reload the daemon"));
    }
    let devices = number("/upload/devices_waiting");
    if devices > 0 {
        let mend = "register them at the Manager API; after upload.unknown_device_hold their messages are rejected";
        findings.push(Finding::advice(
            "devices",
            format!("the server does not know {devices} devices: their messages wait"),
            mend,
        ));
    }
    let strikes = number("/upload/strikes");
    if strikes > 0 {
        let what = format!("the server has refused a message {strikes} times while it took others");
        findings.push(Finding::advice(
            "refused",
            what,
            "look at the server's log; upload.poison_attempts refusals reject the message",
        ));
    }
    let rejected: u64 = status
        .pointer("/store/rejected")
        .and_then(Value::as_object)
        .map_or(0, |reasons| reasons.values().filter_map(Value::as_u64).sum());
    findings.extend(super::store::decision(rejected));
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::doctor::finding::Level;
    use serde_json::json;

    #[test]
    fn every_trouble_of_the_status_is_a_finding() {
        let status = json!({
            "daemon": "chat-historyd/0.0.1",
            "gate": { "state": "closed", "kind": "operator", "reason": "why", "since_seconds": 7 },
            "pending": 3,
            "upload": { "devices_waiting": 2, "strikes": 1 },
            "metrics": { "socket_missing": 1, "http_missing": 1, "backups_due": 2, "config_last_reload_successful": 0 },
            "store": { "failing": { "what": "no space", "since_seconds": 5, "refused_messages": 6 }, "full": true, "rejected": { "invalid": 1, "damaged": 3 } },
        });
        let found: Vec<(&str, Level)> = told(&status).iter().map(|finding| (finding.check, finding.level)).collect();
        assert_eq!(
            found,
            [
                ("status", Level::Advice),
                ("gate", Level::Broken),
                ("producers", Level::Broken),
                ("http", Level::Advice),
                ("writing", Level::Broken),
                ("refusing", Level::Broken),
                ("writing", Level::Broken),
                ("backup", Level::Advice),
                ("reload", Level::Advice),
                ("devices", Level::Advice),
                ("refused", Level::Advice),
                ("rejected", Level::Advice),
            ]
        );
        assert!(told(&status).iter().any(|finding| finding.what.contains("4 rejected messages stand in the store")));
    }

    #[test]
    fn each_way_of_not_answering_has_its_own_remedy() {
        let path = Path::new("/x.sock");
        let kinds = [
            ErrorKind::NotFound,
            ErrorKind::ConnectionRefused,
            ErrorKind::PermissionDenied,
            ErrorKind::WouldBlock,
            ErrorKind::ResourceBusy,
            ErrorKind::Other,
        ];
        let findings = kinds.map(|kind| unanswered("socket", path, &kind.into()));
        let different = |part: fn(&Finding) -> &str| findings.iter().map(part).collect::<BTreeSet<_>>().len();
        assert_eq!(different(|finding| &finding.what), kinds.len(), "{findings:#?}");
        assert_eq!(different(|finding| &finding.mend), kinds.len(), "{findings:#?}");
    }
}
