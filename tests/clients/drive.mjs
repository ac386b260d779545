// Drives a server with a TypeScript SDK: `drive.mjs SDK MODE URL PLAN`, where SDK is `client` (2.x) or `sdk` (1.x),
// MODE is `auto`, `legacy` or a revision to pin, and PLAN is JSON. Prints what it saw as one line of JSON.

const [sdk, mode, url, text] = process.argv.slice(2);
const plan = JSON.parse(text);
const info = { name: `drive-${sdk}`, version: "1" };
const first = sdk === "sdk";
const { Client, StreamableHTTPClientTransport } = first
  ? {
      ...(await import("@modelcontextprotocol/sdk/client/index.js")),
      ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
    }
  : await import("@modelcontextprotocol/client");
const negotiation = mode === "auto" || mode === "legacy" ? mode : { pin: mode };
const client = new Client(info, first ? {} : { versionNegotiation: { mode: negotiation } });
const call = (params, options) => (first ? client.callTool(params, undefined, options) : client.callTool(params, options));

await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const seen = {
  version: first ? "session" : client.getNegotiatedProtocolVersion(),
  tools: (await client.listTools()).tools.map((tool) => tool.name),
  prompts: (await client.listPrompts()).prompts.map((prompt) => prompt.name),
  resources: (await client.listResources()).resources.map((resource) => resource.uri),
  templates: (await client.listResourceTemplates()).resourceTemplates.map((template) => template.uriTemplate),
};
const called = await call(plan.call);
seen.called = called.content.map((content) => content.text);
seen.event = called._meta["io.cairn/event"];
if (plan.read) {
  const read = await client.readResource({ uri: plan.read });
  seen.read = read.contents.map((contents) => contents.text);
}
if (plan.get) {
  const got = await client.getPrompt(plan.get);
  seen.got = got.messages.map((message) => message.content.text);
}
if (plan.complete) {
  seen.completed = (await client.complete(plan.complete)).completion.values;
}
if (plan.progress) {
  seen.progress = 0;
  await call(plan.progress, { onprogress: () => (seen.progress += 1) });
}
if (plan.cancel) {
  const stop = new AbortController();
  const onprogress = () => stop.abort("enough");
  seen.cancelled = await call(plan.cancel, { onprogress, signal: stop.signal }).then(
    () => "answered",
    () => "cancelled",
  );
  // The SDK does not wait for its cancellation to leave; closing at once would take it back.
  await client.listTools();
}
await client.close();
console.log(JSON.stringify(seen));
