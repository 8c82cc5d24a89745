//! Counts what stands for tokens, without any model's vocabulary.

use text_splitter::ChunkSizer;

/// Characters of a word that make a token.
const CHARACTERS_PER_TOKEN: usize = 4;

/// Counts tokens as [`Unit::Tokens`](crate::config::Unit::Tokens) says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens;

impl ChunkSizer for Tokens {
    fn size(&self, text: &str) -> usize {
        let mut tokens = 0;
        let mut run = 0_usize;
        for character in text.chars() {
            if character.is_alphanumeric() {
                run += 1;
                continue;
            }
            tokens += run.div_ceil(CHARACTERS_PER_TOKEN);
            run = 0;
            tokens += usize::from(!character.is_whitespace());
        }
        tokens + run.div_ceil(CHARACTERS_PER_TOKEN)
    }
}

#[cfg(test)]
mod tests {
    use text_splitter::ChunkSizer;

    #[test]
    fn words_count_by_length_and_marks_one_each() {
        for (text, tokens) in [("", 0), ("   ", 0), ("a", 1), ("word", 1), ("words", 2), ("a b, c!", 5), ("naïveté", 2)]
        {
            assert_eq!(super::Tokens.size(text), tokens, "{text:?}");
        }
    }
}
