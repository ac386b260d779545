//! What an operator sees of durable work: a scrape of the metrics and the alerts, while work waits, runs and fails.

use std::ops::ControlFlow;

use cairn::log::{Reader, home::Home, sqlite::SqliteReader};
use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, run, temp},
    record::{PATIENCE, until},
    speech::{ask, call, event},
    upstream::serve,
    work::{Caller, Worker},
};

/// Waits until a scrape has all these lines.
fn scraped(server: &Server, lines: &[&str]) {
    until(&format!("{lines:#?}"), || {
        let reply = server.get("/metrics");
        let shown = |line: &&str| reply.text().lines().any(|found| found == *line);
        lines.iter().all(shown).then_some(())
    });
}

/// The alerts that fire, each with its value.
fn firing(caller: &mut Caller) -> Value {
    let stats = caller.tell("queue_stats", json!({"include_historical": true}));
    let alerts = stats["alerts"].as_array().expect("alerts are told").iter();
    let firing = alerts.filter(|alert| alert["firing"] == true);
    firing.map(|alert| (alert["name"].as_str().expect("a name").to_owned(), alert["value"].clone())).collect()
}

#[test]
fn what_waits_runs_and_fails_is_seen_by_whoever_scrapes() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nmax_queue = 3\n");
    let mut caller = Caller::new(&server);
    scraped(&server, &[r#"cairn_tasks{status="queued"} 0"#, r#"cairn_alert{name="queue_full"} 0"#]);
    assert_eq!(firing(&mut caller), json!({}));

    let mut worker = Worker::register(&server, "w", &["echo"], 2);
    caller.submit("good", "echo", json!({}));
    worker.does("good", json!({}));
    caller.submit("bad", "echo", json!({}));
    let task = worker.take();
    worker.fail(&task, "internal", false);
    let failing = json!([{"step_id": "a", "action": "tools_get_schema", "inputs": {"tool": "nobody"}}]);
    caller.tell("workflow_submit", json!({"workflow_id": "wf", "name": "fails", "steps": failing}));
    for id in ["r1", "r2", "r3"] {
        caller.submit(id, "render", json!({"priority": 10}));
    }
    scraped(
        &server,
        &[
            r#"cairn_tasks{status="queued"} 3"#,
            r#"cairn_tasks{status="succeeded"} 1"#,
            r#"cairn_tasks{status="failed"} 2"#,
            r#"cairn_workflows{status="failed"} 1"#,
            r#"cairn_workers{status="idle"} 1"#,
            r#"cairn_worker_tasks{worker="w"} 0"#,
            r#"cairn_queue_depth{queue="tasks"} 3"#,
            "cairn_tasks_submitted_total 6",
            "cairn_task_starts_total 3",
            "cairn_task_attempts_total 3",
            r#"cairn_task_ends_total{outcome="succeeded"} 1"#,
            r#"cairn_task_ends_total{outcome="failed"} 2"#,
            r#"cairn_workflow_ends_total{outcome="failed"} 1"#,
            r#"cairn_alert{name="no_worker"} 1"#,
            r#"cairn_alert{name="queue_full"} 1"#,
            r#"cairn_alert{name="workflow_failures"} 0"#,
            r#"cairn_alert{name="dead_letters"} 0"#,
        ],
    );
    assert_eq!(firing(&mut caller), json!({"no_worker": 1.0, "queue_full": 1.0}));

    // Each is over once its cause is.
    caller.tell("queue_clear", json!({"confirm": true, "status_filter": "queued"}));
    caller.tell("worker_unregister", json!({"worker_id": "w", "graceful": false}));
    scraped(
        &server,
        &[
            r#"cairn_workers{status="offline"} 1"#,
            r#"cairn_alert{name="no_worker"} 0"#,
            r#"cairn_alert{name="queue_full"} 0"#,
        ],
    );
    assert!(!server.get("/metrics").text().contains("cairn_worker_tasks{"));
    assert_eq!(firing(&mut caller), json!({}));
    assert!(server.stop().success());
}

#[test]
fn waits_steps_and_runs_are_seen_as_distributions_and_steps_apart_from_tasks() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["echo"], 2);
    let step = |id: &str| json!({"step_id": id, "action": "worker:echo"});
    caller.run("good", json!([step("a"), step("b")]), json!({"max_parallel_steps": 1}));
    worker.does("good#a", json!(1));
    worker.does("good#b", json!(2));
    caller.run("bad", json!([step("a")]), json!({}));
    let task = worker.take();
    worker.fail(&task, "bad_input", false);
    caller.submit("plain", "echo", json!({}));
    worker.does("plain", json!(3));
    scraped(
        &server,
        &[
            "cairn_queue_wait_seconds_count 4",
            r#"cairn_queue_wait_seconds_bucket{le="+Inf"} 4"#,
            r#"cairn_queue_wait_seconds_bucket{le="86400.0"} 4"#,
            r#"cairn_step_ends_total{outcome="succeeded"} 2"#,
            r#"cairn_step_ends_total{outcome="failed"} 1"#,
            r#"cairn_step_seconds_count{outcome="succeeded"} 2"#,
            r#"cairn_step_seconds_count{outcome="failed"} 1"#,
            r#"cairn_workflow_seconds_count{outcome="succeeded"} 1"#,
            r#"cairn_workflow_seconds_count{outcome="failed"} 1"#,
            r#"cairn_task_ends_total{outcome="succeeded"} 3"#,
        ],
    );
    server.kill();
    let server = Server::start(data.path(), &[]);
    scraped(&server, &["cairn_queue_wait_seconds_count 0", r#"cairn_tasks{status="succeeded"} 3"#]);
    assert!(server.stop().success());
}

#[test]
fn a_worker_that_fell_silent_is_counted() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nlease_ms = 200\n");
    let mut caller = Caller::new(&server);
    scraped(&server, &[r#"cairn_task_lapses_total{reason="lease_expired"} 0"#]);
    let mut worker = Worker::register(&server, "w", &["echo"], 1);
    caller.submit("t", "echo", json!({}));
    worker.take();
    let lines = [
        r#"cairn_task_lapses_total{reason="lease_expired"} 1"#,
        r#"cairn_workers{status="offline"} 1"#,
        r#"cairn_alert{name="no_worker"} 1"#,
    ];
    scraped(&server, &lines);
    assert!(server.stop().success());
}

#[test]
fn five_failed_workflows_and_a_dead_task_call_for_somebody() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut caller = Caller::new(&server);
    let failing = json!([{"step_id": "a", "action": "tools_get_schema", "inputs": {"tool": "nobody"}}]);
    for n in 0..5 {
        let workflow = json!({"workflow_id": format!("wf{n}"), "name": "fails", "steps": failing});
        caller.tell("workflow_submit", workflow);
    }
    let retry = json!({"max_retries": 1, "backoff_ms": 0});
    caller.submit("t", "echo", json!({"retry_policy": retry}));
    let mut worker = Worker::register(&server, "w", &["echo"], 1);
    for _ in 0..2 {
        let task = worker.take();
        worker.fail(&task, "internal", true);
    }
    let expected = json!({"workflow_failures": 1.0, "dead_letters": 1.0});
    until("both alerts", || (firing(&mut caller) == expected).then_some(()));
    scraped(
        &server,
        &[r#"cairn_alert{name="workflow_failures"} 1"#, r#"cairn_alert{name="dead_letters"} 1"#],
    );
    assert!(server.stop().success());
}

#[test]
fn a_watch_outlives_a_restart_and_ends_by_saying_why_the_run_failed() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut caller = Caller::new(&server);
    let worker = Worker::register(&server, "w", &["echo"], 1);
    let retry = json!({"max_retries": 0});
    caller.run("wf", json!([{"step_id": "a", "action": "worker:echo", "retry": retry}]), json!({}));
    let mut watch = Process::start(cairn(&["workflow", "watch", "wf", "--url", &server.url]));
    let first = watch.line(PATIENCE).expect("the run in a line");
    assert!(first.starts_with("wf  "), "{first}");
    let address = server.url.trim_start_matches("http://").to_owned();
    server.kill();
    until("the watch waits", || watch.errors().contains("waiting up to 60 s").then_some(()));
    let mut again = cairn(&["serve", "--listen", &address, "--data"]);
    again.arg(data.path());
    let server = Server::start_as(again);
    let mut worker = worker.back(&server);
    let task = worker.take();
    worker.fail(&task, "bad_input", false);
    let lines: Vec<String> = std::iter::from_fn(|| watch.line(PATIENCE)).collect();
    assert_eq!(watch.wait(PATIENCE).code(), Some(1));
    assert!(watch.errors().contains("the server answers again"), "{}", watch.errors());
    let [.., head, why] = &lines[..] else { panic!("{lines:?}") };
    assert!(head.starts_with("wf  failed  1/1 steps"), "{lines:?}");
    assert_eq!(why, "step_failed: a: bad_input: as the test says");
    assert!(server.stop().success());
}

#[test]
fn a_reader_that_holds_the_logs_files_is_seen_and_holds_up_nothing() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let secret = "Rumpelstiltskin is a name of some length";
    let again = || ask(&server, "tools/call", call("test_simple_text", &json!({ "message": secret })));
    let ended = event(&again()).to_owned();
    let shown = |cid: &str| {
        let mut command = cairn(&["log", "show", cid, "--json", "--data"]);
        command.arg(data.path());
        let ran = run(command);
        serde_json::from_str::<Value>(&ran.stdout).unwrap_or_else(|err| panic!("{err}: {ran:?}"))
    };
    let started = shown(&ended)["cause"]["/"].as_str().expect("an ending has its start").to_owned();
    let payload = shown(&started)["pay"][0]["cid"]["/"].as_str().expect("an input").to_owned();
    let on_disk = || {
        ["log.db", "log.db-wal"].iter().any(|name| {
            let file = std::fs::read(data.path().join(name)).expect("it can be read");
            file.windows(secret.len()).any(|window| window == secret.as_bytes())
        })
    };
    let gauge = |name: &str| {
        let scraped = server.get("/metrics");
        let line = scraped
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name}"))
    };
    // Another program that looks at the log, and does not end.
    let home = Home::existing(data.path()).expect("there is a log");
    let reader = SqliteReader::open(&home.log_path()).expect("it can be read");
    let walked = reader.events(0, &mut |_| {
        let mut erase = cairn(&["erase", &payload, "--basis", "secret", "--data"]);
        erase.arg(data.path());
        let ran = run(erase);
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(server.get(&format!("/v1/blocks/{payload}")).status, 410);
        ask(&server, "tools/call", call("test_simple_text", &json!({})));
        assert!(on_disk(), "the reader does not hold what it should");
        until("the reader is seen", || (gauge("cairn_log_wal_held_seconds") > 0.0).then_some(()));
        assert!(gauge("cairn_log_wal_bytes") > 0.0);
        let lines = [r#"cairn_alert{name="wal_held"} 0"#];
        scraped(&server, &lines);
        ControlFlow::Break(())
    });
    walked.expect("the log reads");
    until("the content is cut off", || (!on_disk()).then_some(()));
    until("the reader is forgotten", || (gauge("cairn_log_wal_held_seconds") == 0.0).then_some(()));
    assert!(server.stop().success());
}
