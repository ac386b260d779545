//! Words and numbers as the outside writes them: enums whose variants have one word each, and whole numbers.
//!
//! Invariants:
//! - a word is written once, beside its variant;
//! - what is printed is what is read, and lists of all the words are made from the same place.

pub mod number;
pub mod plain;

/// Declares an enum whose variants have one word each.
///
/// It gets `ALL` of its variants and their `WORDS`, in the order of declaration, `as_str` and `parse`. An enum that is
/// also serialized says so itself, with a `rename_all` that gives the same words.
macro_rules! words {
    (
        $(#[$attribute:meta])*
        $visible:vis enum $name:ident {
            $($(#[$of_variant:meta])* $variant:ident = $word:literal),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name {
            $($(#[$of_variant])* $variant),*
        }

        impl $name {
            pub const ALL: [Self; Self::WORDS.len()] = [$(Self::$variant),*];
            pub const WORDS: [&'static str; [$($word),*].len()] = [$($word),*];

            /// Returns its word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// Returns the one with this word; `None` if there is none.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    words! {
        enum Place {
            Here = "here",
            FarAway = "far_away",
        }
    }

    #[test]
    fn a_word_is_read_as_what_it_was_printed_for() {
        assert_eq!(Place::ALL, [Place::Here, Place::FarAway]);
        assert_eq!(Place::WORDS, ["here", "far_away"]);
        for place in Place::ALL {
            assert_eq!(Place::parse(place.as_str()), Some(place));
        }
        assert_eq!(Place::parse("Here"), None);
    }
}
