"""An MCP server over Streamable HTTP that can forget, mix up and break off. Prints its port. Standard library only."""
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERA = sys.argv[1]
sessions = []
runs = []
KEY = "io.modelcontextprotocol/protocolVersion"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, text="", media="application/json", **headers):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def do_GET(self):
        last = self.headers.get("Last-Event-ID")
        if last is None:
            return self.reply(405)
        self.reply(200, 'id: e9\ndata: {"jsonrpc":"2.0","id":%s,"result":{"resumed":true}}\n\n' % last[1:],
                   "text/event-stream")

    def do_DELETE(self):
        known = self.headers["Mcp-Session-Id"] in sessions
        self.reply(200 if known else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        message = json.loads(body)
        id, method, params = message.get("id"), message["method"], message.get("params", {})
        modern = KEY in params.get("_meta", {})
        if ERA == "modern" and not (modern and self.headers["MCP-Protocol-Version"] == params["_meta"][KEY]
                                    and self.headers["Mcp-Method"] == method
                                    and (method != "tools/call" or self.headers["Mcp-Name"])):
            return self.reply(400, json.dumps({"jsonrpc": "2.0", "id": id,
                                               "error": {"code": -32020, "message": "headers"}}))
        if ERA == "session" and method != "initialize":
            session = self.headers["Mcp-Session-Id"]
            if session is None:
                return self.reply(400, '{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no session"}}')
            if session not in sessions:
                return self.reply(404)
        if id is None:
            return self.reply(202)
        capabilities = {"tools": {}}
        if method == "server/discover":
            return self.result(id, {"supportedVersions": ["2026-07-28"], "capabilities": capabilities})
        if method == "initialize":
            sessions.append("s%d" % (len(runs) + len(sessions)))
            return self.result(id, {"protocolVersion": "2025-11-25", "capabilities": capabilities,
                                    "serverInfo": {"name": "web"}}, Mcp_Session_Id=sessions[-1])
        if method == "ping":
            return self.result(id, {})
        if method == "tools/list":
            shown = {"type": "object", "properties": {"in": {"properties": {"region": {
                "type": "string", "x-mcp-header": "Region"}}}}}
            return self.result(id, {"tools": [{"name": "headers", "inputSchema": shown}]})
        name = params["name"]
        if name == "forget":
            sessions.clear()
            return self.result(id, {})
        if name == "run":
            runs.append(name)
            return self.result(id, {"runs": len(runs)})
        if name == "headers":
            return self.result(id, {"secret": self.headers["X-Secret"], "region": self.headers["Mcp-Param-Region"]})
        if name == "resume":
            return self.reply(200, "retry: 1\r\nid: e%s\r\ndata:\r\n\r\n" % id, "text/event-stream")
        if name == "cut":
            return self.reply(200, ": nothing\n\ndata: {\"json", "text/event-stream")
        if name == "vast":
            return self.result(id, {"text": "a" * (65 * 1024 * 1024)})
        if name == "other":
            return self.reply(200, '{"jsonrpc":"2.0","id":9999,"result":{}}')
        if name == "page":
            return self.reply(200, "<html>", "text/html")
        if name == "busy":
            return self.reply(503, "later", "text/plain")
        if name == "broken":
            return self.reply(502, "no", "text/plain")
        self.reply(404, json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}}))

    def result(self, id, result, **headers):
        self.reply(200, json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), **headers)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
