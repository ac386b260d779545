//! Tests from outside: the rules of the source, the published formats, and the built server at its doors.
//!
//! One binary. Other people's programs come from `tests/clients/setup`.

mod audit;
mod clients;
mod conformance;
mod crashes;
mod floors;
mod formats;
mod harness;
mod questions;
mod record;
mod schemas;
mod speech;
mod upstream;
mod upstreams;
