// The client leg's command: Cairn stands between the suite's server and a client of its own, which uses all that is there.
// node client.mjs CAIRN URL; the suite adds the URL, and names the scenario in the environment.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [cairn, url] = process.argv.slice(2);
const scenario = process.env.MCP_CONFORMANCE_SCENARIO;
// A client of sessions takes tools whose headers are invalid as they come, so that they must have been left out before.
const modern = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION === "2026-07-28" && scenario !== "http-invalid-tool-headers";
const context = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? "{}");
const PREFIX = "up_";
const AUTHORIZED_WITHIN_MS = 15_000;
const LOOK_EVERY_MS = 200;
const NEEDED = "cairn upstream login";
const METADATA_URL = "https://conformance-test.local/client-metadata.json";
const EXAMPLES = { string: "us-west1", integer: 5, number: 5, boolean: true, object: {}, array: [], null: null };

const home = mkdtempSync(join(tmpdir(), "conformance-"));
const config = join(home, "cairn.toml");
const place = ["--data", join(home, "data"), "--config", config];
writeFileSync(config, `[[upstream]]\nname = "up"\nprefix = "${PREFIX}"\nurl = "${url}"\n${oauth()}`);
const args = ["serve", "--listen", "127.0.0.1:0", ...place];
const gateway = spawn(cairn, args, { stdio: ["ignore", "pipe", "pipe"] });
const ended = new Promise((resolve) => gateway.on("close", resolve));
// Whoever reads the log logs in when it says so.
createInterface({ input: gateway.stderr }).on("line", (line) => {
  console.error(line);
  if (line.includes(NEEDED)) login();
});

/** The table that says who Cairn is at an authorization server. */
function oauth() {
  if (!scenario.startsWith("auth/")) return "";
  const { client_id, client_secret, private_key_pem } = context;
  const key = join(home, "key.pem");
  if (private_key_pem) writeFileSync(key, private_key_pem, { mode: 0o600 });
  const proof = private_key_pem ? `private_key_file = "${key}"` : `client_secret = "${client_secret}"`;
  const client = client_id
    ? `client_id = "${client_id}"\n${proof}\n`
    : `client_metadata_url = "${METADATA_URL}"\n`;
  const grant = scenario.startsWith("auth/client-credentials") ? 'grant = "client_credentials"\n' : "";
  return `[upstream.oauth]\n${client}${grant}`;
}

let loggingIn;
let denied = false;
/** Logs in as a person would, whose browser asks nothing: the suite's page redirects at once. One login at a time. */
function login() {
  if (denied) return false;
  loggingIn ??= new Promise((resolve) => {
    const asked = spawn(cairn, ["upstream", "login", "up", ...place], { stdio: ["ignore", "pipe", "inherit"] });
    createInterface({ input: asked.stdout }).on("line", (page) => fetch(page).then(
      ({ status }) => console.error("opened the page:", status), console.error));
    asked.on("close", (code) => {
      console.error("login ended:", code);
      denied ||= code !== 0;
      loggingIn = undefined;
      resolve(code === 0);
    });
  });
  return loggingIn;
}

async function ready() {
  for await (const line of createInterface({ input: gateway.stdout })) {
    const found = /http:\/\/[\d.:]+/.exec(line);
    if (found) return `${found[0]}/mcp`;
  }
  throw new Error("cairn ended before it was ready");
}

/** Returns the upstream's tools; where it wants an authorization first, they come when it is given. */
async function tools(client) {
  const until = Date.now() + (scenario.startsWith("auth/") ? AUTHORIZED_WITHIN_MS : 0);
  for (;;) {
    const listed = (await client.listTools()).tools.filter(({ name }) => name.startsWith(PREFIX));
    if (listed.length || denied || Date.now() >= until) return listed;
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}

/** Arguments that fit a schema of plain properties. */
function example({ properties = {} }) {
  return Object.fromEntries(Object.entries(properties).map(([key, { type }]) => [key, EXAMPLES[type]]));
}

/** Calls a tool, and once more where it wants a login with more scopes. */
async function called(client, call) {
  const result = await client.callTool(call);
  if (!JSON.stringify(result).includes(NEEDED) || !(await login())) return result;
  return client.callTool(call);
}

/** Lists and uses everything of the upstream's. A call that fails is told and does not end the run. */
async function use(client) {
  const attempt = (what, done) => done.then(
    (result) => console.error(what, JSON.stringify(result)),
    (error) => console.error(what, "failed:", error.message));
  const { resources, prompts } = client.getServerCapabilities() ?? {};
  const listed = await tools(client);
  console.error("tools:", listed.map(({ name }) => name).join(" "));
  const schema = listed.find(({ name }) => name === `${PREFIX}json_schema_2020_12_tool`)?.inputSchema;
  const all = schema
    ? [{ name: `${PREFIX}json_schema_echo`, arguments: { schema } }]
    : listed.map(({ name, inputSchema }) => ({ name, arguments: example(inputSchema) }));
  const calls = context.toolCalls?.map((call) => ({ ...call, name: PREFIX + call.name })) ?? all;
  for (const call of calls) await attempt(call.name, called(client, call));
  for (const { uri } of resources ? (await client.listResources()).resources : [])
    await attempt(uri, client.readResource({ uri }));
  for (const { name } of prompts ? (await client.listPrompts()).prompts : [])
    await attempt(name, client.getPrompt({ name, arguments: {} }));
}

try {
  const capabilities = { elicitation: { form: { applyDefaults: true } }, sampling: {}, roots: {} };
  const options = modern ? { capabilities, versionNegotiation: { mode: "auto" } } : { capabilities };
  const client = new Client({ name: "conformance-client", version: "1.0.0" }, options);
  const content = scenario === "elicitation-sep1034-client-defaults" ? {} : { confirmed: true };
  client.setRequestHandler("elicitation/create", () => ({ action: "accept", content }));
  await client.connect(new StreamableHTTPClientTransport(new URL(await ready())));
  await use(client);
  await client.close();
} finally {
  gateway.kill("SIGTERM");
  await ended;
  rmSync(home, { recursive: true, force: true });
}
process.exit(0);
