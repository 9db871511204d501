//! Who a line belongs to: the device's MAC address and the session id, both checked and in canonical form.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The hardware address of a toy. Canonical form: lower-case hexadecimal with colons, because one of the two known
/// servers compares it as an exact string (`reference: Manager API, MAC and session formats`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// The id of a conversation: 1–100 characters, no control characters, otherwise opaque (a LiveKit room name).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

/// The pair that names one conversation: there is one buffer actor per pair.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SessionIdentity {
    /// The device.
    pub mac: MacAddress,
    /// The conversation.
    pub session_id: SessionId,
}

/// Why a text is no MAC address or session id: a phrase for an error message, without the offending text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidIdentity(pub &'static str);

impl MacAddress {
    /// Hexadecimal digits in an address.
    pub const HEX_DIGITS: usize = 12;

    /// The address from its six octets.
    #[must_use]
    pub const fn from_octets(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The six octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Twelve lower-case hexadecimal digits without separators, as the Manager API's agent lookup and file names use it.
    #[must_use]
    pub fn bare(self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(12), |mut text, octet| {
            let _ = write!(text, "{octet:02x}");
            text
        })
    }

    /// The last two octets: enough for a log line, too little to name a device.
    #[must_use]
    pub fn short(self) -> String {
        let [.., a, b] = self.0;
        format!("..{a:02x}:{b:02x}")
    }

    /// The MAC inside a session id of the form `…_<12 hex>[_<type>]`, as the MQTT gateway builds room names.
    #[must_use]
    pub fn from_session_id(session_id: &str) -> Option<Self> {
        let mut parts = session_id.rsplit('_');
        let last = parts.next()?;
        let before = parts.next()?;
        let candidate = |part: &str| {
            (part.len() == Self::HEX_DIGITS && part.bytes().all(|b| b.is_ascii_hexdigit())).then(|| part.parse().ok()).flatten()
        };
        candidate(last).or_else(|| parts.next().and_then(|_| candidate(before)))
    }
}

impl FromStr for MacAddress {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: InvalidIdentity =
            InvalidIdentity("is no MAC address (12 hexadecimal digits, with ':' or '-' between pairs or without)");
        let bytes = text.as_bytes();
        let mut octets = [0_u8; 6];
        let stride = match bytes.len() {
            12 => 2,
            17 => 3,
            _ => return Err(WRONG),
        };
        let separator = bytes.get(2).copied();
        for (index, octet) in octets.iter_mut().enumerate() {
            let at = index * stride;
            let pair = bytes.get(at..at + 2).ok_or(WRONG)?;
            if stride == 3 && index > 0 {
                let found = bytes.get(at - 1).copied();
                if found != separator || !matches!(found, Some(b':' | b'-')) {
                    return Err(WRONG);
                }
            }
            if !pair.iter().all(u8::is_ascii_hexdigit) {
                return Err(WRONG);
            }
            let pair = std::str::from_utf8(pair).map_err(|_| WRONG)?;
            *octet = u8::from_str_radix(pair, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SessionId {
    /// The longest session id accepted, in characters: the widest column of the known servers.
    pub const MAX_CHARACTERS: usize = 100;

    /// Checks a session id.
    ///
    /// # Errors
    /// When it is empty or blank (the server refuses both), longer than 100 characters or holds control characters.
    pub fn new(text: &str) -> Result<Self, InvalidIdentity> {
        if text.is_empty() {
            return Err(InvalidIdentity("is empty"));
        }
        if text.trim().is_empty() {
            return Err(InvalidIdentity("is blank"));
        }
        if text.chars().nth(Self::MAX_CHARACTERS).is_some() {
            return Err(InvalidIdentity("is longer than 100 characters"));
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidIdentity("holds control characters"));
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_mac_becomes_the_canonical_one() {
        for text in ["68:25:DD:BA:39:78", "68-25-dd-ba-39-78", "6825ddba3978", "6825DDBA3978"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), "68:25:dd:ba:39:78");
        }
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "68:25:dd:ba:39",
            "68:25:dd:ba:39:7g",
            "68:25-dd:ba:39:78",
            "68.25.dd.ba.39.78",
            "+8:25:dd:ba:39:78",
            "६8:25:dd:ba:39",
            "6825ddba39781",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_mac_is_found_in_a_room_name() {
        let room = "d3746a02-1111-2222-3333-444455556666_6825ddba3978";
        let mac = Some("68:25:dd:ba:39:78".parse().unwrap());
        assert_eq!(MacAddress::from_session_id(room), mac);
        assert_eq!(MacAddress::from_session_id(&format!("{room}_conversation")), mac);
        assert_eq!(MacAddress::from_session_id("6825ddba3978"), None);
        assert_eq!(MacAddress::from_session_id("6825ddba3978_story"), None);
        assert_eq!(MacAddress::from_session_id("plain"), None);
    }

    /// The server refuses it for ever, with every message of its session.
    #[test]
    fn a_blank_session_id_is_none() {
        for blank in ["", " ", "\u{a0}\u{2003}"] {
            assert!(SessionId::new(blank).is_err(), "{blank:?}");
        }
        assert!(SessionId::new(" a ").is_ok());
    }

    #[test]
    fn a_session_id_is_counted_in_characters() {
        assert!(SessionId::new(&"é".repeat(100)).is_ok());
        assert!(SessionId::new(&"é".repeat(101)).is_err());
        assert!(SessionId::new("").is_err());
        assert!(SessionId::new("a\nb").is_err());
    }
}
