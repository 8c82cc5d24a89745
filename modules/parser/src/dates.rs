//! Dates as documents state them, in the spellings that formats and people use.

use prost_types::Timestamp;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::{Rfc2822, Rfc3339};
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

const LOCAL: &[&[BorrowedFormatItem<'static>]] = &[
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]"),
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]"),
    format_description!("[year]-[month]-[day]T[hour]:[minute]"),
    format_description!("[year]-[month]-[day] [hour]:[minute]"),
];
const DATE: &[&[BorrowedFormatItem<'static>]] =
    &[format_description!("[year]-[month]-[day]"), format_description!("[year]/[month]/[day]")];

/// Reads a date; one without a time zone is taken as UTC. `None` when it is in
/// no known spelling, or in the year 0.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(text, &Rfc2822))
        .ok()
        .or_else(|| pdf(text))
        .or_else(|| mail(text))
        .or_else(|| {
            // OpenDocument writes fractions of a second and no zone.
            let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
            LOCAL
                .iter()
                .find_map(|format| PrimitiveDateTime::parse(whole, format).ok())
                .map(PrimitiveDateTime::assume_utc)
        })
        .or_else(|| {
            DATE.iter().find_map(|format| Date::parse(text, format).ok()).map(|date| date.midnight().assume_utc())
        })?;
    (moment.year() > 0)
        .then(|| Timestamp { seconds: moment.unix_timestamp(), nanos: i32::try_from(moment.nanosecond()).unwrap_or(0) })
}

/// Mail dates whose comment or zone name RFC 2822 readers refuse.
fn mail(text: &str) -> Option<OffsetDateTime> {
    let text = text.split_once('(').map_or(text, |(date, _)| date).trim();
    OffsetDateTime::parse(text, &Rfc2822).ok()
}

/// `D:YYYYMMDDHHmmSSOHH'mm'`, everything after the year optional
/// (ISO 32000-1, 7.9.4).
fn pdf(text: &str) -> Option<OffsetDateTime> {
    let text = text.strip_prefix("D:")?;
    let number = |range: std::ops::Range<usize>, default: u8| match text.get(range) {
        Some(digits) if !digits.is_empty() => digits.parse().ok(),
        _ => Some(default),
    };
    let year: i32 = text.get(0..4)?.parse().ok()?;
    let month = time::Month::try_from(number(4..6, 1)?).ok()?;
    let date = Date::from_calendar_date(year, month, number(6..8, 1)?).ok()?;
    let time = Time::from_hms(number(8..10, 0)?, number(10..12, 0)?, number(12..14, 0)?).ok()?;
    let zone = text.get(14..).unwrap_or_default().replace('\'', "");
    let offset = match zone.split_at_checked(1) {
        Some((sign @ ("+" | "-"), digits)) => {
            let hours: i8 = digits.get(0..2)?.parse().ok()?;
            let minutes: i8 = digits.get(2..4).unwrap_or("0").parse().ok()?;
            let sign = if sign == "-" { -1 } else { 1 };
            UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()?
        }
        _ => UtcOffset::UTC,
    };
    Some(PrimitiveDateTime::new(date, time).assume_offset(offset))
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn check(text: &str, seconds: Option<i64>) {
        assert_eq!(parse(text).map(|timestamp| timestamp.seconds), seconds, "{text:?}");
    }

    #[test]
    fn spellings_of_documents_are_understood() {
        check("2024-03-01T12:00:00Z", Some(1_709_294_400));
        check("2024-03-01T12:00:00", Some(1_709_294_400));
        check("2024-03-01T12:00:00.123456789", Some(1_709_294_400));
        check("2024-03-01", Some(1_709_251_200));
        check("D:20240301120000Z", Some(1_709_294_400));
        check("D:20240301140000+02'00'", Some(1_709_294_400));
        check("D:2024", Some(1_704_067_200));
        check("Fri, 01 Mar 2024 12:00:00 +0000", Some(1_709_294_400));
        check("Fri, 01 Mar 2024 12:00:00 +0000 (UTC)", Some(1_709_294_400));
        check("0000-00-00", None);
        check("last spring", None);
    }
}
