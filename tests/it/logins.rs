//! Logins at upstreams: how a token is got, kept, renewed and lost, against an authorization server of the tests' own.
//!
//! Invariants:
//! - whatever happens, no secret stands in any file of the data directory in clear, in a line of the log or an answer.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Process, Ran, Server, cairn, exits, needs, run, temp, text},
    record::until,
    speech::{Connection, call, modern},
    upstream::configure,
};

/// What every secret of the authorization server has in it.
const MARK: &[u8] = b"-hush-";
const READY_MAX: Duration = Duration::from_secs(30);
const PARALLEL: usize = 20;

/// `tests/clients/oauth.py`, running.
struct Locked {
    dir: TempDir,
    url: String,
    _process: Process,
}

impl Locked {
    fn start() -> Self {
        let dir = temp();
        let mut command = Command::new(needs("venv/bin/python"));
        command.arg(needs("oauth.py")).arg(dir.path());
        let process = Process::start(command);
        let ready = process.line(READY_MAX).expect("it says when it is ready");
        let url = ready.strip_prefix("ready ").expect("the line names its url").to_owned();
        Self { dir, url, _process: process }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).expect("the directory can be written");
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.dir.path().join(file)).expect("the file is there");
    }

    /// How often a step was taken.
    fn count(&self, step: &str) -> usize {
        let seen = fs::read_to_string(self.dir.path().join("seen")).unwrap_or_default();
        seen.lines().filter(|line| *line == step).count()
    }

    /// A configuration with it as the upstream `up`, in a file beside the data.
    fn configure(&self, data: &Path, more: &str) -> String {
        configure(data, &format!("[[upstream]]\nname = \"up\"\nurl = {:?}\n{more}\n", self.url))
    }
}

/// A server with the upstream, and where its data and configuration are.
struct Node {
    data: TempDir,
    config: String,
}

impl Node {
    fn new(locked: &Locked, more: &str) -> Self {
        let data = temp();
        let config = locked.configure(data.path(), more);
        Self { data, config }
    }

    fn serve(&self) -> Server {
        let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--config", &self.config, "--data"]);
        // All that can be said is said.
        command.arg(self.data.path()).env("CAIRN_LOG", "trace");
        Server::start_as(command)
    }

    fn place(&self) -> [&str; 4] {
        ["--data", text(self.data.path()), "--config", &self.config]
    }

    /// `cairn upstream login up`, with a browser that allows everything. Returns its exit code.
    fn login(&self) -> Option<i32> {
        self.login_as(&[])
    }

    fn login_as(&self, more: &[&str]) -> Option<i32> {
        let mut command = cairn(&["upstream", "login", "up"]);
        command.args(more).args(self.place()).env("CAIRN_LOG", "trace");
        let mut process = Process::start(command);
        let page = process.line(READY_MAX);
        if let Some(page) = page {
            let opened = browse(&page);
            assert!(opened.contains("HTTP/1.1 200"), "{opened}");
        }
        let status = process.wait(READY_MAX);
        let said = process.last_errors();
        assert!(!contains(said.as_bytes(), MARK), "{said}");
        status.code()
    }

    fn status(&self) -> Value {
        let shown = [&["upstream", "status", "--json"], &self.place()[..]].concat();
        let shown: Value = serde_json::from_str(&exits(0, &shown).stdout).expect("it prints json");
        shown[0].clone()
    }

    /// Fails if any file of the data directory has a secret in it.
    fn is_clean(&self) {
        let mut folders = vec![self.data.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("the directory can be read") {
                let path: PathBuf = entry.expect("the directory can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = fs::read(&path) {
                    assert!(!contains(&bytes, MARK), "{}", path.display());
                }
            }
        }
    }
}

fn contains(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.windows(mark.len()).any(|window| window == mark)
}

/// Opens a page and follows where it leads, as a browser would. Returns the last answer.
fn browse(page: &str) -> String {
    use std::io::{Read, Write};
    let mut page = page.to_owned();
    loop {
        let rest = page.strip_prefix("http://").expect("the pages are plain");
        let (host, path) = rest.split_once('/').expect("a page has a path");
        let mut stream = TcpStream::connect(host).expect("somebody listens");
        write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let next = answer
            .lines()
            .find_map(|line| line.to_ascii_lowercase().starts_with("location: ").then(|| &line[10..]));
        match next {
            Some(next) => page = next.trim().to_owned(),
            None => return answer,
        }
    }
}

/// The text of a call's answer, whether it is a result or an error.
fn called(url: &str, tool: &str) -> String {
    let mut connection = Connection::open(url).expect("the server listens");
    connection.request(1, "tools/call", call(tool, &json!({}))).to_string()
}

/// Waits until the tool of the upstream answers.
fn works(server: &Server, tool: &str) {
    let done = format!("{} done", tool.trim_start_matches("up_"));
    until(&format!("{tool} at the upstream"), || called(&server.url, tool).contains(&done).then_some(()));
}

fn ends(server: Server) {
    server.process.signal("TERM");
    let mut process = server.process;
    assert!(process.wait(READY_MAX).success());
    let said = process.last_errors();
    assert!(!contains(said.as_bytes(), MARK), "{said}");
}

#[test]
fn a_running_server_takes_up_a_login_and_renews_its_token_once_for_many_calls() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    let server = node.serve();
    until("the want of a login", || {
        server.process.errors().contains("cairn upstream login up").then_some(())
    });
    assert_eq!(node.status()["login"], "needed");
    assert_eq!(node.login(), Some(0));
    works(&server, "up_read");
    assert_eq!((locked.count("authorize read"), locked.count("register native")), (1, 1));
    locked.write("revoked", "");
    let url = &server.url;
    let answers: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(|| called(url, "up_read"))).collect();
        calls.into_iter().map(|call| call.join().expect("no call panics")).collect()
    });
    for answer in answers {
        assert!(answer.contains("read done"), "{answer}");
    }
    assert_eq!(locked.count("token refresh_token"), 1);
    ends(server);
    let server = node.serve();
    works(&server, "up_read");
    assert_eq!(locked.count("token refresh_token"), 1, "a token outlives its process");
    ends(server);
    assert_eq!(node.status()["scopes"], json!(["read"]));
    node.is_clean();
    exits(0, &["upstream", "logout", "up", "--data", text(node.data.path())]);
    assert_eq!(node.status()["login"], "none");
}

#[test]
fn processes_that_share_a_directory_renew_a_token_once() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    works(&server, "up_read");
    locked.write("revoked", "");
    let guests: Vec<Process> = (0..3)
        .map(|_| {
            let mut command = cairn(&["call", "up_read"]);
            command.args(node.place());
            Process::start(command)
        })
        .collect();
    works(&server, "up_read");
    for mut guest in guests {
        assert!(guest.wait(READY_MAX).success(), "{}", guest.last_errors());
    }
    assert_eq!(locked.count("token refresh_token"), 1);
    assert_eq!(locked.count("token refresh_token refused"), 0);
    ends(server);
    node.is_clean();
}

#[test]
fn a_token_that_is_refused_however_new_is_renewed_once() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    works(&server, "up_read");
    locked.write("revoked", "");
    let revoked = fs::File::options().write(true).open(locked.dir.path().join("revoked"));
    let later = SystemTime::now() + Duration::from_secs(3600);
    revoked.and_then(|file| file.set_modified(later)).expect("the file is there");
    until("the third refusal", || {
        called(&server.url, "up_read");
        let said = server.process.errors();
        (said.matches("a login is needed: cairn upstream login up").count() >= 3).then_some(())
    });
    assert_eq!(locked.count("token refresh_token"), 1);
    assert_eq!(node.status()["login"], "needed");
    ends(server);
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let locked = Locked::start();
    // Due at once, and good for what this test takes.
    locked.write("life", "1");
    let node = Node::new(&locked, "");
    assert_eq!(node.login(), Some(0));
    locked.write("life", "3600");
    let server = node.serve();
    until("a renewal", || {
        (called(&server.url, "up_read").contains("done") && locked.count("token refresh_token") == 1)
            .then_some(())
    });
    assert_eq!(locked.count("refused server/discover"), 1, "only the login asked without a token");
    ends(server);
    node.is_clean();
}

#[test]
fn a_call_that_wants_more_scopes_says_so_and_works_after_a_login_with_both() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    works(&server, "up_read");
    let answer = called(&server.url, "up_write");
    assert!(answer.contains("a login with more scopes is needed: cairn upstream login up"), "{answer}");
    assert_eq!(node.status()["login"], "more needed");
    works(&server, "up_read");
    assert_eq!(node.login(), Some(0));
    assert_eq!(locked.count("authorize read write"), 1);
    works(&server, "up_write");
    ends(server);
    node.is_clean();
}

#[test]
fn scopes_that_a_login_does_not_give_are_asked_for_once() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    locked.write("grant", "read");
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    works(&server, "up_read");
    assert!(called(&server.url, "up_write").contains("a login with more scopes is needed"));
    assert_eq!(node.login(), Some(0));
    until("the refusal of what was asked for", || {
        called(&server.url, "up_write").contains("asked for already and not granted").then_some(())
    });
    ends(server);
}

#[test]
fn a_login_answered_by_another_issuer_gives_nothing() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    locked.write("issuer", "https://other.example");
    assert_eq!(node.login(), Some(1));
    assert_eq!(locked.count("token authorization_code"), 0);
    assert_eq!(node.status()["login"], "none");
}

#[test]
fn a_server_killed_amid_a_renewal_wants_a_login_and_nothing_else() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    works(&server, "up_read");
    locked.write("revoked", "");
    locked.write("hold", "");
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let message = modern(1, "tools/call", call("up_read", &json!({})));
    connection.send(&message).expect("the server listens");
    until("a renewal under way", || (locked.count("token refresh_token") == 1).then_some(()));
    server.kill();
    locked.remove("hold");
    node.is_clean();
    let server = node.serve();
    until("the want of a login", || {
        server.process.errors().contains("cairn upstream login up").then_some(())
    });
    assert_eq!(locked.count("token refresh_token refused"), 1, "what was spent is tried once");
    assert_eq!(node.login(), Some(0));
    works(&server, "up_read");
    ends(server);
    node.is_clean();
}

#[test]
fn a_node_asks_in_its_own_name_with_a_secret_from_a_file() {
    let locked = Locked::start();
    let folder = temp();
    let secret = folder.path().join("secret");
    fs::write(&secret, "robot-hush-secret\n").expect("the directory can be written");
    let more = format!(
        "[upstream.oauth]\ngrant = \"client_credentials\"\nclient_id = \"robot\"\nclient_secret = \"${{file:{}}}\"",
        secret.display()
    );
    let node = Node::new(&locked, &more);
    let server = node.serve();
    works(&server, "up_read");
    works(&server, "up_write");
    assert_eq!(locked.count("token client_credentials"), 2, "one for each set of scopes");
    ends(server);
    node.is_clean();
    let login = [&["upstream", "login", "up"], &node.place()[..]].concat();
    let ran: Ran = run(cairn(&login));
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
}

#[test]
fn each_caller_uses_its_own_login_and_never_anothers() {
    let locked = Locked::start();
    let node = Node::new(&locked, "per_caller = true\n[auth]\nmode = \"static\"");
    let data = text(node.data.path());
    let token = |name: &str| {
        let add = ["token", "add", name, "--scope", "mcp:call", "--data", data];
        exits(0, &add).stdout.trim().to_owned()
    };
    let (alice, bob) = (token("alice"), token("bob"));
    // The node's own login lists what there is.
    assert_eq!(node.login(), Some(0));
    let server = node.serve();
    let call = |token: &str| {
        let mut command = cairn(&["call", "up_read", "--url", &server.url]);
        command.env("CAIRN_TOKEN", token);
        let ran = run(command);
        format!("{}{}", ran.stdout, ran.stderr)
    };
    let wanted = |name: &str| format!("wants your own login: cairn upstream login up --as {name}");
    until("the refusal of a caller without a login", || {
        call(&alice).contains(&wanted("alice")).then_some(())
    });
    assert_eq!(node.login_as(&["--as", "alice"]), Some(0));
    until("a call with a login", || call(&alice).contains("read done").then_some(()));
    assert!(call(&bob).contains(&wanted("bob")), "bob has no login");
    assert_eq!(node.login_as(&["--as", "bob"]), Some(0));
    until("the other's call", || call(&bob).contains("read done").then_some(()));
    let bearers = || {
        let seen = fs::read_to_string(locked.dir.path().join("seen")).expect("it was written");
        seen.lines().filter_map(|line| line.strip_prefix("bearer ").map(str::to_owned)).collect::<Vec<_>>()
    };
    let first = bearers();
    let [of_alice, of_bob] = &first[..] else { panic!("{first:?}") };
    assert_ne!(of_alice, of_bob);
    // One who logs out is out, and nobody else is.
    exits(0, &["upstream", "logout", "up", "--as", "alice", "--data", data]);
    until("the want of a login", || {
        call(&alice).contains("cairn upstream login up --as alice").then_some(())
    });
    until("the other's call", || call(&bob).contains("read done").then_some(()));
    assert!(bearers()[2..].iter().all(|bearer| bearer == of_bob), "{:?}", bearers());
    let shown = [&["upstream", "status", "--json"], &node.place()[..]].concat();
    let shown: Value = serde_json::from_str(&exits(0, &shown).stdout).expect("it prints json");
    let of = |caller: &str| {
        let logins = shown.as_array().expect("a list");
        logins.iter().find(|login| login["caller"] == caller).map(|login| login["login"].clone())
    };
    assert_eq!((of("bob"), of("alice")), (Some("yes".into()), Some("needed".into())), "{shown}");
    ends(server);
    node.is_clean();
    // Where all share one login there is none of a caller.
    let shared = Node::new(&locked, "");
    let refused = [&["upstream", "login", "up", "--as", "alice"], &shared.place()[..]].concat();
    exits(2, &refused);
}

#[test]
fn a_pasted_address_ends_a_login_and_a_strange_one_does_not() {
    let locked = Locked::start();
    let node = Node::new(&locked, "");
    for (pasted, code) in [("http://127.0.0.1:1/callback?code=x&state=y", 1), ("", 0)] {
        let mut command = cairn(&["upstream", "login", "up", "--paste"]);
        command.args(node.place());
        let mut process = Process::start(command);
        let page = process.line(READY_MAX).expect("it prints the page");
        let pasted = if pasted.is_empty() { landing(&page) } else { pasted.to_owned() };
        process.tell(&pasted);
        assert_eq!(process.wait(READY_MAX).code(), Some(code), "{}", process.last_errors());
    }
    assert_eq!(node.status()["login"], "yes");
}

/// Where the page leads, without going there.
fn landing(page: &str) -> String {
    use std::io::{Read, Write};
    let rest = page.strip_prefix("http://").expect("the page is plain");
    let (host, path) = rest.split_once('/').expect("a page has a path");
    let mut stream = TcpStream::connect(host).expect("somebody listens");
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("location: "));
    line.expect("the page leads somewhere")[10..].trim().to_owned()
}
