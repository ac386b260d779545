"""A conformance server on the Python SDK, of both eras; `server.py session` serves the session era alone.

What it needs to know it asks in mid-call of a session, and in its result otherwise. Some tools know only the first way, as
most that are older than the second: a client of sessions reaches them in a session or not at all.
"""
import asyncio, json, pathlib, re, socket, sys

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

OFFER = json.loads((pathlib.Path(__file__).parent / "offer.json").read_text())
FIRST_MODERN = "2026-07-28"
MISSING_CAPABILITY = -32021
PAUSE = 0.05
RETRY_MS = 100
ANSWERS = {
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}
bus = InMemorySubscriptionBus()
sessions = {}


class Events(EventStore):
    """Keeps events of streams that were cut, so that a client can have them again."""

    def __init__(self):
        self.kept = []

    async def store_event(self, stream_id, message):
        self.kept.append((stream_id, message))
        return str(len(self.kept))

    async def replay_events_after(self, last_event_id, send_callback):
        after = int(last_event_id)
        stream = self.kept[after - 1][0]
        for at, (of, message) in enumerate(self.kept[after:], after + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(at)))
        return stream


def text(said):
    return types.CallToolResult.model_validate({"content": [{"type": "text", "text": said}]})


def question(key, arguments):
    asked = json.loads(json.dumps(OFFER["questions"][key]))
    if key == "prompt":
        asked["params"]["messages"][0]["content"]["text"] = arguments["prompt"]
    if key == "message":
        asked["params"]["message"] = arguments["message"]
    return asked


def answered(key, given):
    """Whether what was given has the shape of an answer to the question."""
    _, shape = ANSWERS[OFFER["questions"][key]["method"]]
    return isinstance(given.get(key), shape)


def done(name, answers):
    said = "state-ok " + json.dumps({key: json.loads(answer.model_dump_json(by_alias=True)) for key, answer in answers.items()})
    if any(tool["name"] == name for tool in OFFER["tools"]):
        return text(said)
    message = {"role": "user", "content": {"type": "text", "text": said}}
    return types.GetPromptResult.model_validate({"messages": [message]})


async def ask(ctx, keys, arguments):
    """Asks all of one round at once; a question bears its key, which only those read who know it."""
    async def one(key):
        asked = question(key, arguments)
        asked["params"]["_meta"] = {"io.cairn/inputKey": key}
        request, answer = ANSWERS[asked["method"]]
        related = ServerMessageMetadata(related_request_id=ctx.request_id)
        return await ctx.session.send_request(request.model_validate(asked), answer, metadata=related)

    return dict(zip(keys, await asyncio.gather(*map(one, keys))))


async def dialogue(ctx, params, rounds, arguments):
    """In a session, the whole dialogue; else one turn: asks for the round that the state names, until the last is answered."""
    name = params.name
    if ctx.protocol_version < FIRST_MODERN:
        answers = {}
        for keys in rounds:
            answers |= await ask(ctx, keys, arguments)
        return done(name, answers)
    given, state = params.input_responses or {}, params.request_state
    at = int(state or 0)
    if (state is not None or name not in OFFER["sealed"]) and all(answered(key, given) for key in rounds[at]):
        at += 1
    if at == len(rounds):
        return done(name, {key: answer for key, answer in given.items() if key in OFFER["questions"]})
    asked = {"resultType": "input_required", "inputRequests": {key: question(key, arguments) for key in rounds[at]}}
    if name in OFFER["sealed"]:
        asked["requestState"] = str(at)
    return types.InputRequiredResult.model_validate(asked)


async def call(ctx, params):
    sessions[id(ctx.session)] = ctx.session
    name, arguments = params.name, params.arguments or {}
    if name in OFFER["results"]:
        return types.CallToolResult.model_validate(OFFER["results"][name])
    if name in OFFER["dialogues"]:
        if ctx.protocol_version >= FIRST_MODERN and not name.startswith("test_input_required_result"):
            return text("This tool asks in sessions only.")
        return await dialogue(ctx, params, OFFER["dialogues"][name], arguments)
    log = lambda line: ctx.session.send_log_message("info", line, related_request_id=ctx.request_id)
    declared = ctx.session.client_capabilities
    can = lambda kind: declared is not None and getattr(declared, kind) is not None
    if name == "test_tool_with_logging":
        for step in ("started", "processing", "completed"):
            await log("Tool execution " + step)
            await asyncio.sleep(PAUSE)
        return text("Logged.")
    if name == "test_logging_tool":
        await log("A log line.")
        return text("Logged.")
    if name == "test_tool_with_progress":
        for progress in (0, 50, 100):
            await ctx.session.report_progress(progress, 100)
            await asyncio.sleep(PAUSE)
        return text("Progressed.")
    if name == "test_reconnection":
        if ctx.close_sse_stream:
            await ctx.close_sse_stream()
        await asyncio.sleep(2 * RETRY_MS / 1000)
        return text("Reconnected.")
    if name == "test_missing_capability":
        if can("sampling"):
            return text("The client can sample.")
        raise MCPError(MISSING_CAPABILITY, "The client cannot sample", {"requiredCapabilities": {"sampling": {}}})
    if name == "test_input_required_result_capabilities":
        needs = {"elicitation": "user_name", "sampling": "greeting", "roots": "client_roots"}
        keys = [key for kind, key in needs.items() if can(kind)]
        return await dialogue(ctx, params, [keys], arguments) if keys else text("The client can be asked nothing.")
    if name in ("test_trigger_tool_change", "test_trigger_prompt_change"):
        tools = name == "test_trigger_tool_change"
        await bus.publish(ToolsListChanged() if tools else PromptsListChanged())
        for session in sessions.values():
            if session.protocol_version < FIRST_MODERN:
                await (session.send_tool_list_changed() if tools else session.send_prompt_list_changed())
        return text("A list has changed.")
    raise MCPError(types.INVALID_PARAMS, "unknown tool: " + name)


async def prompt(ctx, params):
    name = params.name
    if name in OFFER["dialogues"]:
        return await dialogue(ctx, params, OFFER["dialogues"][name], {})
    if name not in OFFER["messages"]:
        raise MCPError(types.INVALID_PARAMS, "unknown prompt: " + name)
    given = {key: json.dumps(value)[1:-1] for key, value in (params.arguments or {}).items()}
    filled = re.sub(r"\{(\w+)\}", lambda found: given.get(found[1], found[0]), json.dumps(OFFER["messages"][name]))
    return types.GetPromptResult.model_validate({"messages": json.loads(filled)})


async def read(ctx, params):
    uri = str(params.uri)
    holding = lambda content: types.ReadResourceResult.model_validate({"contents": [{"uri": uri, **content}]})
    if uri in OFFER["contents"]:
        return holding(OFFER["contents"][uri])
    found = re.fullmatch(r"test://template/([^/]+)/data", uri)
    if not found:
        code = types.INVALID_PARAMS if ctx.protocol_version >= FIRST_MODERN else -32002
        raise MCPError(code, "there is no such resource", {"uri": uri})
    data = json.dumps({"id": found[1], "templateTest": True, "data": "Data for ID: " + found[1]})
    return holding({"mimeType": "application/json", "text": data})


def fixed(kind, **answer):
    result = kind.model_validate(answer)

    async def handle(ctx, params):
        return result

    return handle


server = Server(
    "conformance",
    version="1.0.0",
    on_list_tools=fixed(types.ListToolsResult, tools=OFFER["tools"]),
    on_call_tool=call,
    on_list_prompts=fixed(types.ListPromptsResult, prompts=OFFER["prompts"]),
    on_get_prompt=prompt,
    on_list_resources=fixed(types.ListResourcesResult, resources=OFFER["resources"]),
    on_list_resource_templates=fixed(types.ListResourceTemplatesResult, resourceTemplates=OFFER["templates"]),
    on_read_resource=read,
    on_subscribe_resource=fixed(types.EmptyResult),
    on_unsubscribe_resource=fixed(types.EmptyResult),
    on_subscriptions_listen=ListenHandler(bus),
    on_completion=fixed(types.CompleteResult, completion={"values": [], "total": 0, "hasMore": False}),
    on_set_logging_level=fixed(types.EmptyResult),
)
server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="conformance"))
app = server.streamable_http_app(event_store=Events(), retry_interval=RETRY_MS)


async def of_sessions(scope, receive, send):
    """The same server as one that has not heard of later revisions."""
    if scope["type"] == "http" and dict(scope["headers"]).get(b"mcp-protocol-version", b"") >= FIRST_MODERN.encode():
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
        return await send({"type": "http.response.body", "body": b"unsupported protocol version"})
    await app(scope, receive, send)


listener = socket.create_server(("127.0.0.1", 0))
print("ready http://127.0.0.1:%d/mcp" % listener.getsockname()[1], flush=True)
served = of_sessions if sys.argv[1:] == ["session"] else app
uvicorn.Server(uvicorn.Config(served, log_level="warning")).run(sockets=[listener])
