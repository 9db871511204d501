//! Settings as rows of `key = value` in TOML, in the order of `chat-historyd.toml`: what `--check-config` prints, what a
//! reload compares, and the list of all keys there are. The secret is `***`.

use std::path::Path;
use std::time::Duration;

use super::secret::SecretSource;
use super::settings::{Durability, LogFormat, LogLevel, MaxContent, OnLongContent, ReportTimeUnit, Settings};

/// One setting as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key, `section.name`.
    pub key: &'static str,
    /// The value as TOML would have it; an absent one is `""`, `0` or `[]`.
    pub value: String,
}

/// All settings, in order.
#[must_use]
pub fn rows(settings: &Settings) -> Vec<Row> {
    let Settings { socket, session, manager_api, upload, store, backup, status, log } = settings;
    let (secret, secret_file) = match &manager_api.secret {
        None => (text(""), text("")),
        Some(SecretSource::Inline(_)) => (text("***"), text("")),
        Some(SecretSource::File(file) | SecretSource::Credential(file)) => (text(""), path(file)),
    };
    let optional = |value: &Option<String>| text(value.as_deref().unwrap_or_default());
    let address = status.http_listen.map(|address| address.to_string());
    let row = |key, value| Row { key, value };
    vec![
        row("socket.path", path(&socket.path)),
        row("socket.mode", text(&format!("{:04o}", socket.mode))),
        row("socket.group", optional(&socket.group)),
        row("socket.allowed_uids", format!("{:?}", socket.allowed_uids)),
        row("socket.max_connections", socket.max_connections.to_string()),
        row("socket.max_line_bytes", size(socket.max_line_bytes as u64)),
        row("session.batch_size", session.batch_size.to_string()),
        row("session.send_interval", duration(session.send_interval)),
        row("session.idle_timeout", duration(session.idle_timeout)),
        row("session.max_open", session.max_open.to_string()),
        row("manager_api.url", optional(&manager_api.url)),
        row("manager_api.secret_file", secret_file),
        row("manager_api.secret", secret),
        row("manager_api.timeout", duration(manager_api.timeout)),
        row("manager_api.connect_timeout", duration(manager_api.connect_timeout)),
        row("manager_api.report_time_unit", text(manager_api.report_time_unit.as_str())),
        row("manager_api.max_content", manager_api.max_content.map_or_else(|| "0".to_owned(), content)),
        row("manager_api.on_long_content", text(manager_api.on_long_content.as_str())),
        row("manager_api.escape_html", manager_api.escape_html.to_string()),
        row("manager_api.send_audio", manager_api.send_audio.to_string()),
        row("manager_api.send_tools", manager_api.send_tools.to_string()),
        row("manager_api.ca_file", manager_api.ca_file.as_deref().map_or_else(|| text(""), path)),
        row("manager_api.proxy", optional(&manager_api.proxy)),
        row("upload.concurrency", upload.concurrency.to_string()),
        row("upload.retry_attempts", upload.retry_attempts.to_string()),
        row("upload.backoff_initial", duration(upload.backoff_initial)),
        row("upload.backoff_max", duration(upload.backoff_max)),
        row("upload.unknown_device_retry", duration(upload.unknown_device_retry)),
        row("upload.unknown_device_hold", duration(upload.unknown_device_hold)),
        row("upload.poison_attempts", upload.poison_attempts.to_string()),
        row("upload.shutdown_grace", duration(upload.shutdown_grace)),
        row("store.directory", path(&store.directory)),
        row("store.durability", text(store.durability.as_str())),
        row("store.retention", duration(store.retention)),
        row("store.max_bytes", size(store.max_bytes)),
        row("store.shelf_bytes", size(store.shelf_bytes)),
        row("backup.enabled", backup.enabled.to_string()),
        row("backup.directory", path(&backup.directory)),
        row("status.socket", path(&status.socket)),
        row("status.http_listen", optional(&address)),
        row("log.level", text(log.level.as_str())),
        row("log.format", text(log.format.as_str())),
    ]
}

/// A TOML basic string.
fn text(text: &str) -> String {
    use std::fmt::Write;
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if crate::observe::logging::steers(c) => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

fn duration(value: Duration) -> String {
    text(&duration_text(value))
}

fn size(value: u64) -> String {
    if value < 1024 { value.to_string() } else { text(&size_text(value)) }
}

fn content(limit: MaxContent) -> String {
    match limit {
        MaxContent::Characters(number) => number.to_string(),
        MaxContent::Bytes(number) => text(&format!("{number}B")),
    }
}

/// A time as people write it, and as it is read: `30s`, `5m`, `7days`.
pub(super) fn duration_text(value: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [(86_400_000, "days"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    // In one unit that divides it: humantime alone would show 90 days as months, days, hours and minutes.
    let millis = value.as_millis();
    let exact = value.subsec_nanos().is_multiple_of(1_000_000) && millis > 0;
    match UNITS.into_iter().find(|(unit, _)| exact && millis.is_multiple_of(*unit)) {
        Some((unit, _)) if millis / unit == 1 && unit == 86_400_000 => "1day".to_owned(),
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => humantime::format_duration(value).to_string(),
    }
}

/// A size in the largest unit that divides it: `4 MiB`.
pub(super) fn size_text(value: u64) -> String {
    [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| value > 0 && value.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{value} B"), |(unit, shift)| format!("{} {unit}", value >> shift))
}

/// Words for the settings that are one of a few, first the canonical ones.
macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        impl $name {
            /// Every word that is understood.
            pub(super) const WORDS: &'static [(&'static str, Self)] =
                &[$(($word, Self::$variant)),+ $($(, ($alias, Self::$variant))*)+];

            /// The word for it in the configuration.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words!(ReportTimeUnit { Auto = "auto", Seconds = "seconds" | "s", Milliseconds = "milliseconds" | "ms" });
words!(OnLongContent { Split = "split", Truncate = "truncate" });
words!(Durability { Fsync = "fsync", Os = "os" });
words!(LogLevel { Trace = "trace", Debug = "debug", Info = "info", Warn = "warn", Error = "error" });
words!(LogFormat { Auto = "auto", Text = "text", Journal = "journal", Json = "json" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_so_that_toml_reads_it_back() {
        for given in ["", "plain", "a\"b\\c", "tab\tand\u{7f}\u{202e}", "子供"] {
            let document = toml_edit::Document::parse(format!("x = {}", text(given)));
            let read = document.ok().and_then(|document| document.as_table().get("x")?.as_str().map(str::to_owned));
            assert_eq!(read.as_deref(), Some(given));
        }
    }

    #[test]
    fn times_are_shown_in_one_unit_and_read_back() {
        for (millis, shown) in [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1500ms"),
            (90_000, "90s"),
            (5_400_000, "90m"),
            (86_400_000, "1day"),
            (90 * 86_400_000, "90days"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(duration_text(time), shown);
            assert_eq!(humantime::parse_duration(shown).ok(), Some(time));
        }
        assert_eq!(duration_text(Duration::from_micros(1_500)), "1ms 500us");
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, shown) in
            [(0, "0 B"), (1_000, "1000 B"), (1_024, "1 KiB"), (1_536, "1536 B"), (3 << 30, "3 GiB"), (1 << 42, "4096 GiB")]
        {
            assert_eq!(size_text(bytes), shown);
        }
    }
}
