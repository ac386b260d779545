//! Claims about other people's clients: what a library of the protocol makes of our answers.
//!
//! Invariant: the library is used as its users do, and nothing of it is replaced.

use rmcp::{ServiceExt, model::CallToolRequestParams};
use tokio::io::{duplex, split};

use super::{ENDS, caller, node};
use crate::mcp::{Settings, serve_stdio};

#[tokio::test]
async fn a_client_of_the_rust_library_is_served_over_lines() {
    let node = node().await;
    let (near, far) = duplex(1 << 16);
    let (reader, writer) = split(far);
    let served =
        tokio::spawn(serve_stdio(node.router.clone(), Settings::default(), caller(), reader, writer));
    let client = ().serve(near).await.expect("the handshake is understood");
    let tools = client.list_all_tools().await.expect("the list is understood");
    assert_eq!(tools.len(), ENDS.len() + 2);
    let result =
        client.call_tool(CallToolRequestParams::new("echo")).await.expect("the answer is understood");
    assert!(result.meta.is_some_and(|meta| meta.0.contains_key("io.cairn/event")));
    client.call_tool(CallToolRequestParams::new("no such")).await.expect_err("an error is understood");
    client.cancel().await.expect("the client ends");
    served.await.expect("no panic").expect("no failure");
}
