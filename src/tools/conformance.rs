//! Conformance fixtures: the tools, resources and prompts that the official MCP conformance suite names.
//!
//! They are tools like any other and know nothing of the protocol but results, so the suite exercises the
//! path of every call. `requestState` is sealed with HMAC-SHA-256: a state that was touched is refused.

mod dialogue;
mod listing;
mod tasks;

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde_json::{Map, Value, json, value::RawValue};
use sha2::Sha256;

use self::{
    dialogue::{ROUNDS, answers, question, sampling},
    listing::{defaults, enums, prompts, resources, secret, tools},
};
use crate::{
    block::splice,
    router::{
        BoxFuture, Change, Client, Invocation, Listed, Method, Offered, Offering, Outcome, Router, RpcError,
        Run,
        codes::{INVALID_PARAMS, RESOURCE_NOT_FOUND},
        declared::Declared,
        metadata::Hints,
    },
};

const MISSING_CLIENT_CAPABILITY: i64 = -32021;

/// Between two notifications of one call.
const PAUSE: Duration = Duration::from_millis(50);
/// A red pixel.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// A header and no samples.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

/// What to put on offer, and what runs all of it.
pub struct Fixtures {
    pub tools: Vec<Box<RawValue>>,
    pub prompts: Vec<Listed>,
    pub resources: Vec<Listed>,
    pub templates: Vec<Listed>,
    pub run: Arc<dyn Run>,
}

/// Tells the router that a list has changed.
pub type Announce = Arc<dyn Fn(Change) + Send + Sync>;

/// The fixtures, sealing their states with `state_key`.
pub fn fixtures(state_key: [u8; 32], announce: Announce) -> Fixtures {
    let listed = |name: &str, definition: Value| Listed {
        name: definition[name].as_str().unwrap_or_default().to_owned(),
        definition: raw(&definition),
    };
    let tool = |(name, input): (&str, Value)| {
        raw(&json!({
            "name": name,
            "description": format!("Conformance fixture {name}"),
            "inputSchema": input,
        }))
    };
    let of_tasks = |(name, input, support): (&str, Value, Option<&str>)| {
        let mut definition =
            json!({"name": name, "description": format!("Conformance fixture {name}"), "inputSchema": input});
        if let Some(support) = support {
            definition["execution"] = json!({"taskSupport": support});
        }
        raw(&definition)
    };
    Fixtures {
        tools: tools().into_iter().map(tool).chain(tasks::tools().into_iter().map(of_tasks)).collect(),
        prompts: prompts().into_iter().map(|prompt| listed("name", prompt)).collect(),
        resources: resources().into_iter().map(|resource| listed("uri", resource)).collect(),
        templates: vec![listed(
            "uriTemplate",
            json!({
                "uriTemplate": "test://template/{id}/data",
                "name": "Template",
                "description": "A resource named by an id",
                "mimeType": "application/json",
            }),
        )],
        run: Arc::new(Fixture { state_key, announce }),
    }
}

/// The fixtures as one offering, after the builtin tools.
pub fn offering(state_key: [u8; 32], router: &Router) -> Offering {
    let announcer = router.clone();
    let announce: Announce = Arc::new(move |change| announcer.notify(change));
    let fixtures = fixtures(state_key, announce);
    let offered = |listed: Listed| Offered {
        inner: listed.name.clone(),
        name: listed.name,
        definition: listed.definition,
        hints: Hints::default(),
        contract: None,
    };
    let tool = |definition: Box<RawValue>| {
        let name = splice::member(&definition, "name").ok().flatten();
        let name: String = name.and_then(|name| serde_json::from_str(name.get()).ok()).unwrap_or_default();
        offered(Listed { name, definition })
    };
    Offering {
        source: "conformance".to_owned(),
        version: String::new(),
        rank: 1,
        lane: None,
        tools: fixtures.tools.into_iter().map(tool).collect(),
        prompts: fixtures.prompts.into_iter().map(offered).collect(),
        resources: fixtures.resources.into_iter().map(offered).collect(),
        templates: fixtures.templates.into_iter().map(offered).collect(),
        views: Vec::new(),
        declared: Declared {
            tools: true,
            prompts: true,
            resources: true,
            subscriptions: true,
            completions: true,
            tasks: true,
            ..Declared::default()
        },
        mirrors: false,
        run: fixtures.run,
    }
}

struct Fixture {
    state_key: [u8; 32],
    announce: Announce,
}

/// What a fixture answers: a result object, or a JSON-RPC error.
type Answered = Result<Value, RpcError>;

impl Run for Fixture {
    fn gives_handles(&self, tool: &str) -> bool {
        tool == tasks::HANDS_OVER
    }

    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let cancel = invocation.cancel.clone();
            let answered = tokio::select! {
                answered = self.answer(invocation) => answered,
                () = cancel.cancelled() => return Outcome::Cancelled,
            };
            match answered {
                Ok(result) => Outcome::Result { is_error: result["isError"] == true, result: raw(&result) },
                Err(error) => Outcome::Rpc(Box::new(error)),
            }
        })
    }
}

impl Fixture {
    async fn answer(&self, invocation: Invocation) -> Answered {
        let params: Value = serde_json::from_str(invocation.params.get())
            .map_err(|_| error(INVALID_PARAMS, "params cannot be read", None))?;
        let name = invocation.name.clone();
        match invocation.method {
            Method::ToolsCall => self.call(&name, &params, invocation).await,
            Method::PromptsGet => self.prompt(&name, &params),
            Method::ResourcesRead => read(&name),
            Method::Complete => Ok(json!({"completion": {"values": [], "total": 0, "hasMore": false}})),
        }
    }

    async fn call(&self, name: &str, params: &Value, invocation: Invocation) -> Answered {
        if let Some(answered) = tasks::answer(name, params, &invocation).await {
            return answered;
        }
        let arguments = &params["arguments"];
        let client = &invocation.client;
        match name {
            "test_tool_with_logging" => Ok(logging(client.as_ref()).await),
            "test_logging_tool" => {
                client.notify("notifications/message", json!({"level": "info", "data": "A log line."}));
                Ok(text("Logged."))
            }
            "test_tool_with_progress" => Ok(progressing(&invocation).await),
            "test_reconnection" => {
                tokio::time::sleep(2 * PAUSE).await;
                Ok(text("Reconnection test completed."))
            }
            "test_sampling" => {
                let params = sampling(arguments["prompt"].as_str().unwrap_or_default(), 100);
                let answer = client.request("sampling/createMessage", params).await?;
                let said = answer["content"]["text"].as_str().unwrap_or_default();
                Ok(text(&format!("LLM response: {said}")))
            }
            "test_elicitation" => eliciting(client.as_ref(), arguments).await,
            "test_elicitation_sep1034_defaults"
            | "test_elicitation_sep1330_enums"
            | "test_elicitation_secret" => {
                let properties = match name {
                    "test_elicitation_sep1034_defaults" => defaults(),
                    "test_elicitation_secret" => secret(),
                    _ => enums(),
                };
                let schema = json!({"type": "object", "properties": properties, "required": []});
                let params = json!({"message": "Please review the form", "requestedSchema": schema});
                let answer = client.request("elicitation/create", params).await?;
                Ok(text(&format!("Elicitation completed: {}", elicited(&answer))))
            }
            "test_missing_capability" if declared(client.as_ref()).get("sampling").is_none() => {
                Err(unable(&json!({"sampling": {}})))
            }
            "test_trigger_tool_change" => {
                (self.announce)(Change::Tools);
                Ok(text("The tool list has changed."))
            }
            "test_trigger_prompt_change" => {
                (self.announce)(Change::Prompts);
                Ok(text("The prompt list has changed."))
            }
            "test_custom_header" => Ok(text(&format!("value: {}", arguments["value"]))),
            "test_input_required_result_capabilities" => {
                self.within_capabilities(name, params, client.as_ref())
            }
            _ => match ROUNDS.iter().find(|dialogue| dialogue.name == name) {
                Some(dialogue) => self.rounds(name, dialogue.rounds, dialogue.sealed, params, |inputs| {
                    text(&(dialogue.done)(inputs))
                }),
                None => plain(name),
            },
        }
    }

    /// Asks for what the client has declared that it can be asked for.
    fn within_capabilities(&self, name: &str, params: &Value, client: &dyn Client) -> Answered {
        let declared = declared(client);
        let asked = [("elicitation", "user_name"), ("sampling", "greeting"), ("roots", "client_roots")];
        let asked = asked.into_iter().filter(|(needs, _)| declared.get(needs).is_some());
        let asked: Vec<&str> = asked.map(|(_, key)| key).collect();
        if asked.is_empty() {
            return Ok(text("The client can be asked nothing."));
        }
        self.rounds(name, &[&asked], false, params, |_| text("Every input is here."))
    }

    fn prompt(&self, name: &str, params: &Value) -> Answered {
        let argument = |name: &str| params["arguments"][name].as_str().unwrap_or_default().to_owned();
        let said = |contents: &[Value]| {
            let messages: Vec<Value> =
                contents.iter().map(|content| json!({"role": "user", "content": content})).collect();
            json!({"messages": messages})
        };
        let words = |text: &str| json!({"type": "text", "text": text});
        Ok(match name {
            "test_simple_prompt" => said(&[words("This is a simple prompt for testing.")]),
            "test_prompt_with_arguments" => said(&[words(&format!(
                "Prompt with arguments: arg1='{}', arg2='{}'",
                argument("arg1"),
                argument("arg2")
            ))]),
            "test_prompt_with_embedded_resource" => said(&[
                json!({"type": "resource", "resource": {
                    "uri": argument("resourceUri"),
                    "mimeType": "text/plain",
                    "text": "Embedded resource content for testing.",
                }}),
                words("Please process the embedded resource above."),
            ]),
            "test_prompt_with_image" => said(&[
                json!({"type": "image", "data": PNG, "mimeType": "image/png"}),
                words("Please analyze the image above."),
            ]),
            "test_input_required_result_prompt" => {
                return self.rounds(name, &[&["user_context"]], false, params, |inputs| {
                    let context = inputs["user_context"]["content"]["context"].as_str().unwrap_or_default();
                    said(&[words(&format!("Context: {context}"))])
                });
            }
            _ => {
                return Err(error(INVALID_PARAMS, &format!("unknown prompt: {name}"), None));
            }
        })
    }

    /// One turn of a dialogue: asks for the inputs of the round the state names, until the last round has its own.
    fn rounds(
        &self,
        name: &str,
        rounds: &[&[&str]],
        sealed: bool,
        params: &Value,
        done: impl Fn(&Value) -> Value,
    ) -> Answered {
        let inputs = &params["inputResponses"];
        let mut round = match params.get("requestState") {
            Some(state) => self
                .unseal(name, state.as_str().unwrap_or_default())
                .ok_or_else(|| error(INVALID_PARAMS, "requestState fails its integrity check", None))?,
            None => 0,
        };
        let asked = rounds.get(round).copied().unwrap_or_default();
        let answered = asked.iter().all(|key| answers(key, &inputs[*key]));
        if answered && (params.get("requestState").is_some() || !sealed) {
            round += 1;
        }
        let Some(asked) = rounds.get(round) else {
            return Ok(done(inputs));
        };
        let requests: Map<String, Value> =
            asked.iter().map(|key| ((*key).to_owned(), question(key))).collect();
        let mut result = json!({"resultType": "input_required", "inputRequests": requests});
        if sealed {
            result["requestState"] = self.seal(name, round).into();
        }
        Ok(result)
    }

    fn seal(&self, name: &str, round: usize) -> String {
        let state = format!("{name}\n{round}");
        let tag = self.mac(&state).finalize().into_bytes();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(&state), URL_SAFE_NO_PAD.encode(tag))
    }

    /// The round a state of `name` names; none unless it was sealed here.
    fn unseal(&self, name: &str, state: &str) -> Option<usize> {
        let (state, tag) = state.split_once('.')?;
        let state = String::from_utf8(URL_SAFE_NO_PAD.decode(state).ok()?).ok()?;
        self.mac(&state).verify_slice(&URL_SAFE_NO_PAD.decode(tag).ok()?).ok()?;
        let (owner, round) = state.split_once('\n')?;
        (owner == name).then(|| round.parse().ok())?
    }

    fn mac(&self, state: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.state_key).expect("HMAC takes keys of any length");
        mac.update(state.as_bytes());
        mac
    }
}

/// Returns the capabilities that the client declared.
fn declared(client: &dyn Client) -> Value {
    serde_json::from_str(&client.audience().capabilities).unwrap_or_default()
}

async fn logging(client: &dyn Client) -> Value {
    for line in ["started", "processing", "completed"] {
        let data = format!("Tool execution {line}");
        client.notify("notifications/message", json!({"level": "info", "data": data}));
        tokio::time::sleep(PAUSE).await;
    }
    text("Tool with logging executed.")
}

async fn progressing(invocation: &Invocation) -> Value {
    for progress in [0, 50, 100] {
        if let Some(token) = &invocation.progress_token {
            let params = json!({"progressToken": token, "progress": progress, "total": 100});
            invocation.client.notify("notifications/progress", params);
        }
        tokio::time::sleep(PAUSE).await;
    }
    text("Tool with progress executed.")
}

async fn eliciting(client: &dyn Client, arguments: &Value) -> Answered {
    let schema = json!({
        "type": "object",
        "properties": {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        },
        "required": ["username", "email"],
    });
    let message = arguments["message"].as_str().unwrap_or_default();
    let params = json!({"message": message, "requestedSchema": schema});
    let answer = client.request("elicitation/create", params).await?;
    Ok(text(&format!("User response: {}", elicited(&answer))))
}

/// The tools that only answer.
fn plain(name: &str) -> Answered {
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    Ok(match name {
        "test_simple_text" => text("This is a simple text response for testing."),
        "test_image_content" => json!({"content": [image]}),
        "test_audio_content" => {
            json!({"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]})
        }
        "test_embedded_resource" => json!({"content": [{"type": "resource", "resource": {
            "uri": "test://embedded-resource",
            "mimeType": "text/plain",
            "text": "This is an embedded resource content.",
        }}]}),
        "test_multiple_content_types" => json!({"content": [
            {"type": "text", "text": "Multiple content types test:"},
            image,
            {"type": "resource", "resource": {
                "uri": "test://mixed-content-resource",
                "mimeType": "application/json",
                "text": r#"{"test":"data","value":123}"#,
            }},
        ]}),
        "test_error_handling" => json!({
            "content": [{"type": "text", "text": "This tool intentionally returns an error for testing"}],
            "isError": true,
        }),
        "json_schema_2020_12_tool" => text("JSON Schema 2020-12 tool called."),
        "test_missing_capability" => text("The client can sample."),
        _ => {
            return Err(error(INVALID_PARAMS, &format!("unknown tool: {name}"), None));
        }
    })
}

fn read(uri: &str) -> Answered {
    let contents =
        |mime: &str, text: &str| Ok(json!({"contents": [{"uri": uri, "mimeType": mime, "text": text}]}));
    match uri {
        "test://static-text" => contents("text/plain", "This is the content of the static text resource."),
        "test://static-binary" => {
            Ok(json!({"contents": [{"uri": uri, "mimeType": "image/png", "blob": PNG}]}))
        }
        "test://watched-resource" => contents("text/plain", "This is the content of the watched resource."),
        _ => match uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data")) {
            Some(id) if !id.is_empty() && !id.contains('/') => {
                let data = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
                contents("application/json", &data.to_string())
            }
            _ => Err(error(RESOURCE_NOT_FOUND, "there is no such resource", Some(json!({"uri": uri})))),
        },
    }
}

fn elicited(answer: &Value) -> String {
    let action = answer["action"].as_str().unwrap_or("none");
    format!("action={action}, content={}", answer["content"])
}

fn text(text: &str) -> Value {
    json!({"content": [{"type": "text", "text": text}]})
}

/// Returns the error of a client that has not declared these capabilities.
fn unable(required: &Value) -> RpcError {
    let data = json!({"requiredCapabilities": required});
    error(MISSING_CLIENT_CAPABILITY, "Missing required client capability", Some(data))
}

fn error(code: i64, message: &str, data: Option<Value>) -> RpcError {
    RpcError { code, message: message.to_owned(), data, record: None }
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a JSON value is always printable")
}
