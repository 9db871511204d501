//! When something was said.
//!
//! Promises: a producer's time becomes milliseconds; a time that cannot be right becomes "now", and that is said.
//! Refuses: what is no time at all (a boolean, `"yesterday"`, `1e400`).
//! Called by the decoder and the LiveKit mapping.

use super::decode::DecodeOptions;
use super::event::UnixMillis;
use super::fields::{Field, Fields, Kind, Problem, unescape};

/// 2001-01-01T00:00:00Z: nobody spoke with a toy before.
const EARLIEST: i64 = 978_307_200_000;
/// 9999-12-31T23:59:59.999Z: no calendar of the daemon goes further.
const LATEST: i64 = 253_402_300_799_999;
const DAY: i64 = 86_400_000;
/// From here on a number is milliseconds: in seconds it would be the year 5138.
const FIRST_MILLIS: f64 = 1e11;
const LONGEST_TEXT: usize = 64;

/// The time in a field, and whether "now" stands in for one outside 2001 … now + 1 day. While our own clock is before
/// the build date it cannot judge: any time from 1970 to 9999 is then kept.
///
/// # Errors
/// When the field is there and is no time.
pub(super) fn read(fields: &Fields<'_>, field: Field, options: &DecodeOptions) -> Result<(UnixMillis, bool), Problem> {
    let millis = match (fields.kind(field), fields.raw(field)) {
        (None, _) | (_, None) => return Ok((options.now, false)),
        (Some(Kind::Number(digits)), _) => from_number(digits),
        (Some(Kind::String(_)), Some(text)) => from_text(&unescape(text)),
        _ => None,
    };
    let millis = millis
        .ok_or(Problem::new(field, "must be seconds or milliseconds since 1970, or an RFC 3339 date and time with offset"))?;
    let plausible = if options.now < options.build_date { 0..=LATEST } else { EARLIEST..=options.now.0.saturating_add(DAY) };
    Ok(if plausible.contains(&millis) { (UnixMillis(millis), false) } else { (options.now, true) })
}

#[allow(clippy::cast_possible_truncation, reason = "saturates, and what is that large is out of range anyway")]
fn from_number(digits: &str) -> Option<i64> {
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite())?;
    let millis = if number.abs() < FIRST_MILLIS { number * 1000.0 } else { number };
    Some(millis.round() as i64)
}

fn from_text(text: &str) -> Option<i64> {
    if text.len() > LONGEST_TEXT {
        return None;
    }
    text.trim().parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const NOW: i64 = 1_758_800_000_000;

    fn at(text: &str, now: i64) -> Result<(i64, bool), Problem> {
        let line = format!(r#"{{"timestamp":{text}}}"#);
        let options = DecodeOptions { tools: false, now: UnixMillis(now), build_date: UnixMillis(1_700_000_000_000) };
        read(&Fields::read(&line).unwrap(), Field::Timestamp, &options).map(|(time, replaced)| (time.0, replaced))
    }

    #[test]
    fn seconds_milliseconds_and_dates_are_times() {
        for (text, expected) in [
            ("1758701973", 1_758_701_973_000),
            ("1758701973.25", 1_758_701_973_250),
            ("1758701973.2509", 1_758_701_973_251),
            ("1758701973250", 1_758_701_973_250),
            ("1.758701973e9", 1_758_701_973_000),
            (r#""2025-09-24T08:19:33.250Z""#, 1_758_701_973_250),
            (r#""2025-09-24T13:49:33+05:30""#, 1_758_701_973_000),
            (r#""2025-09-24 08:19:33Z""#, 1_758_701_973_000),
        ] {
            assert_eq!(at(text, NOW), Ok((expected, false)), "{text}");
        }
    }

    #[test]
    fn no_time_is_now() {
        assert_eq!(at("null", NOW), Ok((NOW, false)));
    }

    #[test]
    fn a_time_that_cannot_be_right_is_replaced_by_now_and_said() {
        for text in ["0", "-5", "978307199.999", "1758886400.001", "1e300", "99999999999", r#""1999-01-01T00:00:00Z""#] {
            assert_eq!(at(text, NOW), Ok((NOW, true)), "{text}");
        }
        assert_eq!(at("1758886400", NOW), Ok((1_758_886_400_000, false)));
        assert_eq!(at("978307200", NOW), Ok((978_307_200_000, false)));
    }

    #[test]
    fn a_clock_before_the_build_date_does_not_judge() {
        assert_eq!(at("1758701973", 5_000), Ok((1_758_701_973_000, false)));
        assert_eq!(at("60", 5_000), Ok((60_000, false)));
        assert_eq!(at("-60", 5_000), Ok((5_000, true)));
        assert_eq!(at("1e300", 5_000), Ok((5_000, true)));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["true", "[]", "{}", "1e400", r#""""#, r#""yesterday""#, r#""1758701973""#, r#""2025-09-24T08:19:33""#] {
            assert_eq!(at(text, NOW).unwrap_err().field, "timestamp", "{text}");
        }
    }
}
