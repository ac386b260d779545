// A worker over the TypeScript SDK: `worker.mjs URL WORKER_ID TYPE COUNT`. Claims COUNT tasks of one type, one by one,
// and completes each with its payload given back. Prints the ids it did as one line of JSON.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [url, worker_id, type, count] = process.argv.slice(2);
const client = new Client({ name: "worker", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

async function call(name, more) {
  const result = await client.callTool({ name, arguments: { worker_id, ...more } });
  if (result.isError) throw new Error(`${name}: ${result.structuredContent.error.message}`);
  return result.structuredContent;
}

await call("worker_register", { capabilities: [type], max_concurrent_tasks: 1 });
const done = [];
let tasks = [];
while (done.length < Number(count)) {
  if (tasks.length === 0) {
    ({ tasks } = await call("task_claim", { wait_ms: 5000 }));
    continue;
  }
  const { task_id, fence, payload } = tasks.pop();
  await call("task_heartbeat", { task_id, fence, progress: 50, log: "half of it" });
  const claim_next = done.push(task_id) < Number(count);
  ({ tasks = [] } = await call("task_complete", { task_id, fence, output: { given: payload }, claim_next }));
}
await call("worker_unregister", {});
await client.close();
console.log(JSON.stringify(done));
