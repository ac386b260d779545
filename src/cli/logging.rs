//! Log lines on standard error.
//!
//! Invariants:
//! - whatever a field holds, a log line is one line, and no character of it acts on whoever reads it;
//! - what the library of authorizations says is in no log line, since it may hold a code or a token.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, field::MakeExt, fmt::format::debug_fn};

use crate::{config::LogFormat, visible};

/// Sends log lines to standard error, since standard output belongs to programs.
pub fn trace(format: LogFormat) {
    let usual = "warn,rmcp=error,libp2p_kad=error,cairn=info";
    let filter = EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let filter = match "rmcp::transport::auth=off".parse() {
        Ok(silence) => filter.add_directive(silence),
        Err(_) => EnvFilter::new("error"),
    };
    start(filter, format, io::stderr().is_terminal());
}

/// Sends warnings to standard error, such as those about an unreachable upstream.
pub fn warn() {
    let filter = EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    start(filter, LogFormat::Text, colours);
}

fn start(filter: EnvFilter, format: LogFormat, colours: bool) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // Nobody reading them is no fault.
    let builder = builder.log_internal_errors(false);
    // A second initialisation happens only in tests; the first one stays.
    let _ = match format {
        LogFormat::Text => {
            let fields = debug_fn(|writer, field, value| {
                let value = format!("{value:?}");
                let value = visible::line(&value);
                match field.name() {
                    "message" => write!(writer, "{value}"),
                    name => write!(writer, "{name}={value}"),
                }
            });
            let fields = fields.delimited(" ");
            builder.fmt_fields(fields).with_writer(io::stderr).with_ansi(colours).try_init()
        }
        LogFormat::Json => builder.json().with_writer(|| Json(io::stderr())).try_init(),
    };
}

/// Takes log lines of JSON, each in one piece.
struct Json(io::Stderr);

impl Write for Json {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(visible::json(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
