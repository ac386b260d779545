//! MCP as a test speaks it: messages of both eras, and a connection that stays open.
//!
//! Invariants:
//! - bytes are sent as given; nothing is repaired on the way;
//! - a connection that breaks is told apart from an answer: a crash shows as `None`.

#![allow(dead_code, reason = "each file of tests uses its own part")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{Reply, Server};

pub const MODERN: &str = "2026-07-28";
pub const LEGACY: &str = "2025-06-18";
/// Longer than any answer here takes on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A request of revision 2026-07-28; `params` may bring `_meta` keys of its own.
pub fn modern(id: u64, method: &str, mut params: Value) -> Value {
    let meta = &mut params["_meta"];
    if meta.is_null() {
        *meta = json!({});
    }
    meta["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
    meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "tests", "version": "1"});
    if meta.get("io.modelcontextprotocol/clientCapabilities").is_none() {
        meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
    }
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// The params of a tool call.
pub fn call(name: &str, arguments: &Value) -> Value {
    json!({"name": name, "arguments": arguments})
}

/// The params of a tool call that may be sent again under the same key.
pub fn keyed(name: &str, arguments: &Value, key: &str) -> Value {
    json!({"name": name, "arguments": arguments, "_meta": {"io.cairn/idempotency-key": key}})
}

/// One HTTP request to `/mcp`, with the headers of `message`'s era.
pub fn request(host: &str, session: Option<&str>, message: &Value) -> Vec<u8> {
    let body = message.to_string();
    let mut head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {}\r\n",
        body.len()
    );
    let params = &message["params"];
    let version = &params["_meta"]["io.modelcontextprotocol/protocolVersion"];
    if let Some(version) = version.as_str() {
        head += &format!("mcp-protocol-version: {version}\r\n");
        head += &format!("mcp-method: {}\r\n", message["method"].as_str().unwrap_or(""));
        if let Some(name) = ["name", "uri", "taskId"].iter().find_map(|key| params[*key].as_str()) {
            head += &format!("mcp-name: {name}\r\n");
        }
    } else if message["method"] != "initialize" {
        head += &format!("mcp-protocol-version: {LEGACY}\r\n");
    }
    if let Some(session) = session {
        head += &format!("mcp-session-id: {session}\r\n");
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// A connection kept open between requests.
pub struct Connection {
    host: String,
    stream: BufReader<TcpStream>,
    /// The session its requests belong to, once one was opened.
    pub session: Option<String>,
}

impl Connection {
    /// None where nobody listens.
    pub fn open(url: &str) -> Option<Self> {
        let host = url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&host).ok()?;
        stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { host, stream: BufReader::new(stream), session: None })
    }

    /// Opens a session of the older era.
    pub fn initialize(&mut self) -> Value {
        let params = json!({"protocolVersion": LEGACY, "capabilities": {},
                            "clientInfo": {"name": "tests", "version": "1"}});
        let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let reply = self.ask(&message).expect("the server answers");
        self.session = reply.header("mcp-session-id").map(str::to_owned);
        assert!(self.session.is_some(), "no session in {reply:?}");
        let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        self.ask(&note).expect("the server answers");
        reply.json()
    }

    /// Asks in the connection's era: that of its session, or 2026-07-28 where it has none.
    pub fn request(&mut self, id: u64, method: &str, params: Value) -> Value {
        let message = match self.session {
            Some(_) => json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}),
            None => modern(id, method, params),
        };
        self.ask(&message).expect("the server answers").json()
    }

    /// Sends a message and reads its reply; none where the connection broke before it was whole.
    pub fn ask(&mut self, message: &Value) -> Option<Reply> {
        self.send(message)?;
        self.reply()
    }

    pub fn send(&mut self, message: &Value) -> Option<()> {
        let bytes = request(&self.host, self.session.as_deref(), message);
        self.stream.get_mut().write_all(&bytes).ok()
    }

    /// Opens the stream of the connection's session, on which the server speaks unasked.
    pub fn listen(&mut self) {
        let session = self.session.clone().expect("a session was opened");
        self.stream("/mcp", &[("mcp-session-id", &session)]);
    }

    /// Opens an event stream.
    pub fn stream(&mut self, path: &str, headers: &[(&str, &str)]) {
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n", self.host);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent = self.stream.get_mut().write_all(format!("{head}\r\n").as_bytes());
        sent.expect("the server listens");
        assert_eq!(self.head().expect("the server answers").status, 200);
    }

    /// Reads one reply to its end.
    pub fn reply(&mut self) -> Option<Reply> {
        let mut reply = self.head()?;
        if reply.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                reply.body.extend(chunk);
            }
        } else {
            let length = reply.header("content-length").map_or(Ok(0), str::parse);
            reply.body = vec![0; length.ok()?];
            self.stream.read_exact(&mut reply.body).ok()?;
        }
        Some(reply)
    }

    /// Reads the head of a reply alone.
    pub fn head(&mut self) -> Option<Reply> {
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Reply { status, headers, body: Vec::new() })
    }

    /// Reads the next chunk of a chunked body; none at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(self.line()?.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).ok()?;
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// Reads event-stream chunks until one holds `text`; fails once the stream has ended.
    pub fn until(&mut self, text: &str) -> String {
        let mut said = String::new();
        while !said.contains(text) {
            let chunk = self.chunk();
            let chunk = chunk.unwrap_or_else(|| panic!("the stream ended; it said: {said}"));
            said += &String::from_utf8_lossy(&chunk);
        }
        said
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    }
}

/// One request of revision 2026-07-28 over a connection of its own.
pub fn ask(server: &Server, method: &str, params: Value) -> Value {
    ask_at(&server.url, method, params)
}

/// The same, for threads that share no [`Server`].
pub fn ask_at(url: &str, method: &str, params: Value) -> Value {
    let mut connection = Connection::open(url).expect("the server listens");
    connection.request(1, method, params)
}

/// The result of a tool call over a connection of its own; a JSON-RPC error fails.
pub fn result(server: &Server, name: &str, arguments: Value) -> Value {
    let answer = ask(server, "tools/call", call(name, &arguments));
    assert!(answer["result"].is_object(), "{name}: {answer}");
    answer["result"].clone()
}

/// The ending event a result or an error names.
pub fn event(answer: &Value) -> &str {
    let result = &answer["result"]["_meta"]["io.cairn/event"];
    let event = result.as_str().or_else(|| answer["error"]["data"]["io.cairn/event"].as_str());
    event.unwrap_or_else(|| panic!("no event in {answer}"))
}
