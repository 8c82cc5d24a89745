//! Small helps for saying what is wrong: the name that was probably meant, and
//! durations and sizes as people write them.

use std::time::Duration;

/// `; did you mean "store"?`, or nothing when no name comes near.
pub(crate) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let found = plain(found);
    // A third of the letters may be wrong; more is another word.
    let allowed = found.chars().count().div_ceil(3).min(4);
    let near = known.into_iter().map(|name| (distance(&found, &plain(name)), name)).min();
    match near {
        Some((distance, name)) if distance <= allowed => format!("; did you mean {name:?}?"),
        _ => String::new(),
    }
}

/// The names that come near, the nearest first, at most `count`.
pub(crate) fn nearest_names<'a>(found: &str, known: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let found = plain(found);
    let allowed = found.chars().count().div_ceil(3).min(4);
    let measured = known.into_iter().map(|name| (distance(&found, &plain(name)), name));
    let mut near: Vec<_> = measured.filter(|(distance, _)| *distance <= allowed).collect();
    near.sort_unstable();
    near.into_iter().take(count).map(|(_, name)| name).collect()
}

/// How many letters must be added, removed, changed or swapped with their
/// neighbour to turn one text into the other (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// Reads a duration: a number with `ms`, `s`, `m`, `h` or `d` (`500ms`, `1.5s`).
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    // Ten thousand years are enough, and keep every sum of durations in range.
    let total = number * millis;
    (total <= 315_576_000_000_000.0).then(|| Duration::from_millis(total.round() as u64))
}

/// Reads a size: a whole number of bytes, or a number with `B`, `kB`, `KiB`,
/// `MB`, `MiB`, `GB` or `GiB` (`8MiB`).
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let bytes = match unit {
        "" | "B" => 1.0,
        "kB" => 1e3,
        "KiB" => 1024.0,
        "MB" => 1e6,
        "MiB" => 1024.0 * 1024.0,
        "GB" => 1e9,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let total = number * bytes;
    // Whole numbers of bytes, and exactly so: doubles are exact below 2^53.
    (total.fract() == 0.0 && total < 9_007_199_254_740_992.0).then_some(total as u64)
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    number.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_probably_meant_is_offered() {
        assert_eq!(nearest("stoer", ["store", "parse"]), "; did you mean \"store\"?");
        assert_eq!(nearest("mimeType", ["mime_type", "title"]), "; did you mean \"mime_type\"?");
        assert_eq!(nearest("zebra", ["store", "parse"]), "");
    }

    #[test]
    fn durations_and_sizes_are_read_as_written() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("5m"), Some(Duration::from_secs(300)));
        for bad in ["", "5", "s", "-1s", "1 year", "1e3s", ".5s", "99999999999999d"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(parse_size("8MiB"), Some(8 * 1024 * 1024));
        assert_eq!(parse_size("1048588"), Some(1_048_588));
        assert_eq!(parse_size("1.5KiB"), Some(1536));
        for bad in ["", "MiB", "-1", "1.5", "8 mib", "1e9"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
