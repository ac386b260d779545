//! What the node runs itself, schedules, and what a restart keeps.

use super::*;

#[test]
fn a_task_that_names_a_tool_is_run_by_the_node_and_its_call_is_on_record() {
    let data = temp();
    let upstream = Upstream::new(&["count"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    caller.submit("t", "tool:up_count", json!({"payload": {"n": 7}}));
    let task = caller.task_until("t", "succeeded");
    assert!(task["worker_id"].as_str().is_some_and(|id| id.starts_with("node/")), "{task}");
    assert_eq!(caller.output("t"), json!({"text": "call 1"}));
    assert_eq!(upstream.calls(), [r#"count {"n": 7}"#]);
    let events = record::events(data.path());
    let claim = history(data.path(), "t")[1].cid();
    let call = events
        .iter()
        .find(|event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == "up_count"));
    assert_eq!(call.and_then(|call| call.fields().cause), Some(claim), "the claim caused the call");
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "tool:nobody_has_this", "payload": {}}),
        "invalid_argument",
    );
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "tool:tools_get_schema", "payload": {"tol": 1}}),
        "invalid_argument",
    );
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "wait:time", "payload": {}}),
        "invalid_argument",
    );
    ended_well(server, &data);
}

#[test]
fn what_the_nodes_own_executor_held_when_it_died_is_void_at_once() {
    let data = temp();
    let once = r#"{"name":"wait_once","inputSchema":{"type":"object"}}"#;
    let again =
        r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&[once, again]);
    let config = upstream.table("up", "");
    let server = serve(data.path(), &config);
    let mut caller = Caller::new(&server);
    for tool in ["wait_once", "wait_again"] {
        caller.submit(tool, &format!("tool:up_{tool}"), json!({"payload": {}}));
        upstream.reached(tool, 1);
    }
    server.kill();
    upstream.write("go", "");
    let since = Instant::now();
    let server = serve(data.path(), &config);
    let mut caller = Caller::new(&server);
    let failed = caller.task_until("wait_once", "failed");
    assert_eq!(failed["error"]["code"], "interrupted", "{failed}");
    caller.task_until("wait_again", "succeeded");
    assert!(since.elapsed() < Duration::from_secs(20), "no lease of 30 s is waited for");
    assert_eq!(upstream.calls().iter().filter(|call| call.starts_with("wait_once")).count(), 1);
    assert_eq!(upstream.calls().iter().filter(|call| call.starts_with("wait_again")).count(), 2);
    ended_well(server, &data);
}

#[test]
fn a_schedule_fires_each_tick_once_over_a_kill_too_and_stops_when_deleted() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let schedule = json!({"schedule_id": "s", "every_ms": 1000, "catch_up": true,
                          "task": {"task_type": "a", "payload": {"n": 1}}});
    assert_eq!(caller.tell("schedule_create", schedule.clone())["replayed"], false);
    assert_eq!(caller.tell("schedule_create", schedule)["replayed"], true);
    let listed = caller.tell("schedule_list", json!({}))["schedules"][0].clone();
    assert_eq!((&listed["missed_count"], &listed["skipped_count"]), (&json!(0), &json!(0)), "{listed}");
    let fired = || {
        let ticks = record::events(data.path()).into_iter().filter_map(|event| match event.body() {
            Some(Body::ScheduleFired(facts)) => Some(facts.at_ms),
            _ => None,
        });
        ticks.collect::<Vec<u64>>()
    };
    until("the first tick", || (!fired().is_empty()).then_some(()));
    server.kill();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    until("the third tick", || (fired().len() >= 3).then_some(()));
    caller.tell("schedule_delete", json!({"schedule_id": "s"}));
    let ticks = fired();
    assert!(ticks.windows(2).all(|two| two[1] - two[0] == 1000), "{ticks:?}");
    let tasks = caller.tell("task_list", json!({}));
    assert_eq!(tasks["total_count"].as_u64(), Some(ticks.len() as u64), "{tasks}");
    assert!(
        ids(&caller.tell("schedule_list", json!({}))["schedules"]
            .as_array()
            .map_or(json!([]), |list| json!(list)))
        .is_empty()
    );
    for bad in [json!({"cron": "61 * * * *"}), json!({}), json!({"every_ms": 1000, "cron": "* * * * *"})] {
        let mut asked = json!({"schedule_id": "bad", "task": {"task_type": "a", "payload": {}}});
        crate::work::put(&mut asked, bad);
        caller.refused("schedule_create", asked, "invalid_argument");
    }
    ended_well(server, &data);
}

#[test]
fn a_schedule_counts_what_it_missed_and_may_make_runs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let steps = json!([{"step_id": "s", "action": "tools_list_categories"}]);
    caller.tell(
        "schedule_create",
        json!({"schedule_id": "runs", "every_ms": 1000, "catch_up": false,
                                          "workflow": {"name": "tick", "steps": steps}}),
    );
    let fired = |data: &tempfile::TempDir| {
        let ticks = record::events(data.path()).into_iter().filter_map(|event| match event.body() {
            Some(Body::ScheduleFired(facts)) => Some((facts.at_ms, facts.missed)),
            _ => None,
        });
        ticks.collect::<Vec<(u64, u64)>>()
    };
    until("the first tick", || (!fired(&data).is_empty()).then_some(()));
    server.kill();
    let down = Instant::now();
    until("two ticks to be missed", || (down.elapsed() > Duration::from_millis(2_300)).then_some(()));
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    until("a tick after that", || (fired(&data).iter().any(|(_, missed)| *missed > 0)).then_some(()));
    caller.tell("schedule_delete", json!({"schedule_id": "runs"}));
    let ticks = fired(&data);
    for two in ticks.windows(2) {
        assert_eq!(two[1].0 - two[0].0, 1000 * (1 + two[1].1), "{ticks:?}");
    }
    let runs = caller.tell("workflow_list", json!({}));
    assert_eq!(runs["total_count"].as_u64(), Some(ticks.len() as u64), "{runs}");
    until("the end of all runs", || {
        let ended = caller.tell("workflow_list", json!({"status_filter": "succeeded"}));
        (ended["total_count"] == runs["total_count"]).then_some(())
    });
    ended_well(server, &data);
}

#[test]
fn a_task_whose_tool_is_gone_waits_until_it_is_offered_again() {
    let data = temp();
    let upstream = Upstream::new(&["count"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    caller.tell("queue_pause", json!({}));
    caller.submit("t", "tool:up_count", json!({"payload": {}}));
    assert!(server.stop().success());
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.tell("queue_resume", json!({}));
    caller.submit("other", "tool:tools_list_categories", json!({"payload": {}}));
    caller.task_until("other", "succeeded");
    assert_eq!(caller.task_stands("t"), "queued");
    server.kill();
    let server = serve(data.path(), &upstream.table("up", ""));
    Caller::new(&server).task_until("t", "succeeded");
    ended_well(server, &data);
}

#[test]
fn a_stop_leaves_what_the_node_ran_to_the_next_start() {
    let data = temp();
    let again =
        r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&["wait_once", again]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    for tool in ["wait_once", "wait_again"] {
        caller.submit(tool, &format!("tool:up_{tool}"), json!({"payload": {}}));
        upstream.reached(tool, 1);
    }
    assert!(server.stop().success());
    upstream.write("go", "");
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    let failed = caller.task_until("wait_once", "failed");
    assert_eq!(failed["error"]["code"], "interrupted", "{failed}");
    caller.task_until("wait_again", "succeeded");
    ended_well(server, &data);
}
