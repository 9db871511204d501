//! What this server can store: its time unit and its limits.
//!
//! Promises: a profile only from a clear answer. Refuses: to guess — a wrong unit is stored as January 1970 by one
//! server and refused for ever by the other (`reference: Manager API, limits`). Pure; asked by [`super::ManagerApi`].

use serde::Deserialize;

use super::envelope::Envelope;
use super::split::ContentLimit;
use super::verdict::{Answer, BodyEnd};
use crate::config::{ManagerApiSettings, MaxContent, ReportTimeUnit};

/// The unit of `reportTime` on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    /// Whole seconds: servers before 0.9.3.
    Seconds,
    /// Milliseconds: servers from 0.9.3 on.
    Milliseconds,
}

impl TimeUnit {
    /// The unit as the configuration names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
        }
    }
}

/// What a server can store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerProfile {
    /// Unit of `reportTime`.
    pub unit: TimeUnit,
    /// Longest content of one report.
    pub content_limit: ContentLimit,
    /// Longest session id, in characters.
    pub session_id_limit: usize,
    /// Whether it is by a word of the server or of the settings, and not by the silence of one that has no place for its
    /// version, as old ones have none.
    pub is_named: bool,
}

/// The server did not say clearly what it is: nothing may be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("server profile unknown: {reason}")]
pub struct ProfileUnknown {
    /// What it said instead, at most 300 characters.
    pub reason: String,
}

impl ServerProfile {
    /// Servers before 0.9.3.
    pub const SECONDS: Self =
        Self { unit: TimeUnit::Seconds, content_limit: ContentLimit::Characters(1024), session_id_limit: 100, is_named: false };
    /// Servers from 0.9.3 on.
    pub const MILLISECONDS: Self =
        Self { unit: TimeUnit::Milliseconds, content_limit: ContentLimit::Bytes(65_535), session_id_limit: 50, is_named: true };

    /// The profile that the settings fix, without asking: `None` when `report_time_unit` is `auto`.
    #[must_use]
    pub fn fixed(settings: &ManagerApiSettings) -> Option<Self> {
        let line = match settings.report_time_unit {
            ReportTimeUnit::Auto => return None,
            ReportTimeUnit::Seconds => Self::SECONDS,
            ReportTimeUnit::Milliseconds => Self::MILLISECONDS,
        };
        Some(Self { is_named: true, ..line.limited(settings.max_content) })
    }

    /// The profile with `manager_api.max_content` in place of its own content limit.
    #[must_use]
    pub fn limited(self, max_content: Option<MaxContent>) -> Self {
        let content_limit = match max_content {
            None => self.content_limit,
            Some(MaxContent::Characters(count)) => ContentLimit::Characters(count),
            Some(MaxContent::Bytes(count)) => ContentLimit::Bytes(count),
        };
        Self { content_limit, ..self }
    }

    /// This profile, unless the server named a version a moment ago and has no place for it now: a proxy that has lost its
    /// way for a moment answers like that, too. Said again with nothing known, it is believed.
    ///
    /// # Errors
    /// When it is not to be believed.
    pub fn believed_after(self, known: Option<Self>) -> Result<Self, ProfileUnknown> {
        match known {
            Some(known) if known.is_named && !self.is_named => Err(ProfileUnknown {
                reason: "user/pub-config is not there any more, and the server had named its version".to_owned(),
            }),
            _ => Ok(self),
        }
    }

    /// The profile behind an answer of `GET {url}/user/pub-config`.
    ///
    /// # Errors
    /// When the answer does not say clearly which line of servers it is.
    pub fn from_answer(answer: &Answer<'_>) -> Result<Self, ProfileUnknown> {
        let unknown = |reason: &str| ProfileUnknown { reason: reason.to_owned() };
        match answer.status {
            404 => return Ok(Self::SECONDS),
            200 => {}
            status => return Err(ProfileUnknown { reason: format!("user/pub-config answered HTTP {status}") }),
        }
        if answer.end != BodyEnd::Complete {
            return Err(unknown("the answer of user/pub-config was cut off or too long"));
        }
        let envelope = Envelope::read(answer.body).map_err(|_| unknown("user/pub-config answered without a JSON envelope"))?;
        match envelope.code() {
            Some(0) => {}
            Some(401 | 404) => return Ok(Self::SECONDS),
            Some(code) => return Err(ProfileUnknown { reason: format!("user/pub-config answered code {code}") }),
            None => return Err(unknown("user/pub-config answered without an integer code")),
        }
        let config: PublicConfig = Some(envelope.data())
            // An array would do for serde in the place of an object.
            .filter(|data| data.starts_with('{'))
            .and_then(|data| serde_json::from_str(data).ok())
            .ok_or_else(|| unknown("user/pub-config names no version"))?;
        let version = version(&config.version).ok_or_else(|| unknown("user/pub-config names a version that is none"))?;
        Ok(if version >= [0, 9, 3] { Self::MILLISECONDS } else { Self { is_named: true, ..Self::SECONDS } })
    }
}

/// The version that an answer of `GET {url}/user/pub-config` names, printable and short; `None` when it names none.
pub(super) fn named_version(answer: &Answer<'_>) -> Option<String> {
    if answer.status != 200 || answer.end != BodyEnd::Complete {
        return None;
    }
    let envelope = Envelope::read(answer.body).ok().filter(|envelope| envelope.code() == Some(0))?;
    let config: PublicConfig = serde_json::from_str(envelope.data()).ok()?;
    version(&config.version).map(|_| super::envelope::printable(&config.version, 40))
}

/// What matters of the public configuration.
#[derive(Deserialize)]
struct PublicConfig {
    version: String,
}

/// `0.9.3`, `v0.10`, `1.0.0-beta`: three numbers. A missing one is 0; what follows `-` or `+` does not count.
fn version(text: &str) -> Option<[u32; 3]> {
    let text = text.trim();
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let numbers = text.split(['-', '+']).next()?;
    let mut version = [0; 3];
    let mut places = version.iter_mut();
    for (index, number) in numbers.split('.').enumerate() {
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = number.parse().ok()?;
        match places.next() {
            Some(place) => *place = number,
            // A fourth number changes nothing; more are no version.
            None if index == 3 => {}
            None => return None,
        }
    }
    Some(version)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn on(status: u16, body: &str, end: BodyEnd) -> Result<ServerProfile, ProfileUnknown> {
        ServerProfile::from_answer(&Answer { status, body: body.as_bytes(), end, retry_after: None })
    }

    fn named(version: &str) -> Result<ServerProfile, ProfileUnknown> {
        on(200, &format!(r#"{{"code":0,"data":{{"enableMobileRegister":false,"version":"{version}"}}}}"#), BodyEnd::Complete)
    }

    #[test]
    fn the_version_names_the_line() {
        for version in ["0.9.3", "0.9.10", "0.10", "v0.9.3", "1", "1.0.0-beta", "0.9.3+7", " 0.9.6 ", "0.9.3.1"] {
            assert_eq!(named(version), Ok(ServerProfile::MILLISECONDS), "{version}");
        }
        for version in ["0.7.5", "0.9.2", "0.9", "0", "0.8.99", "v0.9.2-rc1"] {
            assert_eq!(named(version), Ok(ServerProfile { is_named: true, ..ServerProfile::SECONDS }), "{version}");
        }
    }

    #[test]
    fn a_server_without_the_endpoint_is_an_old_one() {
        assert_eq!(on(404, "<html>", BodyEnd::Complete), Ok(ServerProfile::SECONDS));
        assert_eq!(on(200, r#"{"code":401}"#, BodyEnd::Complete), Ok(ServerProfile::SECONDS));
        assert_eq!(on(200, r#"{"code":404,"data":null}"#, BodyEnd::Complete), Ok(ServerProfile::SECONDS));
    }

    #[test]
    fn anything_unclear_is_unknown() {
        for version in ["", "latest", "0.x.3", "-1.0", "0..3", "1.2.3.4.5", "99999999999.0", "０.9.3"] {
            assert!(named(version).is_err(), "{version}");
        }
        for (status, body) in [
            (200, "<html>"),
            (200, ""),
            (200, r#"{"code":500}"#),
            (200, r#"{"code":0}"#),
            (200, r#"{"code":0,"data":{}}"#),
            (200, r#"{"code":0,"data":["0.9.3"]}"#),
            (200, r#"{"code":0,"data":{"version":9}}"#),
            (200, r#"{"code":0,"data":{"version":"0.9.3","version":"0.7.5"}}"#),
            (200, r#"{"code":"0","data":{"version":"0.9.3"}}"#),
            (302, ""),
            (401, ""),
            (502, ""),
        ] {
            assert!(on(status, body, BodyEnd::Complete).is_err(), "{status} {body}");
        }
        let whole = r#"{"code":0,"data":{"version":"0.9.3"}}"#;
        assert!(on(200, whole, BodyEnd::Cut).is_err() && on(200, whole, BodyEnd::TooLong).is_err());
    }

    #[test]
    fn a_configured_content_limit_replaces_only_that() {
        let profile = ServerProfile::MILLISECONDS.limited(Some(MaxContent::Characters(7)));
        assert_eq!(profile, ServerProfile { content_limit: ContentLimit::Characters(7), ..ServerProfile::MILLISECONDS });
        assert_eq!(ServerProfile::SECONDS.limited(None), ServerProfile::SECONDS);
        assert_eq!(ServerProfile::SECONDS.limited(Some(MaxContent::Bytes(9))).content_limit, ContentLimit::Bytes(9));
    }
}
