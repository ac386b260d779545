use std::sync::Arc;

use axum::{Router as Axum, extract::{Request, State}, response::Response};
use cairn::{
    block::{Cid, Codec},
    event::Actor,
    mcp::{Endpoint, Settings},
    router::{BoxFuture, Caller, Invocation, Offer, Outcome, Router, Run, Scope, Tool},
    tools::conformance,
};
use serde_json::value::RawValue;

struct Echo(Arc<dyn Run>);
impl Run for Echo {
    fn run(&self, i: Invocation) -> BoxFuture<'_, Outcome> {
        if i.name == "echo" {
            let result = RawValue::from_string(format!(r#"{{"content":[{{"type":"text","text":"hi"}}],"x-unknown":1.50,"raw":{}}}"#, i.params.get())).unwrap();
            return Box::pin(async { Outcome::Result { result, is_error: false } });
        }
        if i.name == "slow" {
            return Box::pin(async move {
                tokio::select! {
                    () = i.cancel.cancelled() => { eprintln!("slow cancelled"); Outcome::Cancelled }
                    () = tokio::time::sleep(std::time::Duration::from_secs(3)) => { eprintln!("slow done"); Outcome::Result { result: RawValue::from_string(r#"{"content":[]}"#.into()).unwrap(), is_error: false } }
                }
            });
        }
        self.0.run(i)
    }
}

async fn mcp(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or("");
    if host.contains("evil") || parts.headers.get("origin").is_some_and(|o| o.to_str().unwrap_or("evil").contains("evil")) {
        return Response::builder().status(403).body("no".into()).unwrap();
    }
    let body = axum::body::to_bytes(body, 4 << 20).await.unwrap();
    let caller = caller(parts.headers.get("x-actor").and_then(|h| h.to_str().ok()).unwrap_or("local"));
    endpoint.respond(parts, body, caller).await
}

fn caller(id: &str) -> Caller {
    Caller { actor: Actor { id: id.into(), role: "user".into(), proof: None }, scopes: vec![Scope::Admin] }
}

fn router() -> Arc<Router> {
    let (changes, _) = tokio::sync::broadcast::channel(16);
    let announce = changes.clone();
    let fixtures = conformance::fixtures([7; 32], Arc::new(move |c| { let _ = announce.send(c); }));
    let tool = |definition: Box<RawValue>| {
        let v: serde_json::Value = serde_json::from_str(definition.get()).unwrap();
        Arc::new(Tool { name: v["name"].as_str().unwrap().into(), contract: Cid::of(Codec::Raw, definition.get().as_bytes()), definition })
    };
    let mut tools: Vec<_> = fixtures.tools.into_iter().map(tool).collect();
    tools.push(tool(RawValue::from_string(r#"{"name":"echo","description":"Echo","inputSchema":{"type":"object" , "x-z":1.0},"execution":{"taskSupport":"optional"},"unknown_field": [1, 2.50]}"#.into()).unwrap()));
    tools.push(tool(RawValue::from_string(r#"{"name":"slow","description":"Slow","inputSchema":{"type":"object"}}"#.into()).unwrap()));
    let offer = Offer {
        tools,
        prompts: fixtures.prompts.into_iter().map(Arc::new).collect(),
        resources: fixtures.resources.into_iter().map(Arc::new).collect(),
        templates: fixtures.templates.into_iter().map(Arc::new).collect(),
        completions: true,
    };
    Arc::new(Router::new(offer, Arc::new(Echo(fixtures.run)), changes))
}

#[tokio::main]
async fn main() {
    use axum::serve::ListenerExt;
    let settings = Settings { subscriptions: true, ..Settings::default() };
    let arg = std::env::args().nth(1).unwrap_or("127.0.0.1:8101".into());
    if arg == "stdio" {
        cairn::mcp::serve_stdio(router(), settings, caller("local"), tokio::io::stdin(), tokio::io::stdout()).await.unwrap();
        return;
    }
    let endpoint = Arc::new(Endpoint::new(router(), settings));
    let app = Axum::new().route("/mcp", axum::routing::any(mcp)).with_state(endpoint);
    let listener = tokio::net::TcpListener::bind(arg).await.unwrap().tap_io(|s| { let _ = s.set_nodelay(true); });
    axum::serve(listener, app).await.unwrap();
}
