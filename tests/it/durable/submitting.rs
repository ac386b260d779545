//! Submitting, listing, pausing and clearing.

use super::*;

#[test]
fn a_task_goes_from_its_submission_by_a_claim_to_its_result() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted = caller.submit("t/1", "resize", json!({"tags": ["nightly"], "metadata": {"why": "test"}}));
    assert_eq!((&submitted["status"], &submitted["replayed"]), (&json!("queued"), &json!(false)));
    caller.refused("task_result", json!({"task_id": "t/1"}), "failed_precondition");
    let mut worker = Worker::register(&server, "w", &["resize"], 5);
    let task = worker.take();
    assert_eq!((&task["task_id"], &task["payload"]), (&json!("t/1"), &json!({"of": "t/1"})), "{task}");
    assert_eq!((&task["attempt"], &task["fence"]), (&json!(1), &json!(1)), "{task}");
    let said = worker.said(&task, json!({"progress": 40, "log": "almost half"}));
    assert_eq!(worker.caller.tell("task_heartbeat", said)["cancel_requested"], false);
    let running = caller.task("t/1");
    assert_eq!((&running["status"], &running["progress"]), (&json!("running"), &json!(40)), "{running}");
    assert_eq!(running["worker_id"], "w", "{running}");
    assert_eq!(worker.complete(&task, json!({"bytes": 12}))["status"], "succeeded");
    let result = caller.tell("task_result", json!({"task_id": "t/1", "include_logs": true}));
    assert_eq!(result["output"], json!({"bytes": 12}), "{result}");
    assert_eq!(result["logs"][0]["message"], "almost half", "{result}");
    let listed = caller.tell("task_list", json!({"tag_filter": ["nightly"], "status_filter": "succeeded"}));
    assert_eq!(ids(&listed["tasks"]), ["t/1"]);
    let expected = ["task.submitted", "task.claimed", "task.renewed", "task.succeeded"];
    assert_eq!(kinds(data.path(), "t/1"), expected);
    ended_well(server, &data);
}

#[test]
fn what_a_worker_says_is_one_commit_with_its_call_and_its_answer() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    for id in ["t1", "t2", "t3"] {
        caller.submit(id, "a", json!({}));
    }
    let commits = || {
        let scrape = server.get("/metrics");
        let line = scrape.text().lines().find_map(|line| line.strip_prefix("cairn_commit_events_count "));
        line.and_then(|count| count.parse::<u64>().ok()).expect("commits are counted")
    };
    let before = commits();
    let tasks = worker.claim(2);
    worker.beat(&tasks[0]);
    worker.fail(&tasks[0], "internal", false);
    let told = worker.said(&tasks[1], json!({"output": {}, "claim_next": true}));
    let told = worker.caller.tell("task_complete", told);
    assert_eq!(told["tasks"][0]["task_id"], "t3", "{told}");
    let refused = worker.refused("task_heartbeat", &tasks[1], json!({}), "conflict");
    assert!(refused["message"].is_string(), "{refused}");
    assert!(worker.claim(1).is_empty());
    assert_eq!(commits() - before, 6);
    ended_well(server, &data);
    let events = record::events(data.path());
    let claimed = events.iter().position(|event| record::kind(event) == "task.claimed").expect("a claim");
    let said: Vec<&str> = events[claimed - 1..].iter().map(record::kind).collect();
    let expected = [
        "call.started",
        "task.claimed",
        "task.claimed",
        "call.succeeded",
        "call.started",
        "task.renewed",
        "call.succeeded",
        "call.started",
        "task.failed",
        "call.succeeded",
        "call.started",
        "task.succeeded",
        "task.claimed",
        "call.succeeded",
        "call.started",
        "call.failed",
        "call.started",
        "call.succeeded",
    ];
    assert_eq!(said, expected);
}

#[test]
fn an_answer_of_one_commit_is_recorded_as_it_was_told_and_given_again_for_its_key() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    caller.submit("t", "a", json!({}));
    let task = worker.take();
    let params = keyed("task_complete", &worker.said(&task, json!({"output": {"n": 1}})), "once");
    let first = ask(&server, "tools/call", params.clone());
    let again = ask(&server, "tools/call", params);
    assert_eq!(first["result"]["structuredContent"]["status"], "succeeded", "{first}");
    assert_eq!(first["result"]["content"], again["result"]["content"]);
    assert_eq!(first["result"]["_meta"]["io.cairn/event"], again["result"]["_meta"]["io.cairn/event"]);
    assert_eq!(kinds(data.path(), "t"), ["task.submitted", "task.claimed", "task.succeeded"]);
    ended_well(server, &data);
}

#[test]
fn an_answer_of_one_commit_is_kept_as_its_tool_says() {
    let data = temp();
    let server = serve(data.path(), "[capture.tools]\ntask_claim = \"digest\"\n");
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    caller.submit("between-us", "a", json!({}));
    assert_eq!(ids(&json!(worker.claim(1))), ["between-us"]);
    let ending = record::ended(data.path(), "task_claim");
    let kept = record::content(data.path(), &ending.fields().pay[0].cid);
    assert!(kept.contains("$redacted") && !kept.contains("between-us"), "{kept}");
    ended_well(server, &data);
}

#[test]
fn the_same_submission_again_is_known_and_another_content_is_refused() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    assert_eq!(caller.submit("t", "a", json!({}))["replayed"], false);
    assert_eq!(caller.submit("t", "a", json!({}))["replayed"], true);
    for other in [json!({"payload": {"of": "another"}}), json!({"priority": 51}), json!({"task_type": "b"})] {
        let mut task = json!({"task_id": "t", "task_type": "a", "payload": {"of": "t"}});
        crate::work::put(&mut task, other);
        caller.refused("task_submit", task, "already_exists");
    }
    assert_eq!(kinds(data.path(), "t"), ["task.submitted"]);
    for tool in ["task_status", "task_result", "task_cancel", "task_retry"] {
        caller.refused(tool, json!({"task_id": "nobody's"}), "not_found");
    }
    ended_well(server, &data);
}

#[test]
fn the_reason_of_a_change_is_told_with_it() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted = caller.submit("t", "a", json!({}));
    assert_eq!(submitted["estimated_start_time"], Value::Null, "nobody can know: {submitted}");
    caller.tell("task_priority", json!({"task_id": "t", "new_priority": 90, "reason": "it is late"}));
    caller.tell("task_cancel", json!({"task_id": "t", "reason": "not needed"}));
    let told = caller.tell("task_status", json!({"task_id": "t", "include_logs": true}));
    let lines: Vec<&str> =
        told["logs"].as_array().expect("lines").iter().flat_map(|line| line["message"].as_str()).collect();
    let [first, second] = lines[..] else { panic!("{told}") };
    assert!(first.starts_with("task.reprioritised by ") && first.ends_with(": it is late"), "{told}");
    assert!(second.starts_with("task.cancelled by ") && second.ends_with(": not needed"), "{told}");
    assert_eq!(told["progress"], 0, "{told}");
    let event = history(data.path(), "t").last().expect("it was cancelled").cid().to_string();
    let directory = data.path().to_str().expect("temporary paths are text");
    for place in [["--url", &server.url], ["--data", directory]] {
        let shown = run(cairn(&[&["log", "show", &event], &place[..]].concat()));
        assert!(
            shown.stdout.lines().any(|line| line.starts_with("reason") && line.ends_with("not needed")),
            "{shown:?}"
        );
        let listed = run(cairn(&[&["log", "query", "--subject", "task/t", "--json"], &place[..]].concat()));
        let reasons: Vec<Value> = listed
            .stdout
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).expect("a JSON document a line")["reason"].clone()
            })
            .collect();
        assert_eq!(reasons, [Value::Null, json!("it is late"), json!("not needed")], "{listed:?}");
    }
    ended_well(server, &data);
}

#[test]
fn a_paused_queue_starts_nothing_over_a_restart_too_and_goes_on_when_resumed() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("runs", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    let running = worker.take();
    let paused = caller.tell("queue_pause", json!({"reason": "maintenance"}));
    assert_eq!(paused["running_tasks"], 1, "{paused}");
    caller.submit("waits", "a", json!({}));
    caller.submit("tool", "tool:tools_list_categories", json!({"payload": {}}));
    assert!(worker.claim(10).is_empty());
    worker.complete(&running, json!(1));
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    assert_eq!(caller.tell("queue_stats", json!({}))["paused"], true);
    assert!(worker.claim(10).is_empty());
    assert_eq!(caller.task_stands("tool"), "queued");
    let resumed = caller.tell("queue_resume", json!({}));
    assert_eq!(resumed["status"], "active", "{resumed}");
    worker.does("waits", json!(1));
    caller.task_until("tool", "succeeded");
    ended_well(server, &data);
}

#[test]
fn clearing_takes_out_what_waits_and_never_what_runs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    for id in ["fails", "runs", "waits-1", "waits-2"] {
        caller.submit(id, "a", json!({}));
    }
    let tasks = worker.claim(2);
    worker.fail(&tasks[0], "boom", false);
    caller.refused("queue_clear", json!({"confirm": false}), "invalid_argument");
    let cleared = caller.tell("queue_clear", json!({"confirm": true, "status_filter": "queued"}));
    assert_eq!((&cleared["cleared_count"], &cleared["remaining_count"]), (&json!(2), &json!(0)), "{cleared}");
    assert!(worker.claim(10).is_empty());
    assert_eq!(caller.task_stands("waits-1"), "cancelled");
    let cleared = caller.tell("queue_clear", json!({"confirm": true, "status_filter": "failed"}));
    assert_eq!(cleared["cleared_count"], 1, "{cleared}");
    assert!(ids(&caller.tell("task_list", json!({"status_filter": "failed"}))["tasks"]).is_empty());
    assert_eq!(caller.task_stands("fails"), "failed", "its history stays");
    caller.submit("waits-3", "a", json!({}));
    let cleared = caller.tell("queue_clear", json!({"confirm": true}));
    assert_eq!(cleared["cleared_count"], 3, "two that were cancelled, and one that waits: {cleared}");
    let listed = caller.tell("task_list", json!({}));
    assert_eq!(ids(&listed["tasks"]), ["runs", "waits-3"], "{listed}");
    worker.complete(&tasks[1], json!(1));
    assert_eq!(caller.task_stands("runs"), "succeeded");
    ended_well(server, &data);
}

#[test]
fn a_unique_key_is_held_until_its_task_has_ended() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let keyed = |id: &str| json!({"task_id": id, "task_type": "a", "payload": {}, "unique_key": "invoice-7"});
    caller.tell("task_submit", keyed("one"));
    caller.refused("task_submit", keyed("two"), "already_exists");
    assert_eq!(caller.tell("task_submit", keyed("one"))["replayed"], true);
    server.kill();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.refused("task_submit", keyed("two"), "already_exists");
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    worker.does("one", json!(1));
    caller.tell("task_submit", keyed("two"));
    ended_well(server, &data);
}

#[test]
fn a_full_queue_refuses_with_a_hint_and_takes_again_when_there_is_room() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nmax_queue = 3\n");
    let mut caller = Caller::new(&server);
    for n in 0..3 {
        caller.submit(&format!("t{n}"), "a", json!({}));
    }
    let over = json!({"task_id": "over", "task_type": "a", "payload": {}});
    let error = caller.refused("task_submit", over.clone(), "resource_exhausted");
    assert_eq!(error["retryable"], true, "{error}");
    assert!(error["hint"].is_string(), "{error}");
    Worker::register(&server, "w", &["a"], 5).take();
    caller.tell("task_submit", over);
    ended_well(server, &data);
}

#[test]
fn a_task_can_be_seen_as_it_stood_after_any_event() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    worker.does("t", json!(1));
    let seen: Vec<String> = history(data.path(), "t")
        .iter()
        .map(|event| {
            let asked = json!({"task_id": "t", "as_of_seq": event.fields().seq});
            caller.tell("task_status", asked)["status"].as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(seen, ["queued", "running", "succeeded"]);
    caller.refused("task_status", json!({"task_id": "t", "as_of_seq": 0}), "not_found");
    ended_well(server, &data);
}

#[test]
fn pages_of_a_list_hold_every_task_once_while_others_write() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted: Vec<String> = (0..60).map(|n| format!("t{n:02}")).collect();
    for id in &submitted {
        caller.submit(id, "a", json!({}));
    }
    let mut worker = Worker::register(&server, "w", &["a"], 100);
    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    for n in 0.. {
        let mut asked = json!({"limit": 7});
        if !cursor.is_null() {
            asked["cursor"] = cursor;
        }
        let page = caller.tell("task_list", asked);
        seen.extend(ids(&page["tasks"]));
        caller.submit(&format!("later{n}"), "a", json!({"priority": 100}));
        for task in worker.claim(3) {
            worker.complete(&task, json!(1));
        }
        cursor = page["next_cursor"].clone();
        if page["has_more"] == false {
            break;
        }
    }
    let mut old: Vec<String> = seen.iter().filter(|id| id.starts_with('t')).cloned().collect();
    old.sort();
    assert_eq!(old, submitted, "each once");
    ended_well(server, &data);
}
