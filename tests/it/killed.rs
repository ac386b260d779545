//! Kills under durable work: workflows, workers and cancels, with a checker outside the server that counts effects.
//!
//! What holds afterwards: nothing that was accepted is lost, nothing has two successes, no effect was repeated that was
//! not allowed, nothing started after an answered cancel, and the log and the state say the same.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cairn::event::{Body, Event};
use serde_json::{Value, json};

use crate::{
    crashes::{Random, kill_while_starting, usual_or_long},
    harness::{Server, cairn, run, temp},
    lines::Lines,
    record::{self, until},
    upstream::{Upstream, configure},
    work::{Caller, put},
};

/// Kills of one run, and of a long one.
const ROUNDS: (usize, usize) = (15, 50);
const WORKERS: usize = 3;
const SUBMITTERS: usize = 2;
/// What one submitter asks for in one round, at most.
const SUBMISSIONS_MAX: usize = 6;
/// Of so many that were accepted last, one is meddled with.
const LATEST: usize = 12;
/// Answers of all kinds after which a round is killed at the latest.
const ANSWERS_MAX: usize = 80;
/// How long a round goes on though its answers do not come.
const ROUND_MAX: Duration = Duration::from_millis(700);
/// How long what is left may take when nothing is killed any more.
const SETTLE_MAX: Duration = Duration::from_secs(90);

const LEASES: &str = "[tasks]\nlease_ms = 300\nmax_attempts = 1000\n";

/// What the world outside the server knows.
#[derive(Default)]
struct World {
    /// Orders what different callers saw: whoever asks takes a number before, whoever was answered one after.
    clock: AtomicU64,
    answers: AtomicUsize,
    /// Nothing goes wrong on purpose any more.
    calm: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Accepted tasks and runs, with what was asked for.
    accepted: BTreeMap<String, Value>,
    /// The same in the order of their answers.
    order: Vec<String>,
    /// Asked for without an answer: asked for again.
    unsure: Vec<(&'static str, Value)>,
    /// Runs and tasks whose cancel was answered, and when.
    cancelled: HashMap<String, u64>,
    /// Completions that were answered: task, fence.
    completed: HashMap<String, u64>,
    /// What workers have done and could not say, by worker.
    held: HashMap<usize, Vec<Value>>,
}

impl World {
    fn known(&self) -> MutexGuard<'_, Known> {
        // A caller that fails says so itself; the others go on until the round ends.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn accept(&self, asked: Value) {
        let (id, mut known) = (id_of(&asked).to_owned(), self.known());
        known.order.push(id.clone());
        known.accepted.insert(id, asked);
    }

    fn answered(&self) {
        self.answers.fetch_add(1, Ordering::SeqCst);
    }
}

/// The effects of workers: a line each, on the disk before the server hears of it.
struct Effects(Mutex<File>);

impl Effects {
    fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(Mutex::new(file.expect("the directory can be written")))
    }

    fn write(&self, task: &str, fence: u64) {
        let mut file = self.0.lock().expect("nobody who holds it panics");
        writeln!(file, "{task} {fence}").and_then(|()| file.sync_data()).expect("the disk takes it");
    }

    fn read(path: &Path) -> Vec<(String, u64)> {
        let text = std::fs::read_to_string(path).expect("it was written");
        let line = |line: &str| {
            let (task, fence) = line.split_once(' ').expect("two words");
            (task.to_owned(), fence.parse().expect("a number"))
        };
        text.lines().map(line).collect()
    }
}

/// A task or a run that a submitter asks for.
fn wish(id: &str, random: &mut Random) -> (&'static str, Value) {
    let retry = json!({"max_retries": 20, "backoff_ms": 10});
    let step = |name: &str, action: &str, after: &[&str], more: Value| {
        let mut step = json!({"step_id": name, "action": action, "depends_on": after,
                              "inputs": {"of": format!("{id}#{name}")}});
        put(&mut step, more);
        step
    };
    let worker = |name: &str, after: &[&str]| step(name, "worker:w", after, json!({"retry": retry}));
    let steps = match random.below(6) {
        0 => {
            return (
                "task_submit",
                json!({"task_id": id, "task_type": "w", "payload": {"of": id}, "retry_policy": retry,
                                          "priority": random.below(101), "concurrency_key": format!("k{}", random.below(3))}),
            );
        }
        1 => {
            let tool = ["tool:up_once", "tool:up_again"][random.below(2)];
            return ("task_submit", json!({"task_id": id, "task_type": tool, "payload": {"of": id}}));
        }
        2 => json!([worker("a", &[]), worker("b", &["a"]), worker("c", &["a"]), worker("d", &["b", "c"])]),
        3 => json!([
            step("again", "up_again", &[], json!({})),
            step("pause", "wait:time", &["again"], json!({"inputs": {"ms": random.below(200)}})),
            step("once", "up_once", &["pause"], json!({})),
            worker("end", &["once"]),
        ]),
        4 => json!([
            worker("list", &[]),
            step(
                "each",
                "worker:w",
                &["list"],
                json!({
                "for_each": {"$from": "list", "pointer": "/items"}, "retry": retry,
                "inputs": {"of": {"$item": "/n"}}})
            ),
            step("wait", "wait:signal", &["each"], json!({"inputs": {"signal": "go"}})),
            worker("end", &["wait"]),
        ]),
        _ => {
            let undo = json!({"compensate": {"action": "worker:w", "inputs": {"of": format!("{id}#a#undo")}}, "retry": retry});
            let bad = json!({"inputs": {"x": {"$from": "a", "pointer": "/nothing"}}});
            json!([step("a", "worker:w", &[], undo), step("bad", "worker:w", &["a"], bad)])
        }
    };
    ("workflow_submit", json!({"workflow_id": id, "name": "mixed", "steps": steps}))
}

fn id_of(wish: &Value) -> &str {
    wish["task_id"].as_str().or(wish["workflow_id"].as_str()).expect("a wish has an id")
}

/// Asks again for what was not answered, then for something new, until the server is gone.
fn submit(url: &str, world: &World, round: usize, number: usize, random: &mut Random) {
    let Some(mut caller) = Caller::at(url) else { return };
    for n in 0..SUBMISSIONS_MAX {
        let unsure = world.known().unsure.pop();
        let (tool, asked) = unsure.unwrap_or_else(|| wish(&format!("r{round}.{number}.{n}"), random));
        let Some(told) = caller.try_call(tool, &asked) else {
            return world.known().unsure.push((tool, asked));
        };
        assert_eq!(told["success"], true, "{asked}: {told}");
        world.accept(asked);
        world.answered();
    }
}

/// Cancels and signals what was accepted, until the server is gone.
fn meddle(url: &str, world: &World, random: &mut Random) {
    let Some(mut caller) = Caller::at(url) else { return };
    loop {
        let some: Vec<(String, bool)> = {
            let known = world.known();
            let latest = known.order.iter().rev().take(LATEST);
            latest.map(|id| (id.clone(), known.accepted[id]["steps"].is_array())).collect()
        };
        if some.is_empty() {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let (id, is_run) = &some[random.below(some.len())];
        let force = random.below(2) == 0;
        let (tool, asked) = match (is_run, random.below(3)) {
            (true, 0) => ("workflow_cancel", json!({"workflow_id": id, "force": force})),
            (true, _) => {
                ("workflow_signal", json!({"workflow_id": id, "signal": "go", "payload": {"by": "test"}}))
            }
            (false, 0) => ("task_cancel", json!({"task_id": id, "force": force})),
            (false, _) => ("task_status", json!({"task_id": id})),
        };
        let Some(told) = caller.try_call(tool, &asked) else { return };
        if tool.ends_with("cancel") && told["success"] == true && told["status"] == "cancelled" {
            let now = world.now();
            world.known().cancelled.entry(id.clone()).or_insert(now);
        }
        world.answered();
        thread::sleep(Duration::from_millis(3));
    }
}

/// One worker: takes tasks, leaves its effects, says so; now and then it fails, or falls silent.
struct Worker<'a> {
    number: usize,
    caller: Caller,
    world: &'a World,
    effects: &'a Effects,
}

impl Worker<'_> {
    fn work(&mut self, random: &mut Random) -> Option<()> {
        let id = format!("worker-{}", self.number);
        let facts = json!({"worker_id": id, "capabilities": ["w"], "max_concurrent_tasks": 6});
        self.caller.try_call("worker_register", &facts)?;
        loop {
            let held = self.world.known().held.remove(&self.number).unwrap_or_default();
            for (n, task) in held.iter().enumerate() {
                if self.complete(&id, task, false).is_none() {
                    self.world.known().held.insert(self.number, held[n..].to_vec());
                    return None;
                }
            }
            let asked_at = self.world.now();
            let asked = json!({"worker_id": id, "max_tasks": 1 + random.below(3), "wait_ms": 100});
            let told = self.caller.try_call("task_claim", &asked)?;
            assert_eq!(told["success"], true, "{told}");
            let mut tasks = told["tasks"].as_array().expect("a list").clone();
            while let Some(task) = tasks.pop() {
                self.check_cancels(&task, asked_at);
                let calm = self.world.calm.load(Ordering::SeqCst);
                match random.below(12) {
                    0 if !calm => {}
                    1 if !calm => self.fail(&id, &task)?,
                    draw => {
                        let name = task["task_id"].as_str().expect("an id is text");
                        self.effects.write(name, task["fence"].as_u64().expect("a fence is a number"));
                        let next_at = self.world.now();
                        let Some(next) = self.complete(&id, &task, draw % 2 == 0) else {
                            self.world.known().held.entry(self.number).or_default().push(task);
                            return None;
                        };
                        next.iter().for_each(|task| self.check_cancels(task, next_at));
                        tasks.extend(next);
                    }
                }
                self.world.answered();
            }
        }
    }

    /// Nothing is handed out that was cancelled before it was asked for.
    fn check_cancels(&self, task: &Value, asked_at: u64) {
        let known = self.world.known();
        for id in [&task["task_id"], &task["workflow_id"]].into_iter().filter_map(Value::as_str) {
            let cancelled = known.cancelled.get(id);
            assert!(cancelled.is_none_or(|at| *at > asked_at), "{task} started after {id} was cancelled");
        }
    }

    /// Completes with what any step reads; none where no answer came.
    fn complete(&mut self, id: &str, task: &Value, claim_next: bool) -> Option<Vec<Value>> {
        let (name, fence) =
            (task["task_id"].as_str().expect("text"), task["fence"].as_u64().expect("a number"));
        let output = json!({"of": name, "fence": fence, "items": [{"n": 1}, {"n": 2}]});
        let asked = json!({"worker_id": id, "task_id": name, "fence": fence, "output": output, "claim_next": claim_next});
        let told = self.caller.try_call("task_complete", &asked)?;
        if told["success"] == true {
            let earlier = self.world.known().completed.insert(name.to_owned(), fence);
            assert!(earlier.is_none_or(|earlier| earlier == fence), "{name} was completed under two fences");
            return Some(told["tasks"].as_array().cloned().unwrap_or_default());
        }
        assert_eq!(told["error"]["code"], "conflict", "{asked}: {told}");
        Some(Vec::new())
    }

    fn fail(&mut self, id: &str, task: &Value) -> Option<()> {
        let error = json!({"code": "boom", "message": "on purpose"});
        let asked =
            json!({"worker_id": id, "task_id": task["task_id"], "fence": task["fence"], "error": error});
        let told = self.caller.try_call("task_fail", &asked)?;
        assert!(told["success"] == true || told["error"]["code"] == "conflict", "{told}");
        Some(())
    }
}

/// Everybody works on the server until `until_when` says it is enough and ends it.
fn round(
    server: Server,
    world: &World,
    effects: &Effects,
    number: usize,
    random: &mut Random,
    enough: impl FnOnce(Server),
) {
    let url = server.url.clone();
    let mut forks: Vec<Random> = (0..WORKERS + SUBMITTERS + 1).map(|_| random.fork()).collect();
    thread::scope(|scope| {
        let mut fork = || forks.pop().expect("one for each");
        for worker in 0..WORKERS {
            let (url, mut random) = (&url, fork());
            scope.spawn(move || {
                let Some(caller) = Caller::at(url) else { return };
                // It ends when the server does.
                let _ = Worker { number: worker, caller, world, effects }.work(&mut random);
            });
        }
        let mut meddler = fork();
        let calm = world.calm.load(Ordering::SeqCst);
        for submitter in 0..if calm { 0 } else { SUBMITTERS } {
            let (url, mut random) = (&url, fork());
            scope.spawn(move || submit(url, world, number, submitter, &mut random));
        }
        if !calm {
            let url = &url;
            scope.spawn(move || meddle(url, world, &mut meddler));
        }
        enough(server);
    });
}

#[test]
fn kills_under_a_mixed_load_lose_nothing_and_repeat_nothing_that_may_not_be() {
    let mut random = Random::seeded();
    let data = temp();
    let outside = temp();
    let effects_path = outside.path().join("effects");
    let effects = Effects::open(&effects_path);
    let again = r#"{"name":"again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&["once", again]);
    let config = configure(data.path(), &format!("{LEASES}\n{}", upstream.table("up", "")));
    let extra = ["--config", config.as_str()];
    let world = World::default();

    let rounds = usual_or_long(ROUNDS);
    for number in 0..rounds {
        if number % 5 == 4 {
            kill_while_starting(data.path(), &extra, &mut random);
        }
        let server = Server::start(data.path(), &extra);
        world.answers.store(0, Ordering::SeqCst);
        let wanted = 1 + random.below(ANSWERS_MAX);
        round(server, &world, &effects, number, &mut random, |server| {
            let since = Instant::now();
            while world.answers.load(Ordering::SeqCst) < wanted && since.elapsed() < ROUND_MAX {
                thread::sleep(Duration::from_millis(1));
            }
            server.kill();
        });
    }

    world.calm.store(true, Ordering::SeqCst);
    let server = Server::start(data.path(), &extra);
    round(server, &world, &effects, rounds, &mut random, |server| settle(server, &world));

    let events = record::check(data.path());
    let story = Story::of(&events);
    let known = world.known();
    println!(
        "{} accepted, {} cancelled, {} events",
        known.accepted.len(),
        known.cancelled.len(),
        events.len()
    );
    for id in known.accepted.keys() {
        assert!(story.submitted.contains(id), "{id} was accepted and is lost");
        assert!(story.ended.contains(id), "{id} has not ended");
    }
    for id in known.cancelled.keys() {
        assert!(story.cancelled.contains_key(id), "the answered cancel of {id} is lost");
    }
    for (task, fence) in &known.completed {
        assert_eq!(story.successes.get(task), Some(fence), "the answered completion of {task} is lost");
    }
    let count = |kind: &str| events.iter().filter(|event| record::kind(event) == kind).count();
    for kind in
        ["task.lease_expired", "task.interrupted", "task.cancelled", "workflow.cancelled", "call.interrupted"]
    {
        println!("{kind}: {}", count(kind));
        assert!(count(kind) > 0, "the kills missed the load: no {kind}");
    }
    check_effects(&story, &Effects::read(&effects_path), &upstream.calls());

    let before = record::digests(data.path());
    let mut rebuild = cairn(&["rebuild", "--data"]);
    rebuild.arg(data.path());
    run(rebuild).succeeded();
    assert_eq!(before, record::digests(data.path()));
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

/// Asks again for what was not answered, signals what waits, and waits until everything has ended; every run that has
/// ended must replay.
fn settle(server: Server, world: &World) {
    let mut caller = Caller::new(&server);
    let unsure = std::mem::take(&mut world.known().unsure);
    for (tool, asked) in unsure {
        caller.tell(tool, asked.clone());
        world.accept(asked);
    }
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let counts = caller.tell("queue_stats", json!({}));
        let open =
            |of: &Value, names: &[&str]| names.iter().filter_map(|name| of[*name].as_u64()).sum::<u64>();
        let left = open(&counts["counts"], &["queued", "running"])
            + open(&counts["workflows"], &["submitted", "waiting", "running"]);
        if left == 0 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "work is left: {counts}; {}",
            caller.tell("task_list", json!({"status_filter": "queued", "limit": 5}))
        );
        for run in caller.tell("workflow_list", json!({"status_filter": "running"}))["workflows"]
            .as_array()
            .expect("a list")
        {
            let asked = json!({"workflow_id": run["workflow_id"], "signal": "go", "payload": {"by": "test"}});
            // It may have ended meanwhile.
            caller.try_call("workflow_signal", &asked).expect("the server answers");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let runs: Vec<String> = {
        let known = world.known();
        let runs = known.accepted.iter().filter(|(_, asked)| asked["steps"].is_array());
        runs.map(|(id, _)| id.clone()).collect()
    };
    for run in runs {
        let told = caller.tell("workflow_replay", json!({"workflow_id": run}));
        assert_eq!(told["matched"], true, "{run}: {told}");
    }
    assert!(server.stop().success());
}

/// What the log says of tasks and runs.
#[derive(Default)]
struct Story {
    submitted: HashSet<String>,
    ended: HashSet<String>,
    /// When each was cancelled.
    cancelled: HashMap<String, u64>,
    /// The fence under which each task succeeded.
    successes: HashMap<String, u64>,
    /// The fences of the claims of each task.
    claims: HashMap<String, Vec<u64>>,
}

impl Story {
    /// Reads it, and checks that nobody had a task while another did, nor after it had ended.
    fn of(events: &[Event]) -> Self {
        let mut story = Self::default();
        let mut free: HashMap<&str, bool> = HashMap::new();
        for event in events {
            let fields = event.fields();
            let subject = fields.subject.split_once('/');
            let Some((of @ ("task" | "workflow"), id)) = subject else { continue };
            let Some(body) = event.body() else { continue };
            let run = id.split('#').next().expect("there is a first part");
            let started = matches!(body, Body::TaskSubmitted(_) | Body::TaskClaimed(_));
            let undo = id.ends_with("#undo");
            assert!(
                !(of == "task" && id != run && started && story.cancelled.contains_key(run)),
                "{id} started after its run was cancelled{}",
                if undo { ", to be undone" } else { "" }
            );
            match body {
                Body::TaskSubmitted(_) => {
                    free.insert(id, true);
                    story.submitted.insert(id.to_owned());
                }
                Body::WorkflowSubmitted(_) => {
                    story.submitted.insert(id.to_owned());
                }
                Body::TaskClaimed(facts) => {
                    assert_eq!(free.insert(id, false), Some(true), "{id} was claimed though it was not free");
                    let claims = story.claims.entry(id.to_owned()).or_default();
                    assert!(claims.last().is_none_or(|last| *last < facts.fence), "fences of {id} only grow");
                    claims.push(facts.fence);
                }
                Body::TaskLeaseExpired(_) => {
                    free.insert(id, true);
                }
                Body::TaskFailed(facts) if facts.retry_at_ms.is_some() => {
                    free.insert(id, true);
                }
                Body::TaskInterrupted(facts) if facts.again => {
                    free.insert(id, true);
                }
                Body::TaskSucceeded(facts) => {
                    let earlier = story.successes.insert(id.to_owned(), facts.fence);
                    assert_eq!(earlier, None, "{id} has two successes");
                    story.ended.insert(id.to_owned());
                }
                Body::TaskCancelled(_) | Body::WorkflowCancelled(_) => {
                    story.cancelled.insert(id.to_owned(), fields.seq);
                    story.ended.insert(id.to_owned());
                }
                Body::TaskFailed(_)
                | Body::TaskTimedOut(_)
                | Body::TaskInterrupted(_)
                | Body::TaskDead(_)
                | Body::WorkflowSucceeded(_)
                | Body::WorkflowFailed(_)
                | Body::WorkflowTimedOut(_) => {
                    story.ended.insert(id.to_owned());
                }
                _ => {}
            }
            if of == "task" && story.ended.contains(id) {
                free.insert(id, false);
            }
        }
        let open: Vec<&String> = story.submitted.difference(&story.ended).collect();
        assert!(open.is_empty(), "never ended: {open:?}");
        story
    }
}

/// Every effect had a claim of its own; what may run once had one; what succeeded had an effect.
fn check_effects(story: &Story, effects: &[(String, u64)], calls: &[String]) {
    let mut seen = HashSet::new();
    for (task, fence) in effects {
        assert!(seen.insert((task, fence)), "{task} had two effects under fence {fence}");
        let claimed = story.claims.get(task).is_some_and(|claims| claims.contains(fence));
        assert!(claimed, "{task} had an effect under fence {fence}, which was never given");
    }
    let mut called: HashMap<(&str, String), usize> = HashMap::new();
    for call in calls.iter().filter(|call| *call != "cancelled") {
        let (tool, arguments) = call.split_once(' ').expect("a tool and its arguments");
        let arguments: Value = serde_json::from_str(arguments).expect("arguments are json");
        let task = arguments["of"].as_str().expect("every call says what it is of").to_owned();
        *called.entry((tool, task)).or_default() += 1;
    }
    for ((tool, task), times) in &called {
        let claims = story.claims.get(task).map_or(0, Vec::len);
        let most = if *tool == "once" { 1 } else { claims };
        assert!(*times <= most, "{tool} was called {times} times for {task}, which had {claims} claims");
    }
    let by_tool: HashSet<&String> = called.keys().map(|(_, task)| task).collect();
    for (task, fence) in story.successes.iter().filter(|(_, fence)| **fence > 0) {
        let worked = seen.contains(&(task, fence)) || by_tool.contains(task);
        assert!(worked, "{task} succeeded without an effect");
    }
    println!("{} effects of workers, {} of tools", effects.len(), calls.len());
    assert!(effects.len() > usual_or_long(ROUNDS), "the kills missed the load");
}

/// Two nodes on one directory run tasks of one queue; the owner of the log is killed while both have work.
#[test]
fn two_nodes_share_one_queue_and_the_one_that_is_left_takes_over() {
    let data = temp();
    let again =
        r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&["wait_once", again, "count"]);
    let lanes = "[router.lanes.narrow]\nconcurrency = 2\n";
    let config = configure(data.path(), &format!("{lanes}{}", upstream.table("up", "lane = \"narrow\"")));
    let server = Server::start(data.path(), &["--config", &config]);
    let mut guest = cairn(&["stdio", "--config", &config, "--data"]);
    guest.arg(data.path());
    let mut guest = Lines::start(guest);
    let mut ask = |name: &str, arguments: Value| {
        let told = guest.call(name, arguments)["result"]["structuredContent"].clone();
        assert_eq!(told["success"], true, "{name}: {told}");
        told
    };
    let submit = |id: &str, tool: &str| json!({"task_id": id, "task_type": format!("tool:up_{tool}"), "payload": {"of": id}});
    for id in ["once-1", "again-1", "once-2", "again-2"] {
        let tool = if id.starts_with("once") { "wait_once" } else { "wait_again" };
        ask("task_submit", submit(id, tool));
        upstream.reached(
            "wait",
            ["once-1", "again-1", "once-2", "again-2"]
                .iter()
                .position(|one| *one == id)
                .map_or(0, |at| at + 1),
        );
    }
    let runner = |id: &str| {
        let subject = format!("task/{id}");
        let claims = record::events(data.path()).into_iter().filter_map(|event| match event.body() {
            Some(Body::TaskClaimed(facts)) if event.fields().subject == subject => facts.runner,
            _ => None,
        });
        claims.collect::<Vec<String>>()
    };
    let all = ["once-1", "again-1", "once-2", "again-2"];
    let first: Vec<String> = all.iter().map(|id| runner(id).remove(0)).collect();
    let nodes: HashSet<&String> = first.iter().collect();
    assert_eq!(nodes.len(), 2, "both nodes have work: {first:?}");

    server.kill();
    upstream.write("go", "");
    let ended = until("the end of all four", || {
        let stands: Vec<String> = all
            .iter()
            .map(|id| ask("task_status", json!({"task_id": id}))["status"].as_str().expect("text").to_owned())
            .collect();
        stands.iter().all(|stand| stand != "running" && stand != "queued").then_some(stands)
    });
    let left = ask("task_submit", submit("later", "count"));
    assert_eq!(left["replayed"], false);
    until("the later task", || {
        (ask("task_status", json!({"task_id": "later"}))["status"] == "succeeded").then_some(())
    });
    let survivor = runner("later").remove(0);
    for ((id, first), ended) in all.iter().zip(&first).zip(&ended) {
        let lost = *first != survivor;
        let expected = if lost && id.starts_with("once") { "failed" } else { "succeeded" };
        assert_eq!(ended, expected, "{id}, which had been taken by {first}; {survivor} is left");
        let calls = upstream.calls().iter().filter(|call| call.contains(*id)).count();
        let runs = if lost && id.starts_with("again") { 2 } else { 1 };
        assert_eq!((calls, runner(id).len()), (runs, runs), "{id}");
    }
    guest.finish();
    record::check(data.path());
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}
