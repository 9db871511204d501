//! The status as Prometheus text (format 0.0.4): for `/metrics` and for `status --format prometheus` alike.
//!
//! Pure. Promises: base units, a help text for everything, no label with an open set of values: nothing per device or
//! session. What a status of another version lacks is left out.

use std::fmt::Write;

use serde_json::Value as Json;

use super::metrics::{Kind, Metrics};
use crate::store::RejectReason;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A figure outside the list of metrics: its name, where the status has it, what it means. A counter by its name.
struct Reading {
    name: &'static str,
    place: &'static str,
    help: &'static str,
}

/// Why a gate can be closed: each is told, so that an alert need not wait for the first time.
const GATE_KINDS: [&str; 3] = ["operator", "outage", "profile_unknown"];

const READINGS: &[Reading] = &[
    reading("start_time_seconds", "/start_time_seconds", "When the daemon started, in seconds since 1970."),
    reading(
        "oldest_pending_seconds",
        "/upload/oldest_pending_seconds",
        "Age of the oldest undelivered message; 0 when there is none, or no URL is set.",
    ),
    reading(
        "oldest_sendable_seconds",
        "/upload/oldest_sendable_seconds",
        "As chat_historyd_oldest_pending_seconds, without the messages of devices that the server does not know.",
    ),
    reading("sending", "/upload/sending", "Sessions that have their turn now."),
    reading("sessions_pending", "/upload/sessions_pending", "Sessions with undelivered messages."),
    reading("sessions_backing_off", "/upload/backing_off", "Sessions that wait after a failed report."),
    reading("devices_waiting", "/upload/devices_waiting", "Devices that the server does not know."),
    reading("poison_strikes", "/upload/strikes", "The most strikes against one message."),
    reading("gate_open", "/gate/open", "1 when reports are sent, 0 when they wait or no URL is set."),
    reading("store_failing", "/store/failing", "1 while the store cannot be written."),
    reading("store_full", "/store/full", "1 while nothing is taken in because store.max_bytes is reached."),
    reading("store_used_bytes", "/store/used_bytes", "Size of the store: used pages and WAL."),
    reading("store_max_bytes", "/store/max_bytes", "store.max_bytes."),
    reading("disk_free_bytes", "/store/disk_free_bytes", "Free bytes of the store's file system, for the daemon's user."),
    reading("disk_size_bytes", "/store/disk_size_bytes", "Size of the store's file system."),
    reading("shelf_max_bytes", "/store/shelf_max_bytes", "store.shelf_bytes."),
    reading("open_fds", "/process/open_fds", "Open file descriptors."),
    reading("max_fds", "/process/max_fds", "File descriptors that may be open."),
    reading("resident_memory_bytes", "/process/resident_memory_bytes", "Resident memory."),
    reading("cpu_seconds_total", "/process/cpu_seconds", "Processor time used, in seconds."),
    reading("shelf_messages", "/store/shelf_messages", "Messages in memory because the store cannot be written."),
];

const fn reading(name: &'static str, place: &'static str, help: &'static str) -> Reading {
    Reading { name, place, help }
}

/// The text for a status object.
#[must_use]
pub fn render(status: &Json) -> String {
    let mut text = String::new();
    if let Some(daemon) = status.get("daemon").and_then(Json::as_str) {
        let version = daemon.rsplit('/').next().unwrap_or_default();
        head(&mut text, "build_info", "The version that runs.", "gauge");
        line(&mut text, "build_info", Some(("version", version)), "1");
    }
    for Reading { name, place, help } in READINGS {
        if let Some(number) = status.pointer(place).filter(|number| is_told(name, number)) {
            head(&mut text, name, help, if name.ends_with("_total") { "counter" } else { "gauge" });
            line(&mut text, name, None, &number_of(number));
        }
    }
    if let Some(gate) = status.get("gate").filter(|gate| gate.get("state").is_none_or(|state| state != "unknown")) {
        head(&mut text, "gate_closed", "1 while messages wait at the closed gate, by why it is closed.", "gauge");
        for kind in GATE_KINDS {
            let closed =
                gate.get("state").is_some_and(|state| state == "closed") && gate.get("kind").is_some_and(|why| why == kind);
            line(&mut text, "gate_closed", Some(("kind", kind)), &u8::from(closed).to_string());
        }
    }
    if let Some(reasons) = status.pointer("/store/rejected").and_then(Json::as_object) {
        let help = "Rejected messages that stand in the store, by reason; they leave when a person says so.";
        head(&mut text, "store_rejected_messages", help, "gauge");
        for reason in RejectReason::ALL.iter().map(|reason| reason.as_str()) {
            line(
                &mut text,
                "store_rejected_messages",
                Some(("reason", reason)),
                &reasons.get(reason).map_or("0".to_owned(), number_of),
            );
        }
    }
    for entry in Metrics::catalogue() {
        let Some(value) = status.get("metrics").and_then(|metrics| metrics.get(entry.name)) else { continue };
        let name = exposed_name(entry.name, entry.kind);
        match entry.kind {
            Kind::Counter | Kind::Gauge => {
                head(&mut text, &name, &entry.help, if entry.kind == Kind::Gauge { "gauge" } else { "counter" });
                line(&mut text, &name, None, &number_of(value));
            }
            Kind::Family(label) => {
                head(&mut text, &name, &entry.help, "counter");
                for (word, number) in value.as_object().into_iter().flatten() {
                    line(&mut text, &name, Some((label, word)), &number_of(number));
                }
            }
            Kind::Histogram => {
                head(&mut text, &name, &entry.help, "histogram");
                histogram(&mut text, &name, value);
            }
        }
    }
    text
}

/// Counters end in `_total`.
fn exposed_name(name: &str, kind: Kind) -> String {
    let counts = matches!(kind, Kind::Counter | Kind::Family(_));
    if counts && !name.ends_with("_total") { format!("{name}_total") } else { name.to_owned() }
}

fn histogram(text: &mut String, name: &str, value: &Json) {
    let bucket = format!("{name}_bucket");
    for pair in value.get("buckets").and_then(Json::as_array).into_iter().flatten() {
        let (Some(bound), Some(count)) = (pair.get(0), pair.get(1)) else { continue };
        let bound = if bound.is_null() { "+Inf".to_owned() } else { number_of(bound) };
        line(text, &bucket, Some(("le", &bound)), &number_of(count));
    }
    for part in ["sum", "count"] {
        if let Some(number) = value.get(part) {
            line(text, &format!("{name}_{part}"), None, &number_of(number));
        }
    }
}

/// What nobody could tell is left out: a 0 would be a figure. Some are null when all is well.
fn is_told(name: &str, figure: &Json) -> bool {
    !figure.is_null() || matches!(name, "oldest_pending_seconds" | "oldest_sendable_seconds" | "store_failing")
}

/// What is not a number counts as whether it is there.
fn number_of(value: &Json) -> String {
    match value {
        Json::Number(number) => number.to_string(),
        Json::Bool(yes) => u8::from(*yes).to_string(),
        Json::Object(_) => "1".to_owned(),
        _ => "0".to_owned(),
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', " ");
    let _ = writeln!(text, "# HELP chat_historyd_{name} {help}\n# TYPE chat_historyd_{name} {kind}");
}

fn line(text: &mut String, name: &str, label: Option<(&str, &str)>, number: &str) {
    let _ = match label {
        Some((label, value)) => {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            writeln!(text, "chat_historyd_{name}{{{label}=\"{value}\"}} {number}")
        }
        None => writeln!(text, "chat_historyd_{name} {number}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_has_its_shape() {
        let status = json!({
            "daemon": "chat-historyd/1.2.3",
            "gate": { "open": false },
            "upload": { "oldest_pending_seconds": null },
            "metrics": {
                "received": 7,
                "pending": 2,
                "rejected": { "invalid": 1, "damaged": 0 },
                "connections_total": 3,
                "request_duration_seconds": { "buckets": [[0.5, 1], [1.0, 2], [null, 3]], "sum": 4.5, "count": 3 },
            },
        });
        let text = render(&status);
        for expected in [
            "chat_historyd_build_info{version=\"1.2.3\"} 1\n",
            "# TYPE chat_historyd_gate_open gauge\nchat_historyd_gate_open 0\n",
            "chat_historyd_oldest_pending_seconds 0\n",
            "# TYPE chat_historyd_received_total counter\nchat_historyd_received_total 7\n",
            "# TYPE chat_historyd_pending gauge\nchat_historyd_pending 2\n",
            "chat_historyd_rejected_total{reason=\"invalid\"} 1\n",
            "\nchat_historyd_connections_total 3\n",
            "chat_historyd_request_duration_seconds_bucket{le=\"+Inf\"} 3\n",
            "chat_historyd_request_duration_seconds_bucket{le=\"0.5\"} 1\n",
            "chat_historyd_request_duration_seconds_sum 4.5\nchat_historyd_request_duration_seconds_count 3\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("chat_historyd_delivered_total"), "what the status lacks is left out");
    }

    #[test]
    fn a_gate_of_which_nobody_can_tell_is_neither_open_nor_closed() {
        let text = render(&json!({ "gate": { "state": "unknown", "open": null, "reason": "the uploader does not answer" } }));
        assert!(!text.contains("chat_historyd_gate"), "{text}");
    }
}
