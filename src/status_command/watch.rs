//! The status again and again: a picture that is redrawn in a terminal, one text after the other in a pipe.
//!
//! Nothing of the terminal is changed that would have to be put back, so it may end in any way: the last picture stays.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use super::{absent, ask, render};
use crate::cli::StatusFormat;

/// The whole screen cleared: before the first picture, and when the window has another size.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// To the upper left corner: the picture is written over the one before, which does not flicker.
const HOME: &str = "\x1b[H";
/// Lines are cut at the right edge, whatever width a character has; and as before again, within the same picture.
const CUT: (&str, &str) = ("\x1b[?7l", "\x1b[?7h");
/// What is left of the line before.
const REST_OF_LINE: &str = "\x1b[K";
/// What is left of the picture before.
const REST_OF_SCREEN: &str = "\x1b[J";

/// Where the text of a row begins.
const INDENT: usize = 11;

/// A window, in characters.
type Size = (usize, usize);

/// Until it is interrupted or the reader is gone. A daemon that is away may come back.
pub(super) fn watch(format: StatusFormat, path: &Path, pause: Duration, out: &mut impl Write) {
    let mut drawn: Option<Size> = None;
    loop {
        let text = text(format, path);
        let window = (io::stdout().is_terminal() && format == StatusFormat::Text).then(size).flatten();
        let frame = match (window, format) {
            (Some(size), _) => {
                let begin = if drawn.replace(size) == Some(size) { HOME } else { CLEAR };
                format!("{begin}{}", picture(&text, &title(pause), size))
            }
            (None, StatusFormat::Json) => text,
            (None, _) => format!("{text}\n"),
        };
        if out.write_all(frame.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

fn text(format: StatusFormat, path: &Path) -> String {
    match (ask(path), format) {
        // One object a line, for programs.
        (Ok(status), StatusFormat::Json) => format!("{status}\n"),
        (Ok(status), _) => render(&status, format),
        (Err(failure), StatusFormat::Text) => format!("{}\n", absent(path, &failure)),
        (Err(failure), _) => {
            eprintln!("chat-historyd status: {}", absent(path, &failure));
            String::new()
        }
    }
}

fn size() -> Option<Size> {
    let (width, height) = terminal_size::terminal_size()?;
    // A terminal that does not know its size says 0.
    (width.0 > 0 && height.0 > 1).then_some((usize::from(width.0), usize::from(height.0)))
}

fn title(pause: Duration) -> String {
    let now = jiff::Timestamp::now().strftime("%H:%M:%S");
    format!("{now} UTC, every {} (Ctrl-C ends it)", humantime::format_duration(pause))
}

/// The text as it fits into a window. What stands above the list of sessions is wrapped, for a reason is read to its
/// end; the list is cut.
fn picture(text: &str, title: &str, (width, height): Size) -> String {
    let mut lines = vec![title.to_owned()];
    let mut listing = false;
    for line in text.lines() {
        listing |= line.is_empty();
        if listing {
            lines.push(line.chars().take(width).collect());
        } else {
            wrap(line, width, &mut lines);
        }
    }
    let mut picture = CUT.0.to_owned();
    // The last row stays free: a line break there would move the picture up.
    for (index, line) in lines.iter().take(height - 1).enumerate() {
        if index > 0 {
            picture.push('\n');
        }
        picture.push_str(line);
        picture.push_str(REST_OF_LINE);
    }
    picture.push('\n');
    picture.push_str(REST_OF_SCREEN);
    picture.push_str(CUT.1);
    picture
}

/// Breaks a line at its spaces; what follows stands below its text, not below its name.
fn wrap(line: &str, width: usize, lines: &mut Vec<String>) {
    let indent = if width > 2 * INDENT { INDENT } else { 0 };
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > width {
        let at = rest.iter().take(width).rposition(|c| *c == ' ').filter(|at| *at > indent).unwrap_or(width);
        let tail = rest.split_off(at);
        lines.push(rest.iter().collect::<String>().trim_end().to_owned());
        let tail = tail.into_iter().skip_while(|c| *c == ' ');
        rest = std::iter::repeat_n(' ', indent).chain(tail).collect();
    }
    lines.push(rest.into_iter().collect());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_never_grows_out_of_its_window() {
        let text = "gate       open\n\n0123456789012\nthird\nfourth\n";
        let picture = picture(text, "title", (11, 7));
        let lines: Vec<&str> = picture.split('\n').collect();
        let row = |text: &str| format!("{text}{REST_OF_LINE}");
        let expected = [
            row("\x1b[?7ltitle"),
            row("gate"),
            row("open"),
            row(""),
            row("01234567890"),
            row("third"),
            "\x1b[J\x1b[?7h".to_owned(),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_long_reason_is_read_to_its_end() {
        let mut lines = Vec::new();
        wrap("gate       closed because of a very long word", 24, &mut lines);
        assert_eq!(lines, ["gate       closed", "           because of a", "           very long", "           word"]);
        let mut lines = Vec::new();
        wrap(&"x".repeat(50), 24, &mut lines);
        assert!(lines.iter().all(|line| line.chars().count() <= 24), "{lines:?}");
        let mut lines = Vec::new();
        wrap("a b c d e f", 1, &mut lines);
        assert!(lines.iter().all(|line| line.chars().count() <= 1), "{lines:?}");
    }
}
