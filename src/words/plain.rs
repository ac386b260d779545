//! Texts that are shown on one line: names and tags, which go onto terminals and into logs.
//!
//! Invariant: a plain text moves no cursor, ends no line and turns no direction of writing, wherever it is shown.

/// Returns whether a text has no control characters (C0, C1), no line separators, and none that turn the direction of
/// writing (Unicode's Bidi_Control).
pub fn is_plain(text: &str) -> bool {
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns(c))
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn what_a_terminal_acts_on_is_not_plain() {
        for text in ["", "a name", "Überprüfung", "名前", "שם", "a\u{301}", "👩\u{200d}🚀"] {
            assert!(is_plain(text), "{text:?}");
        }
        for c in [
            '\0', '\u{7}', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{61c}', '\u{200f}',
            '\u{2028}', '\u{202e}', '\u{2066}',
        ] {
            assert!(!is_plain(&format!("a{c}b")), "{c:?}");
        }
    }
}
