//! The difference of two texts, line by line. Knows nothing of what they mean.

/// Lines around a difference that are shown with it.
const CONTEXT: usize = 3;

/// Texts with more pairs of differing lines than this are shown whole, one after
/// the other.
const MOST_PAIRS: usize = 4_000_000;

/// What differs, with some lines around it: `-` only in the first, `+` only in
/// the second.
pub(super) fn lines(first: &str, second: &str) -> String {
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    let edits = edits(&first, &second);
    let mut shown = String::new();
    let mut skipped = false;
    for (n, (sign, line)) in edits.iter().enumerate() {
        let around = n.saturating_sub(CONTEXT)..edits.len().min(n + CONTEXT + 1);
        if edits[around].iter().any(|(sign, _)| *sign != ' ') {
            shown.push_str(&format!("{sign} {line}\n"));
            skipped = false;
        } else if !skipped {
            shown.push_str("  …\n");
            skipped = true;
        }
    }
    shown
}

/// Each line of both texts with its sign, by a longest common subsequence.
fn edits<'a>(first: &[&'a str], second: &[&'a str]) -> Vec<(char, &'a str)> {
    let same = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let (head, first, second) = (&first[..same], &first[same..], &second[same..]);
    let mut edits: Vec<_> = head.iter().map(|line| (' ', *line)).collect();
    if first.len().saturating_mul(second.len()) > MOST_PAIRS {
        edits.extend(first.iter().map(|line| ('-', *line)));
        edits.extend(second.iter().map(|line| ('+', *line)));
        return edits;
    }
    // `length[a][b]`: longest common subsequence of first[a..] and second[b..].
    let mut length = vec![vec![0_usize; second.len() + 1]; first.len() + 1];
    for a in (0..first.len()).rev() {
        for b in (0..second.len()).rev() {
            length[a][b] =
                if first[a] == second[b] { length[a + 1][b + 1] + 1 } else { length[a + 1][b].max(length[a][b + 1]) };
        }
    }
    let (mut a, mut b) = (0, 0);
    while a < first.len() || b < second.len() {
        if a < first.len() && b < second.len() && first[a] == second[b] {
            edits.push((' ', first[a]));
            (a, b) = (a + 1, b + 1);
        } else if b == second.len() || (a < first.len() && length[a + 1][b] >= length[a][b + 1]) {
            edits.push(('-', first[a]));
            a += 1;
        } else {
            edits.push(('+', second[b]));
            b += 1;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_differs_is_shown_with_lines_around_it() {
        let first = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj";
        let second = "a\nb\nc\nd\nE\nf\ng\nh\ni\nj\nk";
        let expected = "  …\n  b\n  c\n  d\n- e\n+ E\n  f\n  g\n  h\n  i\n  j\n+ k\n";
        assert_eq!(super::lines(first, second), expected);
        assert_eq!(super::lines("x", "x"), "  …\n");
    }
}
