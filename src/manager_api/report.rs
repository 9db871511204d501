//! The body of a report, byte for byte.
//!
//! Promises: the six fields the server knows, as JSON that survives its XSS filter unchanged (with `escape_html`): the
//! filter reads the JSON text as HTML, so `<`, `>`, `&`, U+00A0 and every space after a space are written as `\uXXXX`.
//! The same message gives the same bytes at every attempt. Refuses: to check or clean content — the store holds it
//! cleaned. Pure; called by the uploader for each part. Source: `reference: Manager API, the report endpoint`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::profile::TimeUnit;
use super::split::Part;
use crate::protocol::{ChatType, MacAddress, UnixMillis};

/// `Content-Type` of a report. With the charset the server's XSS filter does not recognise it and leaves it alone.
pub const CONTENT_TYPE: &str = "application/json; charset=utf-8";

/// The largest audio that is sent, in bytes before base64.
pub const AUDIO_CAP_BYTES: usize = 2_000_000;

/// The server's JSON reader refuses strings of more than 20,000,000 characters, for ever: 15 MB before base64.
const _: () = assert!(AUDIO_CAP_BYTES <= 15_000_000);

/// One report, ready to be written.
#[derive(Clone, Copy)]
pub struct Report<'a> {
    /// The device.
    pub mac: MacAddress,
    /// The session id within the server's limit ([`session_id_within`]).
    pub session_id: &'a str,
    /// Who spoke.
    pub chat_type: ChatType,
    /// The text, or one part of it.
    pub content: &'a str,
    /// Audio, already chosen by [`audio_to_send`].
    pub audio: Option<&'a [u8]>,
    /// From [`report_time`].
    pub time: UnixMillis,
    /// The unit the server reads.
    pub unit: TimeUnit,
}

/// The JSON body of a report.
#[must_use]
pub fn encode(report: &Report<'_>, escape_html: bool) -> Bytes {
    let audio_length = report.audio.map_or(4, |audio| audio.len().div_ceil(3) * 4 + 2);
    // Room for the fields' names and a little escaping: one allocation for nearly every message.
    let mut out =
        Vec::with_capacity(176 + report.session_id.len() + report.content.len() + report.content.len() / 8 + audio_length);
    out.extend_from_slice(b"{\"macAddress\":\"");
    push_mac(&mut out, report.mac);
    out.extend_from_slice(b"\",\"sessionId\":\"");
    push_escaped(&mut out, report.session_id, escape_html);
    out.extend_from_slice(b"\",\"chatType\":");
    out.push(b'0' + report.chat_type.code());
    out.extend_from_slice(b",\"content\":\"");
    push_escaped(&mut out, report.content, escape_html);
    out.extend_from_slice(b"\",\"audioBase64\":");
    push_audio(&mut out, report.audio);
    out.extend_from_slice(b",\"reportTime\":");
    push_integer(&mut out, wire_time(report.time, report.unit));
    out.push(b'}');
    Bytes::from(out)
}

/// The report time of a message said at `event`, after a report of the same session with the time `last`: rising by at
/// least 1 ms, or, in seconds, never falling. In milliseconds in either case, as the cursor keeps it; a function of
/// message and cursor alone, so that every attempt sends the same.
#[must_use]
pub fn report_time(event: UnixMillis, last: UnixMillis, unit: TimeUnit) -> UnixMillis {
    match unit {
        TimeUnit::Milliseconds => UnixMillis(event.0.max(last.0.saturating_add(1))),
        TimeUnit::Seconds => UnixMillis(event.0.max(last.0).div_euclid(1000).saturating_mul(1000)),
    }
}

/// The session id as the server can store it: itself, or its first 33 characters, `-` and 16 hexadecimal digits of its
/// SHA-256 (50 characters). `limit` is in characters.
#[must_use]
pub fn session_id_within(session_id: &str, limit: usize) -> Cow<'_, str> {
    if session_id.len() <= limit || session_id.chars().count() <= limit {
        return Cow::Borrowed(session_id);
    }
    let digest = Sha256::digest(session_id.as_bytes());
    let mut short: String = session_id.chars().take(33).collect();
    short.push('-');
    for byte in digest.iter().take(8) {
        short.push(char::from(hex_digit(byte >> 4)));
        short.push(char::from(hex_digit(byte & 0xf)));
    }
    Cow::Owned(short)
}

/// The `Idempotency-Key`: the message's UUID, for a part of a split message with the part's offset.
#[must_use]
pub fn idempotency_key(uuid: Uuid, part: &Part) -> String {
    if part.range.start == 0 && part.is_last { uuid.to_string() } else { format!("{uuid}-{}", part.range.start) }
}

/// The audio that goes with a report: only when it is not over [`AUDIO_CAP_BYTES`]. When this is `None`, the text goes
/// without it, to be counted.
#[must_use]
pub fn audio_to_send(audio: &[u8]) -> Option<&[u8]> {
    Some(audio).filter(|audio| !audio.is_empty() && audio.len() <= AUDIO_CAP_BYTES)
}

const fn wire_time(time: UnixMillis, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Milliseconds => time.0,
        TimeUnit::Seconds => time.0.div_euclid(1000),
    }
}

fn push_mac(out: &mut Vec<u8>, mac: MacAddress) {
    for (index, octet) in mac.octets().into_iter().enumerate() {
        if index > 0 {
            out.push(b':');
        }
        out.push(hex_digit(octet >> 4));
        out.push(hex_digit(octet & 0xf));
    }
}

fn push_audio(out: &mut Vec<u8>, audio: Option<&[u8]>) {
    let Some(audio) = audio else {
        out.extend_from_slice(b"null");
        return;
    };
    out.push(b'"');
    let start = out.len();
    out.resize(start + audio.len().div_ceil(3) * 4, 0);
    if let Some(room) = out.get_mut(start..) {
        // The room is exactly what padded base64 needs, so this cannot fail.
        let written = STANDARD.encode_slice(audio, room).unwrap_or(0);
        out.truncate(start + written);
    }
    out.push(b'"');
}

fn push_integer(out: &mut Vec<u8>, number: i64) {
    use std::io::Write;
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{number}");
}

const fn hex_digit(value: u8) -> u8 {
    match value & 0xf {
        digit @ 0..=9 => b'0' + digit,
        letter => b'a' + letter - 10,
    }
}

/// Writes `text` as the inside of a JSON string. Runs that need nothing are copied at once.
fn push_escaped(out: &mut Vec<u8>, text: &str, escape_html: bool) {
    let special = if escape_html { &SPECIAL_IN_HTML } else { &SPECIAL_IN_JSON };
    let bytes = text.as_bytes();
    let mut copied = 0;
    let mut after_space = false;
    for (at, &byte) in bytes.iter().enumerate() {
        if !special.get(usize::from(byte)).copied().unwrap_or(true) {
            after_space = false;
            continue;
        }
        let tail = bytes.get(at..).unwrap_or_default();
        let (width, code) = match (byte, tail) {
            (b' ', _) if !after_space => {
                after_space = true;
                continue;
            }
            // What the filter's HTML reader rewrites or drops: no-break space, soft hyphen, zero-width space.
            (0xc2, [_, low @ (0xa0 | 0xad), ..]) => (2, u16::from(*low)),
            (0xe2, [_, 0x80, 0x8b, ..]) => (3, 0x200b),
            (0xc2 | 0xe2, _) => {
                after_space = false;
                continue;
            }
            _ => (1, u16::from(byte)),
        };
        out.extend_from_slice(bytes.get(copied..at).unwrap_or_default());
        push_escape(out, code);
        copied = at + width;
        after_space = byte == b' ';
    }
    out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
}

fn push_escape(out: &mut Vec<u8>, code: u16) {
    let short = match code {
        0x22 => b'"',
        0x5c => b'\\',
        0x0a => b'n',
        0x0d => b'r',
        0x09 => b't',
        _ => {
            let [high, low] = code.to_be_bytes();
            let digits = [hex_digit(high >> 4), hex_digit(high), hex_digit(low >> 4), hex_digit(low)];
            out.extend_from_slice(b"\\u");
            out.extend_from_slice(&digits);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Bytes that JSON itself does not allow in a string.
static SPECIAL_IN_JSON: [bool; 256] = special(b"\"\\");
/// Those, and the (first) bytes of what the server's filter would touch.
static SPECIAL_IN_HTML: [bool; 256] = special(b"\"\\<>& \xc2\xe2");

const fn special(bytes: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let (control, _) = table.split_at_mut(0x20);
    let mut at = 0;
    while at < control.len() {
        mark(control, at);
        at += 1;
    }
    let mut rest = bytes;
    while let [first, others @ ..] = rest {
        mark(&mut table, *first as usize);
        rest = others;
    }
    table
}

const fn mark(table: &mut [bool], at: usize) {
    if let Some((place, _)) = table.split_at_mut(at).1.split_first_mut() {
        *place = true;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(content: &str) -> Report<'_> {
        Report {
            mac: MacAddress::from_octets([0x68, 0x25, 0xdd, 0xba, 0x39, 0x78]),
            session_id: "room_6825ddba3978",
            chat_type: ChatType::Agent,
            content,
            audio: None,
            time: UnixMillis(1_758_701_973_250),
            unit: TimeUnit::Milliseconds,
        }
    }

    fn text(body: &Bytes) -> &str {
        std::str::from_utf8(body).unwrap()
    }

    fn content_of(body: &Bytes) -> String {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap();
        value["content"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_six_fields_are_written_as_the_server_reads_them() {
        let body = encode(&report("Hello"), true);
        assert_eq!(
            text(&body),
            r#"{"macAddress":"68:25:dd:ba:39:78","sessionId":"room_6825ddba3978","chatType":2,"content":"Hello","audioBase64":null,"reportTime":1758701973250}"#
        );
        let seconds = encode(&Report { unit: TimeUnit::Seconds, chat_type: ChatType::User, ..report("x") }, true);
        assert!(
            text(&seconds).ends_with(r#","chatType":1,"content":"x","audioBase64":null,"reportTime":1758701973}"#),
            "{}",
            text(&seconds)
        );
    }

    #[test]
    fn audio_is_standard_base64_with_padding() {
        let body = encode(&Report { audio: Some(&[0xfb, 0xff, 0xfe, 0x00]), ..report("x") }, true);
        assert!(text(&body).contains(r#""audioBase64":"+//+AA==","#), "{}", text(&body));
    }

    #[test]
    fn what_the_filter_would_rewrite_is_escaped() {
        for (content, escaped) in [
            ("if a<b then", r"if a\u003cb then"),
            ("Tom & Jerry", r"Tom \u0026 Jerry"),
            ("<!-- c", r"\u003c!-- c"),
            ("a>b", r"a\u003eb"),
            ("a\u{a0}b", r"a\u00a0b"),
            ("a\u{ad}b\u{200b}c", r"a\u00adb\u200bc"),
            ("a b  c   d", r"a b \u0020c \u0020\u0020d"),
            ("a\u{a0} \u{a0}b", r"a\u00a0 \u00a0b"),
            ("a < b", r"a \u003c b"),
            ("\t\n\r\u{1}\"\\/", r#"\t\n\r\u0001\"\\/"#),
            ("é\u{201c}你好👩‍👩‍👧", "é\u{201c}你好👩‍👩‍👧"),
        ] {
            let body = encode(&report(content), true);
            assert!(text(&body).contains(&format!(r#""content":"{escaped}","#)), "{}", text(&body));
            assert_eq!(content_of(&body), content);
        }
    }

    #[test]
    fn without_escape_html_only_json_is_escaped() {
        let body = encode(&report("a <b>  & \u{a0}\"\n"), false);
        assert!(text(&body).contains("\"content\":\"a <b>  & \u{a0}\\\"\\n\""), "{}", text(&body));
    }

    #[test]
    fn milliseconds_rise_and_seconds_never_fall() {
        let at = |event, last, unit| report_time(UnixMillis(event), UnixMillis(last), unit).0;
        for (event, last, expected) in [(5000, 0, 5000), (5000, 5000, 5001), (4000, 5000, 5001), (0, i64::MAX, i64::MAX)] {
            assert_eq!(at(event, last, TimeUnit::Milliseconds), expected);
        }
        for (event, last, expected) in [(5999, 0, 5000), (5999, 5000, 5000), (4999, 5000, 5000), (-1, -5000, -1000)] {
            assert_eq!(at(event, last, TimeUnit::Seconds), expected);
        }
        // A server upgrade or downgrade between two reports.
        assert_eq!(at(4000, 5999, TimeUnit::Seconds), 5000);
        assert_eq!(at(4000, 5000, TimeUnit::Milliseconds), 5001);
    }

    #[test]
    fn a_session_id_over_the_limit_is_shortened_the_same_way_for_ever() {
        let room = "d3746a02-1111-2222-3333-444455556666_6825ddba3978_conversation";
        assert_eq!(session_id_within(room, 100), room);
        let short = session_id_within(room, 50);
        assert_eq!(short, "d3746a02-1111-2222-3333-444455556-a5664011d51d43d7");
        let wide = "é".repeat(51);
        assert_eq!(session_id_within(&wide, 50).chars().count(), 50);
        assert_eq!(session_id_within(&wide, 51), wide);
    }

    #[test]
    fn a_part_has_a_key_of_its_own_and_a_whole_message_its_uuid() {
        let uuid = Uuid::from_u128(7);
        let whole = Part { range: 0..5, is_last: true };
        assert_eq!(idempotency_key(uuid, &whole), "00000000-0000-0000-0000-000000000007");
        assert_eq!(idempotency_key(uuid, &Part { range: 0..5, is_last: false }), "00000000-0000-0000-0000-000000000007-0");
        assert_eq!(idempotency_key(uuid, &Part { range: 5..9, is_last: true }), "00000000-0000-0000-0000-000000000007-5");
    }

    #[test]
    fn audio_goes_only_within_the_cap_and_if_there_is_any() {
        let small = [1, 2, 3];
        assert_eq!(audio_to_send(&small), Some(&small[..]));
        assert_eq!(audio_to_send(&[]), None);
        let large = vec![0; AUDIO_CAP_BYTES + 1];
        assert_eq!(audio_to_send(&large), None);
        assert!(large.get(1..).and_then(audio_to_send).is_some());
    }

    proptest! {
        #[test]
        fn any_text_comes_back_as_it_went_and_holds_nothing_for_the_filter(content in "[ \u{a0}<>&\\\\\"a-c\n\t\u{0}-\u{1f}é👍\u{ad}\u{200b}]{0,60}|\\PC{0,60}") {
            let body = encode(&report(&content), true);
            prop_assert_eq!(content_of(&body), content.as_str());
            let text = text(&body);
            let clean = !text.contains(['<', '>', '&', '\u{a0}', '\u{ad}', '\u{200b}']) && !text.contains("  ");
            prop_assert!(clean, "{}", text);
            prop_assert_eq!(content_of(&encode(&report(&content), false)), content);
        }
    }
}
