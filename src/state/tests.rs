//! Every row of the state is what the entity says that is folded from the same events.
//!
//! Histories are random, and what the rules allow. `CAIRN_TEST_SEED` gives another one, `CAIRN_TEST_LONG` gives many.

mod histories;
mod rows;

use std::sync::Arc;

use rusqlite::types::Value;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::{
    block::{Block, Codec},
    event::{
        Body, Event,
        work::{
            StepGathered, WorkflowCancelled, WorkflowFailed, WorkflowRescheduled, WorkflowStarted,
            WorkflowSubmitted,
        },
    },
    log::{
        Batch, Log,
        sqlite::{SqliteLog, SqliteReader},
    },
    state::{self, Database, fold::Folder},
    task::{self, chance::Chance},
    worker::tests::simulation::{self, CONTENTS},
    workflow::{self, plan::Plan, tests::random},
};

/// The seed of the usual run.
const SEED: u64 = 7;
/// Histories of each kind in the usual run, and in a long one.
const HISTORIES: (u64, u64) = (6, 400);
/// What happens in one history.
const TURNS: u64 = 100;
/// Events folded in one transaction, at most.
const GROUP_MAX: u64 = 40;

/// A log, and the state folded from it.
struct Folded {
    _dir: TempDir,
    log: SqliteLog,
    folder: Folder,
    events: Vec<Event>,
}

impl Folded {
    /// Folds events in groups of any size, now and then by a folder that remembers nothing.
    fn new(events: Vec<Event>, blocks: Vec<Block>, chance: &mut Chance) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = SqliteLog::open(&dir.path().join("log.db"), false).expect("opens");
        log.append(None, &Batch { blocks, events: events.clone(), head: None }).expect("appends");
        let reader = SqliteReader::open(&dir.path().join("log.db")).expect("opens");
        let state = state::open(&dir.path().join("state.db")).expect("opens");
        let mut folder = Folder::resume(state, Box::new(reader)).expect("resumes");
        let mut left = events.as_slice();
        while !left.is_empty() {
            let size = (1 + chance.below(GROUP_MAX) as usize).min(left.len());
            let (group, later) = left.split_at(size);
            folder.apply(group).expect("folds");
            if chance.one_in(3) {
                let Folder { state, log, .. } = folder;
                folder = Folder::resume(state, log).expect("resumes");
            }
            left = later;
        }
        Self { _dir: dir, log, folder, events }
    }

    fn state(&self) -> &Database {
        self.folder.state()
    }

    /// The rows of a question, each as a list of values.
    fn rows(&self, sql: &str) -> Vec<Json> {
        let mut statement = self.state().prepare(sql).expect("a question");
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            (0..columns).map(|column| Ok(json(row.get(column)?))).collect::<Result<Json, _>>()
        });
        rows.expect("asks").collect::<Result<_, _>>().expect("reads")
    }
}

fn json(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(n) => json!(n),
        Value::Real(x) => json!(x),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => json!(data_encoding::HEXLOWER.encode(&bytes)),
    }
}

fn contents<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Block> {
    texts.into_iter().map(|text| Block::new(Codec::DagCbor, text.as_bytes().to_vec())).collect()
}

/// Runs `check` with the seed of each history.
fn with_seeds(check: impl Fn(u64, &mut Chance)) {
    let (usual, long) = HISTORIES;
    let count = if std::env::var_os("CAIRN_TEST_LONG").is_some() { long } else { usual };
    let first = std::env::var("CAIRN_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    for seed in first..first + count {
        println!("CAIRN_TEST_SEED={seed}");
        check(seed, &mut Chance::seeded(seed));
    }
}

#[test]
fn rows_of_tasks_and_workers_are_the_folded_entities() {
    with_seeds(|seed, chance| {
        let folded = Folded::new(simulation::history(seed, TURNS), contents(CONTENTS), chance);
        rows::check_tasks(&folded);
        rows::check_workers(&folded);
    });
}

#[test]
fn rows_of_runs_and_their_tasks_are_the_folded_entities() {
    with_seeds(|seed, chance| {
        let random::History { events, plan, contents: texts } = random::history(seed);
        let mut blocks = contents(texts.iter().map(String::as_str));
        blocks.push(plan.block());
        let folded = Folded::new(events, blocks, chance);
        rows::check_tasks(&folded);
        rows::check_run(&folded, &plan);
    });
}

#[test]
fn rows_of_schedules_are_the_folded_entities() {
    with_seeds(|_, chance| {
        let events = histories::schedules(chance, TURNS);
        rows::check_schedules(&Folded::new(events, contents(CONTENTS), chance));
    });
}

#[test]
fn rows_of_peers_are_the_folded_entities() {
    with_seeds(|_, chance| {
        let events = histories::peers(chance, TURNS);
        rows::check_peers(&Folded::new(events, Vec::new(), chance));
    });
}

#[test]
fn rows_of_calls_are_the_folded_entities() {
    with_seeds(|_, chance| {
        let events = histories::calls(chance, TURNS);
        rows::check_calls(&Folded::new(events, contents(CONTENTS), chance));
    });
}

/// Folds a run that is told of its own events alone, a millisecond after each other.
fn check_run(dependencies: &[&str], bodies: Vec<Body>) {
    let random::History { events, plan, contents: texts } = random::history(SEED);
    let Some(Body::WorkflowSubmitted(facts)) = events[0].body() else { panic!("it begins with a run") };
    let dependencies = dependencies.iter().map(|id| (*id).to_owned()).collect();
    let submitted = Body::WorkflowSubmitted(WorkflowSubmitted { dependencies, ..facts });
    let mut events = Vec::new();
    for (now_ms, body) in (1000..).zip([vec![submitted], bodies].concat()) {
        histories::tell(&mut events, &workflow::subject("wf"), body, now_ms);
    }
    let mut blocks = contents(texts.iter().map(String::as_str));
    blocks.push(plan.block());
    rows::check_run(&Folded::new(events, blocks, &mut Chance::seeded(SEED)), &plan);
}

#[test]
fn a_run_waits_no_more_once_a_step_of_it_is_gathered() {
    // A fork takes over a list that another run gathered.
    let gathered = Body::StepGathered(StepGathered { step: "s0".into(), parts: 0 });
    check_run(&["earlier"], vec![]);
    check_run(&["earlier"], vec![gathered]);
}

#[test]
fn a_run_that_goes_on_before_it_started_has_not_started() {
    let cancelled = || Body::WorkflowCancelled(WorkflowCancelled { force: false });
    let goes_on = || Body::WorkflowRescheduled(WorkflowRescheduled { from_step: None, priority: Some(70) });
    let started = || Body::WorkflowStarted(WorkflowStarted {});
    check_run(&[], vec![cancelled(), goes_on()]);
    check_run(&["earlier"], vec![cancelled(), goes_on()]);
    check_run(&[], vec![started(), cancelled(), goes_on()]);
    check_run(&[], vec![cancelled(), goes_on(), started()]);
}

#[test]
fn a_run_that_is_cancelled_twice_ended_once() {
    let cancelled = |force| Body::WorkflowCancelled(WorkflowCancelled { force });
    check_run(&[], vec![cancelled(false), cancelled(true)]);
}

#[test]
fn a_step_that_runs_again_is_not_done() {
    let gathered = || Body::StepGathered(StepGathered { step: "s0".into(), parts: 0 });
    let failed = Body::WorkflowFailed(WorkflowFailed { reason: "step_failed".into(), step: None });
    let from_step = Some("s0".to_owned());
    let goes_on = Body::WorkflowRescheduled(WorkflowRescheduled { from_step, priority: None });
    check_run(&[], vec![gathered(), failed, goes_on, gathered()]);
}

#[test]
fn a_result_belongs_to_the_input_it_was_made_of() {
    let history = histories::retried_with_another_input();
    let folded = Folded::new(history, contents(CONTENTS), &mut Chance::seeded(SEED));
    rows::check_tasks(&folded);
    assert_eq!(folded.rows("SELECT count(*) FROM outcome"), [json!([1])]);
}

#[test]
fn a_status_is_stored_as_its_place_among_them() {
    assert!(task::Status::ALL.into_iter().enumerate().all(|(place, status)| status as usize == place));
    let mut runs = workflow::run::status::Status::ALL.into_iter().enumerate();
    assert!(runs.all(|(place, status)| status as usize == place));
}

/// What a run is folded with: its plan, and no inputs, which decide nothing about where it stands.
fn given(plan: &Plan) -> (Arc<Plan>, Arc<Json>) {
    (Arc::new(plan.clone()), Arc::default())
}
