//! Which headings stand above a place in a Markdown text.

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// The headings of a text, in order.
#[derive(Debug, Default)]
pub(crate) struct Headings(Vec<Heading>);

#[derive(Debug)]
struct Heading {
    /// Where it begins, in bytes.
    start: usize,
    level: HeadingLevel,
    text: String,
}

impl Headings {
    /// Finds the headings of a Markdown text (CommonMark).
    pub(crate) fn of(markdown: &str) -> Self {
        let mut headings = Vec::new();
        let mut open: Option<Heading> = None;
        for (event, range) in Parser::new(markdown).into_offset_iter() {
            match (event, &mut open) {
                (Event::Start(Tag::Heading { level, .. }), _) => {
                    open = Some(Heading { start: range.start, level, text: String::new() });
                }
                (Event::End(TagEnd::Heading(_)), _) => headings.extend(open.take()),
                (Event::Text(text) | Event::Code(text), Some(heading)) => heading.text.push_str(&text),
                (Event::SoftBreak | Event::HardBreak, Some(heading)) => heading.text.push(' '),
                _ => {}
            }
        }
        headings.retain(|heading| !heading.text.trim().is_empty());
        Self(headings)
    }

    /// The headings above a place, outermost first; one that begins there counts.
    pub(crate) fn above(&self, place: usize) -> Vec<String> {
        let before = self.0.partition_point(|heading| heading.start <= place);
        let mut path: Vec<&Heading> = Vec::new();
        for heading in self.0[..before].iter().rev() {
            if path.last().is_none_or(|inner| heading.level < inner.level) {
                path.push(heading);
            }
        }
        path.iter().rev().map(|heading| heading.text.trim().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Headings;

    #[test]
    fn a_place_is_under_the_nearest_heading_of_each_higher_level() {
        let text = "intro\n\n# A\n\na\n\n## B *b* `c`\n\nb\n\n```\n# no heading\n```\n\n## C\n\nc\n\nD\n=\n\nd\n";
        let headings = Headings::of(text);
        let above = |needle: &str| headings.above(text.find(needle).unwrap());
        assert_eq!(above("intro"), Vec::<String>::new());
        assert_eq!(above("# A"), ["A"]);
        assert_eq!(above("b\n\n```"), ["A", "B b c"]);
        assert_eq!(above("no heading"), ["A", "B b c"]);
        assert_eq!(above("c\n\nD"), ["A", "C"]);
        assert_eq!(above("d\n"), ["D"]);
    }
}
