//! The way to a node's tools: a server's URL, or a data directory that is opened in this process.
//!
//! Invariant: a node that is opened here is stopped in order, so that every call it started has its ending in the log.

use std::{path::Path, sync::Arc};

use serde_json::{Value, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::splice,
    caller::{Caller, Scope},
    cli::{
        Called,
        guard::guard,
        logging::warn,
        place::{Place, Reach},
        remote::Remote,
    },
    config::{Config, Overrides},
    event::Actor,
    log::home::Home,
    node::{Node, Setup},
    router::{BoxFuture, Client, Meta, Method, Request, RpcError, audience::Audience},
    runtime::upstream::leftovers,
};

/// A node whose tools can be called.
pub enum Door {
    Remote(Remote),
    Local(Box<Node>),
}

impl Door {
    pub async fn open(reach: &Reach) -> anyhow::Result<Self> {
        match reach.place()? {
            Place::Server(url) => Ok(Self::Remote(Remote::new(&url, reach.token.clone())?)),
            Place::Files(data) => {
                let node = start(&data, reach.config().as_deref()).await?;
                Ok(Self::Local(Box::new(node)))
            }
        }
    }

    pub async fn call(&self, tool: &str, arguments: &RawValue) -> anyhow::Result<Called> {
        match self {
            Self::Remote(remote) => remote.call(tool, arguments).await,
            Self::Local(node) => Ok(call(node, tool, arguments).await),
        }
    }

    pub async fn close(self) {
        if let Self::Local(node) = self {
            node.stop().await;
            leftovers::resign();
        }
    }
}

async fn start(data: &Path, config: Option<&Path>) -> anyhow::Result<Node> {
    warn();
    let config = Config::load(config, std::env::vars(), &Overrides::default())?;
    let home = Home::open(data)?;
    guard(&home);
    let setup = Setup {
        home: &home,
        config: &config,
        owner: format!("`cairn call` (process {})", std::process::id()),
        base: None,
        upstreams: Vec::new(),
        builtins: true,
        fixtures: false,
        networked: false,
        door: "call",
        starting: Default::default(),
    };
    Ok(Node::start(setup).await?)
}

async fn call(node: &Node, tool: &str, arguments: &RawValue) -> Called {
    let cancel = CancellationToken::new();
    let name = splice::quoted(tool);
    let request = Request {
        method: Method::ToolsCall,
        name: tool.to_owned(),
        params: splice::raw(format!(r#"{{"name":{name},"arguments":{arguments}}}"#)).into(),
        meta: Meta::default(),
        caller: Caller {
            actor: Actor { id: "local".to_owned(), role: "client".to_owned(), proof: None },
            scopes: vec![Scope::Call, Scope::Audit, Scope::Admin],
        },
        client: Arc::new(Nobody),
        cancel: cancel.clone(),
        cause: None,
        attempt: None,
        begun: None,
    };
    let call = node.router.call(request);
    tokio::pin!(call);
    let answered = tokio::select! {
        answered = &mut call => answered,
        Ok(()) = tokio::signal::ctrl_c() => {
            // The call ends as cancelled, and its answer says so.
            cancel.cancel();
            call.await
        }
    };
    match answered {
        Ok(answer) => {
            let event = answer.record.map(|record| record.event.to_string());
            Called::of_result(answer.result, event)
        }
        Err(err) => Called {
            answer: Err(format!("{} (error {})", err.message, err.code)),
            event: err.record.map(|record| record.event.to_string()),
        },
    }
}

/// A client that ignores notifications and answers no requests.
struct Nobody;

impl Client for Nobody {
    fn notify(&self, _method: &str, _params: Value) {}

    fn request(&self, method: &str, _params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let refusal = RpcError::new(-32601, format!("a command line cannot answer {method}"));
        Box::pin(std::future::ready(Err(refusal)))
    }

    fn audience(&self) -> Audience {
        Audience::default()
    }
}
