// Two clients of one server that asks in mid-call, and one that cannot be asked. Usage: node audiences.mjs URL | COMMAND ARGS...
// Prints, as JSON, how many tools each sees, and what the tool that asks told each of the two.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [target, ...args] = process.argv.slice(2);
/** What a gateway puts before the names of its upstream. */
const PREFIX = target.startsWith("http") ? "every_" : "";
const TOOL = "trigger-elicitation-request";

function transport() {
  if (target.startsWith("http")) return new StreamableHTTPClientTransport(new URL(target));
  return new StdioClientTransport({ command: target, args });
}

async function connect(answer) {
  const capabilities = answer ? { elicitation: {}, sampling: {}, roots: {} } : {};
  const client = new Client({ name: "audiences", version: "1" }, { capabilities });
  let asked = () => {};
  const open = new Promise((resolve) => (asked = resolve));
  if (answer) {
    client.setRequestHandler(ElicitRequestSchema, async () => {
      asked();
      await answer.ready;
      return answer.says;
    });
  }
  await client.connect(transport());
  const { tools } = await client.listTools();
  const name = tools.map((tool) => tool.name).find((name) => name.endsWith(TOOL));
  return { client, open, count: tools.filter((tool) => tool.name.startsWith(PREFIX)).length, name };
}

let both = () => {};
const ready = new Promise((resolve) => (both = resolve));
const content = { name: "Ada", check: true, email: "ada@example.org", firstLine: "x", untitledSingleSelectEnum: "Rachel" };
const plain = await connect();
const accepts = await connect({ ready, says: { action: "accept", content } });
const declines = await connect({ ready, says: { action: "decline" } });
const calls = [accepts, declines].map(({ client, name }) => client.callTool({ name, arguments: {} }));
// Each is asked before any answers, so that a question can go to the wrong one.
await Promise.all([accepts.open, declines.open]);
both();
const told = (await Promise.all(calls)).map(({ content }) => content.map(({ text }) => text).join("\n"));
console.log(JSON.stringify({ plain: plain.count, able: accepts.count, accepted: told[0], declined: told[1] }));
for (const { client } of [plain, accepts, declines]) await client.close();
process.exit(0);
