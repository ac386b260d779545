// A conformance server of the session era, on the TypeScript SDK 1.x: what it needs to know it asks in mid-call.
import { randomUUID } from "node:crypto";
import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import * as types from "@modelcontextprotocol/sdk/types.js";
import { CAPABILITIES, INFO, askable, body, done, failure, listen, offer, pause, prompt, question, read, text } from "./offer.mjs";

const RETRY_MS = 100;
const MISSING_CAPABILITY = -32021;
const sessions = new Map();

/** Keeps events of streams that were cut, so that a client can have them again. */
class Events {
  kept = [];
  async storeEvent(stream, message) {
    this.kept.push({ stream, message });
    return `${this.kept.length}`;
  }
  async replayEventsAfter(last, { send }) {
    const { stream } = this.kept[last - 1];
    for (const [at, event] of this.kept.entries())
      if (at >= last && event.stream === stream && event.message.jsonrpc) await send(`${at + 1}`, event.message);
    return stream;
  }
}

const ANSWERS = {
  "sampling/createMessage": types.CreateMessageResultSchema,
  "elicitation/create": types.ElicitResultSchema,
  "roots/list": types.ListRootsResultSchema,
};

/**
 * Asks all of one round at once; a question bears its key, which only those read who know it. Most go along with the
 * call; roots are asked for on the session's own stream, as servers do that have only the server at hand.
 */
async function ask(server, keys, args, extra) {
  const answered = keys.map(async (key) => {
    const { method, params } = question(key, args);
    params._meta = { "io.cairn/inputKey": key };
    const asking = { method, params };
    const aside = method === "roots/list";
    return [key, await (aside ? server.request(asking, ANSWERS[method]) : extra.sendRequest(asking, ANSWERS[method]))];
  });
  return Object.fromEntries(await Promise.all(answered));
}

async function dialogue(server, name, args, extra) {
  let all = {};
  for (const keys of offer.dialogues[name]) all = { ...all, ...(await ask(server, keys, args, extra)) };
  return done(name, all);
}

async function call(server, { name, arguments: args = {}, _meta }, extra) {
  const log = (data) => extra.sendNotification({ method: "notifications/message", params: { level: "info", data } });
  if (offer.results[name]) return offer.results[name];
  if (offer.dialogues[name]) return dialogue(server, name, args, extra);
  switch (name) {
    case "test_tool_with_logging":
      for (const step of ["started", "processing", "completed"]) {
        await log(`Tool execution ${step}`);
        await pause();
      }
      return text("Logged.");
    case "test_logging_tool":
      await log("A log line.");
      return text("Logged.");
    case "test_tool_with_progress":
      for (const progress of [0, 50, 100]) {
        const params = { progressToken: _meta?.progressToken, progress, total: 100 };
        if (_meta?.progressToken !== undefined) await extra.sendNotification({ method: "notifications/progress", params });
        await pause();
      }
      return text("Progressed.");
    case "test_reconnection":
      extra.closeSSEStream?.();
      await pause(2 * RETRY_MS);
      return text("Reconnected.");
    case "test_missing_capability":
      if (server.getClientCapabilities()?.sampling) return text("The client can sample.");
      throw failure(MISSING_CAPABILITY, "The client cannot sample", { requiredCapabilities: { sampling: {} } });
    case "test_input_required_result_capabilities": {
      const keys = askable(server.getClientCapabilities());
      return done(name, await ask(server, keys, args, extra));
    }
    case "test_trigger_tool_change":
      for (const { server } of sessions.values()) await server.sendToolListChanged();
      return text("The tool list has changed.");
    case "test_trigger_prompt_change":
      for (const { server } of sessions.values()) await server.sendPromptListChanged();
      return text("The prompt list has changed.");
  }
  throw failure(-32602, `unknown tool: ${name}`);
}

function serve() {
  const server = new Server(INFO, { capabilities: CAPABILITIES });
  const on = (schema, handle) => server.setRequestHandler(schema, ({ params }, extra) => handle(params, extra));
  on(types.ListToolsRequestSchema, () => ({ tools: offer.tools }));
  on(types.CallToolRequestSchema, (params, extra) => call(server, params, extra));
  on(types.ListPromptsRequestSchema, () => ({ prompts: offer.prompts }));
  on(types.GetPromptRequestSchema, (params, extra) =>
    offer.dialogues[params.name] ? dialogue(server, params.name, params.arguments, extra) : prompt(params));
  on(types.ListResourcesRequestSchema, () => ({ resources: offer.resources }));
  on(types.ListResourceTemplatesRequestSchema, () => ({ resourceTemplates: offer.templates }));
  on(types.ReadResourceRequestSchema, ({ uri }) => read(uri, -32002));
  on(types.SubscribeRequestSchema, () => ({}));
  on(types.UnsubscribeRequestSchema, () => ({}));
  on(types.CompleteRequestSchema, () => ({ completion: { values: [], total: 0, hasMore: false } }));
  return server;
}

listen(async (request, response) => {
  const id = request.headers["mcp-session-id"];
  const refuse = (status, message) =>
    response.writeHead(status, { "content-type": "application/json" })
      .end(JSON.stringify({ jsonrpc: "2.0", id: null, error: { code: -32000, message } }));
  if (id) {
    const session = sessions.get(id);
    return session ? session.transport.handleRequest(request, response) : refuse(404, "no such session");
  }
  if (request.method !== "POST") return refuse(400, "a session is needed");
  let said;
  try {
    said = JSON.parse(await body(request));
  } catch {
    return refuse(400, "the body is no JSON");
  }
  if (!types.isInitializeRequest(said)) return refuse(400, "a session is needed");
  const server = serve();
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: new Events(),
    retryInterval: RETRY_MS,
    onsessioninitialized: (id) => void sessions.set(id, { server, transport }),
    onsessionclosed: (id) => void sessions.delete(id),
  });
  await server.connect(transport);
  await transport.handleRequest(request, response, said);
});
