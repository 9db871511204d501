//! The end of a connection: what is written is read, what is read is acked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::{Connection, Lines, Read};

/// How long a client that will send nothing more may wait for its last acks.
const LINGER: Duration = Duration::from_secs(30);

/// How long one that was told a fatal error may: it wants to come back, and what is not acked by then it sends again.
const LINGER_AFTER_FATAL: Duration = Duration::from_secs(1);

impl Connection {
    /// The daemon stops, and what the client has written is in our buffer already: it is read until that is empty.
    pub(super) async fn read_what_is_written(&mut self) -> io::Result<()> {
        let cut_off = self.around.cut_off.clone();
        while !cut_off.is_cancelled() {
            match self.read().await? {
                Read::More => yield_now().await,
                Read::NoRoom => tokio::select! {
                    room = self.around.long_lines.room(self.max_line_bytes) => self.room = Some(room),
                    () = cut_off.cancelled() => {}
                },
                Read::Empty | Read::Ended => break,
            }
        }
        Ok(())
    }

    /// The client sends nothing more (or is sent away): it still gets its acks and answers.
    pub(super) async fn say_last_words(&mut self) -> io::Result<()> {
        let began = Instant::now();
        // What was not finished by now is nobody's: others may need its room.
        (self.lines, self.room) = (Lines::new(0), None);
        self.flushes.close();
        let outbox = Arc::clone(&self.outbox);
        outbox.watch(true);
        loop {
            let written = outbox.write_to(&self.stream);
            self.stream.listen_for_room(!written);
            let fatal = outbox.is_closing();
            if written && outbox.is_done() && (fatal || self.flushes.is_empty()) {
                return Ok(());
            }
            let deadline = began + if fatal { LINGER_AFTER_FATAL } else { LINGER };
            tokio::select! {
                () = outbox.changed() => {}
                () = self.flushes.wait(), if !self.flushes.is_empty() => {}
                room = self.stream.room(), if !written => room?,
                () = self.around.cut_off.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(deadline) => return Ok(()),
            }
        }
    }
}
