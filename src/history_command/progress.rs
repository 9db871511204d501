//! A line on the terminal that says how far a long command is: from its second second on, ten times a second.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(100);
const BAR: u64 = 24;

/// The progress of a command.
pub(super) struct Progress {
    total: u64,
    done: u64,
    began: Instant,
    drawn: Option<Instant>,
    visible: bool,
}

impl Progress {
    /// Of `total` messages; `visible` when standard error is a terminal and nothing else is written to it.
    pub(super) fn new(total: u64, visible: bool) -> Self {
        let visible = visible && io::stderr().is_terminal();
        Self { total, done: 0, began: Instant::now(), drawn: None, visible }
    }

    /// So many more are done.
    pub(super) fn advance(&mut self, count: u64) {
        self.done += count;
        let now = Instant::now();
        let due = self.drawn.map_or(self.began + QUIET, |drawn| drawn + EVERY);
        if self.visible && now >= due {
            self.drawn = Some(now);
            // A terminal that is gone is no reason to stop.
            let _ = write!(io::stderr(), "\r{}", line(self.done, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn line(done: u64, total: u64) -> String {
    let total = total.max(done).max(1);
    let filled = usize::try_from(done.saturating_mul(BAR) / total).unwrap_or(0);
    let width = usize::try_from(BAR).unwrap_or(0);
    format!("[{:<width$}] {:>3} %  {done} of {total} messages", "#".repeat(filled), done.saturating_mul(100) / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_how_far_it_is() {
        assert_eq!(line(0, 100), format!("[{}]   0 %  0 of 100 messages", " ".repeat(24)));
        assert_eq!(line(50, 100), format!("[{}{}]  50 %  50 of 100 messages", "#".repeat(12), " ".repeat(12)));
        assert_eq!(line(120, 100), format!("[{}] 100 %  120 of 120 messages", "#".repeat(24)));
    }
}
