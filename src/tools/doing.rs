//! How a tool of durable work runs: what it asks of the ledger, and how the ruling becomes a result.
//!
//! Invariants:
//! - what a call asks is the same whether it is ruled with the call's start or after it, and so is what it answers;
//! - what was ruled is answered even to a caller that has left: it may hand out work.

use std::sync::Arc;

use crate::{
    block::splice,
    error::Refusal,
    ledger::{
        Ruling,
        work::{Wish, Worked},
    },
    router::{BoxFuture, Foretold, Invocation, Outcome, Run, lane},
    tools::{
        Builtin,
        denied::Denied,
        desk::{Desk, Told, unexpected},
    },
};

/// The function of one tool.
pub type Does = fn(Desk, Arc<Invocation>) -> BoxFuture<'static, Told>;

/// The definition of a builtin tool, by its name.
macro_rules! definition {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/tools/", $name, ".json"))
    };
}
pub(super) use definition;

/// An async function of a desk and a call, as what a tool does.
macro_rules! does {
    ($($does:tt)+) => {
        |desk, call| Box::pin(async move { $($does)+(&desk, &call).await })
    };
}
pub(super) use does;

/// The reason that a call gives, and the change it asks for.
pub type Asked = Result<(Option<String>, Wish), Refusal>;

/// The change that a tool asks for, for tools that do nothing else.
#[derive(Clone, Copy)]
pub struct Foretells {
    /// Builds the wish and its reason from the arguments, before the call starts.
    pub wish: fn(&Desk, &Invocation) -> Asked,
    /// Makes the answer from the ruling. Returns `None` if the answer needs more than the ruling. Pure.
    pub tell: fn(&Invocation, &Worked) -> Option<Told>,
}

/// A tool with its desk.
pub(super) struct Tool {
    pub desk: Desk,
    pub does: Does,
    pub foretells: Option<Foretells>,
    pub checks: bool,
}

impl Foretells {
    /// Asks for the change, unless it was ruled with the start of the call.
    pub async fn ask(&self, desk: &Desk, call: &Invocation) -> Result<Worked, Refusal> {
        let (reason, wish) = (self.wish)(desk, call)?;
        desk.wish(call, reason.as_deref(), wish).await
    }

    /// Asks for the change and returns the answer.
    pub async fn done(&self, desk: &Desk, call: &Invocation) -> Told {
        let worked = self.ask(desk, call).await?;
        (self.tell)(call, &worked).unwrap_or_else(|| Err(unexpected().into()))
    }
}

impl Desk {
    /// Makes a builtin tool that runs with this desk.
    pub fn tool(&self, category: &'static str, definition: &'static str, does: Does) -> Builtin {
        self.foretelling(category, definition, does, None)
    }

    /// Like [`Desk::tool`], for a tool that checks its input against its schema itself.
    pub fn checking(&self, category: &'static str, definition: &'static str, does: Does) -> Builtin {
        let run = Arc::new(Tool { desk: self.clone(), does, foretells: None, checks: true });
        Builtin { definition, category, lane: lane::BUILTIN, run }
    }

    /// Like [`Desk::tool`], for a tool that only asks the ledger for one change.
    pub fn foretelling(
        &self,
        category: &'static str,
        definition: &'static str,
        does: Does,
        foretells: Option<Foretells>,
    ) -> Builtin {
        let run = Arc::new(Tool { desk: self.clone(), does, foretells, checks: false });
        Builtin { definition, category, lane: lane::BUILTIN, run }
    }
}

impl Run for Tool {
    fn checks(&self, _tool: &str) -> bool {
        self.checks
    }

    fn foretell(&self, invocation: &Arc<Invocation>) -> Option<Foretold> {
        let Foretells { wish, tell } = self.foretells?;
        // What cannot be told is told as a refusal when the call runs.
        let (reason, wish) = wish(&self.desk, invocation).ok()?;
        let work = self.desk.work(invocation, reason.as_deref(), wish).ok()?;
        let call = invocation.clone();
        let tell = move |ruling: &Ruling| {
            let told = match ruling {
                Ruling::Worked(worked) => tell(&call, worked)?,
                Ruling::Denied(refusal) => Err(Denied::from(refusal.clone())),
                _ => return None,
            };
            Some(outcome(told, &call))
        };
        Some(Foretold { work, tell: Box::new(tell) })
    }

    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let invocation = Arc::new(invocation);
            tokio::select! {
                biased;
                told = (self.does)(self.desk.clone(), invocation.clone()) => outcome(told, &invocation),
                () = invocation.cancel.cancelled() => Outcome::Cancelled,
            }
        })
    }
}

/// Returns the outcome of a call with this answer.
fn outcome(told: Told, invocation: &Invocation) -> Outcome {
    match told {
        Ok(structured) => {
            let text = splice::quoted(&structured);
            let content = format!(r#"[{{"type":"text","text":{text}}}]"#);
            let result = format!(r#"{{"content":{content},"structuredContent":{structured}}}"#);
            Outcome::Result { result: splice::raw(result), is_error: false }
        }
        Err(denied) => denied.outcome(invocation),
    }
}
