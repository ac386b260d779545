//! `cairn workflow watch`: shows a run as it goes, until it ends.
//!
//! Invariants:
//! - the tool is called at the beginning, at the end, and when an event is unclear. All else is read from the log's
//!   stream if the token allows that, so that watching adds next to nothing to the log;
//! - a terminal shows a screen that is redrawn; any other output gets a line for each change;
//! - a server that does not answer is waited for, at most [`PATIENCE`], and the watcher says so.

mod view;

use std::{
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::view::{Change, View};
use crate::{
    block::splice,
    cli::{
        client,
        door::Door,
        out,
        place::Reach,
        remote::{Messages, Refused},
        runtime, table,
    },
    clock::now_ms,
};

/// The shortest time between two drawings of the screen.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// The longest time between two drawings, so that running times go on while nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// The pause between two calls of the tool, if there is no stream to listen to.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long to wait for a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two tries to reach it.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// The largest number of steps on a screen.
const LINES_MAX: usize = 20;

/// How changes of the run are learnt.
enum Changes {
    Stream(Box<Messages>),
    /// By calling the tool again: the token does not allow the stream, or the node is in this process.
    Asking,
}

pub fn run(id: &str, reach: &Reach, json: bool, quiet: bool) -> anyhow::Result<ExitCode> {
    let status = runtime()?.block_on(async {
        let door = Door::open(reach).await?;
        let screen = if json { Screen::Json(None) } else { Screen::new(quiet) };
        let status = tokio::select! {
            status = follow(&door, id, screen) => status,
            gone = out::left() => Err(gone.into()),
        };
        door.close().await;
        status
    })?;
    Ok(match status == "succeeded" {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Follows a run to its end; returns its status.
async fn follow(door: &Door, id: &str, mut screen: Screen) -> anyhow::Result<String> {
    let first = ask(door, id).await?;
    let mut view = View::new(&first);
    let mut changes = listen(door, &first).await?;
    screen.begin(&view, &first)?;
    while !view.ended() {
        let asks = match &mut changes {
            Changes::Stream(messages) => match tokio::time::timeout(TICK, messages.next()).await {
                Err(_) => {
                    screen.draw(&view);
                    false
                }
                Ok(Ok(Some(data))) => {
                    let event: Value = serde_json::from_slice(&data)?;
                    match view.apply(&event) {
                        // This reader was too slow, or the server stops. The next call of the tool tells which.
                        _ if !event["cid"].is_string() => true,
                        Change::None => false,
                        Change::Seen(line) => {
                            screen.change(&view, &line)?;
                            matches!(screen, Screen::Json(_))
                        }
                        Change::Unclear => true,
                    }
                }
                Ok(Ok(None) | Err(_)) => true,
            },
            Changes::Asking => {
                tokio::time::sleep(ASK_EVERY).await;
                true
            }
        };
        if asks {
            let now;
            (now, changes) = catch_up(door, id, &screen).await?;
            screen.renew(&mut view, &now)?;
        }
    }
    let (last, _) = catch_up(door, id, &screen).await?;
    screen.renew(&mut view, &last)?;
    screen.end(&view)?;
    Ok(view.status().to_owned())
}

/// Returns the tool's status of the run, and the changes from there on. Waits for a server that does not answer.
async fn catch_up(door: &Door, id: &str, screen: &Screen) -> anyhow::Result<(Value, Changes)> {
    let deadline = Instant::now() + PATIENCE;
    let mut away = false;
    loop {
        let tried = async {
            let now = ask(door, id).await?;
            let changes = listen(door, &now).await?;
            anyhow::Ok((now, changes))
        };
        match tried.await {
            Ok(found) => {
                if away {
                    screen.say("the server answers again");
                }
                return Ok(found);
            }
            Err(err) if lasting(&err) => return Err(err),
            Err(err) if Instant::now() >= deadline => {
                return Err(err.context(format!("the server was away for {} s", PATIENCE.as_secs())));
            }
            Err(err) if !away => {
                screen.say(&format!("{err}; waiting up to {} s for it", PATIENCE.as_secs()));
                away = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Returns whether the same call would be refused again.
fn lasting(err: &anyhow::Error) -> bool {
    let denied = err.downcast_ref::<client::Denied>().is_some_and(|denied| !denied.retryable);
    denied || err.downcast_ref::<Refused>().is_some_and(|refused| refused.status.is_client_error())
}

async fn ask(door: &Door, id: &str) -> anyhow::Result<Value> {
    let arguments = splice::raw(json!({"workflow_id": id}).to_string());
    client::call(door, "workflow_status", &arguments).await
}

/// Returns the stream of the log's events after `status`, or that the tool must be called instead.
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

/// How the run is shown.
enum Screen {
    /// It is not shown.
    None,
    /// Each change is printed on a line.
    Lines,
    Terminal(Terminal),
    /// The tool's status is printed as JSON, a line each time that it differs from this one.
    Json(Option<Value>),
}

struct Terminal {
    /// One bar whose message is the whole page, so that it is drawn at once.
    page: ProgressBar,
    colours: bool,
    drawn: Instant,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self::None;
        }
        if !std::io::stdout().is_terminal() {
            return Self::Lines;
        }
        let page = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        // The template is a constant of ours; if it cannot be parsed, a plain bar will do.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            page.set_style(style);
        }
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::Terminal(Terminal { page, colours, drawn: Instant::now() })
    }

    fn begin(&mut self, view: &View, status: &Value) -> anyhow::Result<()> {
        match self {
            Self::None => {}
            Self::Json(_) => self.document(status)?,
            // For a run that has ended, the last line is enough.
            Self::Lines if view.ended() => {}
            Self::Lines => out::print(&table::printable(&view.head()))?,
            Self::Terminal(terminal) => terminal.draw(view),
        }
        Ok(())
    }

    /// Shows one change, now or with those that follow it.
    fn change(&mut self, view: &View, line: &str) -> anyhow::Result<()> {
        match self {
            Self::None | Self::Json(_) => {}
            Self::Lines => out::print(&table::printable(line))?,
            Self::Terminal(terminal) if terminal.drawn.elapsed() >= DRAW_EVERY => terminal.draw(view),
            Self::Terminal(_) => {}
        }
        Ok(())
    }

    /// Replaces the view by the tool's status and shows what changed.
    fn renew(&mut self, view: &mut View, status: &Value) -> anyhow::Result<()> {
        for line in view.renew(status) {
            self.change(view, &line)?;
        }
        self.document(status)?;
        self.draw(view);
        Ok(())
    }

    /// Prints the tool's status where documents are wanted, unless it is as it was but for the log's size.
    fn document(&mut self, status: &Value) -> anyhow::Result<()> {
        if let Self::Json(last) = self {
            let mut now = status.clone();
            now["seq"] = Value::Null;
            if last.as_ref() != Some(&now) {
                out::print(&out::json(status))?;
                *last = Some(now);
            }
        }
        Ok(())
    }

    /// Shows a message beside the run.
    fn say(&self, text: &str) {
        let text = table::printable(text);
        match self {
            Self::None => {}
            Self::Lines | Self::Json(_) => say!("{text}"),
            Self::Terminal(terminal) => terminal.page.suspend(|| say!("{text}")),
        }
    }

    fn draw(&mut self, view: &View) {
        if let Self::Terminal(terminal) = self {
            terminal.draw(view);
        }
    }

    fn end(self, view: &View) -> anyhow::Result<()> {
        match self {
            Self::None | Self::Json(_) => return Ok(()),
            Self::Lines => out::print(&table::printable(&view.head()))?,
            Self::Terminal(mut terminal) => {
                terminal.draw(view);
                terminal.page.abandon();
            }
        }
        if let Some(why) = view.why() {
            out::print(&table::printable(&why))?;
        }
        Ok(())
    }
}

impl Terminal {
    fn draw(&mut self, view: &View) {
        self.drawn = Instant::now();
        self.page.set_message(view.page(now_ms(), LINES_MAX, self.colours).join("\n"));
    }
}
