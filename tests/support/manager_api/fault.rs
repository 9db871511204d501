//! What can go wrong with an answer, and for which requests.

use std::time::Duration;

/// One way to fail. "Stored" means that the row is committed although the client cannot know it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead of the work: status, headers, body. Not stored.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// Stored, then this answer (a proxy's 504 after the server had worked).
    AnswerAfterCommit(u16, Vec<(String, String)>, Vec<u8>),
    /// Reset while the request's body is still being sent. Not stored. Cannot be tied to a session.
    ResetMidBody,
    /// Reset after the whole request was read. Not stored.
    ResetBeforeCommit,
    /// Stored, then reset instead of an answer.
    ResetAfterCommit,
    /// Stored, then an orderly close instead of an answer.
    LoseAnswer,
    /// Stored, then the writing half is closed and the reading half kept.
    HalfClose,
    /// Never answers. Not stored.
    HangBeforeHeaders,
    /// Status and headers, then silence. Not stored.
    HangAfterHeaders,
    /// The right answer, one byte at a time with this pause. Stored.
    Trickle(Duration),
    /// The right answer after this time. Stored.
    Delay(Duration),
    /// The right answer after this time, stored; but `code 500` at once where more than so many reports are being answered.
    Overload(usize, Duration),
    /// 200 and JSON that never ends. Not stored.
    EndlessBody,
    /// 200 and a small gzip body that unpacks to a quarter of a gigabyte. Not stored.
    GzipBomb,
    /// The right answer cut in the middle: fewer bytes than announced. Stored.
    CutBody,
    /// Bytes that are no HTTP at all. Not stored.
    Garbage,
}

impl Fault {
    /// A bare status with a proxy's HTML page.
    pub fn status(code: u16) -> Self {
        Self::Answer(code, vec![("Content-Type".to_owned(), "text/html".to_owned())], b"<html><body>nginx</body></html>".to_vec())
    }

    /// A status with one header.
    pub fn status_with(code: u16, name: &str, value: &str) -> Self {
        Self::Answer(code, vec![(name.to_owned(), value.to_owned())], Vec::new())
    }

    /// HTTP 200 and this text as JSON.
    pub fn json(body: &str) -> Self {
        Self::Answer(200, vec![("Content-Type".to_owned(), "application/json".to_owned())], body.as_bytes().to_vec())
    }

    /// HTTP 200 with an envelope of this code and no data.
    pub fn code(code: i64) -> Self {
        Self::json(&serde_json::json!({ "code": code, "msg": "fault", "data": null }).to_string())
    }

    /// What the API answers when its database is down (and to anything else it did not expect).
    pub fn database_down() -> Self {
        Self::code(500)
    }

    /// HTTP 200 and an HTML page: somebody else's web server.
    pub fn html() -> Self {
        Self::Answer(
            200,
            vec![("Content-Type".to_owned(), "text/html".to_owned())],
            b"<!doctype html><title>Welcome</title>".to_vec(),
        )
    }

    /// A redirect that, followed as a GET, would look like a success.
    pub fn redirect(location: &str) -> Self {
        Self::status_with(302, "Location", location)
    }
}

/// Which endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// `POST agent/chat-history/report`, the probe with `{}` included.
    Report,
    /// `GET user/pub-config`.
    PubConfig,
    /// `GET agent/device/{mac12}/agent-id`.
    AgentId,
    /// Anything else.
    Other,
}

/// A fault and the requests it hits. Rules are asked in the order they were made; the first that matches and is not
/// used up decides.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) fault: Fault,
    endpoint: Endpoint,
    session: Option<String>,
    mac: Option<String>,
    content: Option<String>,
    skip: u32,
    remaining: Option<u32>,
}

impl Rule {
    /// This fault for every report (probes included) until the faults are cleared.
    pub const fn new(fault: Fault) -> Self {
        Self { fault, endpoint: Endpoint::Report, session: None, mac: None, content: None, skip: 0, remaining: None }
    }

    /// At another endpoint.
    #[must_use]
    pub const fn on(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// For reports of this session only.
    #[must_use]
    pub fn session(mut self, session_id: &str) -> Self {
        self.session = Some(session_id.to_owned());
        self
    }

    /// For reports of this device only.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// For reports whose content has this in it only.
    #[must_use]
    pub fn content(mut self, part: &str) -> Self {
        self.content = Some(part.to_owned());
        self
    }

    /// For the first `count` matching requests only.
    #[must_use]
    pub const fn times(mut self, count: u32) -> Self {
        self.remaining = Some(count);
        self
    }

    /// Not for the first `count` matching requests.
    #[must_use]
    pub const fn after(mut self, count: u32) -> Self {
        self.skip = count;
        self
    }

    /// Whether the rule hits before anything of the body is known.
    pub(super) fn hits_head(&mut self, endpoint: Endpoint) -> bool {
        matches!(self.fault, Fault::ResetMidBody) && endpoint == self.endpoint && self.used()
    }

    /// Whether the rule hits this request; counts if so.
    pub(super) fn hits(&mut self, endpoint: Endpoint, report: Option<&super::Report>) -> bool {
        let same = |wanted: &Option<String>, field: fn(&super::Report) -> &str| {
            wanted.as_ref().is_none_or(|wanted| report.is_some_and(|report| field(report) == wanted))
        };
        endpoint == self.endpoint
            && !matches!(self.fault, Fault::ResetMidBody)
            && same(&self.session, |report| &report.session_id)
            && same(&self.mac, |report| &report.mac_address)
            && self.content.as_ref().is_none_or(|part| report.is_some_and(|report| report.content.contains(part.as_str())))
            && self.used()
    }

    const fn used(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.remaining {
            None => true,
            Some(0) => false,
            Some(count) => {
                *count -= 1;
                true
            }
        }
    }
}
