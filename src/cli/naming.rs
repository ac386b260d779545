//! Names of events and blocks as people type them: a CID, the beginning or end of one, or an event's place in the log.
//!
//! Invariants:
//! - a part stands for a name only if it is the only one of the log that has it;
//! - digits alone are a place in the log, never a part of a CID.

use std::str::FromStr;

use crate::{block::Cid, query::naming::PART_MIN};

/// What an event or block was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Cid(Cid),
    /// An event by its place in the log.
    Seq(u64),
    /// The beginning or the end of a CID.
    Part(String),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(cid) = text.parse() {
            return Ok(Self::Cid(cid));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Seq).map_err(|_| "no log has so many events".to_owned());
        }
        // Tables show the end of a CID behind an ellipsis, which is copied with it.
        let dots = |c: char| matches!(c, '\u{2026}' | '.');
        let part = text.trim_start_matches(dots).trim_end_matches(dots);
        match part.len() >= PART_MIN && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')) {
            true => Ok(Self::Part(part.to_owned())),
            false => Err(format!(
                "expected a CID, {PART_MIN} or more characters of its beginning or end, or a seq"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_cid_a_seq_or_a_part() {
        let whole = "bafyreigd5574isnriyjfykehmwmup74chj4tvmank42ixq6yiwhkoqvs24";
        assert!(matches!(whole.parse(), Ok(Name::Cid(_))));
        assert_eq!("17".parse(), Ok(Name::Seq(17)));
        assert_eq!("23456723".parse(), Ok(Name::Seq(23_456_723)));
        let part = Name::Part("6yiwhkoqvs24".to_owned());
        for text in ["6yiwhkoqvs24", "\u{2026}6yiwhkoqvs24", "...6yiwhkoqvs24", "6yiwhkoqvs24..."] {
            assert_eq!(text.parse(), Ok(part.clone()), "{text}");
        }
        for text in
            ["", "oqvs24", "OQVS2424", "6yiwhkoqvs2=", "-1", "18446744073709551616", "6yiwhk\u{1b}oqvs"]
        {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
