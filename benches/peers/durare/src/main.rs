//! durare on SQLite, driven through the durable work that Cairn's own benchmark does; one line of JSON a measure.
//!
//! `peer-durare DIR ROUNDS` measures in DIR; `peer-durare announced FILE SETTING` is the process that is killed and
//! started again. Everything is measured as durare opens SQLite by itself (`synchronous = NORMAL`, whose commits a
//! loss of power may undo) and with `synchronous = FULL`, which is what Cairn promises.

#[path = "../../../machine/mod.rs"]
mod machine;
mod report;

use std::{
    collections::HashSet,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use durare::{DurableContext, DurableEngine, SqliteProvider, WorkflowOptions};
use machine::Place;
use report::{Rate, Report};
use sqlx::{
    Row,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

const CHAIN_STEPS: usize = 100;
const WORKFLOWS: usize = 400;
const WORKFLOW_STEPS: usize = 10;
const WORKFLOWS_IN_FLIGHT: usize = 16;
/// The step during which the process is killed.
const KILLED_AT: usize = CHAIN_STEPS / 2;
/// The workflow that is killed, by its name and by its id.
const ANNOUNCED: &str = "announced";

type Done<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How far a commit is on its way to the disk when SQLite answers.
#[derive(Clone, Copy)]
enum Synchronous {
    Normal,
    Full,
}

impl Synchronous {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Full => "full",
        }
    }
}

impl FromStr for Synchronous {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Normal, Self::Full]
            .into_iter()
            .find(|sync| sync.name() == name)
            .ok_or_else(|| format!("no setting `{name}`; there are normal, full"))
    }
}

/// A chain of no-op steps, each taking its place and giving it back.
#[durare::workflow]
async fn chain(ctx: DurableContext, steps: usize) -> durare::Result<usize> {
    for number in 0..steps {
        let begun = Instant::now();
        ctx.step("no-op", move || async move { Ok(number) }).await?;
        STEPS.lock().expect("no holder panics").push(begun.elapsed());
    }
    Ok(steps)
}

/// How long each step of `chain` took, in this process.
static STEPS: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

/// The same chain, whose steps have an effect: each writes its number to standard output.
#[durare::workflow]
async fn announced(ctx: DurableContext, steps: usize) -> durare::Result<usize> {
    for number in 0..steps {
        let effect = move || async move {
            println!("{number}");
            Ok(number)
        };
        ctx.step(&number.to_string(), effect).await?;
    }
    Ok(steps)
}

#[tokio::main]
async fn main() -> Done<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [ANNOUNCED, file, sync] => run_announced(Path::new(file), sync.parse()?).await,
        [dir, rounds] => measure(Path::new(dir), rounds.parse()?).await,
        _ => Err("usage: peer-durare DIR ROUNDS".into()),
    }
}

async fn measure(dir: &Path, rounds: usize) -> Done<()> {
    fs::create_dir_all(dir)?;
    report::fdatasync("end", machine::fdatasync_p50(dir, Place::End));
    report::fdatasync("over", machine::fdatasync_p50(dir, Place::Over));
    for sync in [Synchronous::Normal, Synchronous::Full] {
        let report = Report { durability: sync.name(), rounds };
        measure_chain(dir, sync, &report).await?;
        measure_workflows(dir, sync, &report).await?;
        measure_killed(dir, sync, &report).await?;
    }
    Ok(())
}

async fn measure_chain(dir: &Path, sync: Synchronous, report: &Report) -> Done<()> {
    let mut rates = Vec::new();
    let mut times = Vec::new();
    for _ in 0..report.rounds {
        let scratch = tempfile::tempdir_in(dir)?;
        let engine = open(&scratch.path().join("db"), sync).await?;
        // The first run also prepares the statements.
        engine.start_with(Chain, CHAIN_STEPS, WorkflowOptions::default()).await?.await?;
        STEPS.lock().expect("no holder panics").clear();
        let begun = Instant::now();
        engine.start_with(Chain, CHAIN_STEPS, WorkflowOptions::default()).await?.await?;
        rates.push(CHAIN_STEPS as f64 / begun.elapsed().as_secs_f64());
        times.append(&mut STEPS.lock().expect("no holder panics"));
    }
    report.rate(Rate { measure: "chain", unit: "steps", count: CHAIN_STEPS, per: "step" }, rates, times);
    Ok(())
}

async fn measure_workflows(dir: &Path, sync: Synchronous, report: &Report) -> Done<()> {
    let mut rates = Vec::new();
    let mut times = Vec::new();
    for _ in 0..report.rounds {
        let scratch = tempfile::tempdir_in(dir)?;
        let engine = Arc::new(open(&scratch.path().join("db"), sync).await?);
        let left = Arc::new(AtomicUsize::new(WORKFLOWS));
        let begun = Instant::now();
        let callers: Vec<_> = (0..WORKFLOWS_IN_FLIGHT)
            .map(|_| tokio::spawn(call_until_none_is_left(Arc::clone(&engine), Arc::clone(&left))))
            .collect();
        for caller in callers {
            times.append(&mut caller.await??);
        }
        rates.push((WORKFLOWS * WORKFLOW_STEPS) as f64 / begun.elapsed().as_secs_f64());
    }
    let count = WORKFLOWS * WORKFLOW_STEPS;
    report.rate(Rate { measure: "workflows", unit: "steps", count, per: "workflow" }, rates, times);
    Ok(())
}

/// Runs workflows one after another, and gives back how long each took.
async fn call_until_none_is_left(engine: Arc<DurableEngine>, left: Arc<AtomicUsize>) -> Done<Vec<Duration>> {
    let mut times = Vec::new();
    let one_less = |left: usize| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        let begun = Instant::now();
        engine.start_with(Chain, WORKFLOW_STEPS, WorkflowOptions::default()).await?.await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Kills a process in the middle of a chain and starts it again.
async fn measure_killed(dir: &Path, sync: Synchronous, report: &Report) -> Done<()> {
    let mut times = Vec::new();
    let mut repeated = 0;
    let mut repeated_recorded = 0;
    for _ in 0..report.rounds {
        let scratch = tempfile::tempdir_in(dir)?;
        let file = scratch.path().join("db");

        let (mut child, lines) = spawn_announced(&file, sync)?;
        let mut before = HashSet::new();
        for line in lines {
            let number = line?;
            if number == KILLED_AT.to_string() {
                child.kill()?;
            }
            before.insert(number);
        }
        child.wait()?;
        let recorded = recorded_steps(&file).await?;

        let begun = Instant::now();
        let (mut child, mut lines) = spawn_announced(&file, sync)?;
        let first = lines.next().ok_or("the chain had ended before the process was killed")??;
        times.push(begun.elapsed());
        let mut after = vec![first];
        for line in lines {
            after.push(line?);
        }
        if !child.wait()?.success() || !after.contains(&(CHAIN_STEPS - 1).to_string()) {
            return Err("the chain did not end after the restart".into());
        }
        repeated += after.iter().filter(|number| before.contains(*number)).count();
        repeated_recorded += after.iter().filter(|number| recorded.contains(*number)).count();
    }
    report.killed(times, repeated, repeated_recorded);
    Ok(())
}

/// Starts the process that runs the announced chain, with the numbers of the steps as they run.
fn spawn_announced(
    file: &Path,
    sync: Synchronous,
) -> Done<(Child, impl Iterator<Item = std::io::Result<String>> + use<>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([ANNOUNCED.as_ref(), file.as_os_str(), sync.name().as_ref()])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("a piped output is there")?;
    Ok((child, BufReader::new(output).lines()))
}

/// The steps that a killed process left recorded, read from a copy: to open the original would repair it.
async fn recorded_steps(file: &Path) -> Done<HashSet<String>> {
    let copy = file.with_extension("copy");
    fs::copy(file, &copy)?;
    fs::copy(beside(file, "-wal"), beside(&copy, "-wal"))?;
    let pool = SqlitePoolOptions::new().connect_with(SqliteConnectOptions::new().filename(&copy)).await?;
    let rows = sqlx::query("SELECT function_name FROM operation_outputs").fetch_all(&pool).await?;
    pool.close().await;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

async fn run_announced(file: &Path, sync: Synchronous) -> Done<()> {
    let engine = open(file, sync).await?;
    engine.recover().await?;
    // Under an id that is known already, this waits for the run that was recovered.
    engine.start_with(Announced, CHAIN_STEPS, WorkflowOptions::with_id(ANNOUNCED)).await?.await?;
    Ok(())
}

async fn open(file: &Path, sync: Synchronous) -> Done<DurableEngine> {
    let url = format!("sqlite://{}", file.display());
    let provider = match sync {
        Synchronous::Normal => SqliteProvider::connect(&url).await?,
        // What `connect` sets, but for the one setting.
        Synchronous::Full => {
            let options = SqliteConnectOptions::from_str(&url)?
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(5));
            SqliteProvider::from_pool(
                SqlitePoolOptions::new().max_connections(5).connect_with(options).await?,
            )
        }
    };
    let mut builder = DurableEngine::builder(Arc::new(provider));
    // Else it takes the digest of the program at every start.
    builder.app_version("1");
    Ok(builder.build().await?)
}
