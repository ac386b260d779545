"""An MCP server over Streamable HTTP, revision 2026-07-28, that offers the tools it is told. Standard library only.

    python marked.py FILE      FILE: one definition a line, as raw JSON

Prints its URL. Any call is answered with the header `Mcp-Param-Region` of its request.
"""
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with open(sys.argv[1]) as file:
    TOOLS = file.read().splitlines()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, text=""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.reply(405)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "id" not in message:
            return self.reply(202)
        result = {
            "server/discover": '{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}',
            "tools/list": '{"tools":[%s]}' % ",".join(TOOLS),
            "tools/call": json.dumps({"content": [], "region": self.headers["Mcp-Param-Region"]}),
        }.get(message["method"], "{}")
        self.reply(200, '{"jsonrpc":"2.0","id":%s,"result":%s}' % (json.dumps(message["id"]), result))


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("http://127.0.0.1:%d/mcp" % server.server_port, flush=True)
server.serve_forever()
