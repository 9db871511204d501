//! What is sent: lines for the daemon and report bodies for the limits, with numbers at fixed places, so that a
//! template is patched and nothing is formatted while the clock runs.
//!
//! Content: `s0042 n0000001234 t000000123456789 filler…`: session, number within the session from 0, and the moment of
//! the write in nanoseconds since the program's start (0: not measured).

use std::time::Instant;

use bytes::Bytes;
use chat_historyd::manager_api::{Report, TimeUnit, encode};
use chat_historyd::protocol::{ChatType, MacAddress, UnixMillis};

/// Length of the content of every message: with the fields around it, lines have about 280 bytes.
const CONTENT_BYTES: usize = 200;

/// The first `seq` of a stream: all have the same number of digits.
pub const FIRST_SEQ: u64 = 1_000_000_000;

const FILLER: &str = "the quick brown fox tells the child a story about a friendly dragon who likes tea & biscuits, and then asks \
                      what it would like to hear next because there is plenty of time until dinner is ready in the kitchen";

/// What a piece of content says of itself.
#[derive(Clone, Copy)]
pub struct Mark {
    pub session: usize,
    pub number: u64,
    pub nanos: u64,
}

/// The clock of the marks.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn new() -> Self {
        Self(Instant::now())
    }

    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

pub fn mac(session: usize) -> String {
    format!("02:00:00:00:{:02x}:{:02x}", session / 256, session % 256)
}

pub fn session_id(session: usize) -> String {
    format!("bench-room-{session:04}")
}

fn content(session: usize) -> String {
    let mut content = format!("s{session:04} n{:010} t{:015} ", 0, 0);
    content.push_str(&FILLER[..CONTENT_BYTES - content.len()]);
    content
}

/// A line of a session, to be patched. It names its session when its connection is bound to none.
pub struct Line {
    pub bytes: Vec<u8>,
    seq: usize,
    number: usize,
}

impl Line {
    pub fn new(session: usize, names_session: bool) -> Self {
        let named = if names_session {
            format!(r#","mac_address":"{}","session_id":"{}""#, mac(session), session_id(session))
        } else {
            String::new()
        };
        let text =
            format!("{{\"type\":\"message\",\"seq\":{FIRST_SEQ}{named},\"chat_type\":1,\"content\":\"{}\"}}\n", content(session));
        let seq = text.find("\"seq\":").unwrap() + 6;
        let number = text.find(" n0").unwrap() + 2;
        Self { bytes: text.into_bytes(), seq, number }
    }

    pub fn patch(&mut self, seq: u64, number: u64, nanos: u64) {
        digits(&mut self.bytes[self.seq..self.seq + 10], FIRST_SEQ + seq);
        digits(&mut self.bytes[self.number..self.number + 10], number);
        digits(&mut self.bytes[self.number + 12..self.number + 27], nanos);
    }
}

fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap();
        value /= 10;
    }
}

/// The mark in a report's body.
pub fn mark(body: &[u8]) -> Option<Mark> {
    let key = b"\"content\":\"s";
    let at = body.windows(key.len()).position(|window| window == key)? + key.len();
    let number = |from: usize, length: usize| {
        body.get(at + from..at + from + length)?
            .iter()
            .try_fold(0_u64, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0')))
    };
    Some(Mark { session: usize::try_from(number(0, 4)?).ok()?, number: number(6, 10)?, nanos: number(18, 15)? })
}

/// The body the daemon sends for such a message.
pub fn body(session: usize) -> Bytes {
    let octets = [2, 0, 0, 0, u8::try_from(session / 256).unwrap(), u8::try_from(session % 256).unwrap()];
    let report = Report {
        mac: MacAddress::from_octets(octets),
        session_id: &session_id(session),
        chat_type: ChatType::User,
        content: &content(session),
        audio: None,
        time: UnixMillis(1_758_701_973_000),
        unit: TimeUnit::Milliseconds,
    };
    encode(&report, true)
}
