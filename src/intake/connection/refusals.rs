//! What is not taken: said to the client, booked, and told to the log at most once a minute.

use std::sync::PoisonError;

use tracing::{debug, error, warn};

use super::super::long_lines::{FREE_BYTES, PATIENCE};
use super::{Connection, Event};
use crate::observe::Skip;
use crate::protocol::reply::Reply;
use crate::protocol::{Refusal, RefusalCode, SessionIdentity};

/// Refused lines in a row after which a connection is ended.
const MAX_ERRORS_IN_A_ROW: u32 = 20;

impl Connection {
    /// Refuses a line. Where its number could be read it is settled all the same, in its place; else by the ack of a later
    /// line. Too many in a row end the connection.
    pub(super) async fn refuse(&mut self, refusal: Refusal, number: u64) {
        self.errors_in_a_row += 1;
        if refusal.code == RefusalCode::UnsupportedVersion {
            self.refuse_fatally(refusal, number);
            return;
        }
        self.book(&refusal);
        let seq = refusal.seq;
        self.outbox.say(&Reply::refused(refusal, number, false));
        // A refused line that has a number is settled: in its place, after the lines before it.
        let _ = self.settle_control(seq, Event::Nothing).await;
        if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW {
            self.hand_over().await;
            let message = "20 lines in a row were refused (mend the producer and connect again)".into();
            let refusal = Refusal { code: RefusalCode::TooManyErrors, field: None, message, seq: None };
            self.around.metrics.refusals.increment(refusal.code);
            self.outbox.say(&Reply::refused(refusal, number, true));
        }
    }

    /// Refuses a line so that nothing after it is read.
    pub(super) fn refuse_fatally(&self, refusal: Refusal, number: u64) {
        self.book(&refusal);
        self.outbox.say(&Reply::refused(refusal, number, true));
    }

    /// A long line has had its time, and others wait for the room it holds.
    pub(super) fn give_up_the_line(&self) {
        let limit = FREE_BYTES / 1024;
        let message = format!(
            "the line is longer than {limit} KiB and was not finished within {} s while others waited for room (send it again)",
            PATIENCE.as_secs()
        );
        let refusal = Refusal { code: RefusalCode::Overloaded, field: None, message: message.into(), seq: None };
        self.refuse_fatally(refusal, self.lines.next_number());
    }

    fn book(&self, refusal: &Refusal) {
        let metrics = &self.around.metrics;
        metrics.received.increment();
        metrics.skipped.increment(Skip::Refused);
        metrics.refusals.increment(refusal.code);
        let (code, field) = (refusal.code.as_str(), refusal.field.as_deref().unwrap_or(""));
        // Who has not said whose lines they are can still be found by its process.
        let mac = self.bound.as_ref().map(|bound| tracing::field::display(bound.identity.mac.short()));
        let pid = self.stream.peer_pid;
        let mut throttles = self.around.refused_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let permitted = throttles.entry(refusal.code).or_default().permits(std::time::Instant::now());
        drop(throttles);
        if let Some(more) = permitted {
            warn!(code, field, mac, pid, more, "a line was refused");
        } else {
            debug!(code, field, mac, pid, "a line was refused");
        }
    }

    pub(super) fn tell_of_too_many_sessions(&self, identity: &SessionIdentity, lines: u64) {
        let mac = identity.mac.short();
        let permitted =
            self.around.refused_sessions.lock().unwrap_or_else(PoisonError::into_inner).permits(std::time::Instant::now());
        if let Some(more) = permitted {
            error!(%mac, lines, more, "too many sessions are open: lines of new ones are refused (raise session.max_open)");
        } else {
            debug!(%mac, lines, "lines of a new session were refused: too many are open");
        }
    }
}

pub(super) fn too_long(limit: usize) -> Refusal {
    Refusal {
        code: RefusalCode::LineTooLong,
        field: None,
        message: format!("the line is longer than {limit} bytes (socket.max_line_bytes)").into(),
        seq: None,
    }
}
