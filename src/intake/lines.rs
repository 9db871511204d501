//! Lines out of a byte stream, with a bounded buffer.
//!
//! Promises: every line of at most `max_line_bytes` comes out whole and once, in order, however the stream is cut into
//! reads; a longer one comes out as [`LineItem::TooLong`], once, and the rest of it is skipped without being kept. The
//! buffer never holds more than one line and one read, and nothing at all while the connection is idle.
//! Refuses: to look into a line. Blank lines are counted and passed over, a `\r` before the `\n` is no part of it.
//! Called by the connection, like this:
//!
//! ```text
//! stream.readable().await
//! match stream.try_read(lines.read_target()) { 0 ⇒ eof, WouldBlock ⇒ lines.release(), n ⇒ ⤵ }
//! while let Some(item) = lines.next_line() { … }          // after eof: lines.finish()
//! ```

use bytes::{Buf, BytesMut};

use super::long_lines::FREE_BYTES;

/// Room offered to a read. Larger lines grow it, so that a megabyte does not take hundreds of reads.
const READ_BYTES: usize = 8 * 1024;
const LARGEST_READ_BYTES: usize = 256 * 1024;

/// What stands between two newlines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineItem<'a> {
    /// A line, without its `\n` and trailing `\r`; never blank.
    Line {
        /// The number of the line in the stream, from 1; blank lines count.
        number: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A line longer than the limit: said once, as soon as it is known; the rest of it is skipped unbuffered.
    TooLong {
        /// The number of the line in the stream, from 1; blank lines count.
        number: u64,
    },
}

/// The splitter of one connection.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    max_line_bytes: usize,
    /// Bytes at the front of the buffer that were handed out and may go.
    consumed: usize,
    /// Bytes after `consumed` known to hold no newline: a line that trickles in is searched once.
    searched: usize,
    /// Inside a line that was reported as too long.
    skipping: bool,
    number: u64,
}

impl Lines {
    /// A splitter that takes lines of at most `max_line_bytes` bytes, line end not counted.
    #[must_use]
    pub fn new(max_line_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), max_line_bytes, consumed: 0, searched: 0, skipping: false, number: 0 }
    }

    /// The buffer to read into (`try_read`), with room for more; append only. Call it when there is something to
    /// read, and take all lines out before calling it again: that is what bounds it.
    pub fn read_target(&mut self) -> &mut BytesMut {
        self.discard_consumed();
        let length = self.buffer.len();
        // Up to the free bytes and no further: what comes after them must be asked for.
        let free = FREE_BYTES.checked_sub(length).filter(|&free| free > 0);
        self.buffer.reserve(length.clamp(READ_BYTES, LARGEST_READ_BYTES).min(free.unwrap_or(LARGEST_READ_BYTES)));
        &mut self.buffer
    }

    /// Whether the unfinished line is so long that its next bytes need room. Ask when all complete lines are taken out.
    #[must_use]
    pub fn is_long(&self) -> bool {
        !self.skipping && self.buffer.len() - self.consumed >= FREE_BYTES
    }

    /// The number of the unfinished line.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// The next complete line, or `None`: read more.
    pub fn next_line(&mut self) -> Option<LineItem<'_>> {
        loop {
            let unread = self.buffer.get(self.consumed..).unwrap_or_default();
            let newline = unread.get(self.searched..)?.iter().position(|&byte| byte == b'\n');
            let Some(length) = newline.map(|at| self.searched + at) else {
                self.searched = unread.len();
                return self.unfinished();
            };
            let start = self.consumed;
            self.consumed += length + 1;
            self.searched = 0;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            self.number += 1;
            if let Some(length) = self.content_length(start, length) {
                return Some(self.item(start, length));
            }
        }
    }

    /// After the end of the stream, when [`Self::next_line`] has nothing more: the last line, if it had no end.
    pub fn finish(&mut self) -> Option<LineItem<'_>> {
        let start = self.consumed;
        let length = self.buffer.len() - start;
        self.consumed = self.buffer.len();
        self.searched = 0;
        if std::mem::take(&mut self.skipping) || length == 0 {
            return None;
        }
        self.number += 1;
        let length = self.content_length(start, length)?;
        Some(self.item(start, length))
    }

    /// Gives the memory back when nothing is buffered. Call it when there is nothing to read.
    pub fn release(&mut self) {
        self.discard_consumed();
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Gives the memory back beyond what is buffered. Call it before a wait that thousands may share.
    pub fn shrink(&mut self) {
        self.discard_consumed();
        if self.buffer.len() < self.buffer.capacity() / 2 {
            self.buffer = BytesMut::from(self.buffer.as_ref());
        }
    }

    /// The memory held, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// No newline in sight: nothing to say, unless the line is too long by now. The `\r` of a line end may still be
    /// among the bytes, hence one more than the limit.
    fn unfinished(&mut self) -> Option<LineItem<'_>> {
        if self.skipping {
            self.drop_unread();
        } else if self.searched > self.max_line_bytes + 1 {
            self.drop_unread();
            self.skipping = true;
            self.number += 1;
            return Some(LineItem::TooLong { number: self.number });
        }
        None
    }

    /// Forgets what is buffered, and the memory that a long line made it grow to.
    fn drop_unread(&mut self) {
        self.consumed = self.buffer.len();
        self.searched = 0;
        if self.buffer.capacity() > LARGEST_READ_BYTES {
            self.buffer = BytesMut::new();
            self.consumed = 0;
        }
    }

    /// The length without a `\r` at the end; `None` for a blank line.
    fn content_length(&self, start: usize, length: usize) -> Option<usize> {
        let bytes = self.buffer.get(start..start + length)?;
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let is_blank = bytes.len() <= self.max_line_bytes && bytes.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
        (!is_blank).then_some(bytes.len())
    }

    fn item(&self, start: usize, length: usize) -> LineItem<'_> {
        if length > self.max_line_bytes {
            return LineItem::TooLong { number: self.number };
        }
        LineItem::Line { number: self.number, bytes: self.buffer.get(start..start + length).unwrap_or_default() }
    }

    fn discard_consumed(&mut self) {
        self.buffer.advance(self.consumed);
        self.consumed = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, Eq, Debug)]
    enum Owned {
        Line(u64, Vec<u8>),
        TooLong(u64),
    }

    impl From<LineItem<'_>> for Owned {
        fn from(item: LineItem<'_>) -> Self {
            match item {
                LineItem::Line { number, bytes } => Self::Line(number, bytes.to_vec()),
                LineItem::TooLong { number } => Self::TooLong(number),
            }
        }
    }

    fn split(chunks: &[&[u8]], max_line_bytes: usize) -> Vec<Owned> {
        let mut lines = Lines::new(max_line_bytes);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.read_target().extend_from_slice(chunk);
            while let Some(item) = lines.next_line() {
                found.push(item.into());
            }
        }
        found.extend(lines.finish().map(Owned::from));
        assert!(lines.next_line().is_none() && lines.finish().is_none());
        found
    }

    /// What the splitter does, said in one pass over the whole stream.
    fn model(stream: &[u8], max_line_bytes: usize) -> Vec<Owned> {
        let mut pieces: Vec<&[u8]> = stream.split(|&byte| byte == b'\n').collect();
        if pieces.last().is_some_and(|last| last.is_empty()) {
            pieces.pop();
        }
        let numbered = (1..).zip(pieces);
        let content = numbered.map(|(number, piece)| (number, piece.strip_suffix(b"\r").unwrap_or(piece)));
        content
            .filter(|(_, piece)| piece.len() > max_line_bytes || piece.iter().any(|byte| !b" \t\r".contains(byte)))
            .map(
                |(number, piece)| {
                    if piece.len() > max_line_bytes { Owned::TooLong(number) } else { Owned::Line(number, piece.to_vec()) }
                },
            )
            .collect()
    }

    #[test]
    fn lines_come_out_without_their_ends_and_blank_ones_only_count() {
        let found = split(&[b"one\r\n\n  \r\ntw", b"o\nthree"], 100);
        assert_eq!(found, [Owned::Line(1, b"one".to_vec()), Owned::Line(4, b"two".to_vec()), Owned::Line(5, b"three".to_vec())]);
    }

    #[test]
    fn a_line_too_long_is_said_once_and_the_next_one_is_read() {
        let found = split(&[b"12345", b"67890", b"12345\nabc\n", b"1234\r\n12345\r\n"], 4);
        assert_eq!(
            found,
            [Owned::TooLong(1), Owned::Line(2, b"abc".to_vec()), Owned::Line(3, b"1234".to_vec()), Owned::TooLong(4)]
        );
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut lines = Lines::new(1 << 20);
        let mut said = 0;
        for _ in 0..1_000 {
            lines.read_target().extend_from_slice(&[b'x'; READ_BYTES]);
            let bound = if said == 0 { 3 << 20 } else { LARGEST_READ_BYTES };
            assert!(lines.capacity() <= bound, "{}", lines.capacity());
            while lines.next_line().is_some() {
                said += 1;
            }
        }
        assert_eq!(said, 1);
        lines.read_target().extend_from_slice(b"\n{}\n");
        assert_eq!(lines.next_line(), Some(LineItem::Line { number: 2, bytes: b"{}" }));
    }

    #[test]
    fn an_idle_connection_holds_no_memory_and_half_a_line_is_kept() {
        let mut lines = Lines::new(1 << 20);
        lines.read_target().extend_from_slice(b"one\ntw");
        assert!(lines.next_line().is_some() && lines.next_line().is_none());
        lines.release();
        lines.read_target().extend_from_slice(b"o\n");
        assert_eq!(lines.next_line(), Some(LineItem::Line { number: 2, bytes: b"two" }));
        assert!(lines.next_line().is_none());
        lines.release();
        assert_eq!(lines.capacity(), 0);
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_lines(
            stream in "[ab\r\n \t]{0,200}",
            cuts in prop::collection::vec(0_usize..200, 0..20),
            max_line_bytes in 0_usize..12,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < stream.len()).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(&chunks, max_line_bytes), model(stream.as_bytes(), max_line_bytes));
        }
    }
}
