//! What is told of a pass that failed.
//!
//! What went wrong at the peer is named; what went wrong here is not.

use std::io;

use super::Failed;
use crate::{
    follow::{
        Refused,
        copy::FollowedError,
        driver::FollowError,
        wire::{Reason, WireError},
    },
    log::LogError,
};

#[test]
fn callers_are_told_what_is_wrong_with_the_peer_and_nothing_of_what_is_wrong_here() {
    let corrupt = || LogError::Corrupt { what: "a row" };
    let ours = [
        FollowError::Store(FollowedError::Io(io::Error::other("/var/lib is full"))),
        FollowError::Refused(Refused::Held(corrupt())),
        FollowError::Fold(corrupt().into()),
    ];
    for err in ours {
        assert_eq!(Failed::Follow(err).shown(), "internal error");
    }
    let theirs = [
        (FollowError::Refused(Refused::Declined(Reason::Busy)), "the peer declined: busy"),
        (FollowError::Refused(Refused::Link { seq: 3 }), "event 3 does not link"),
        (FollowError::Wire(WireError::Idle), "the stream to the peer failed"),
        (FollowError::Store(FollowedError::TooMany), "remove one first"),
    ];
    for (err, said) in theirs {
        let shown = Failed::Follow(err).shown();
        assert!(shown.contains(said), "{shown}");
    }
}
