//! Control: the socket in the data directory by which an operator changes the upstreams of a running node.
//!
//! Invariants:
//! - only root and the user that the node runs as can use it, by the rights of the socket and by who connects;
//! - a request is one line of JSON and so is its answer; both are bounded, and so are the connections and their time;
//! - it changes nothing that the configuration does not say: who adds an upstream writes the file and asks to read it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::steering::Steering;

/// The socket's name in the data directory.
const SOCKET: &str = "control.sock";
/// Bytes of a request or an answer: a configuration file of 1 MiB, escaped.
const LINE_MAX: u64 = 4 * 1024 * 1024;
/// How long a request may take to arrive.
const ASKING_MAX: Duration = Duration::from_secs(10);
/// How long the answer to it may take: a new upstream is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// The pause after a failed accept, most often for want of file descriptors. Without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked of a running node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Asked {
    /// Which upstreams there are, and which file names them.
    List,
    /// Whether this text would do as the configuration file.
    Check { text: String },
    /// Read the configuration again.
    Reload,
    /// Connect to an upstream anew.
    Restart { name: String },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answered {
    Done(Value),
    /// Why nothing was done.
    Refused(String),
}

/// Opens the socket of a data directory, of which this process must be the one server. Errors: it cannot be made.
pub fn open(directory: &Path) -> io::Result<UnixListener> {
    let path = directory.join(SOCKET);
    // Whoever left a socket here does not serve any more.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers at the socket until `stop`.
pub async fn serve(listener: UnixListener, steering: Arc<Steering>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(attend(stream, steering.clone()));
                }
                Err(err) => {
                    tracing::warn!(%err, "a connection of an operator was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn attend(stream: UnixStream, steering: Arc<Steering>) {
    let own = rustix::process::geteuid().as_raw();
    if !stream.peer_cred().is_ok_and(|peer| [0, own].contains(&peer.uid())) {
        return;
    }
    let mut stream = BufReader::new(stream);
    let Ok(Ok(asked)) = timeout(ASKING_MAX, read(&mut stream)).await else { return };
    let answer = match serde_json::from_slice(&asked) {
        Ok(asked) => {
            // Whoever asked may leave; what was begun is done.
            let answer = tokio::spawn(async move { answer(asked, &steering).await });
            let bounded = timeout(ANSWER_MAX, answer).await;
            let late = || Answered::Refused("it goes on, and took too long to wait for".to_owned());
            bounded.ok().and_then(Result::ok).unwrap_or_else(late)
        }
        Err(err) => Answered::Refused(format!("the request cannot be read: {err}")),
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    // Whoever asked may have left.
    let _ = timeout(ASKING_MAX, stream.write_all(&line)).await;
}

async fn answer(asked: Asked, steering: &Steering) -> Answered {
    match asked {
        Asked::List => {
            Answered::Done(json!({"file": steering.file(), "upstreams": steering.standing().await}))
        }
        Asked::Check { text } => match steering.faults(&text) {
            faults if faults.is_empty() => Answered::Done(Value::Null),
            faults => Answered::Refused(faults.join("; ")),
        },
        Asked::Reload => match steering.reload().await {
            Ok(reloaded) => {
                Answered::Done(json!({"reloaded": reloaded, "upstreams": steering.standing().await}))
            }
            Err(reason) => Answered::Refused(reason),
        },
        Asked::Restart { name } => match steering.restart(&name).await {
            true => Answered::Done(json!({"upstreams": steering.standing().await})),
            false => Answered::Refused(format!("the node follows no upstream {name}")),
        },
    }
}

/// Asks the node that serves a data directory. Returns `None` if no node does.
pub async fn ask(directory: &Path, asked: &Asked) -> io::Result<Option<Answered>> {
    let path: PathBuf = directory.join(SOCKET);
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(err) => return Err(err),
    };
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_vec(asked)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let answer = timeout(ANSWER_MAX + ASKING_MAX, read(&mut stream)).await.map_err(io::Error::from)??;
    Ok(Some(serde_json::from_slice(&answer)?))
}

/// Reads one line. Errors: it does not end, or is too long.
async fn read(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    match line.ends_with(b"\n") {
        true => Ok(line),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
