// Calls tools as tasks with the TypeScript SDK 1.x, which knows those of 2025-11-25: `follow.mjs URL PLAN`, where PLAN is
// JSON: `{calls: [{name, arguments, task}], cancel: {name, arguments}, when: FILE, plain: {name, arguments}}`. It
// cancels once FILE is there. Answers what it is asked with the name "Ada". Prints what it saw as one line of JSON.
import { existsSync } from "node:fs";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { CallToolResultSchema, ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [url, text] = process.argv.slice(2);
const plan = JSON.parse(text);
const client = new Client({ name: "follow", version: "1" }, { capabilities: { elicitation: { form: {} } } });
const seen = { asked: [], calls: [], statuses: [] };
client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
  seen.asked.push({ message: params.message, task: params._meta?.["io.modelcontextprotocol/related-task"]?.taskId });
  return { action: "accept", content: { name: "Ada", confirm: true } };
});
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
seen.capabilities = client.getServerCapabilities().tasks;
await client.listTools();
const tasks = client.experimental.tasks;

/** Follows one call to its end. */
async function follow({ task, ...params }) {
  const heard = { kinds: [] };
  for await (const message of tasks.callToolStream(params, CallToolResultSchema, task ? { task } : {})) {
    if (heard.kinds.at(-1) !== message.type) heard.kinds.push(message.type);
    if (message.task) heard.task = message.task;
    if (message.result) heard.text = message.result.content.map((content) => content.text).join();
    if (message.result) heard.related = message.result._meta?.["io.modelcontextprotocol/related-task"]?.taskId;
    if (message.error) heard.error = message.error.message;
  }
  // The SDK does not ask for the result of a task that failed.
  if (heard.error && heard.task) {
    const result = await tasks.getTaskResult(heard.task.taskId, CallToolResultSchema);
    heard.text = result.content.map((content) => content.text).join();
    heard.related = result._meta?.["io.modelcontextprotocol/related-task"]?.taskId;
  }
  return heard;
}

for (const call of plan.calls ?? []) seen.calls.push(await follow(call));
if (plan.cancel) {
  const stream = tasks.callToolStream(plan.cancel, CallToolResultSchema, { task: { ttl: 60000 } });
  const { value } = await stream.next();
  while (!existsSync(plan.when)) await new Promise((resolve) => setTimeout(resolve, 10));
  seen.cancelled = (await tasks.cancelTask(value.task.taskId)).status;
  seen.after = (await tasks.getTask(value.task.taskId)).status;
  seen.again = await tasks.cancelTask(value.task.taskId).then(() => "taken", (error) => error.code);
}
if (plan.plain) {
  const request = { method: "tools/call", params: plan.plain };
  seen.plain = await client.request(request, CallToolResultSchema).then(() => "taken", (error) => error.code);
}
seen.listed = (await tasks.listTasks()).tasks.map((task) => task.taskId);
await client.close();
console.log(JSON.stringify(seen));
