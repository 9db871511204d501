//! Log lines on standard error: for people, for the journal or for machines.
//!
//! Promises: one event is one line, and no control character of anybody's data reaches it; the level can be changed
//! while running; only this crate's events are logged, for other crates may log what they are sent. Refuses colours
//! and files: the supervisor keeps the log. Called by the daemon at start and on SIGHUP.
//!
//! Levels: DEBUG buffering and calls, INFO batches and life cycle, WARN retries and validation, ERROR loss.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Environment, LogFormat, LogLevel, LogSettings};

/// Changes the level of the running log.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
}

impl LogHandle {
    /// Sets the level from now on.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only when the subscriber is gone, and then there is no log to set.
        let _ = self.filter.reload(targets(level));
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// When logging was already started in this process.
pub fn init(settings: &LogSettings, environment: &Environment) -> Result<LogHandle, tracing::subscriber::SetGlobalDefaultError> {
    let (subscriber, handle) = subscriber(shape_on_stderr(settings.format, environment), settings.level, std::io::stderr);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(handle)
}

fn shape_on_stderr(format: LogFormat, environment: &Environment) -> Shape {
    let stderr = std::io::stderr();
    let metadata = stderr.as_fd().try_clone_to_owned().and_then(|fd| std::fs::File::from(fd).metadata());
    let identity = metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()));
    Shape::of(format, environment, identity, stderr.is_terminal())
}

/// Says why there is no daemon, while there are no settings yet to log by. The journal knows each line as an error: it is what
/// `journalctl -p err` is asked for after a start that failed.
pub fn complain(reasons: &str, environment: &Environment) {
    // What the file says of the format cannot be used, like the rest of it; the environment is heard.
    let wants_json = environment.variable("CHAT_HISTORYD__LOG__FORMAT").is_some_and(|format| format == "json");
    if wants_json && init(&LogSettings { level: LogLevel::Error, format: LogFormat::Json }, environment).is_ok() {
        return reasons.lines().for_each(|reason| tracing::error!("{reason}"));
    }
    let priority = if shape_on_stderr(LogFormat::Auto, environment) == Shape::Journal { "<3>" } else { "" };
    for line in reasons.lines() {
        eprintln!("{priority}{line}");
    }
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    Journal,
    Json,
}

impl Shape {
    /// Decides by the settings, and for `auto` by whether standard error (device, inode) is the journal.
    fn of(format: LogFormat, environment: &Environment, stderr: Option<(u64, u64)>, terminal: bool) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Journal => Self::Journal,
            LogFormat::Json => Self::Json,
            LogFormat::Auto => {
                let stream = environment.variable("JOURNAL_STREAM").and_then(std::ffi::OsStr::to_str);
                let journal = match stream.and_then(|stream| stream.split_once(':')) {
                    Some((device, inode)) => stderr.is_some() && device.parse().ok().zip(inode.parse().ok()) == stderr,
                    // A unit whose output goes through a pipe to something that feeds the journal.
                    None => environment.variable("INVOCATION_ID").is_some() && !terminal,
                };
                if journal { Self::Journal } else { Self::Text }
            }
        }
    }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    Targets::new().with_target("chat_historyd", level)
}

fn subscriber<W>(shape: Shape, level: LogLevel, writer: W) -> (impl Subscriber + Send + Sync, LogHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(targets(level));
    // A standard error that is gone must not end the daemon: the layer's own complaint about it would panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).log_internal_errors(false);
    let layer = match shape {
        Shape::Text | Shape::Journal => layer.fmt_fields(DefaultFields::new()).event_format(Line { shape }).boxed(),
        Shape::Json => {
            let json = tracing_subscriber::fmt::format().json().with_timer(Clock).with_target(false).with_current_span(false);
            layer.fmt_fields(JsonFields::new()).event_format(EscapedJson(json)).boxed()
        }
    };
    (Registry::default().with(filter).with(layer), LogHandle { filter: handle })
}

/// UTC with milliseconds.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

/// `time level span{fields}: message fields`, or with a priority instead of time and level.
struct Line {
    shape: Shape,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        let level = *event.metadata().level();
        if self.shape == Shape::Journal {
            write!(line, "<{}>", priority(level))?;
        } else {
            Clock.format_time(&mut Writer::new(&mut line))?;
            write!(line, " {level:>5} ")?;
        }
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            line.push_str(span.name());
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(line, "{{{fields}}}")?;
            }
            line.push_str(": ");
        }
        context.format_fields(Writer::new(&mut line), event)?;
        writeln!(writer, "{}", escape_controls(&line))
    }
}

/// sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// JSON in which not even the control characters that JSON allows stand unescaped.
struct EscapedJson(Format<Json, Clock>);

impl<S, N> FormatEvent<S, N> for EscapedJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        for c in line.trim_end_matches('\n').chars() {
            // These stand inside of strings only, where the escape means the same.
            if steers(c) {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            } else {
                writer.write_char(c)?;
            }
        }
        writer.write_char('\n')
    }
}

/// Whether a character steers a terminal or a reader's eye instead of being shown: controls, line separators and
/// changes of writing direction.
pub(crate) fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, with what would steer a terminal written as an escape.
#[must_use]
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().split_terminator('\n').map(str::to_owned).collect()
        }
    }

    fn logged(shape: Shape, level: LogLevel, work: impl FnOnce(&LogHandle)) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, handle) = subscriber(shape, level, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || work(&handle));
        sink.lines()
    }

    #[test]
    fn a_line_for_people_has_time_level_span_and_fields() {
        let lines = logged(Shape::Text, LogLevel::Info, |_| {
            let _span = tracing::info_span!("session", mac = "..39:78").entered();
            tracing::info!(messages = 5, "delivered");
        });
        assert_eq!(lines.len(), 1);
        let (time, rest) = lines[0].split_at(24);
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert_eq!(rest, "  INFO session{mac=\"..39:78\"}: delivered messages=5");
    }

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_no_time() {
        let lines = logged(Shape::Journal, LogLevel::Trace, |_| {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::trace!("t");
        });
        assert_eq!(lines, ["<3>e", "<4>w", "<6>i", "<7>d", "<7>t"]);
    }

    #[test]
    fn a_line_for_machines_is_one_json_object() {
        let lines = logged(Shape::Json, LogLevel::Info, |_| {
            let _span = tracing::info_span!("session", id = "r").entered();
            tracing::warn!(attempt = 2, "retry");
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&line["level"], &line["fields"]["message"], &line["fields"]["attempt"]),
            (&"WARN".into(), &"retry".into(), &2.into())
        );
        assert_eq!(line["spans"][0]["id"], "r");
        assert!(line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }

    #[test]
    fn no_control_character_of_data_reaches_a_line() {
        let hostile = "a\nERROR forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{2028}\u{7f}\0b";
        for shape in [Shape::Text, Shape::Journal, Shape::Json] {
            let lines = logged(shape, LogLevel::Info, |_| {
                let _span = tracing::info_span!("session", id = %hostile).entered();
                tracing::info!(shown = %hostile, debugged = ?hostile, text = hostile, "{hostile}");
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains(steers), "{lines:?}");
            if shape == Shape::Json {
                let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
                assert_eq!(line["fields"]["text"], hostile);
            }
        }
    }

    #[test]
    fn the_level_changes_while_running() {
        let lines = logged(Shape::Journal, LogLevel::Warn, |handle| {
            tracing::info!("before");
            handle.set_level(LogLevel::Debug);
            tracing::debug!("after");
            handle.set_level(LogLevel::Error);
            tracing::warn!("again");
        });
        assert_eq!(lines, ["<7>after"]);
    }

    #[test]
    fn other_crates_stay_silent() {
        let lines = logged(Shape::Journal, LogLevel::Trace, |_| tracing::error!(target: "hyper", "a header"));
        assert_eq!(lines, Vec::<String>::new());
    }

    #[test]
    fn the_journal_is_recognised_by_its_device_and_inode() {
        let of = |variables: &[(&str, &str)], stderr, terminal| {
            let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
            Shape::of(LogFormat::Auto, &Environment { variables, ..Environment::default() }, stderr, terminal)
        };
        let stream = ("JOURNAL_STREAM", "9:1234");
        let unit = ("INVOCATION_ID", "0123456789abcdef");
        assert_eq!(of(&[stream, unit], Some((9, 1234)), false), Shape::Journal);
        assert_eq!(of(&[stream, unit], Some((9, 1235)), false), Shape::Text);
        assert_eq!(of(&[stream], None, false), Shape::Text);
        assert_eq!(of(&[("JOURNAL_STREAM", "x:y")], Some((9, 1)), false), Shape::Text);
        assert_eq!(of(&[unit], Some((9, 1)), false), Shape::Journal);
        assert_eq!(of(&[unit], Some((9, 1)), true), Shape::Text);
        assert_eq!(of(&[], Some((9, 1)), false), Shape::Text);
        assert_eq!(Shape::of(LogFormat::Json, &Environment::default(), None, true), Shape::Json);
    }

    #[test]
    fn what_is_harmless_stays_as_it_is() {
        assert!(matches!(escape_controls("子供 — plain"), Cow::Borrowed(_)));
        assert_eq!(escape_controls("a\nb"), "a\\nb");
    }
}
