//! The stdio door: this node itself, spoken to over standard input and output.
//!
//! Standard output carries messages and nothing else, so logs go to standard error. Whoever started the
//! process is its only caller.

use std::{io, sync::Arc};

use crate::{
    mcp::{Settings, serve_stdio},
    router::{Caller, Router},
};

/// Serves `caller` until standard input ends or `settings.shutdown` fires.
///
/// After a shutdown a read of standard input may still be waiting on its thread: leave the process, do not join.
pub async fn serve(router: Arc<Router>, settings: Settings, caller: Caller) -> io::Result<()> {
    let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
    serve_stdio(router, settings, caller, input, output).await
}
