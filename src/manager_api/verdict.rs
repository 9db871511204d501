//! What an answer means for the message that was sent: the table of the design, pure and total.
//!
//! Promises: success is HTTP 200 and one JSON object and the integer `code` 0 and `data` true, nothing else; whatever
//! a server, a proxy or a captive portal sends gets exactly one verdict; the texts hold at most 300 printable
//! characters and never content: the server's `msg` is quoted only for codes whose texts are the server's own
//! (401, 403, 404 and 10001…10099), for all others the number says it.
//! Refuses: to guess in favour of success. `0.0`, `"0"`, `-0`, a `code` that stands twice are not the integer 0.
//! Source of the codes: `reference: Manager API, answers`. Called by the client, for answers and for failures.

use std::time::{Duration, SystemTime};

use super::envelope::{Envelope, NoEnvelope};
use crate::observe::AttemptOutcome;

/// The longest wait a server may ask for.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(3600);

/// What an attempt means for the message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Accepted by the server.
    Delivered,
    /// The server does not know the device: its messages wait.
    Unregistered {
        /// 0 (with `data` false), 10041, 10042 or 10053.
        code: i64,
    },
    /// The report itself is wrong (10034): never to be sent again. To a probe (`{}`) this is the answer that opens.
    Rejected {
        /// What the server said.
        answer: String,
    },
    /// Refused by the server or a proxy: the poison rule decides.
    Refused {
        /// What the server said.
        answer: String,
    },
    /// An operator must act: the gate closes, nothing is dropped.
    Operator {
        /// What is wrong, and what to look at.
        reason: String,
    },
    /// To be tried again.
    Later {
        /// What went wrong.
        reason: String,
        /// The least time to wait, by the server's word (at most an hour).
        retry_after: Option<Duration>,
        /// The body had been handed over and no answer tells whether it was stored: a repetition may double it.
        ambiguous: bool,
    },
}

impl Verdict {
    /// The label under which the attempt is counted.
    #[must_use]
    pub const fn outcome(&self) -> AttemptOutcome {
        match self {
            Self::Delivered => AttemptOutcome::Accepted,
            Self::Unregistered { .. } => AttemptOutcome::UnknownDevice,
            Self::Rejected { .. } => AttemptOutcome::Rejected,
            Self::Refused { .. } => AttemptOutcome::Refused,
            Self::Operator { .. } => AttemptOutcome::OperatorError,
            Self::Later { .. } => AttemptOutcome::Later,
        }
    }

    /// Whether a repetition of the attempt may store the message twice.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Later { ambiguous: true, .. })
    }

    /// Whether, as the answer to a probe (`{}`), it shows that secret and path are right and the server is up.
    #[must_use]
    pub const fn proves_open(&self) -> bool {
        matches!(self, Self::Delivered | Self::Unregistered { .. } | Self::Rejected { .. })
    }

    /// What was said, for a log line or the status; never content.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Delivered => "delivered",
            Self::Unregistered { .. } => "device not registered",
            Self::Rejected { answer } | Self::Refused { answer } => answer,
            Self::Operator { reason } | Self::Later { reason, .. } => reason,
        }
    }
}

/// How the body of an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyEnd {
    /// As announced.
    Complete,
    /// Shorter than announced, reset, or not finished in time.
    Cut,
    /// Longer than the client reads (64 KiB).
    TooLong,
}

/// A complete HTTP head with what was read of its body.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// The body as far as it was read.
    pub body: &'a [u8],
    /// Whether that is all of it.
    pub end: BodyEnd,
    /// `Retry-After`, already read by [`retry_after`].
    pub retry_after: Option<Duration>,
}

/// The verdict on an answer. Other statuses than 200 decide alone: a proxy's error page needs no reading.
#[must_use]
pub fn classify(answer: &Answer<'_>) -> Verdict {
    let status = answer.status;
    match status {
        200 => classify_body(answer),
        // Nothing but 200 is success. A 201 or 204 would come again and again: not the Manager API.
        201..=299 => operator(format!("the server answered HTTP {status}: this is not the Manager API (check manager_api.url)")),
        300..=399 => {
            operator(format!("the server redirects (HTTP {status}); redirects are not followed (check manager_api.url)"))
        }
        401 | 403 => {
            operator(format!("the server refuses access (HTTP {status}): check the secret and what stands before the server"))
        }
        404 | 405 => operator(format!("the server has no such path (HTTP {status}): check the context path of manager_api.url")),
        // Said of the route, not of the report: proxy credentials, the wrong virtual host, the wrong protocol.
        402 | 407 | 421 | 426 | 511 => operator(format!("something before the server answered HTTP {status}")),
        // Said before anything was processed.
        408 | 425 | 429 => later(format!("HTTP {status}"), answer.retry_after, false),
        // Every other 4xx is a word on this request, and a proxy's, for the API itself never uses them.
        400..=499 => Verdict::Refused { answer: format!("HTTP {status}") },
        _ => later(format!("HTTP {status}"), answer.retry_after, true),
    }
}

fn classify_body(answer: &Answer<'_>) -> Verdict {
    let begins_as_object = answer.body.trim_ascii_start().first() == Some(&b'{');
    match answer.end {
        BodyEnd::Cut => return later("the answer was cut off".to_owned(), answer.retry_after, true),
        BodyEnd::TooLong if begins_as_object => return later("the answer is too long".to_owned(), answer.retry_after, true),
        BodyEnd::TooLong | BodyEnd::Complete => {}
    }
    let envelope = match Envelope::read(answer.body) {
        Ok(envelope) => envelope,
        Err(NoEnvelope::NotAnObject) => {
            return operator("HTTP 200 without a JSON object: this is not the Manager API (check manager_api.url)".to_owned());
        }
        // An answer whose end is the end of the connection: nothing else tells that it was cut.
        Err(NoEnvelope::Unfinished) => return later("the answer ends within its JSON".to_owned(), answer.retry_after, true),
        Err(NoEnvelope::Contradictory) => {
            return later("the answer holds a field twice".to_owned(), answer.retry_after, true);
        }
    };
    let Some(code) = envelope.code() else {
        return later("the answer has no integer code".to_owned(), answer.retry_after, true);
    };
    match (code, envelope.data()) {
        (0, "true") => Verdict::Delivered,
        (0, "false") | (10041 | 10042 | 10053, _) => Verdict::Unregistered { code },
        (0, _) => later("code 0 without true or false as data".to_owned(), answer.retry_after, true),
        (401 | 403, _) => {
            operator(format!("the server refuses the secret ({}): check secret and context path", envelope.quote(code)))
        }
        (404, _) => operator(format!("the server has no such path ({}): check manager_api.url", envelope.quote(code))),
        (10034, _) => Verdict::Rejected { answer: envelope.quote(code) },
        (10001..=10099, _) => Verdict::Refused { answer: envelope.quote(code) },
        // The API rolls back before it answers with an error code: a repetition doubles nothing.
        (_, _) => later(format!("code {code}"), answer.retry_after, false),
    }
}

/// What a `Retry-After` header asks for: seconds, or an HTTP date seen from `now`. At most an hour.
#[must_use]
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    let wait = if !header.is_empty() && header.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(header.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(header).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_CAP))
}

pub(super) const fn operator(reason: String) -> Verdict {
    Verdict::Operator { reason }
}

pub(super) const fn later(reason: String, retry_after: Option<Duration>, ambiguous: bool) -> Verdict {
    Verdict::Later { reason, retry_after, ambiguous }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Label;

    fn on(status: u16, body: &[u8], end: BodyEnd) -> Verdict {
        classify(&Answer { status, body, end, retry_after: None })
    }

    fn ok(body: &str) -> Verdict {
        on(200, body.as_bytes(), BodyEnd::Complete)
    }

    /// A verdict in one word.
    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Later { ambiguous: true, .. } => "ambiguous",
            other => other.outcome().as_str(),
        }
    }

    #[test]
    fn every_envelope_has_its_verdict() {
        for (body, expected) in [
            (r#"{"code":0,"msg":"success","data":true}"#, "accepted"),
            (r#" { "data" : true , "code" : 0 } "#, "accepted"),
            (r#"{"code":0,"data":true,"more":{"code":500}}"#, "accepted"),
            (r#"{"code":0,"data":false}"#, "unknown_device"),
            (r#"{"code":10041,"data":null}"#, "unknown_device"),
            (r#"{"code":10042}"#, "unknown_device"),
            (r#"{"code":10053,"data":true}"#, "unknown_device"),
            (r#"{"code":401,"msg":"no"}"#, "operator_error"),
            (r#"{"code":403}"#, "operator_error"),
            (r#"{"code":404}"#, "operator_error"),
            (r#"{"code":10034,"msg":"must not be blank"}"#, "rejected"),
            (r#"{"code":10001}"#, "refused"),
            (r#"{"code":10002}"#, "refused"),
            (r#"{"code":10099}"#, "refused"),
            (r#"{"code":10000}"#, "later"),
            (r#"{"code":10100}"#, "later"),
            (r#"{"code":500,"data":true}"#, "later"),
            (r#"{"code":200,"data":true}"#, "later"),
            (r#"{"code":-1,"data":true}"#, "later"),
            (r#"{"code":0}"#, "ambiguous"),
            (r#"{"code":0,"data":null}"#, "ambiguous"),
            (r#"{"code":0,"data":"true"}"#, "ambiguous"),
            (r#"{"code":0,"data":1}"#, "ambiguous"),
            (r#"{"code":0,"data":[true]}"#, "ambiguous"),
            (r#"{"code":0.0,"data":true}"#, "ambiguous"),
            (r#"{"code":"0","data":true}"#, "ambiguous"),
            (r#"{"code":-0,"data":true}"#, "ambiguous"),
            (r#"{"code":00,"data":true}"#, "operator_error"),
            (r#"{"code":18446744073709551616,"data":true}"#, "ambiguous"),
            (r#"{"code":0,"code":0,"data":true}"#, "ambiguous"),
            (r#"{"code":0,"data":true,"data":false}"#, "ambiguous"),
            (r#"{"Code":0,"data":true}"#, "ambiguous"),
            (r#"{"timestamp":"…","status":500,"error":"Internal Server Error"}"#, "ambiguous"),
            ("{}", "ambiguous"),
            (r#"{"code":0,"data":tru"#, "ambiguous"),
        ] {
            assert_eq!(word(&ok(body)), expected, "{body}");
        }
    }

    #[test]
    fn a_complete_200_without_a_json_object_needs_the_operator() {
        for body in [
            "",
            "  ",
            "OK",
            "null",
            "true",
            "<!DOCTYPE html><html></html>",
            r#"[0,"success",true]"#,
            r#"[{"code":0,"data":true}]"#,
            "\u{feff}{\"code\":0,\"data\":true}",
            r#"{"code":0,"data":true} <script>"#,
            r#"{"code":0,"data":true}{"code":0,"data":true}"#,
            r#"{"code":NaN,"data":true}"#,
        ] {
            assert_eq!(word(&ok(body)), "operator_error", "{body}");
        }
    }

    #[test]
    fn a_body_that_is_not_whole_is_never_success() {
        let success = br#"{"code":0,"data":true}"#;
        assert_eq!(word(&on(200, success, BodyEnd::Cut)), "ambiguous");
        assert_eq!(word(&on(200, b"", BodyEnd::Cut)), "ambiguous");
        assert_eq!(word(&on(200, b"<html>", BodyEnd::Cut)), "ambiguous");
        assert_eq!(word(&on(200, success, BodyEnd::TooLong)), "ambiguous");
        assert_eq!(word(&on(200, b"<html>", BodyEnd::TooLong)), "operator_error");
    }

    #[test]
    fn every_status_but_200_decides_alone() {
        let success = br#"{"code":0,"data":true}"#;
        for (statuses, expected) in [
            (
                &[201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 401, 402, 403, 404, 405, 407, 421, 426, 511][..],
                "operator_error",
            ),
            (&[400, 406, 409, 410, 411, 413, 414, 415, 417, 422, 431, 451], "refused"),
            (&[408, 425, 429], "later"),
            (&[500, 502, 503, 504, 520, 599, 600, 999, 100], "ambiguous"),
        ] {
            for &status in statuses {
                for end in [BodyEnd::Complete, BodyEnd::Cut, BodyEnd::TooLong] {
                    assert_eq!(word(&on(status, success, end)), expected, "{status}");
                }
            }
        }
    }

    #[test]
    fn no_byte_sequence_but_the_envelope_of_success_is_success() {
        let success = br#"{"code":0,"data":true}"#;
        for at in 0..success.len() {
            for byte in [b' ', b'0', b'1', b'"', b',', b'}', b'.', 0xff] {
                let mut body = success.to_vec();
                body[at] = byte;
                // A second reader's opinion: only white space may change without changing the meaning.
                let same = serde_json::from_slice::<serde_json::Value>(&body)
                    .is_ok_and(|value| value["code"] == 0 && value["data"] == true);
                assert_eq!(on(200, &body, BodyEnd::Complete) == Verdict::Delivered, same, "{}", String::from_utf8_lossy(&body));
            }
            assert_ne!(on(200, &success[..at], BodyEnd::Complete), Verdict::Delivered);
        }
    }

    #[test]
    fn the_servers_words_are_quoted_only_where_they_are_its_own() {
        assert_eq!(ok(r#"{"code":10034,"msg":"sessionId must not be blank"}"#).text(), "code 10034: sessionId must not be blank");
        assert!(ok(r#"{"code":401,"msg":"无效的服务器密钥"}"#).text().contains("无效的服务器密钥"));
        for code in [500, 7, 10100] {
            assert_eq!(ok(&format!(r#"{{"code":{code},"msg":"Data too long: Hello"}}"#)).text(), format!("code {code}"));
        }
        let long = ok(&format!(r#"{{"code":401,"msg":"{}"}}"#, "é\\u0000".repeat(400)));
        assert!(long.text().chars().count() <= 300, "{}", long.text());
        assert!(!long.text().chars().any(char::is_control));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_and_capped() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_758_701_973);
        let date = |seconds: u64| httpdate::fmt_http_date(now + Duration::from_secs(seconds));
        for (header, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("3601", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            (date(90).as_str(), Some(90)),
            (date(90_000).as_str(), Some(3600)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(header, now), expected.map(Duration::from_secs), "{header}");
        }
        let asked = Some(Duration::from_secs(9));
        let answer = Answer { status: 503, body: b"", end: BodyEnd::Complete, retry_after: asked };
        assert!(matches!(classify(&answer), Verdict::Later { retry_after, .. } if retry_after == asked));
    }

    #[test]
    fn the_empty_report_opens_only_by_an_answer_behind_the_secret() {
        assert!(ok(r#"{"code":10034}"#).proves_open());
        for body in [r#"{"code":401}"#, r#"{"code":500}"#, r#"{"code":10002}"#, "<html>"] {
            assert!(!ok(body).proves_open(), "{body}");
        }
    }
}
