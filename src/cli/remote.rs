//! A server, reached over HTTP: tool calls as requests of MCP 2026-07-28, and the audit API.
//!
//! Invariants:
//! - the token is sent to the named server and nowhere else: no redirect is followed;
//! - no answer is read beyond its bound, and no error contains a URL with a password.

use std::{fs::File, io::Read};

use anyhow::{Context, bail};
use http::{StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    cli::{Called, Usage},
    runtime::upstream::{
        headers::{self, Shown},
        sse::{self, Parser},
    },
};

/// The default URL of a server.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7420";
/// The largest number of bytes of one answer, or of one event of a stream.
pub const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// The largest number of characters of an error's body that are shown.
const ERROR_MAX: usize = 500;
/// The largest number of bytes that are read of a file with a token.
const TOKEN_MAX: u64 = 64 * 1024;

/// A refusal in the server's own words.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub struct Refused {
    pub status: StatusCode,
    said: String,
}

pub struct Remote {
    client: Client,
    base: Url,
    token: Option<String>,
}

impl Remote {
    /// Makes a client for the server at `url`, with or without `/mcp`. Errors: `Usage` if the URL is malformed.
    pub fn new(url: &str, token: Option<String>) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/mcp");
        let base = Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let base = base
            .ok_or_else(|| Usage("the url is malformed; give one like http://127.0.0.1:7420".to_owned()))?;
        // An error means that a TLS provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().redirect(redirect::Policy::none());
        if base.scheme() == "http" {
            // Without TLS no certificates are needed, so a machine that has none is fine.
            client = client.tls_certs_only([]);
        }
        let token = token.filter(|token| !token.is_empty()).map(of_file).transpose()?;
        Ok(Self { client: client.build().context("cannot prepare http")?, base, token })
    }

    /// Returns the server's URL without path, user or query.
    pub fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Calls a tool and waits for its answer, however long it takes.
    pub async fn call(&self, tool: &str, arguments: &RawValue) -> anyhow::Result<Called> {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "cairn", "version": env!("CARGO_PKG_VERSION")},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let name = splice::quoted(tool);
        let params = format!(r#"{{"name":{name},"arguments":{arguments},"_meta":{meta}}}"#);
        let params = RawValue::from_string(params).context("the arguments are not json")?;
        let headers = headers::of_request("tools/call", &params, &Shown::default());
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
        let request = self.client.post(self.at("/mcp"));
        let request = request
            .headers(headers)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(body);
        let response = self.send(request).await?;
        let status = response.status();
        let stream = is_stream(&response);
        let mut messages = Messages::new(response);
        loop {
            let message = match stream {
                true => messages.next().await?,
                false => Some(messages.rest().await?),
            };
            let Some(message) = message else {
                bail!("the server closed the stream before its answer; look into its log");
            };
            match answer(&message) {
                Some(called) => return Ok(called),
                None if stream => {}
                None => bail!("{}", refusal(status, &message)),
            }
        }
    }

    /// Asks the audit API. Errors: `Refused` for any status but success, in the server's words.
    pub async fn get(&self, path: &str, query: &[(&str, String)], accept: &str) -> anyhow::Result<Response> {
        let mut url = self.at(path);
        url.query_pairs_mut().extend_pairs(query);
        let request = self.client.get(url).header(header::ACCEPT, accept);
        let response = self.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            let body = Messages::new(response).rest().await?;
            let said = refusal(status, &body);
            return Err(Refused { status, said }.into());
        }
        Ok(response)
    }

    /// Like [`Remote::get`], but reads the whole body.
    pub async fn read(&self, path: &str, query: &[(&str, String)], accept: &str) -> anyhow::Result<Vec<u8>> {
        let response = self.get(path, query, accept).await?;
        Messages::new(response).rest().await
    }

    /// Like [`Remote::read`], but parses the body as JSON.
    pub async fn json(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
        let body = self.read(path, query, "application/json").await?;
        serde_json::from_slice(&body).context("the server's answer is not json")
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.map_err(|err| {
            let what = match err.is_connect() {
                true => format!(
                    "no server answers at {}; start one with `cairn serve`, or name another --url or a --data",
                    self.base.origin().ascii_serialization()
                ),
                false => "the server broke the connection".to_owned(),
            };
            anyhow::Error::new(err.without_url()).context(what)
        })
    }
}

/// A response body, read whole or as server-sent events.
pub struct Messages {
    response: Response,
    parser: Parser,
    ready: std::collections::VecDeque<sse::Event>,
}

impl Messages {
    pub fn new(response: Response) -> Self {
        Self { response, parser: Parser::new(ANSWER_MAX), ready: Default::default() }
    }

    /// Returns the data of the next event; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event.data));
            }
            let Some(bytes) = self.chunk().await? else {
                return Ok(None);
            };
            let events = self.parser.push(&bytes);
            let events = events.map_err(|sse::Oversized| anyhow::anyhow!("an event is over 64 MiB"))?;
            self.ready.extend(events);
        }
    }

    /// Reads the rest of the body.
    pub async fn rest(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if body.len() + bytes.len() > ANSWER_MAX {
                bail!("the answer is over 64 MiB");
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// Returns the next piece of the body, as it comes.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<bytes::Bytes>> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|err| anyhow::Error::new(err.without_url()).context("the server broke off its answer"))
    }
}

/// Returns the token itself, where `file:` and a path stand for it.
fn of_file(token: String) -> anyhow::Result<String> {
    let Some(path) = token.strip_prefix("file:") else {
        return Ok(token);
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TOKEN_MAX).read_to_string(&mut text));
    read.with_context(|| format!("cannot read the token in {path}"))?;
    Ok(text.trim().to_owned())
}

/// Parses a JSON-RPC answer; `None` if the message is no answer.
fn answer(message: &[u8]) -> Option<Called> {
    let message: &RawValue = serde_json::from_slice(message).ok()?;
    let member = |key| splice::member(message, key).ok().flatten();
    if let Some(result) = member("result") {
        return Some(Called::of_result(result.to_owned(), None));
    }
    let error: Value = serde_json::from_str(member("error")?.get()).ok()?;
    let text = error["message"].as_str().unwrap_or("no reason given");
    Some(Called {
        answer: Err(format!("{text} (error {})", error["code"])),
        event: error["data"]["io.cairn/event"].as_str().map(str::to_owned),
    })
}

/// Returns why the server refused, in its own words if it gave any.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = ["detail", "title"].iter().find_map(|key| problem[key].as_str());
    let said = said.or_else(|| problem["error"]["message"].as_str());
    let said: String = said.unwrap_or_default().chars().take(ERROR_MAX).collect();
    match status {
        StatusCode::UNAUTHORIZED => {
            "the server wants a token that is valid; give one with --token or CAIRN_TOKEN, and make one with `cairn token add`".to_owned()
        }
        StatusCode::FORBIDDEN => format!("the server forbids it: {said}"),
        _ if said.is_empty() => format!("the server answered {status}; is --url that of a cairn server?"),
        _ => said,
    }
}

fn is_stream(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE);
    let media = media.and_then(|media| media.to_str().ok());
    media.is_some_and(|media| media.trim_start().starts_with("text/event-stream"))
}
