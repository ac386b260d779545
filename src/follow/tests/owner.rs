//! An owner of a log, a follower's directory, and a peer between them that changes what is said.
//!
//! Logs here are written by a real ledger; only the peer between is made up.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, duplex};

use crate::{
    block::{
        Cid,
        payload::{JSON, Payload, SaltKey},
    },
    call::{End, EndOutcome, Fit, Start},
    contract::Contract,
    event::{Actor, Role, body::CallStarted},
    follow::{
        driver::{Erasures, Expected, FollowError, Outcome, follow},
        serve::{Last, May, Server, What},
        wire::{Request, Response, read, read_frame, write_frame},
    },
    ledger::{
        Command, Ledger, Ruling,
        commit::payload_ref,
        opening::{self, Birth, Running, Settings},
    },
    log::home::Home,
    query::proof::Head,
};

/// Content that is cut into two parts.
pub const LARGE: usize = 300 * 1024;

pub struct Owner {
    pub dir: tempfile::TempDir,
    pub home: Home,
    pub ledger: Ledger,
    running: Running,
}

pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn actor() -> Actor {
    Actor { id: "a".into(), role: "client".into(), proof: None }
}

impl Owner {
    pub fn new(seed: u8) -> Self {
        Self::reopen(temp(), seed)
    }

    pub fn reopen(dir: tempfile::TempDir, seed: u8) -> Self {
        let home = Home::open(dir.path()).expect("a home");
        let mut random = || [seed; 32];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
        let birth =
            Birth { owner: "test", random: &mut random, now_us: now.as_micros() as u64, step: &mut |_| {} };
        let settings = Settings { fsync: false, ..Settings::default() };
        let (ledger, running) = opening::open(&home, &settings, birth).expect("a log opens");
        Self { dir, home, ledger, running }
    }

    /// Another with the same key, whose log begins with all of this one's.
    pub fn twin(self) -> (Self, Self) {
        let Self { dir, ledger, running, .. } = self;
        drop(ledger);
        running.join();
        let other = temp();
        copy(dir.path(), other.path());
        (Self::reopen(dir, 1), Self::reopen(other, 1))
    }

    pub fn stop(self) -> tempfile::TempDir {
        drop(self.ledger);
        self.running.join();
        self.dir
    }

    pub async fn publish(&self, name: &str) -> Cid {
        let definition = format!(r#"{{"name":"{name}","inputSchema":{{"type":"object"}}}}"#);
        let definition = RawValue::from_string(definition).expect("json");
        let contract = Contract::of_definition("test", "1", &definition).expect("a contract");
        match self.submit(Command::Publish { contract, actor: actor() }).await {
            Ruling::Published { cid, .. } => cid,
            other => panic!("{other:?}"),
        }
    }

    /// `n` calls, two events each. The first one's output is large where `large` says so. Gives the outputs.
    pub async fn calls(&self, tool: Option<Cid>, what: &str, n: usize, large: bool) -> Vec<Cid> {
        let calls = (0..n).map(|nth| self.call(tool, format!("{what} {nth}"), large && nth == 0));
        let outputs = join_all(calls).await;
        self.ledger.settled().await.expect("the ledger runs");
        outputs
    }

    async fn call(&self, tool: Option<Cid>, what: String, large: bool) -> Cid {
        let key = SaltKey::new([3; 32]);
        let id = uuid::Uuid::now_v7().simple().to_string();
        let seal = |text: String| Payload::seal(&key, JSON, text.as_bytes()).expect("within bounds");
        let input = seal(format!("{{\"in\":\"{what}\"}}"));
        let filling = "x".repeat(if large { LARGE } else { 0 });
        let output = seal(format!("{{\"out\":\"{what}{filling}\"}}"));
        let name = output.envelope.cid();
        let facts = CallStarted {
            method: "tools/call".into(),
            name: "echo".into(),
            source: "builtin".into(),
            runtime: "builtin".into(),
            rule: "source".into(),
            runner: "test".into(),
            key: None,
            trace: None,
            input_unchecked: None,
        };
        let start = Start {
            id: id.clone(),
            actor: actor(),
            tool,
            input: Some(payload_ref(&input, Role::Input)),
            facts,
            former_key: None,
            cause: None,
            refs: Vec::new(),
            repeatable: true,
            refusal: None,
        };
        self.submit(Command::Start { start: Box::new(start), input: Some(input), refused: None }).await;
        let outcome = EndOutcome::Succeeded { input_required: false, fit: Fit::Fits };
        let end = End {
            id,
            outcome,
            output: Some(payload_ref(&output, Role::Output)),
            took_us: 1,
            remote: Vec::new(),
        };
        self.submit(Command::End { end, output: Some(output), attempt: None }).await;
        name
    }

    pub async fn erase(&self, payload: Cid) {
        self.submit(Command::Erase { payload, basis: "test".into(), actor: actor() }).await;
        self.ledger.settled().await.expect("the ledger runs");
    }

    async fn submit(&self, command: Command) -> Ruling {
        self.ledger.submit(command).await.expect("the ledger runs")
    }

    pub fn log(&self) -> Cid {
        self.ledger.about().log
    }

    pub fn head(&self) -> Head {
        let reach = self.ledger.reach().borrow().clone();
        Head { size: reach.applied, note: reach.checkpoint }
    }

    pub fn server(&self) -> Server {
        self.server_where(|_| true)
    }

    pub fn server_where(&self, may: impl Fn(What) -> bool + Send + Sync + 'static) -> Server {
        let reach = self.ledger.reach();
        let last: Last = Arc::new(move || {
            let reach = reach.borrow();
            Head { size: reach.applied, note: reach.checkpoint.clone() }
        });
        let may: May = Arc::new(move |_: &str, what| may(what));
        Server::new(&self.home, self.log(), last, may)
    }
}

/// Follows once, straight from `server`.
pub async fn once(server: &Server, home: &Home) -> Result<Outcome, FollowError> {
    once_through(server, home, 64 * 1024).await
}

/// The same, over a pipe of so many bytes.
pub async fn once_through(server: &Server, home: &Home, pipe: usize) -> Result<Outcome, FollowError> {
    once_as(server, home, pipe, Expected::default()).await
}

/// The same, asking for what did not come before.
pub async fn once_again(server: &Server, home: &Home, again: u64) -> Result<Outcome, FollowError> {
    once_as(server, home, 64 * 1024, Expected { again: Some(again), ..Expected::default() }).await
}

/// The same, keeping what the owner erases.
pub async fn once_keeping(server: &Server, home: &Home) -> Result<Outcome, FollowError> {
    once_as(server, home, 64 * 1024, Expected { erasures: Erasures::Keep, ..Expected::default() }).await
}

async fn once_as(
    server: &Server,
    home: &Home,
    pipe: usize,
    expected: Expected,
) -> Result<Outcome, FollowError> {
    let (near, far) = duplex(pipe);
    let server = server.clone();
    let serving = tokio::spawn(async move { server.serve(far, "peer").await });
    let ended = follow(near, home, expected, |_| {}).await;
    // The stream is closed by now, so serving ends.
    let _ = serving.await.expect("serving does not panic");
    ended
}

/// A peer between a follower and an honest server: what it does to requests, and to responses.
pub struct Between<Q, R> {
    pub request: Q,
    /// Gives what is sent on in place of a response; none ends the stream.
    pub response: R,
}

impl<Q, R> Between<Q, R>
where
    Q: FnMut(Request) -> Request + Send + 'static,
    R: FnMut(Response) -> Option<Vec<Response>> + Send + 'static,
{
    pub async fn follow(self, server: &Server, home: &Home) -> Result<Outcome, FollowError> {
        let (near, outer) = duplex(64 * 1024);
        let (inner, far) = duplex(64 * 1024);
        let server = server.clone();
        let serving = tokio::spawn(async move { server.serve(far, "peer").await });
        let passing = tokio::spawn(self.pass(outer, inner));
        let ended = follow(near, home, Expected::default(), |_| {}).await;
        passing.await.expect("passing on does not panic");
        let _ = serving.await.expect("serving does not panic");
        ended
    }

    pub async fn pass<S: AsyncRead + AsyncWrite, T: AsyncRead + AsyncWrite>(mut self, outer: S, inner: T) {
        let (mut from_follower, mut to_follower) = tokio::io::split(outer);
        let (mut from_server, mut to_server) = tokio::io::split(inner);
        let requests = async {
            while let Ok(Some(frame)) = read_frame(&mut from_follower).await {
                let request = (self.request)(read(&frame).expect("followers make sense"));
                if write_frame(&mut to_server, &request).await.is_err() {
                    break;
                }
            }
        };
        let responses = async {
            while let Ok(Some(frame)) = read_frame(&mut from_server).await {
                let Some(responses) = (self.response)(read(&frame).expect("servers make sense")) else {
                    break;
                };
                for response in responses {
                    if write_frame(&mut to_follower, &response).await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::select! { () = requests => {}, () = responses => {} }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path() {
            dir if dir.is_dir() => {
                std::fs::create_dir_all(&target).expect("a directory is made");
                copy(&dir, &target);
            }
            file if entry.file_type().expect("a kind").is_file() => {
                std::fs::copy(file, target).expect("a file is copied");
            }
            _ => {}
        }
    }
}
