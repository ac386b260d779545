//! Clients of different capabilities at one server that asks: what each sees and is asked is what it would be direct.

use std::fs;

use serde_json::Value;

use crate::harness::{Server, cairn, needs, node, temp, text};

const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
const CLIENTS: &str = "audiences.mjs";

fn seen(args: &[&str]) -> Value {
    let said = node(CLIENTS, args).succeeded();
    serde_json::from_str(&said).unwrap_or_else(|err| panic!("{err}: {said}"))
}

#[test]
fn clients_see_and_are_asked_what_they_are_direct() {
    let data = temp();
    let (program, script) = (needs("node_modules/node/bin/node"), needs(EVERYTHING));
    let config = data.path().join("cairn.toml");
    let upstream = format!(
        "[[upstream]]\nname = \"every\"\ncommand = {:?}\nargs = [{:?}, \"stdio\"]\n",
        text(&program),
        text(&script)
    );
    fs::write(&config, upstream).expect("the directory is there");
    let node_data = data.path().join("node");
    let mut serve = cairn(&["serve", "--listen", "127.0.0.1:0", "--data", text(&node_data)]);
    serve.arg("--config").arg(&config);
    let server = Server::start_as(serve);
    let through = seen(&[&server.mcp()]);
    let direct = seen(&[text(&program), text(&script), "stdio"]);
    assert_eq!(through, direct);
    assert!(
        direct["able"].as_u64() > direct["plain"].as_u64(),
        "it offers more to who can be asked: {direct}"
    );
    assert!(server.stop().success());
    let verified = cairn(&["log", "verify", "--data", text(&node_data)]).output().expect("cairn runs");
    assert!(verified.status.success(), "{verified:?}");
    crate::record::check(&node_data);
}
