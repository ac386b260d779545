// What the conformance servers on the TypeScript SDKs have in common: the offer, plain answers, and one HTTP port.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

export const offer = JSON.parse(readFileSync(new URL("offer.json", import.meta.url), "utf8"));
export const INFO = { name: "conformance", version: "1.0.0" };
export const CAPABILITIES = {
  tools: { listChanged: true },
  prompts: { listChanged: true },
  resources: { subscribe: true, listChanged: true },
  logging: {},
  completions: {},
};
// Between two notifications of one call.
const PAUSE_MS = 50;

export const pause = (ms = PAUSE_MS) => new Promise((resolve) => setTimeout(resolve, ms));
export const text = (text) => ({ content: [{ type: "text", text }] });
export const failure = (code, message, data) => Object.assign(new Error(message), { code, data });

/** What is asked under `key`, filled with the call's own arguments. */
export function question(key, args = {}) {
  const { method, params } = structuredClone(offer.questions[key]);
  if (key === "prompt") params.messages[0].content.text = args.prompt;
  if (key === "message") params.message = args.message;
  return { method, params };
}

/** Whether `answer` has the shape of an answer to `method`. */
export function answers(method, answer) {
  if (method === "roots/list") return Array.isArray(answer?.roots);
  if (method === "sampling/createMessage") return typeof answer?.content === "object";
  return typeof answer?.action === "string";
}

/** The keys of what a client of these capabilities can be asked. */
export function askable(capabilities = {}) {
  const needs = { elicitation: "user_name", sampling: "greeting", roots: "client_roots" };
  return Object.keys(needs).filter((kind) => capabilities[kind]).map((kind) => needs[kind]);
}

/** What a dialogue ends with: everything that was answered. */
export function done(name, answers) {
  const said = `state-ok ${JSON.stringify(answers)}`;
  const isPrompt = !offer.tools.some((tool) => tool.name === name);
  return isPrompt ? { messages: [{ role: "user", content: { type: "text", text: said } }] } : text(said);
}

export function prompt({ name, arguments: args = {} }) {
  const messages = offer.messages[name];
  if (!messages) throw failure(-32602, `unknown prompt: ${name}`);
  const filled = JSON.stringify(messages).replace(/\{(\w+)\}/g, (whole, key) =>
    key in args ? JSON.stringify(args[key]).slice(1, -1) : whole);
  return { messages: JSON.parse(filled) };
}

export function read(uri, unknown) {
  const content = offer.contents[uri];
  if (content) return { contents: [{ uri, ...content }] };
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
  if (!id) throw failure(unknown, "there is no such resource", { uri });
  const data = JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` });
  return { contents: [{ uri, mimeType: "application/json", text: data }] };
}

/** Serves `answer` on a free port of loopback and prints `ready URL`; other hosts' pages are turned away. */
export function listen(answer) {
  const server = createServer((request, response) => {
    const loopback = (url) => ["127.0.0.1", "localhost", "[::1]"].includes(URL.parse(url)?.hostname);
    const { host, origin } = request.headers;
    if (!loopback(`http://${host}`) || (origin && !loopback(origin))) return response.writeHead(403).end();
    answer(request, response).catch((error) => {
      console.error(error);
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(`ready http://127.0.0.1:${server.address().port}/mcp`));
}

export async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}
