//! Tests from outside: the rules of the source, the published formats, and the built server at its doors.
//!
//! One binary. Other people's programs come from `tests/clients/setup`.

mod audit;
mod command_line;
mod floors;
mod formats;
mod harness;
mod questions;
mod schemas;
