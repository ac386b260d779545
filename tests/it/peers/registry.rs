//! A local server that behaves like the part of the GitHub API that registries of peers are kept by.
//!
//! Invariants:
//! - issues are listed by label and state, made and changed with the token alone, and unchanged lists answer 304;
//! - it asks to be left alone where a test tells it to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

pub const TOKEN: &str = "registry-token";
pub const REPOSITORY: &str = "nodes/registry";

#[derive(Clone)]
pub struct Registry {
    pub url: String,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    issues: Vec<Value>,
    limited: bool,
    /// Requests that came, as `METHOD PATH STATUS`.
    asked: Vec<String>,
}

impl Registry {
    /// Starts it with these issues.
    pub fn start(issues: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened on");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let kept = Arc::new(Mutex::new(Kept { issues, ..Kept::default() }));
        let registry = Self { url, kept };
        let own = registry.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let own = own.clone();
                // A client that goes away midway is its own affair.
                thread::spawn(move || own.serve(stream).ok());
            }
        });
        registry
    }

    /// An issue as the API shows it.
    pub fn issue(number: u64, title: &str, body: &str) -> Value {
        let label = json!([{"name": "cairn-peer"}]);
        json!({"number": number, "title": title, "body": body, "labels": label, "state": "open",
               "updated_at": "2026-11-21T00:00:00Z"})
    }

    pub fn limits(&self, limited: bool) {
        self.kept.lock().expect("no holder panics").limited = limited;
    }

    pub fn issues(&self) -> Vec<Value> {
        self.kept.lock().expect("no holder panics").issues.clone()
    }

    pub fn asked(&self) -> Vec<String> {
        self.kept.lock().expect("no holder panics").asked.clone()
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            let found = lines.iter().filter_map(|line| line.split_once(": "));
            let mut found = found.filter(|(own, _)| own.eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.to_owned())
        };
        let length = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let asked = lines.first().cloned().unwrap_or_default();
        let mut words = asked.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let trusted = header("authorization").is_some_and(|given| given == format!("Bearer {TOKEN}"));
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let answer = self.answer(method, path, trusted, header("if-none-match"), &body);
        let (status, headers, body) = answer;
        self.kept.lock().expect("no holder panics").asked.push(format!("{method} {path} {status}"));
        let mut stream = stream;
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        )
    }

    fn answer(
        &self,
        method: &str,
        path: &str,
        trusted: bool,
        etag: Option<String>,
        body: &Value,
    ) -> (u16, String, String) {
        let mut kept = self.kept.lock().expect("no holder panics");
        if kept.limited {
            return (403, "retry-after: 30\r\nx-ratelimit-remaining: 0\r\n".to_owned(), "{}".to_owned());
        }
        let Some(rest) = path.strip_prefix(&format!("/repos/{REPOSITORY}/issues")) else {
            return (404, String::new(), "{}".to_owned());
        };
        match method {
            "GET" if rest.starts_with("?state=open&labels=cairn-peer") => {
                let list = json!(kept.issues).to_string();
                let own = format!("\"{}-{}\"", kept.issues.len(), list.len());
                if etag.as_ref() == Some(&own) {
                    return (304, String::new(), String::new());
                }
                (200, format!("etag: {own}\r\nx-ratelimit-remaining: 4999\r\n"), list)
            }
            "POST" | "PATCH" if !trusted => (401, String::new(), "{}".to_owned()),
            "POST" => {
                let number = kept.issues.len() as u64 + 1;
                let [title, text] = ["title", "body"].map(|key| body[key].as_str().unwrap_or_default());
                let issue = Self::issue(number, title, text);
                kept.issues.push(issue.clone());
                (201, String::new(), issue.to_string())
            }
            "PATCH" => {
                let number = rest.trim_start_matches('/').parse::<u64>().unwrap_or_default();
                let Some(issue) = kept.issues.iter_mut().find(|issue| issue["number"] == number) else {
                    return (404, String::new(), "{}".to_owned());
                };
                issue["body"] = body["body"].clone();
                (200, String::new(), issue.to_string())
            }
            _ => (404, String::new(), "{}".to_owned()),
        }
    }
}
