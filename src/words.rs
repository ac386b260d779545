//! Closed sets of words: an enum whose variants have one word each, and the way from each to the other.
//!
//! Invariants:
//! - a word is written once, beside its variant;
//! - what is printed is what is read, and lists of all the words are made from the same place.

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
    use serde::{Serialize, de::DeserializeOwned};

    use crate::{error, event, peer, task, worker};

    /// Holds the words of an enum to those that it is serialized as.
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(all: &[T], words: &[&str]) {
        assert_eq!(serde_json::to_value(all).ok(), serde_json::to_value(words).ok());
        let read: Vec<T> = serde_json::from_value(serde_json::json!(words)).expect("they are its words");
        assert_eq!(read, all);
    }

    #[test]
    fn what_is_serialized_is_the_word() {
        check(&error::Code::ALL, &error::Code::WORDS);
        check(&event::Role::ALL, &event::Role::WORDS);
        check(&peer::Status::ALL, &peer::Status::WORDS);
        check(&task::Status::ALL, &task::Status::WORDS);
        check(&worker::Status::ALL, &worker::Status::WORDS);
    }

    #[test]
    fn a_word_is_read_as_what_it_was_printed_for() {
        for status in task::Status::ALL {
            assert_eq!(task::Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(task::Status::parse("Queued"), None);
    }
}
