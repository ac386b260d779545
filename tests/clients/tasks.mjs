// An upstream of the session era whose tools must be called as tasks, on the TypeScript SDK 1.x, over stdio:
// `tasks.mjs FILE`. What its tools begin, and what is cancelled of it, is written to FILE, a line each.
import { appendFileSync } from "node:fs";
import { InMemoryTaskMessageQueue, InMemoryTaskStore } from "@modelcontextprotocol/sdk/experimental/tasks/stores/in-memory.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { ElicitResultSchema } from "@modelcontextprotocol/sdk/types.js";
import { z } from "zod";

const note = (line) => appendFileSync(process.argv[2], `${line}\n`);
const taskStore = new InMemoryTaskStore();
const capabilities = { tools: {}, tasks: { list: {}, cancel: {}, requests: { tools: { call: {} } } } };
const taskMessageQueue = new InMemoryTaskMessageQueue();
const server = new McpServer({ name: "tasks", version: "1" }, { capabilities, taskStore, taskMessageQueue });

/** Ends the task with this text, unless it was cancelled meanwhile. */
async function end(taskId, text) {
  const { status } = await taskStore.getTask(taskId);
  if (status !== "cancelled") await taskStore.storeTaskResult(taskId, "completed", { content: [{ type: "text", text }] });
}

/** A tool that must be called as a task; `begin` is not waited for. */
function tool(name, inputSchema, begin) {
  server.experimental.tasks.registerToolTask(
    name,
    { description: `Test tool ${name}`, inputSchema, execution: { taskSupport: "required" } },
    {
      async createTask(args, extra) {
        const task = await extra.taskStore.createTask({ ttl: extra.taskRequestedTtl, pollInterval: 100 });
        note(`${name} ${JSON.stringify(args)}`);
        begin(args, task.taskId, extra);
        const watched = setInterval(async () => {
          const seen = await taskStore.getTask(task.taskId);
          if (seen?.status === "cancelled") note(`cancelled ${name}`);
          if (!seen || seen.status !== "working" && seen.status !== "input_required") clearInterval(watched);
        }, 50);
        return { task };
      },
      getTask: (_, { taskId, taskStore }) => taskStore.getTask(taskId),
      getTaskResult: (_, { taskId, taskStore }) => taskStore.getTaskResult(taskId),
    },
  );
}

tool("job", { ms: z.number(), text: z.string() }, ({ ms, text }, id) => setTimeout(() => end(id, text), ms));
tool("ask", {}, async (_, id, extra) => {
  const requestedSchema = { type: "object", properties: { name: { type: "string" } } };
  const params = { mode: "form", message: "Who are you?", requestedSchema };
  const asked = { method: "elicitation/create", params };
  const { content } = await extra.sendRequest(asked, ElicitResultSchema, { relatedTask: { taskId: id } });
  await end(id, `Hello, ${content?.name}!`);
});
await server.connect(new StdioServerTransport());
