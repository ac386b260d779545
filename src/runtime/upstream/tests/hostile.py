"""MCP servers over HTTP, each with one fault; the rest is in order. Prints its port. Standard library only.

  hostile.py FAULT...

The tool `counts` tells how often each method was asked, and `GET`; `forget` ends all sessions; `says` answers with
its argument `text`, in which ID stands for the id. `named=NAME` is the name of the tool that is listed, and `tls=FILE`
has TLS spoken with that certificate and key.
"""
import collections, gzip, json, queue, ssl, sys, time, zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = sys.argv[1:]
counts = collections.Counter()
sessions = []
streams = {}
answered = set()
SILENCE = 1000


def fault(name):
    """The value of `name=value` among the faults, or whether `name` is one."""
    for given in FAULTS:
        if given == name:
            return "yes"
        if given.startswith(name + "="):
            return given[len(name) + 1:]
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, text="", media="application/json", **headers):
        body = text.encode()
        if fault("pack") == "gzip":
            body, headers["Content_Encoding"] = gzip.compress(body), "gzip"
        elif fault("pack") == "deflate":
            body, headers["Content_Encoding"] = zlib.compress(body), "deflate"
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

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        counts["GET"] += 1
        if fault("older"):
            mine = "q%d" % len(streams)
            events = streams[mine] = queue.Queue()
            self.begin_stream()
            home = "http://localhost:1" if fault("older") == "abroad" else ""
            self.wfile.write((": hello\n\nevent: endpoint\ndata: %s/post?q=%s\n\n" % (home, mine)).encode())
            while True:
                text = events.get()
                if text is None:
                    return
                self.wfile.write(("event: message\ndata: %s\n\n" % text).encode())
        if not fault("ends"):
            return self.reply(405)
        self.begin_stream()
        self.wfile.write(b"retry: 50\n\n")

    def do_DELETE(self):
        self.reply(200)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        message = json.loads(body)
        id, method = message.get("id"), message["method"]
        if self.path.startswith("/post?q="):
            self.reply(202, "Accepted", "text/plain")
            text = self.answer(id, method, message.get("params", {}))
            return text and streams[self.path[len("/post?q="):]].put(text)
        if fault("older"):
            return self.reply(int(fault("older")) if fault("older").isdigit() else 405, "no", "text/plain")
        counts[method] += 1
        session = self.headers["Mcp-Session-Id"]
        refused = fault("refuses")
        known = session in sessions or (fault("bare") and sessions)
        if method not in ("initialize", "server/discover") and not known:
            return self.reply(int(refused or 404), json.dumps(
                {"jsonrpc": "2.0", "error": {"code": -32000, "message": "Bad Request"}, "id": None}))
        if method == "tools/call" and message["params"]["name"] == fault("never"):
            return self.reply(int(refused), "no", "text/plain")
        if method in (fault("drops") or "").split(",") and method not in answered:
            answered.add(method)
            self.close_connection = True
            return self.connection.close()
        if id is None:
            return self.reply(202)
        headers = {}
        if method == "initialize":
            sessions.append("s%d" % counts["initialize"])
            if not fault("bare"):
                headers["Mcp_Session_Id"] = sessions[-1]
        text = self.answer(id, method, message.get("params", {}))
        if fault("events"):
            noise = 'event: ping\ndata: {}\n\nevent: note\ndata: {"jsonrpc":"2.0","id":%s,"result":{"wrong":1}}\n\n' % id
            noise += "data: no message\n\ndata: {}\n\ndata: [1]\n\n"
            return self.reply(200, noise + "event: message\ndata: %s\n\n" % text, "text/event-stream", **headers)
        self.reply(200, text, **headers)

    def answer(self, id, method, params):
        """The message that answers a request, as text; none for a notification."""
        def result(value):
            return json.dumps({"jsonrpc": "2.0", "id": id, "result": value})

        if id is None:
            return None
        if method == "initialize":
            more = {"listChanged": True} if fault("ends") else {}
            return result({"protocolVersion": "2025-06-18", "serverInfo": {"name": "hostile"},
                           "capabilities": {"tools": more, "prompts": {}, "resources": {}}})
        if method == "tools/call":
            name, arguments = params["name"], params.get("arguments", {})
            if name == "forget":
                sessions.clear()
                return result({})
            if name == "says":
                return arguments["text"].replace("ID", str(id))
            if name == "vast":
                return result({"text": "a" * (65 * 1024 * 1024)})
            counts["runs"] += 1
            return result({"counts": counts, "agent": self.headers["User-Agent"]})
        if method == "ping":
            return result({})
        kind = method.split("/")[-2] if method.endswith("/list") else None
        key = {"tools": "tools", "prompts": "prompts", "resources": "resources",
               "templates": "resourceTemplates"}.get(kind)
        if key is None:
            return json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}})
        said = fault(kind)
        if said == "silent" and not (fault("once") and counts[method] > 1):
            time.sleep(SILENCE)
        if said and not (fault("once") and counts[method] > 1):
            return '{"jsonrpc":"2.0","id":%d,%s}' % (id, said)
        cursor = int(params.get("cursor") or 0)
        page = {key: [{"name": fault("named") or "%s%d" % (kind, cursor), "uri": "x:%d" % cursor,
                       "uriTemplate": "x:{a}", "inputSchema": {"type": "object"}}]}
        if fault("cursor") == "empty":
            page["nextCursor"] = ""
        elif fault("cursor") == "null":
            page["nextCursor"] = None
        elif fault("cursor") == "same":
            page["nextCursor"] = "1"
        elif fault("items"):
            page[key] = json.loads(fault("items")) + page[key]
        elif cursor < 2 and kind == fault("pages"):
            page["nextCursor"] = str(cursor + 1)
        return result(page)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
if fault("tls"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fault("tls"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
