//! Tests from outside: the rules of the source, the published formats, and the built server at its doors.
//!
//! One binary. Other people's programs come from `tests/clients/setup`.

#![allow(clippy::too_many_lines, reason = "a test tells one story, from its start to its end")]

#[cfg(not(feature = "p2p"))]
mod alone;
mod archives;
mod asked;
mod audit;
mod audiences;
mod auditor;
mod backups;
mod bad_input;
mod beside;
mod calls;
mod catalogue;
mod clients;
mod command_line;
mod commands;
mod conformance;
mod crashes;
mod dag;
mod dialects;
mod door;
mod durable;
mod erasing;
mod evidence;
mod floors;
mod formats;
mod harness;
mod heads;
mod kept;
mod killed;
mod lines;
mod logins;
mod minted;
mod mutations;
#[cfg(feature = "p2p")]
mod namespaces;
mod old_logs;
mod operating;
mod packaging;
mod passing;
#[cfg(feature = "p2p")]
mod peers;
#[cfg(feature = "p2p")]
mod peers_work;
mod provenance;
mod questions;
mod readme;
mod record;
mod restart;
mod runs;
mod schemas;
mod secrets;
mod sessions;
mod speech;
mod taskhandles;
mod transport;
mod upstream;
mod upstreams;
mod verdicts;
mod watched;
mod work;
