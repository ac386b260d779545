// The TypeScript SDK 1.x server as its users run it: Streamable HTTP, a session a client, answers as JSON.
// Prints its URL when it is ready. Wants tests/clients/setup to have run.

import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const installed = createRequire(new URL('../../tests/clients/node_modules/', import.meta.url));
const { McpServer } = installed('@modelcontextprotocol/sdk/server/mcp.js');
const { StreamableHTTPServerTransport } = installed('@modelcontextprotocol/sdk/server/streamableHttp.js');
const { z } = installed('zod');

const sessions = new Map();

async function open() {
  const server = new McpServer({ name: 'ts1', version: '1.0.0' });
  const tool = { description: 'Echo', inputSchema: { message: z.string() } };
  server.registerTool('test_simple_text', tool, ({ message }) => ({
    content: [{ type: 'text', text: message }],
  }));
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    enableJsonResponse: true,
    onsessioninitialized: (id) => sessions.set(id, transport),
  });
  transport.onclose = () => sessions.delete(transport.sessionId);
  await server.connect(transport);
  return transport;
}

const http = createServer(async (request, response) => {
  const transport = sessions.get(request.headers['mcp-session-id']) ?? (await open());
  await transport.handleRequest(request, response);
});

http.listen(0, '127.0.0.1', () => {
  console.log(`ready http://127.0.0.1:${http.address().port}/mcp`);
});
