//! Following: what a follower takes, refuses and keeps.
