// A conformance server of 2026-07-28 alone, on the TypeScript SDK 2.x: what it needs to know it asks in its result.
import { randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { CLIENT_CAPABILITIES_META_KEY, Server, createMcpHandler, createRequestStateCodec } from "@modelcontextprotocol/server";
import { CAPABILITIES, INFO, answers, askable, body, done, failure, listen, offer, pause, prompt, question, read, text } from "./offer.mjs";

const codec = createRequestStateCodec({ key: randomBytes(32) });

/** One turn: asks for the round that the state names, until the last one is answered. */
async function turn(name, rounds, args, { mcpReq }) {
  const sealed = offer.sealed.includes(name);
  const state = mcpReq.requestState();
  if (state && state.name !== name) throw failure(-32602, "the state is another tool's");
  const given = mcpReq.inputResponses ?? {};
  let round = state?.round ?? 0;
  const told = (key) => answers(offer.questions[key].method, given[key]);
  if ((state || !sealed) && rounds[round].every(told)) round += 1;
  if (round === rounds.length) return done(name, given);
  const inputRequests = Object.fromEntries(rounds[round].map((key) => [key, question(key, args)]));
  const asked = { resultType: "input_required", inputRequests };
  return sealed ? { ...asked, requestState: await codec.mint({ name, round }) } : asked;
}

async function call({ name, arguments: args = {} }, context) {
  const { mcpReq } = context;
  if (offer.results[name]) return offer.results[name];
  if (offer.dialogues[name]) return turn(name, offer.dialogues[name], args, context);
  switch (name) {
    case "test_tool_with_logging":
      for (const step of ["started", "processing", "completed"]) {
        await mcpReq.log("info", `Tool execution ${step}`);
        await pause();
      }
      return text("Logged.");
    case "test_logging_tool":
      await mcpReq.log("info", "A log line.");
      return text("Logged.");
    case "test_tool_with_progress":
      for (const progress of [0, 50, 100]) {
        const params = { progressToken: mcpReq._meta?.progressToken, progress, total: 100 };
        if (params.progressToken !== undefined) await mcpReq.notify({ method: "notifications/progress", params });
        await pause();
      }
      return text("Progressed.");
    case "test_reconnection":
      await pause(200);
      return text("Reconnected.");
    case "test_missing_capability":
      return turn(name, [["greeting"]], args, context);
    case "test_input_required_result_capabilities": {
      const keys = askable(mcpReq.envelope?.[CLIENT_CAPABILITIES_META_KEY]);
      return keys.length ? turn(name, [keys], args, context) : text("The client can be asked nothing.");
    }
    case "test_trigger_tool_change":
      handler.notify.toolsChanged();
      return text("The tool list has changed.");
    case "test_trigger_prompt_change":
      handler.notify.promptsChanged();
      return text("The prompt list has changed.");
  }
  throw failure(-32602, `unknown tool: ${name}`);
}

function serve() {
  const server = new Server(INFO, { capabilities: CAPABILITIES, requestState: { verify: codec.verify } });
  const on = (method, handle) => server.setRequestHandler(method, ({ params }, context) => handle(params, context));
  on("tools/list", () => ({ tools: offer.tools }));
  on("tools/call", call);
  on("prompts/list", () => ({ prompts: offer.prompts }));
  on("prompts/get", (params, context) =>
    offer.dialogues[params.name] ? turn(params.name, offer.dialogues[params.name], {}, context) : prompt(params));
  on("resources/list", () => ({ resources: offer.resources }));
  on("resources/templates/list", () => ({ resourceTemplates: offer.templates }));
  on("resources/read", ({ uri }) => read(uri, -32602));
  on("completion/complete", () => ({ completion: { values: [], total: 0, hasMore: false } }));
  return server;
}

const handler = createMcpHandler(serve, { legacy: "reject" });

listen(async (request, response) => {
  const gone = new AbortController();
  response.on("close", () => gone.abort());
  const content = ["GET", "HEAD"].includes(request.method) ? undefined : await body(request);
  const headers = Object.entries(request.headers).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const url = `http://${request.headers.host}${request.url}`;
  const answer = await handler.fetch(new Request(url, { method: request.method, headers, body: content, signal: gone.signal }));
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  if (answer.body) Readable.fromWeb(answer.body).on("error", () => response.destroy()).pipe(response);
  else response.end();
});
