//! Tests of what machines ask for: health while the node starts, metrics, an address of their own.
//!
//! Invariant: each test has a server of its own on a free port.

use super::*;

const NAMED: [(&str, &str); 1] = [("Host", "10.1.2.3:7420")];

#[tokio::test]
async fn an_address_answers_before_there_is_a_node() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let starting = Box::new(|| vec!["starting: 5 of 9 events".to_owned()]);
    let health = Arc::new(Health::new(Arc::default(), starting));
    let door = Door::new(listener, &Server::default(), None, health).expect("the listener has an address");
    let opener = door.opener();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(door.serve(shutdown.clone()));
    let house = House { address, shutdown, task, metrics: Arc::default(), opener: None };
    assert_eq!(house.ask("GET /healthz", &NAMED, b"").await.status, 200);
    let ready = house.ask("GET /readyz", &NAMED, b"").await;
    assert_eq!((ready.status, &ready.json()["reasons"][0]), (503, &json!("starting: 5 of 9 events")));
    assert!(house.ask("GET /metrics", &NAMED, b"").await.body.contains("process_start_time_seconds"));
    let early = house.ask("POST /mcp", &[], b"{}").await;
    assert_eq!((early.status, early.header("retry-after")), (503, Some("1")));

    let metrics = Arc::new(Metrics::new());
    let mcp: Arc<dyn Mcp> = Arc::new(Parrot::default());
    opener.open(App {
        server: Server::default(),
        access: Arc::new(Access::Open),
        mcp,
        audit: Router::new(),
        ready: Box::new(Vec::new),
        metrics,
    });
    assert_eq!(house.ask("GET /readyz", &NAMED, b"").await.status, 200);
    assert_eq!(house.ask("POST /mcp", &[], b"{}").await.status, 200);
}

#[tokio::test]
async fn machines_ask_by_any_name_and_browsers_by_ours() {
    let house = House::open(Access::Open, Server::default()).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        let line = format!("GET {path}");
        assert_eq!(house.ask(&line, &NAMED, b"").await.status, 200, "{path}");
        let browser = [("Host", "evil.example"), ("Accept-Language", "en")];
        assert_eq!(house.ask(&line, &browser, b"").await.status, 403, "{path}");
        assert_eq!(house.ask(&line, &browser[1..], b"").await.status, 200, "{path}");
        let named = [NAMED[0], browser[1]];
        assert_eq!(house.ask(&line, &named, b"").await.status, 200, "{path}: no page has an address");
        let any = [browser[0], ("Accept-Language", "*")];
        assert_eq!(house.ask(&line, &any, b"").await.status, 200, "{path}: no browser says this");
    }
    assert_eq!(house.ask("GET /v1/who", &NAMED, b"").await.status, 403);
}

#[tokio::test]
async fn numbers_have_an_address_of_their_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(metrics.clone(), Box::new(Vec::new)));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve_health(listener, health, shutdown.clone()));
    let house = House { address, shutdown, task, metrics, opener: None };
    for (line, status) in [
        ("GET /metrics", 200),
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("GET /v1/who", 404),
        ("POST /mcp", 404),
    ] {
        assert_eq!(house.ask(line, &NAMED, b"").await.status, status, "{line}");
    }
}

#[tokio::test]
async fn who_was_refused_is_counted_by_reason() {
    let keys = keys();
    let server = Server { rate_limit_per_second: 1, rate_limit_burst: 1, ..Server::default() };
    let house = House::open(keys.access, server).await;
    let ask = async |line: &str, headers: &[(&str, &str)]| house.ask(line, headers, b"{}").await.status;
    assert_eq!(ask("POST /mcp", &[]).await, 401);
    assert_eq!(ask("POST /mcp", &[("Authorization", "Bearer x")]).await, 401);
    assert_eq!(ask("GET /v1/who", &[("Authorization", &keys.ann)]).await, 403);
    assert_eq!(ask("POST /mcp", &[("Host", "evil.example")]).await, 403);
    assert_eq!(ask("POST /mcp", &[("Origin", "null")]).await, 403);
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) && statuses.len() < 100 {
        statuses.push(ask("POST /mcp", &[("Authorization", &keys.ann)]).await);
    }
    let text = house.metrics.encode();
    for (status, reason) in
        [(401, "missing"), (401, "invalid"), (403, "scope"), (403, "host"), (403, "origin"), (429, "rate")]
    {
        let line = format!("cairn_http_refusals_total{{status=\"{status}\",reason=\"{reason}\"}} 1");
        assert!(text.contains(&line), "{line} in {text}");
    }
}
