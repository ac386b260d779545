//! `cairn workflow watch`: a run as it goes, until it ends.
//!
//! Invariants:
//! - the tool is asked when the watch begins and when the run has ended; what happens between is read from the
//!   log's stream where the reader may have it, so that watching adds next to nothing to the log;
//! - a terminal shows a screen that is drawn again, everything else a line for each change.

mod view;

use std::{
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::view::{Change, View};
use crate::{
    block::splice,
    cli::{
        Reach,
        door::Door,
        out,
        remote::{Messages, Refused},
        runtime, table, workflow,
    },
};

/// The most often a screen is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// The least often: running times go on while nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Between two questions where there is no stream to listen to.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Steps on a screen.
const LINES_MAX: usize = 20;

/// Where changes come from.
enum Changes {
    Stream(Box<Messages>),
    /// The reader may not listen, or the node is in this process.
    Asking,
}

pub fn run(id: &str, reach: &Reach, quiet: bool) -> anyhow::Result<ExitCode> {
    let status = runtime()?.block_on(async {
        let door = Door::open(reach).await?;
        let status = follow(&door, id, quiet).await;
        door.close().await;
        status
    })?;
    Ok(match status == "succeeded" {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Follows a run to its end; tells its status.
async fn follow(door: &Door, id: &str, quiet: bool) -> anyhow::Result<String> {
    let first = ask(door, id).await?;
    let mut view = View::new(&first);
    let mut changes = listen(door, &first).await?;
    let mut screen = Screen::new(&view, quiet);
    screen.begin(&view)?;
    while !view.ended() {
        match &mut changes {
            Changes::Stream(messages) => {
                let Ok(message) = tokio::time::timeout(TICK, messages.next()).await else {
                    screen.draw(&view);
                    continue;
                };
                let event = message?.map(|data| serde_json::from_slice::<Value>(&data)).transpose()?;
                match event.as_ref().map(|event| (event["cid"].is_string(), event)) {
                    Some((true, event)) => match view.apply(event) {
                        Change::None => {}
                        Change::Seen(line) => screen.change(&view, &line)?,
                        Change::Unclear => screen.renew(&mut view, &ask(door, id).await?)?,
                    },
                    // The stream ended: this node was too slow, or the server stops. What follows says which.
                    Some((false, _)) | None => {
                        let now = ask(door, id).await?;
                        screen.renew(&mut view, &now)?;
                        changes = listen(door, &now).await?;
                    }
                }
            }
            Changes::Asking => {
                tokio::time::sleep(ASK_EVERY).await;
                screen.renew(&mut view, &ask(door, id).await?)?;
            }
        }
    }
    screen.renew(&mut view, &ask(door, id).await?)?;
    screen.end(&view)?;
    Ok(view.status().to_owned())
}

async fn ask(door: &Door, id: &str) -> anyhow::Result<Value> {
    let arguments = splice::raw(json!({"workflow_id": id}).to_string());
    workflow::call(door, "workflow_status", &arguments).await
}

/// The log's events from the one after `status` on.
async fn listen(door: &Door, status: &Value) -> anyhow::Result<Changes> {
    let (Door::Remote(remote), Some(seq)) = (door, status["seq"].as_u64()) else {
        return Ok(Changes::Asking);
    };
    let query = [("from_seq", (seq + 1).to_string())];
    match remote.get("/v1/events/stream", &query, "text/event-stream").await {
        Ok(response) => Ok(Changes::Stream(Box::new(Messages::new(response)))),
        Err(err) if err.is::<Refused>() => Ok(Changes::Asking),
        Err(err) => Err(err),
    }
}

/// Where a run is shown.
enum Screen {
    /// Nobody looks.
    None,
    /// A line for each change.
    Lines,
    Terminal(Terminal),
}

struct Terminal {
    bars: MultiProgress,
    head: ProgressBar,
    steps: Vec<ProgressBar>,
    colours: bool,
    drawn: Instant,
}

impl Screen {
    fn new(view: &View, quiet: bool) -> Self {
        if quiet {
            return Self::None;
        }
        if !std::io::stdout().is_terminal() {
            return Self::Lines;
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let head = bars.add(ProgressBar::new(view.steps() as u64));
        // The templates are ours; plain bars do where they cannot be read.
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:24}] {pos}/{len} steps  {prefix}") {
            head.set_style(style);
        }
        let line = || {
            let bar = bars.add(ProgressBar::new(0));
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        };
        // One more line tells how many steps are not shown.
        let steps = (0..view.steps().min(LINES_MAX + 1)).map(|_| line()).collect();
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::Terminal(Terminal { bars, head, steps, colours, drawn: Instant::now() })
    }

    fn begin(&mut self, view: &View) -> anyhow::Result<()> {
        match self {
            Self::None => {}
            Self::Lines => out::print(&table::printable(&view.head()))?,
            Self::Terminal(terminal) => terminal.draw(view),
        }
        Ok(())
    }

    /// Shows one change, now or with those that follow it.
    fn change(&mut self, view: &View, line: &str) -> anyhow::Result<()> {
        match self {
            Self::None => {}
            Self::Lines => out::print(&table::printable(line))?,
            Self::Terminal(terminal) if terminal.drawn.elapsed() >= DRAW_EVERY => terminal.draw(view),
            Self::Terminal(_) => {}
        }
        Ok(())
    }

    /// Takes over what the tool says.
    fn renew(&mut self, view: &mut View, status: &Value) -> anyhow::Result<()> {
        for line in view.renew(status) {
            self.change(view, &line)?;
        }
        self.draw(view);
        Ok(())
    }

    fn draw(&mut self, view: &View) {
        if let Self::Terminal(terminal) = self {
            terminal.draw(view);
        }
    }

    fn end(self, view: &View) -> anyhow::Result<()> {
        match self {
            Self::None => {}
            Self::Lines => out::print(&table::printable(&view.head()))?,
            Self::Terminal(mut terminal) => {
                terminal.draw(view);
                terminal.head.abandon();
                terminal.steps.iter().for_each(ProgressBar::abandon);
                drop(terminal.bars);
            }
        }
        Ok(())
    }
}

impl Terminal {
    fn draw(&mut self, view: &View) {
        self.drawn = Instant::now();
        let now_ms = now_ms();
        self.head.set_message(table::printable(&view.name()));
        self.head.set_prefix(view.took(now_ms));
        self.head.set_position(view.done() as u64);
        let mut lines = view.lines(now_ms, LINES_MAX, self.colours).into_iter();
        for bar in &self.steps {
            bar.set_message(lines.next().unwrap_or_default());
            bar.tick();
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}
