//! The status for people. Pure. What a status of another version lacks reads as nothing, and that it is of another is said;
//! gate and store are never called well without its word.

use std::fmt::Write;

use serde_json::Value;

use crate::observe::logging::escape_controls;
use crate::observe::status::VERSION;

/// Sessions shown; the JSON lists more.
const SHOWN: usize = 20;

/// The whole text.
pub(super) fn describe(status: &Value) -> String {
    let at = Place(status);
    let mut text = String::new();
    let mut row = |name: &str, what: String| {
        let _ = writeln!(text, "{name:<10} {}", escape_controls(&what));
    };
    let leaving = if at.text("/state") == "stopping" { ", stopping" } else { "" };
    row(at.text("/daemon"), format!("up {}, pid {}{leaving}", span(at.number("/uptime_seconds")), at.number("/pid")));
    if status.get("v").and_then(Value::as_u64) != Some(u64::from(VERSION)) {
        row("version", format!("the status is not of version {VERSION}: what this command reads in it may be wrong"));
    }
    if status.pointer("/metrics/config_last_reload_successful").and_then(Value::as_u64) == Some(0) {
        row("settings", "the last reload was refused: older settings than the file's are in use".to_owned());
    }
    if at.number("/metrics/socket_missing") > 0 {
        row("socket", "no producer can connect: the events socket is not at its path".to_owned());
    }
    if at.number("/metrics/http_missing") > 0 {
        row("http", "status.http_listen cannot be listened on: tried again every 5 s (the log tells why)".to_owned());
    }
    row("gate", gate(&at));
    row("store", store(&at));
    row("disk", format!("{} of {} free", at.size("/store/disk_free_bytes"), at.size("/store/disk_size_bytes")));
    row(
        "shelf",
        format!(
            "{} messages, {} of {}, in memory while the store cannot be written",
            at.number("/store/shelf_messages"),
            at.size("/store/shelf_bytes"),
            at.size("/store/shelf_max_bytes")
        ),
    );
    row("sessions", what_is_open(&at));
    let oldest = match status.pointer("/upload/oldest_pending_seconds").and_then(Value::as_u64) {
        Some(age) => format!(" (oldest {})", span(age)),
        None => String::new(),
    };
    row(
        "messages",
        format!(
            "{} pending{oldest}, {} held, {} delivered, {} rejected{}, {} skipped{}",
            at.number("/pending"),
            at.number("/held"),
            at.number("/metrics/delivered"),
            at.sum("/metrics/rejected"),
            at.labels("/metrics/rejected"),
            at.sum("/metrics/skipped"),
            at.labels("/metrics/skipped")
        ),
    );
    let kept = at.sum("/store/rejected");
    if kept > 0 {
        let reasons = at.labels("/store/rejected");
        row("rejected", format!("{kept} in the store{reasons}; they stay until somebody decides: chat-historyd rejected list"));
    }
    let left = at.number("/metrics/messages_left_behind");
    if left > 0 {
        row(
            "left",
            format!("{left} messages only in damaged files that were set aside (corrupt/): copy these away before deleting them"),
        );
    }
    row("reports", reports(&at));
    row("rates", rates(&at));
    row(
        "producers",
        format!(
            "{} connected, {} lines, {} refused{}",
            at.number("/connections"),
            at.number("/metrics/lines"),
            at.sum("/metrics/refusals"),
            at.labels("/metrics/refusals")
        ),
    );
    sessions(&at, &mut text);
    text
}

fn gate(at: &Place<'_>) -> String {
    match at.text("/gate/state") {
        "closed" => {
            format!(
                "closed ({}: {}) for {}",
                at.text("/gate/kind"),
                at.text("/gate/reason"),
                span(at.number("/gate/since_seconds"))
            )
        }
        "open" => "open".to_owned(),
        "unknown" => format!("unknown: {}", at.text("/gate/reason")),
        "no_url" => "no manager_api.url is set: history is only kept here".to_owned(),
        _ => "?".to_owned(),
    }
}

fn store(at: &Place<'_>) -> String {
    let health = match at.text("/store/failing/what") {
        "" if !at.0.get("store").is_some_and(Value::is_object) => "?".to_owned(),
        "" if at.0.pointer("/store/full").and_then(Value::as_bool) == Some(true) => {
            "full: nothing is taken in (store.max_bytes)".to_owned()
        }
        "" => "sound".to_owned(),
        what => {
            let refused = match at.number("/store/failing/refused_messages") {
                0 => String::new(),
                count => format!(", {count} messages refused"),
            };
            format!("failing for {}: {what}{refused}", span(at.number("/store/failing/since_seconds")))
        }
    };
    format!("{health}, {} of {}", at.size("/store/used_bytes"), at.size("/store/max_bytes"))
}

fn what_is_open(at: &Place<'_>) -> String {
    let open = format!("{} open", at.number("/sessions_open"));
    if at.text("/gate/state") == "no_url" {
        return open;
    }
    format!(
        "{open}, {} with undelivered messages, {} backing off, {} unknown devices",
        at.number("/upload/sessions_pending"),
        at.number("/upload/backing_off"),
        at.number("/upload/devices_waiting")
    )
}

fn reports(at: &Place<'_>) -> String {
    format!(
        "{} sent{}, {} repeated, {} ambiguous",
        at.sum("/metrics/attempts"),
        at.labels("/metrics/attempts"),
        at.number("/metrics/retries"),
        at.number("/metrics/ambiguous")
    )
}

fn rates(at: &Place<'_>) -> String {
    let share = at.0.pointer("/rates/success_ratio").and_then(Value::as_f64);
    let success = share.map_or_else(|| "no report sent".to_owned(), |share| format!("{:.1} % accepted", share * 100.0));
    format!(
        "in the last {}: {success}; a minute: {} reports, {} failures, {} delivered",
        span(at.number("/rates/window_seconds")),
        at.rate("/rates/reports_per_minute"),
        at.rate("/rates/failures_per_minute"),
        at.rate("/rates/delivered_per_minute")
    )
}

fn sessions(at: &Place<'_>, text: &mut String) {
    let listed = at.0.get("sessions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if listed.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{:>7} {:>8} {:>8} {:>10}  device    session", "length", "pending", "open", "last event");
    for session in listed.iter().take(SHOWN).map(Place) {
        let _ = writeln!(
            text,
            "{:>7} {:>8} {:>8} {:>10}  {:<8}  {}",
            session.number("/messages"),
            session.number("/pending"),
            span(session.number("/open_seconds")),
            span(session.number("/last_event_seconds")),
            escape_controls(session.text("/mac")),
            escape_controls(session.text("/session"))
        );
    }
    let more = at.number("/sessions_open").saturating_sub(listed.len().min(SHOWN) as u64);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
}

/// Reads by JSON pointer; what is missing is empty.
struct Place<'a>(&'a Value);

impl<'a> Place<'a> {
    fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    fn rate(&self, pointer: &str) -> String {
        format!("{:.1}", self.0.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0))
    }

    /// A number of bytes; what nobody could tell is a question mark.
    fn size(&self, pointer: &str) -> String {
        self.0.pointer(pointer).and_then(Value::as_u64).map_or_else(|| "?".to_owned(), bytes)
    }

    fn text(&self, pointer: &str) -> &'a str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn each(&self, pointer: &str) -> impl Iterator<Item = (&'a str, u64)> {
        let labels = self.0.pointer(pointer).and_then(Value::as_object);
        labels.into_iter().flatten().filter_map(|(label, number)| Some((label.as_str(), number.as_u64()?)))
    }

    fn sum(&self, pointer: &str) -> u64 {
        self.each(pointer).map(|(_, number)| number).sum()
    }

    /// The labels that have a number, in brackets.
    fn labels(&self, pointer: &str) -> String {
        let labels: Vec<String> =
            self.each(pointer).filter(|(_, number)| *number > 0).map(|(label, number)| format!("{label} {number}")).collect();
        if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) }
    }
}

/// The two largest units of a time.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
fn bytes(count: u64) -> String {
    let mut size = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_and_sizes_are_short() {
        let spans: Vec<String> = [0, 59, 61, 3_661, 90_000].into_iter().map(span).collect();
        assert_eq!(spans, ["0 s", "59 s", "1m01s", "1h01m", "1d01h"]);
        let sizes: Vec<String> = [1023, 1024, 3 << 20, 5 << 40].into_iter().map(bytes).collect();
        assert_eq!(sizes, ["1023 B", "1.0 KiB", "3.0 MiB", "5.0 TiB"]);
    }

    #[test]
    fn an_empty_status_is_described_too() {
        let text = describe(&json!({}));
        assert!(text.contains("gate       ?\n") && text.contains("store      ?, "), "{text}");
        assert!(text.contains("version    the status is not of version 1"), "{text}");
        assert!(!describe(&json!({ "v": 1 })).contains("is not of version"));
    }

    #[test]
    fn no_control_character_of_a_status_reaches_the_terminal() {
        let status =
            json!({ "gate": { "state": "closed", "reason": "\u{1b}[2J" }, "sessions": [{ "session": "\u{1b}]0;x\u{7}" }] });
        assert!(!describe(&status).contains('\u{1b}'));
    }

    #[test]
    fn of_many_sessions_the_latest_are_shown_and_the_rest_is_counted() {
        let sessions: Vec<Value> = (0..30).map(|index| json!({ "session": format!("s{index}"), "messages": 3 })).collect();
        let text = describe(&json!({ "sessions_open": 500, "sessions": sessions }));
        assert!(text.contains(" s19\n") && !text.contains(" s20\n"), "{text}");
        assert!(text.ends_with("and 480 more\n"), "{text}");
    }
}
