//! A small HTTP/1.1 client that costs the machine little: one thread, kept connections, requests prepared as bytes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::table::quantile;

/// Bytes read at once; an answer to an echo fits.
const READ_LEN: usize = 16 * 1024;

/// What several callers got done.
pub struct Load {
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// One kept connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A server's answer. The body is as sent: chunks are not put together.
pub struct Answer<'a> {
    pub status: u16,
    pub head: &'a str,
    pub body: &'a [u8],
}

/// What each connection sends: first its opening, then requests for as long as the load lasts.
pub trait Script: Sync {
    /// Prepares a connection, and gives the header lines that its requests repeat.
    fn open(&self, client: &mut Client) -> impl Future<Output = String>;
    /// The `turn`-th request of a connection.
    fn request(&self, opened: &str, connection: usize, turn: u64) -> Vec<u8>;
    /// Whether an answer of status 200 is the wanted one.
    fn fits(&self, body: &[u8]) -> bool;
}

/// A runtime on this thread, for the client's side.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Lets `connections` callers ask one thing after another for `lasting`.
pub fn run<S: Script>(script: &S, server: SocketAddr, connections: usize, lasting: Duration) -> Load {
    runtime().block_on(async {
        let mut callers = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut client = Client::connect(server).await;
            let opened = script.open(&mut client).await;
            callers.push((client, opened));
        }
        let begun = Instant::now();
        let calls = callers
            .into_iter()
            .enumerate()
            .map(|(n, (client, opened))| call(script, client, opened, n, begun + lasting));
        let times = futures_util::future::join_all(calls).await;
        let took = begun.elapsed();
        let mut times: Vec<Duration> = times.into_iter().flatten().collect();
        Load {
            rate: times.len() as f64 / took.as_secs_f64(),
            p50: quantile(&mut times, 0.5),
            p99: quantile(&mut times, 0.99),
        }
    })
}

async fn call<S: Script>(
    script: &S,
    mut client: Client,
    opened: String,
    connection: usize,
    until: Instant,
) -> Vec<Duration> {
    let mut times = Vec::new();
    for turn in 0.. {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        let request = script.request(&opened, connection, turn);
        let answer = client.ask(&request).await;
        assert!(
            answer.status == 200 && script.fits(answer.body),
            "an answer is not the wanted one: {} {}",
            answer.head,
            String::from_utf8_lossy(answer.body)
        );
        times.push(begun.elapsed());
    }
    times
}

impl Client {
    pub async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, buffer: Vec::with_capacity(READ_LEN) }
    }

    /// Sends a prepared request and waits for its whole answer.
    pub async fn ask(&mut self, request: &[u8]) -> Answer<'_> {
        self.stream.write_all(request).await.expect("a request leaves");
        self.buffer.clear();
        let (head, whole) = loop {
            let read = self.stream.read_buf(&mut self.buffer).await;
            assert!(read.is_ok_and(|n| n > 0), "the server closed a connection");
            if let Some(found) = self.complete() {
                break found;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head]).expect("a head is text");
        Answer {
            status: text[9..12].parse().expect("a status line"),
            head: text,
            body: &self.buffer[head..whole],
        }
    }

    /// Where the head and the whole answer end, once both are here.
    fn complete(&self) -> Option<(usize, usize)> {
        let head = self.buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let text = std::str::from_utf8(&self.buffer[..head]).expect("a head is text");
        if let Some(len) = header(text, "content-length") {
            let whole = head + len.parse::<usize>().expect("a length");
            return (self.buffer.len() >= whole).then_some((head, whole));
        }
        if header(text, "transfer-encoding").is_some() {
            let whole = self.buffer.len();
            return self.buffer.ends_with(b"0\r\n\r\n").then_some((head, whole));
        }
        // An answer without a body, such as 202 or 204.
        Some((head, head))
    }
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A request with a JSON body; `headers` are whole lines.
pub fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json\r\n\r\n").into_bytes()
}
