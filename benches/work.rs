//! Durable work through the ledger alone: tasks, chains and small workflows of no-ops, every commit durable.
//!
//! `cargo bench --profile dist --bench work [-- tasks|chain|flows|pickup|million|restart|replay ...]`. Prints medians
//! of rounds, beside the machine's own fdatasync. `benches/peers` holds what other engines do with the same work.

mod machine;

use std::{
    collections::HashMap,
    path::Path,
    process::{Command as Process, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cairn::{
    archive::record::run_record,
    block::payload::{JSON, Payload, SaltKey, SealedPayload},
    event::{
        Actor,
        work::{RetryPolicy, TaskSubmitted, WorkerRegistered},
    },
    ledger::{
        Command, Ledger, Ruling,
        opening::{self, Birth, Running, Settings},
        work::{Claim, Complete, Handed, NewRun, RegisterWorker, SubmitTask, Wish, Work, Worked},
    },
    log::home::Home,
    query::{
        View,
        work::page::{From, TaskFilter},
    },
    task::Limits,
    workflow::{
        fields::Fault,
        plan::{self, Tools},
        replay::verify,
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use machine::{Place, fdatasync_p50};

const ROUNDS: usize = 5;
const IN_FLIGHT: usize = 64;
const WORKERS: usize = 4;
const CHAIN: usize = 100;
const FLOWS: usize = 400;
const FLOW_STEPS: usize = 10;
const FLOWS_AT_ONCE: usize = 16;
const MILLION: u64 = 1_000_000;
const LONG: usize = 10_000;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [mode, dir] = &asked[..]
        && mode == "child"
    {
        return child(Path::new(dir));
    }
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|arg| arg == name);
    let fdatasync = |place| fdatasync_p50(Path::new("."), place).as_secs_f64() * 1e3;
    println!(
        "fdatasync p50: {:.3} ms growing a file, {:.3} ms overwriting it",
        fdatasync(Place::End),
        fdatasync(Place::Over)
    );
    if wanted("tasks") {
        report(
            "tasks end to end, 64 in flight",
            "tasks/s",
            (0..ROUNDS).map(|_| tasks(Duration::from_secs(3))),
        );
    }
    if wanted("chain") {
        report("chain of 100 steps", "ms a step", (0..ROUNDS).map(|_| chain()));
    }
    if wanted("flows") {
        report("400 workflows of 10 steps, 16 at a time", "steps/s", (0..ROUNDS).map(|_| flows()));
    }
    if wanted("pickup") {
        report("pick-up by an idle worker", "ms (p50)", (0..ROUNDS).map(|_| pickup()));
    }
    if wanted("restart") {
        report("kill -9 to the next step", "ms", (0..ROUNDS).map(|_| restart()));
    }
    if wanted("replay") {
        replay();
    }
    if wanted("million") {
        million();
    }
}

fn report(what: &str, unit: &str, rounds: impl Iterator<Item = f64>) {
    let mut rounds: Vec<f64> = rounds.collect();
    rounds.sort_by(f64::total_cmp);
    let (low, high) = (rounds[0], rounds[rounds.len() - 1]);
    println!("{what}: median {:.3} {unit} (of {low:.3} .. {high:.3})", rounds[rounds.len() / 2]);
}

/// A log of its own, with workers for `noop`.
struct Bench {
    ledger: Ledger,
    running: Running,
    key: SaltKey,
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(".").expect("a directory for the log");
        let bench = Self::open(dir.path());
        Self { _dir: Some(dir), ..bench }
    }

    fn open(dir: &Path) -> Self {
        let home = Home::open(dir).expect("a home for the log");
        let mut random = || [7; 32];
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let birth = Birth { owner: "bench", random: &mut random, now_us, step: &mut |_| {} };
        let limits = Limits { queue_max: 10 * MILLION, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let (ledger, running) = opening::open(&home, &settings, birth).expect("the log opens");
        let key = home.keys().expect("the keys of the log").salt;
        Self { ledger, running, key, _dir: None }
    }

    fn close(self) {
        drop(self.ledger);
        self.running.join();
    }

    fn client(&self) -> Client {
        Client { ledger: self.ledger.clone(), key: self.key.clone() }
    }
}

#[derive(Clone)]
struct Client {
    ledger: Ledger,
    key: SaltKey,
}

impl Client {
    async fn ask(&self, wish: Wish) -> Worked {
        let actor = Actor { id: "bench".into(), role: "client".into(), proof: None };
        let work = Work { wish, actor, cause: None, note: None };
        match self.ledger.submit(Command::Work(Box::new(work))).await.expect("the ledger runs") {
            Ruling::Worked(worked) => *worked,
            other => panic!("a no-op is never refused: {other:?}"),
        }
    }

    async fn register(&self, worker: &str) {
        let facts = WorkerRegistered {
            capabilities: vec!["noop".into()],
            max_concurrent: 1000,
            cpu_milli: None,
            memory_mb: None,
        };
        self.ask(Wish::RegisterWorker(RegisterWorker { worker: worker.into(), facts, metadata: None })).await;
    }

    async fn submit(&self, id: &str) {
        let facts = TaskSubmitted {
            task_type: "noop".into(),
            priority: 50,
            order: 0,
            not_before_ms: None,
            timeout_ms: None,
            retry: RetryPolicy {
                max_retries: 0,
                backoff_ms: 1000,
                factor_milli: 2000,
                max_backoff_ms: 60_000,
                jitter: true,
            },
            tags: Vec::new(),
            requires: Vec::new(),
            unique_key: None,
            concurrency_key: None,
            rate_key: None,
            run: None,
            step: None,
            part: Default::default(),
            hold: None,
            repeatable: false,
            reuse: false,
            handle: None,
        };
        let input = self.payload(&json!({"id": id}));
        let wish = Wish::SubmitTask(Box::new(SubmitTask {
            id: id.into(),
            facts,
            tool: None,
            input,
            metadata: None,
        }));
        self.ask(wish).await;
    }

    async fn run(&self, id: &str, steps: usize) {
        let step = |n: usize| match n {
            0 => json!({"step_id": "s0", "action": "worker:noop"}),
            n => json!({
                "step_id": format!("s{n}"),
                "action": "worker:noop",
                "inputs": {"n": n},
                "depends_on": [format!("s{}", n - 1)],
            }),
        };
        let steps: Vec<Value> = (0..steps).map(step).collect();
        let definition = json!({"workflow_id": id, "name": "chain", "steps": steps});
        let checked = plan::plan(&definition, &NoTools).expect("a chain is sound");
        let inputs = self.payload(&checked.inputs);
        let new = NewRun {
            id: id.into(),
            plan: checked.plan,
            inputs,
            priority: 50,
            tags: Vec::new(),
            dependencies: Vec::new(),
            max_parallel: None,
            deadline_ms: None,
            peer: None,
        };
        self.ask(Wish::SubmitRun(Box::new(new))).await;
    }

    async fn claim(&self, worker: &str, max: usize, wait_ms: u64) -> Vec<Handed> {
        match self.ask(Wish::Claim(Claim { worker: worker.into(), max, wait_ms, hand: None })).await {
            Worked::Claimed(handed) => handed,
            other => panic!("a claim gives tasks: {other:?}"),
        }
    }

    async fn complete(&self, worker: &str, task: &Handed, claim_next: bool) -> Vec<Handed> {
        let output = self.payload(&json!({}));
        let (worker, id) = (worker.into(), task.task.clone());
        match self
            .ask(Wish::Complete(Complete { worker, task: id, fence: task.fence, output, claim_next }))
            .await
        {
            Worked::Ended { next, .. } => next,
            other => panic!("a completion ends: {other:?}"),
        }
    }

    fn payload(&self, value: &Value) -> SealedPayload {
        Payload::seal(&self.key, JSON, value.to_string().as_bytes()).expect("small")
    }
}

/// Plans of the benchmark name no tools.
struct NoTools;

impl Tools for NoTools {
    fn tool(&self, _name: &str) -> Option<plan::ToolFacts> {
        None
    }

    fn check(&self, _name: &str, _input: &Value) -> Vec<Fault> {
        Vec::new()
    }

    fn run_exists(&self, _id: &str) -> bool {
        false
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Completed tasks a second: every submitter has one task under way, workers claim and complete in batches.
fn tasks(span: Duration) -> f64 {
    let bench = Bench::new();
    let done: Arc<Mutex<HashMap<String, Arc<Notify>>>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun + span;
    runtime().block_on(async {
        let mut workers = Vec::new();
        for n in 0..WORKERS {
            let (client, done, count) = (bench.client(), done.clone(), count.clone());
            client.register(&format!("w{n}")).await;
            workers.push(tokio::spawn(async move {
                let name = format!("w{n}");
                while Instant::now() < until {
                    let handed = client.claim(&name, IN_FLIGHT, 200).await;
                    let completions = handed.iter().map(|task| client.complete(&name, task, false));
                    futures_util::future::join_all(completions).await;
                    count.fetch_add(handed.len() as u64, Ordering::Relaxed);
                    for task in &handed {
                        if let Some(waiting) = done.lock().expect("no panics").remove(&task.task) {
                            waiting.notify_one();
                        }
                    }
                }
            }));
        }
        for n in 0..IN_FLIGHT {
            let (client, done) = (bench.client(), done.clone());
            tokio::spawn(async move {
                for turn in 0.. {
                    if Instant::now() >= until {
                        return;
                    }
                    let id = format!("t{n}-{turn}");
                    let notify = Arc::new(Notify::new());
                    done.lock().expect("no panics").insert(id.clone(), notify.clone());
                    client.submit(&id).await;
                    notify.notified().await;
                }
            });
        }
        for worker in workers {
            worker.await.expect("a worker ends");
        }
    });
    let rate = count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    bench.close();
    rate
}

/// Milliseconds a step of one chain, done by one worker that claims with each completion.
fn chain() -> f64 {
    let bench = Bench::new();
    let took = runtime().block_on(async {
        let client = bench.client();
        client.register("w").await;
        client.run("warm", 10).await;
        walk(&client, 10).await;
        let begun = Instant::now();
        client.run("chain", CHAIN).await;
        walk(&client, CHAIN).await;
        begun.elapsed()
    });
    bench.close();
    took.as_secs_f64() * 1e3 / CHAIN as f64
}

async fn walk(client: &Client, steps: usize) {
    let mut handed = client.claim("w", 1, 1000).await;
    for _ in 0..steps {
        let task = handed.pop().expect("a chain goes on to its end");
        handed = client.complete("w", &task, true).await;
    }
}

/// Runs under way: the steps each has left, and who waits for its end.
type Open = HashMap<String, (usize, Arc<Notify>)>;

/// Steps a second of many small chains.
fn flows() -> f64 {
    let bench = Bench::new();
    let begun = Instant::now();
    runtime().block_on(async {
        let open: Arc<Mutex<Open>> = Arc::default();
        let left = Arc::new(AtomicU64::new((FLOWS * FLOW_STEPS) as u64));
        let mut tasks = Vec::new();
        for n in 0..WORKERS {
            let (client, open, left) = (bench.client(), open.clone(), left.clone());
            client.register(&format!("w{n}")).await;
            tasks.push(tokio::spawn(async move {
                let name = format!("w{n}");
                while left.load(Ordering::Relaxed) > 0 {
                    let handed = client.claim(&name, IN_FLIGHT, 50).await;
                    let completions = handed.iter().map(|task| client.complete(&name, task, false));
                    futures_util::future::join_all(completions).await;
                    left.fetch_sub(handed.len() as u64, Ordering::Relaxed);
                    let mut open = open.lock().expect("no panics");
                    for run in handed.iter().filter_map(|task| task.run.as_ref()) {
                        if let Some((steps, notify)) = open.get_mut(run) {
                            *steps -= 1;
                            if *steps == 0 {
                                notify.notify_one();
                            }
                        }
                    }
                }
            }));
        }
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..FLOWS_AT_ONCE {
            let (client, open, next) = (bench.client(), open.clone(), next.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= FLOWS as u64 {
                        return;
                    }
                    let (id, notify) = (format!("flow{n}"), Arc::new(Notify::new()));
                    open.lock().expect("no panics").insert(id.clone(), (FLOW_STEPS, notify.clone()));
                    client.run(&id, FLOW_STEPS).await;
                    notify.notified().await;
                }
            }));
        }
        for task in tasks {
            task.await.expect("a task ends");
        }
    });
    let rate = (FLOWS * FLOW_STEPS) as f64 / begun.elapsed().as_secs_f64();
    bench.close();
    rate
}

/// From a submission to a worker's hands, where the worker waits.
fn pickup() -> f64 {
    let bench = Bench::new();
    let mut times = runtime().block_on(async {
        let client = bench.client();
        client.register("w").await;
        let mut times = Vec::new();
        for n in 0..200 {
            let waiting = {
                let client = client.clone();
                tokio::spawn(async move {
                    let handed = client.claim("w", 1, 10_000).await;
                    (handed, Instant::now())
                })
            };
            tokio::time::sleep(Duration::from_millis(2)).await;
            let begun = Instant::now();
            client.submit(&format!("t{n}")).await;
            let (handed, at) = waiting.await.expect("a claim ends");
            times.push((at - begun).as_secs_f64() * 1e3);
            client.complete("w", &handed[0], false).await;
        }
        times
    });
    bench.close();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// From the start of a process to the next step of a chain that a kill broke off.
fn restart() -> f64 {
    let dir = tempfile::tempdir_in(".").expect("a directory for the log");
    let spawn = || {
        let program = std::env::current_exe().expect("this program");
        let mut command = Process::new(program);
        command.arg("child").arg(dir.path()).stdout(Stdio::piped());
        command.spawn().expect("this program starts")
    };
    let lines = |child: &mut std::process::Child| {
        std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")))
    };
    let mut first = spawn();
    for _ in lines(&mut first).take(CHAIN / 2) {}
    first.kill().expect("a kill");
    let _ = first.wait();
    let begun = Instant::now();
    let mut second = spawn();
    let _ = lines(&mut second).next();
    let took = begun.elapsed();
    second.kill().expect("a kill");
    let _ = second.wait();
    took.as_secs_f64() * 1e3
}

/// Walks a chain, printing each step once it is handed out.
fn child(dir: &Path) {
    let bench = Bench::open(dir);
    runtime().block_on(async {
        let client = bench.client();
        client.register("w").await;
        client.run("chain", CHAIN).await;
        // What the killed process held is this worker's still: its lease goes on.
        let mut handed = client.claim("w", 1, 0).await;
        while let Some(task) = handed.pop() {
            println!("{}", task.task);
            handed = client.complete("w", &task, true).await;
        }
        println!("end");
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

/// Replay-verify of a chain as long as a plan may be: from the log on disk to the verdict on every step.
fn replay() {
    let bench = Bench::new();
    runtime().block_on(async {
        let client = bench.client();
        client.register("w").await;
        client.run("long", LONG).await;
        walk(&client, LONG).await;
        bench.ledger.settled().await.expect("the ledger runs");
    });
    let home = bench.ledger.home().clone();
    let round = |_| {
        let begun = Instant::now();
        let view = View::open(&home).expect("the state can be read");
        let record = run_record(&view, "long", None).expect("the log can be read").expect("the run is there");
        let report = verify(record.run, &record.events, &record.contents);
        let took = begun.elapsed();
        assert!(report.matched() && report.complete && report.compared_steps() == LONG as u64);
        took.as_secs_f64() * 1e3
    };
    report("replay-verify of 10,000 steps", "ms", (0..ROUNDS).map(round));
    bench.close();
}

/// A queue of a million: claims, pages, memory.
fn million() {
    let bench = Bench::new();
    let runtime = runtime();
    let claim_p50 = |label: &str| {
        let mut times = runtime.block_on(async {
            let client = bench.client();
            let mut times = Vec::new();
            for _ in 0..10 {
                let begun = Instant::now();
                let handed = client.claim("w", 1, 0).await;
                times.push(begun.elapsed().as_secs_f64() * 1e3);
                client.complete("w", &handed[0], false).await;
            }
            times
        });
        times.sort_by(f64::total_cmp);
        println!("claim with {label} waiting: p50 {:.3} ms", times[times.len() / 2]);
    };
    runtime.block_on(async {
        let client = bench.client();
        client.register("w").await;
        for n in 0..20 {
            client.submit(&format!("few-{n}")).await;
        }
    });
    claim_p50("ten");
    let begun = Instant::now();
    runtime.block_on(async {
        let next = Arc::new(AtomicU64::new(0));
        let submitters = (0..1024).map(|_| {
            let (client, next) = (bench.client(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= MILLION {
                        return;
                    }
                    client.submit(&format!("task-{n}")).await;
                }
            })
        });
        futures_util::future::join_all(submitters.collect::<Vec<_>>()).await;
        bench.ledger.settled().await.expect("the ledger runs");
    });
    println!("a million submitted: {:.0} tasks/s", MILLION as f64 / begun.elapsed().as_secs_f64());
    claim_p50("a million");
    let home = bench.ledger.home().clone();
    let dir = home.dir().to_owned();
    drop(runtime);
    bench.running_memory("with a million waiting");
    let Bench { ledger, running, _dir, .. } = bench;
    drop(ledger);
    running.join();
    let begun = Instant::now();
    let again = Bench::open(&dir);
    println!("started again with a million waiting: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let view = View::open(&home).expect("the state can be read");
    let begun = Instant::now();
    let page = view.tasks(&TaskFilter::default(), 100, From::Offset(0)).expect("a page");
    println!("page of {} tasks: {:.1} ms", page.what.rows.len(), begun.elapsed().as_secs_f64() * 1e3);
    again.close();
}

impl Bench {
    fn running_memory(&self, label: &str) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS unknown");
        println!("memory {label}: {}", line.trim());
    }
}
