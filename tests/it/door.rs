//! The door from outside: floods of connections, few descriptors, TLS, numbers at the edge, keys and links.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Process, Server, exits, needs, python, run, temp, text},
    record::until,
    speech::{self, call, modern},
};

/// One exchange while others flood the door.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Starts a server under these limits of the shell.
fn limited(limits: &str, data: &Path) -> Server {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limits} && exec \"$@\"");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cairn"), "serve", "--listen", "127.0.0.1:0"]);
    command.arg("--data").arg(data);
    Server::start_as(command)
}

fn connect(server: &Server) -> TcpStream {
    let address = server.url.trim_start_matches("http://");
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(ANSWER_MAX)).expect("the bound is over zero");
    stream
}

/// Sends a request over a connection that is kept, and returns the status.
fn ask(stream: &mut TcpStream, line: &str, body: &str) -> u16 {
    let headers = "host: localhost\r\ncontent-type: application/json\r\n\
                   accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n\
                   mcp-method: tools/call\r\nmcp-name: tools_list_categories";
    let request = format!("{line} HTTP/1.1\r\n{headers}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("the server reads");
    let mut reply = Vec::new();
    let mut chunk = [0; 65_536];
    loop {
        let read = stream.read(&mut chunk).expect("the server answers in time");
        assert!(read > 0, "the server closed the connection: {}", String::from_utf8_lossy(&reply));
        reply.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&reply);
        let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let len = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let whole = match len {
            Some(len) => rest.len() >= len,
            None => rest.ends_with("0\r\n\r\n"),
        };
        if whole {
            return head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        }
    }
}

fn answers(server: &Server) {
    let began = Instant::now();
    assert_eq!(ask(&mut connect(server), "GET /healthz", ""), 200);
    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
}

#[test]
fn idle_connections_silence_nobody_and_leave_descriptors_for_the_log() {
    let data = temp();
    let server = limited("-n 256", data.path());
    let message = modern(1, "tools/call", call("tools_list_categories", &json!({}))).to_string();
    let mut kept = connect(&server);
    assert_eq!(ask(&mut kept, "POST /mcp", &message), 200);
    let mut idle = Vec::new();
    for round in 0..4 {
        // Whoever is closed to make room may see its own connection refused; that is what this is about.
        idle.extend((0..100).map(|_| connect(&server)));
        answers(&server);
        assert_eq!(ask(&mut kept, "POST /mcp", &message), 200, "round {round}");
        for path in ["/readyz", "/metrics", "/v1/events?limit=1", "/v1/state", "/v1/export?format=jsonl"] {
            assert_eq!(ask(&mut kept, &format!("GET {path}"), ""), 200, "round {round}: {path}");
        }
    }
    until("most idle connections are closed", || {
        let closed = idle.iter().filter(|stream| {
            let mut stream: &TcpStream = stream;
            stream.set_nonblocking(true).expect("the socket is open");
            !matches!(stream.read(&mut [0]), Err(err) if err.kind() == std::io::ErrorKind::WouldBlock)
        });
        (closed.count() >= idle.len() - 128).then_some(())
    });
    let metrics = server.get("/metrics");
    assert!(metrics.text().contains("cairn_http_connections_closed_total{reason=\"crowded\"}"));
    assert!(metrics.text().contains("process_max_fds 256\n"), "{}", metrics.text());
    assert!(server.stop().success());
}

#[test]
fn the_soft_limit_of_descriptors_is_raised() {
    let data = temp();
    let server = limited("-Sn 128", data.path());
    let metrics = server.get("/metrics");
    let line = metrics.text().lines().find(|line| line.starts_with("process_max_fds ")).expect("it is shown");
    let limit: u64 = line.rsplit(' ').next().and_then(|limit| limit.parse().ok()).expect("a number");
    assert!(limit > 128, "{line}");
}

#[test]
fn a_connection_that_says_nothing_is_closed_in_time() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let (mut silent, mut slow) = (connect(&server), connect(&server));
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").expect("the server reads");
    let mut served = connect(&server);
    assert_eq!(ask(&mut served, "GET /healthz", ""), 200);
    for (what, stream) in [("nothing", &mut silent), ("half a head", &mut slow)] {
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("the bound is over zero");
        let read = stream.read(&mut [0]);
        let closed = matches!(&read, Ok(0))
            || matches!(&read, Err(err) if err.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(closed, "{what}: {read:?}");
    }
    assert_eq!(ask(&mut served, "GET /healthz", ""), 200, "one between requests has more time");
}

#[test]
fn numbers_over_63_bits_are_refused_in_every_door() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    for number in ["9223372036854775808", "18446744073709551615", "18446744073709551616", "-1", "1e3", "0x1"]
    {
        for path in [
            "/v1/events?from_seq=",
            "/v1/events?to_seq=",
            "/v1/events?limit=",
            "/v1/events?after=",
            "/v1/events/stream?from_seq=",
            "/v1/export?format=jsonl&from_seq=",
            "/v1/export?format=jsonl&to_seq=",
            "/v1/consistency?old=",
            "/v1/consistency?old=0&new=",
            "/v1/state?digests=",
        ] {
            let reply = server.get(&format!("{path}{number}"));
            assert_eq!(reply.status, 400, "{path}{number}: {}", reply.text());
        }
        let stream = server.send("GET", "/v1/events/stream", &[("last-event-id", number)], b"");
        assert_eq!(stream.status, 400, "{number}");
        let log = text(data.path());
        exits(2, &["log", "query", "--data", log, &format!("--from-seq={number}")]);
    }
    for (tool, argument) in [
        ("provenance_query", "from_seq"),
        ("provenance_verify", "to_seq"),
        ("task_list", "offset"),
        ("task_status", "as_of_seq"),
        ("worker_status", "as_of_seq"),
        ("workflow_status", "as_of_seq"),
    ] {
        let number = 9_223_372_036_854_775_808_u64;
        let mut arguments = json!({argument: number});
        for (owner, name) in
            [("task_status", "task_id"), ("worker_status", "worker_id"), ("workflow_status", "workflow_id")]
        {
            if tool == owner {
                arguments[name] = "0".repeat(32).into();
            }
        }
        let said = speech::ask(&server, "tools/call", call(tool, &arguments)).to_string();
        assert!(said.contains("invalid_argument") || said.contains("-32602"), "{tool}: {said}");
        assert!(!said.contains("internal"), "{tool}: {said}");
    }
    assert_eq!(server.get("/v1/events?from_seq=9223372036854775807").status, 200);
    assert_eq!(server.get("/v1/state?digests=1").status, 200);
}

#[test]
fn lock_files_follow_no_links() {
    let data = temp();
    Server::start(data.path(), &[]).stop();
    let other = temp();
    let precious = other.path().join("precious");
    fs::write(&precious, "precious").expect("the file can be written");
    for lock in ["lock", "serve.lock", "tokens.lock"] {
        let path = data.path().join(lock);
        let _ = fs::remove_file(&path);
        symlink(&precious, &path).expect("a link can be made");
        let directory = text(data.path());
        match lock {
            "tokens.lock" => exits(1, &["token", "add", "ann", "--scope", "mcp:call", "--data", directory]),
            _ => exits(1, &["serve", "--listen", "127.0.0.1:0", "--no-p2p", "--data", directory]),
        };
        assert_eq!(fs::read_to_string(&precious).expect("the file is there"), "precious", "{lock}");
        fs::remove_file(&path).expect("the link can be removed");
    }
    assert!(Server::start(data.path(), &[]).stop().success());
}

/// What a Python client says of a TLS server: `tls.py URL CA` prints the status and the certificate's serial number.
fn shaken(url: &str, ca: &Path) -> Option<String> {
    let mut command = Command::new(needs("venv/bin/python"));
    let script = "import ssl,sys,socket,urllib.request as r,urllib.parse as p\n\
                  c=ssl.create_default_context(cafile=sys.argv[2])\n\
                  print(r.urlopen(sys.argv[1]+'/healthz',context=c,timeout=10).status)\n\
                  u=p.urlparse(sys.argv[1])\n\
                  s=c.wrap_socket(socket.create_connection((u.hostname,u.port)),server_hostname=u.hostname)\n\
                  print(s.getpeercert()['serialNumber'])";
    command.args(["-c", script, url, text(ca)]);
    let ran = run(command);
    ran.status.success().then_some(ran.stdout)
}

#[test]
fn tls_needs_no_proxy_and_a_renewed_certificate_is_shown() {
    let (data, certificates) = (temp(), temp());
    python("certificates.py", &[text(certificates.path())]).succeeded();
    let at = |name: &str| certificates.path().join(name);
    let config = data.path().join("cairn.toml");
    let pem = at("server.pem");
    let settings = format!("[server]\ntls_cert = '{0}'\ntls_key = '{0}'\n", text(&pem));
    fs::write(&config, settings).expect("the file can be written");
    let mut command = crate::harness::cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data.path()).arg("--config").arg(&config);
    let process = Process::start(command);
    let ready = process.line(Duration::from_secs(60)).expect("it is ready");
    let url = ready.split(' ').find_map(|part| part.strip_prefix("http=")).expect("an address").to_owned();
    assert!(url.starts_with("https://127.0.0.1:"), "{ready}");
    let first = shaken(&url, &at("ca.pem")).expect("it speaks TLS");
    assert!(first.starts_with("200\n"), "{first}");

    fs::write(&pem, "half a file").expect("the file can be written");
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(shaken(&url, &at("ca.pem")).as_deref(), Some(first.as_str()), "a broken file changes nothing");
    python("certificates.py", &[text(certificates.path())]).succeeded();
    let second =
        until("the new certificate is shown", || shaken(&url, &at("ca.pem")).filter(|said| *said != first));
    assert!(second.starts_with("200\n"), "{second}");
}
