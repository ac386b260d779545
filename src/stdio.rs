//! The stdio door: one client on standard input and output, message by message.
//!
//! Invariants:
//! - nothing but messages is written to standard output.

use std::{io, sync::Arc};

use crate::{caller::Caller, mcp, router::Router};

/// Serves the client on standard input until it closes it, or until `settings.shutdown`.
pub async fn serve(router: Arc<Router>, settings: mcp::Settings, caller: Caller) -> io::Result<()> {
    mcp::serve_stdio(router, settings, caller, tokio::io::stdin(), tokio::io::stdout()).await
}
