//! What a plain YAML scalar is: the core schema of YAML 1.2 (§10.3.2).

use serde_json::Number;

use super::Kind;

/// What a scalar without quotes is; none: a text.
///
/// # Errors
/// For numbers that JSON does not have.
pub(in super::super) fn plain(text: &str) -> Result<Option<Kind>, &'static str> {
    Ok(Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Err("`.nan` is no number that can be used here"),
        _ => match number(text)? {
            Some(number) => Kind::Number(number),
            None => return Ok(None),
        },
    }))
}

fn number(text: &str) -> Result<Option<Number>, &'static str> {
    const TOO_LARGE: &str = "the number is too large";
    let radix = |digits: &str, radix: u32| match u64::from_str_radix(digits, radix) {
        Ok(number) => Ok(Some(Number::from(number))),
        Err(_) if !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)) => Err(TOO_LARGE),
        Err(_) => Ok(None),
    };
    // `from_str_radix` takes a sign; the core schema does not.
    if let Some(digits) = text.strip_prefix("0o") {
        return if digits.starts_with('+') { Ok(None) } else { radix(digits, 8) };
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return if digits.starts_with('+') { Ok(None) } else { radix(digits, 16) };
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Err("`.inf` is no number that can be used here");
    }
    if !is_decimal(unsigned) {
        return Ok(None);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Some(number.into()));
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(Some(number.into()));
    }
    let number: f64 = text.parse().map_err(|_| TOO_LARGE)?;
    // `1.0` and `1e3` are whole numbers, wherever one is wanted.
    if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 {
        return Ok(Some((number as i64).into()));
    }
    Number::from_f64(number).map(Some).ok_or(TOO_LARGE)
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_fits = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    let exponent_fits = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    mantissa_fits && exponent_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        let shown = |text: &str| match plain(text) {
            Ok(Some(Kind::Null)) => "null".to_owned(),
            Ok(Some(Kind::Bool(held))) => held.to_string(),
            Ok(Some(Kind::Number(number))) => number.to_string(),
            Ok(None) => "text".to_owned(),
            Ok(Some(_)) => "other".to_owned(),
            Err(error) => error.to_owned(),
        };
        for (text, is) in [
            ("", "null"),
            ("~", "null"),
            ("True", "true"),
            ("no", "text"),
            ("yes", "text"),
            ("007", "7"),
            ("+12", "12"),
            ("-0x1f", "text"),
            ("0x1F", "31"),
            ("0o17", "15"),
            ("1.0", "1"),
            ("1e3", "1000"),
            (".5", "0.5"),
            ("1.", "1"),
            (".", "text"),
            ("1_000", "text"),
            ("12:30", "text"),
            ("18446744073709551615", "18446744073709551615"),
            ("1e999", "the number is too large"),
            ("-.inf", "`.inf` is no number that can be used here"),
            ("500ms", "text"),
        ] {
            assert_eq!(shown(text), is, "{text}");
        }
    }
}
