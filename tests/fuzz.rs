//! A mutating fuzzer for every parser that reads what others wrote, on the stable toolchain. Each target has its seeds
//! (real events, real answers), a dictionary, and an oracle that is another way to say what is right.
//!
//! `CHAT_HISTORYD_FUZZ_SECONDS` is the time a target gets (2 without it; `.ci/run` gives 60), and
//! `CHAT_HISTORYD_FUZZ_SEED` repeats a run. A finding prints its input and becomes a named test.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chat_historyd::intake::lines::{LineItem, Lines};
use chat_historyd::manager_api::{Answer, BodyEnd, Verdict, classify, verdict};
use chat_historyd::protocol::{Command, DecodeOptions, Line, LiveKitEvent, Message, Refusal, UnixMillis, decode};
use serde_json::Value;

const FIXTURES: [&str; 2] = [include_str!("fixtures/livekit-1.2.8.ndjson"), include_str!("fixtures/livekit-1.8.9.ndjson")];

/// xorshift64*: enough for mutation, and a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A place and a length within so many bytes.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>], dictionary: &[&[u8]]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..=random.below(6) {
        let range = random.range(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => drop(bytes.drain(range)),
            2 => drop(bytes.splice(range.start..range.start, random.pick(dictionary).iter().copied())),
            3 => drop(bytes.splice(range, random.pick(dictionary).iter().copied())),
            4 => {
                let again = bytes[range.clone()].repeat(1 + random.below(3));
                drop(bytes.splice(range.start..range.start, again));
            }
            5 => {
                let other = random.pick(seeds).clone();
                let piece = random.range(other.len());
                drop(bytes.splice(range, other[piece].iter().copied()));
            }
            6 => bytes.insert(range.start, (random.next() >> 32) as u8),
            _ => bytes.truncate(bytes.len() - random.below(bytes.len().min(32) + 1)),
        }
    }
    bytes
}

/// Runs a target until its time is up.
fn fuzz(name: &str, seeds: &[Vec<u8>], dictionary: &[&[u8]], target: impl Fn(&mut Random, &[u8])) {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("CHAT_HISTORYD_FUZZ_SECONDS").unwrap_or(2);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("CHAT_HISTORYD_FUZZ_SEED").unwrap_or(now) | 1;
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0_u64;
    for seed in seeds {
        target(&mut random, seed);
    }
    while Instant::now() < end {
        for _ in 0..64 {
            let input = mutate(&mut random, seeds, dictionary);
            runs += 1;
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&mut random, &input))) {
                let shown = input.iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{}", std::ascii::escape_default(*byte));
                    text
                });
                eprintln!("{name}: run {runs} of seed {seed} found: b\"{shown}\"");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{name}: {runs} runs in {seconds} s, seed {seed}");
    assert!(runs > 0);
}

fn lines_of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().flat_map(|text| text.lines()).map(|line| line.as_bytes().to_vec()).collect()
}

const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"null",
    b"true",
    b"false",
    b"0",
    b"-0",
    b"1e400",
    b"1E5",
    b"NaN",
    b"1.5",
    b"-1",
    b"9223372036854775807",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud83d",
    b"\\udc2f",
    b"\\u001b",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\0",
    b" ",
    b"\t",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"]]]]]]]]]]]]]]]]",
    b"\"\"",
];

// ---- the line splitter ---------------------------------------------------------------------------------------------

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Line(u64, Vec<u8>),
    TooLong(u64),
}

impl From<LineItem<'_>> for Found {
    fn from(item: LineItem<'_>) -> Self {
        match item {
            LineItem::Line { number, bytes } => Self::Line(number, bytes.to_vec()),
            LineItem::TooLong { number } => Self::TooLong(number),
        }
    }
}

/// The same in one pass over the whole stream.
fn split_at_once(stream: &[u8], limit: usize) -> Vec<Found> {
    let mut pieces: Vec<&[u8]> = stream.split(|&byte| byte == b'\n').collect();
    if pieces.last().is_some_and(|last| last.is_empty()) {
        pieces.pop();
    }
    let contents = (1..).zip(pieces.into_iter().map(|piece| piece.strip_suffix(b"\r").unwrap_or(piece)));
    contents
        .filter(|(_, line)| line.len() > limit || line.iter().any(|byte| !b" \t\r".contains(byte)))
        .map(|(number, line)| if line.len() > limit { Found::TooLong(number) } else { Found::Line(number, line.to_vec()) })
        .collect()
}

#[test]
fn the_line_splitter() {
    let mut seeds = vec![b"one\ntwo\r\n\r\n  \nthree".to_vec(), vec![b'x'; 300], b"\n\n\n\r\r\n".to_vec()];
    seeds.extend(FIXTURES.iter().map(|text| text.as_bytes()[..20_000].to_vec()));
    fuzz(
        "line splitter",
        &seeds,
        &[b"\n", b"\r\n", b"\r", b" ", b"\t", b"\0", b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"],
        |random, stream| {
            let limit = [0, 1, 5, 64, 1024, 1 << 16][random.below(6)];
            let mut lines = Lines::new(limit);
            let mut found = Vec::new();
            let mut rest = stream;
            while !rest.is_empty() {
                let (chunk, later) = rest.split_at(1 + random.below(rest.len().min(4096)));
                lines.read_target().extend_from_slice(chunk);
                while let Some(item) = lines.next_line() {
                    found.push(Found::from(item));
                }
                assert!(lines.capacity() <= 2 * limit + (1 << 16), "{} bytes held for lines of {limit}", lines.capacity());
                if random.below(4) == 0 {
                    lines.release();
                }
                rest = later;
            }
            found.extend(lines.finish().map(Found::from));
            assert_eq!(found, split_at_once(stream, limit), "limit {limit}");
        },
    );
}

// ---- the decoder and the mapping of LiveKit ------------------------------------------------------------------------

const NOW: UnixMillis = UnixMillis(1_758_800_000_000);
const OPTIONS: DecodeOptions = DecodeOptions { tools: true, now: NOW, build_date: UnixMillis(1_700_000_000_000) };

fn is_clean(text: &str) -> bool {
    text.trim() == text && !text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\t'))
}

#[track_caller]
fn check_message(message: &Message) {
    assert!(is_clean(&message.content), "{:?}", message.content);
    assert!(message.time.0 >= 978_307_200_000 && message.time.0 <= NOW.0 + 86_400_000, "{:?}", message.time);
    assert!(message.event_id.as_ref().is_none_or(|id| id.chars().count() <= 200));
}

#[track_caller]
fn check_decoded(bytes: &[u8]) -> Result<Line, Refusal> {
    let decoded = decode(bytes, &OPTIONS);
    assert_eq!(decoded, decode(bytes, &OPTIONS), "the same bytes mean the same");
    match &decoded {
        Ok(line) => {
            // Bare control characters in a name are forgiven, for no name that we know has any.
            let plain: Vec<u8> = bytes.iter().map(|&byte| byte.max(b' ')).collect();
            serde_json::from_slice::<serde::de::IgnoredAny>(&plain).expect("only JSON is taken");
            if let Some(id) = &line.target.session_id {
                assert!(
                    !id.as_str().is_empty() && id.as_str().chars().count() <= 100 && !id.as_str().chars().any(char::is_control)
                );
            }
            match &line.command {
                Command::Message(message) | Command::LiveKit(LiveKitEvent::Item { message, .. }) => check_message(message),
                Command::LiveKit(LiveKitEvent::Tools(records)) => records.iter().for_each(check_message),
                Command::LiveKit(LiveKitEvent::FinalTranscript(said)) => {
                    assert!(is_clean(&said.text) && !said.text.is_empty(), "{:?}", said.text);
                }
                Command::Flush(flush) => assert!(flush.timeout <= Duration::from_secs(60)),
                _ => {}
            }
        }
        Err(refusal) => {
            assert!(!refusal.message.is_empty() && refusal.message.len() <= 300, "{}", refusal.message);
            assert!(!refusal.message.chars().any(char::is_control), "{:?}", refusal.message);
        }
    }
    decoded
}

#[test]
fn the_decoder() {
    let seeds = lines_of(&[
        r#"{"macAddress":"68:25:dd:ba:39:78","sessionId":"d3746a02_6825ddba3978","chatType":1,"content":"Hello","audioBase64":null,"reportTime":1758701973}
{"type":"message","mac_address":"68-25-DD-BA-39-78","session_id":"s","chat_type":"agent","content":"a \"b\" \u0041\ud83d\udc2f","timestamp":"2025-09-24T08:19:33.25+02:00","id":"x","seq":7,"interrupted":true,"metadata":{"a":[1,{"b":2}]},"audio_base64":"AAAA"}
{"type":"session_start","v":1,"mac_address":"6825ddba3978","session_id":"s","stream":"st","ack":true,"agent_id":"a","client":"c"}
{"type":"session_end","reason":"bye","dropped":3,"seq":9}
{"type":"flush","id":"f","level":"delivered","timeout":2.5}
{"type":"ping","id":[1,{"a":null}]}
{"type":"close","reason":"x","created_at":1758701973.25}"#,
    ]);
    let names: &[&[u8]] = &[
        b"\"type\":",
        b"\"message\"",
        b"\"session_start\"",
        b"\"hello\"",
        b"\"flush\"",
        b"\"content\":",
        b"\"chat_type\":",
        b"\"chatType\":",
        b"\"seq\":",
        b"\"timestamp\":",
        b"\"reportTime\":",
        b"\"session_id\":",
        b"\"sessionId\":",
        b"\"mac_address\":",
        b"\"metadata\":",
        b"\"audio_base64\":",
        b"\"id\":",
        b"\"v\":2",
        b"\"stream\":",
        b"\"timeout\":",
        b"1e11",
        b"99999999999999999999",
        b"\"user\"",
        b"7",
    ];
    fuzz("decoder", &seeds, &[JSON, names].concat(), |_, bytes| drop(check_decoded(bytes)));
}

#[test]
fn the_mapping_of_livekit_events() {
    let seeds = lines_of(&FIXTURES);
    let names: &[&[u8]] = &[
        b"\"type\":\"conversation_item_added\"",
        b"\"type\":\"user_input_transcribed\"",
        b"\"type\":\"function_tools_executed\"",
        b"\"is_final\":true",
        b"\"transcript\":",
        b"\"item\":",
        b"\"content\":",
        b"\"role\":\"user\"",
        b"\"role\":\"assistant\"",
        b"\"role\":\"system\"",
        b"\"created_at\":",
        b"\"item_id\":",
        b"<expr x=\"1\"/>",
        b"<expr",
        b"/>",
        b"\"type\":\"audio_content\"",
        b"\"type\":\"image_content\"",
    ];
    let understood = |bytes: &[u8]| matches!(decode(bytes, &OPTIONS), Ok(Line { command: Command::LiveKit(_), .. }));
    assert!(seeds.iter().all(|seed| understood(seed)), "every real event is one");
    fuzz("LiveKit mapping", &seeds, &[JSON, names].concat(), |_, bytes| drop(check_decoded(bytes)));
}

// ---- the answers of the API ----------------------------------------------------------------------------------------

/// Success in the words of the design, by a parser that is not ours.
fn is_success(status: u16, body: &[u8], end: BodyEnd) -> bool {
    // What else is said is not looked into: a number that no float can hold makes a success no less true.
    #[derive(serde::Deserialize)]
    struct Said {
        code: Value,
        data: Value,
    }
    // Nor does a message in an odd encoding, or with half a surrogate pair.
    let text = String::from_utf8_lossy(body).replace("\\ud", "\\u0").replace("\\uD", "\\u0");
    let said: Option<Said> = serde_json::from_str(&text).ok();
    status == 200
        && end == BodyEnd::Complete
        && said.is_some_and(|said| said.code.as_i64() == Some(0) && said.data == Value::Bool(true))
}

#[test]
fn a_number_out_of_range_beside_it_makes_a_success_no_less_true() {
    let body = br#"{"code":0,"msg":1e400,"data":true}"#;
    let answer = Answer { status: 200, body, end: BodyEnd::Complete, retry_after: None };
    assert_eq!(classify(&answer), Verdict::Delivered);
    assert!(is_success(200, body, BodyEnd::Complete));
}

#[test]
fn the_answers_of_the_api() {
    let seeds = lines_of(&[r#"{"code":0,"msg":"success","data":true}
{"code":0,"msg":"success","data":false}
{"code":500,"msg":"服务器内部异常","data":null}
{"code":10034,"msg":"must not be empty"}
{"code":401,"msg":"未授权","data":null}
{"code":0,"data":{"version":"0.9.6"},"msg":"success"}
<html><body><h1>502 Bad Gateway</h1></body></html>
"#]);
    let names: &[&[u8]] =
        &[b"\"code\":", b"\"code\":0", b"\"data\":", b"\"data\":true", b"\"msg\":", b"0.0", b"\"0\"", b"10041", b"10099"];
    fuzz("API answer", &seeds, &[JSON, names].concat(), |random, body| {
        let status = *random.pick(&[200_u16, 200, 200, 200, 201, 204, 301, 400, 401, 404, 413, 429, 500, 503, 999]);
        let end = *random.pick(&[BodyEnd::Complete, BodyEnd::Complete, BodyEnd::Cut, BodyEnd::TooLong]);
        let answer = Answer { status, body, end, retry_after: Some(Duration::from_secs(7)) };
        let verdict = classify(&answer);
        assert_eq!(verdict, classify(&answer));
        if verdict == Verdict::Delivered {
            assert!(is_success(status, body, end), "HTTP {status}, {end:?}: no success");
        }
        let (Verdict::Rejected { answer: text }
        | Verdict::Refused { answer: text }
        | Verdict::Operator { reason: text }
        | Verdict::Later { reason: text, .. }) = &verdict
        else {
            return;
        };
        assert!(!text.is_empty() && text.chars().count() <= 300 && !text.chars().any(char::is_control), "{text:?}");
    });
    assert!(is_success(200, &seeds[0], BodyEnd::Complete));
}

#[test]
fn the_retry_after_header() {
    let seeds = lines_of(&[
        "0\n7\n120\n3600\n99999999999999999999999\nWed, 21 Oct 2015 07:28:00 GMT\nWednesday, 21-Oct-15 07:28:00 GMT\nWed Oct 21 07:28:00 2015\n-1\n1.5",
    ]);
    let tokens: &[&[u8]] = &[b"0", b"9", b"-", b"+", b" ", b"GMT", b"Oct", b"2999", b"1969", b"24:61:61", b"\xc3\xa9", b"\0"];
    let now = UNIX_EPOCH + Duration::from_secs(1_445_412_000);
    fuzz("Retry-After", &seeds, tokens, |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        let wait = verdict::retry_after(&text, now);
        assert!(wait.is_none_or(|wait| wait <= verdict::RETRY_AFTER_CAP), "{wait:?}");
        if let Ok(seconds) = text.trim().parse::<u64>() {
            let plain = text.trim().bytes().all(|byte| byte.is_ascii_digit());
            assert_eq!(wait, plain.then(|| Duration::from_secs(seconds.min(3600))));
        }
    });
}
