//! The list of sessions as a plain-text table: start, end, device, agent, messages, states, id.
//!
//! The id is the last column: it may be long, and of any script.

use std::io::{self, Write};

use super::name::date_of;
use super::table::{clock, printable};
use crate::store::archive::SessionEntry;

/// Writes the heading.
///
/// # Errors
/// When `out` fails.
pub fn heading(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<19}  {:<8}  {:<17}  {:>8}  {:<28}  {:<12}  session",
        "start (UTC)", "end", "device", "messages", "states", "agent"
    )
}

/// Writes one session.
///
/// # Errors
/// When `out` fails.
pub fn row(out: &mut impl Write, entry: &SessionEntry) -> io::Result<()> {
    let session = &entry.session;
    let end = session.ended.map_or_else(|| "open".to_owned(), clock);
    let agent: String = session.agent_id.as_deref().map(printable).unwrap_or_default().chars().take(12).collect();
    writeln!(
        out,
        "{} {}  {end:<8}  {}  {:>8}  {:<28}  {:<12}  {}",
        date_of(session.started),
        clock(session.started),
        session.identity.mac,
        entry.messages,
        states(entry),
        if agent.is_empty() { "-" } else { &agent },
        printable(session.identity.session_id.as_str()),
    )
}

/// `12 delivered, 1 rejected`: what there is, what needs a look first.
fn states(entry: &SessionEntry) -> String {
    let numbers = [
        (entry.rejected, "rejected"),
        (entry.pending, "pending"),
        (entry.session.held.len() as u64, "held"),
        (entry.delivered, "delivered"),
        (entry.kept, "kept"),
    ];
    let words: Vec<String> =
        numbers.iter().filter(|(number, _)| *number > 0).map(|(number, word)| format!("{number} {word}")).collect();
    if words.is_empty() { "empty".to_owned() } else { words.join(", ") }
}
