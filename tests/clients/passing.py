"""An MCP server in a session over stdio, for what a gateway must pass. Standard library only. Usage: passing.py SECONDS

It takes SECONDS to start. Tools: `long` takes two seconds and tells of progress, if it is asked to; `rows` has results that
are lists; `echo` says its arguments; `page` names a resource that is in no list, and can be read.
"""
import json, sys, threading, time

STEPS, PAUSE = 20, 0.1
PAGE = "ui://a/app.html"
OBJECT = {"type": "object"}
TOOLS = [
    {"name": "long", "inputSchema": OBJECT},
    {"name": "rows", "inputSchema": OBJECT, "outputSchema": {"type": "array", "items": {"type": "integer"}}},
    {"name": "echo", "inputSchema": {"type": "object", "properties": {"flag": {"type": "boolean"}}}},
    {"name": "page", "inputSchema": OBJECT, "_meta": {"ui": {"resourceUri": PAGE}}},
]
output = threading.Lock()


def say(message):
    with output:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def long(id, token):
    for step in range(STEPS):
        time.sleep(PAUSE)
        if token is not None:
            params = {"progressToken": token, "progress": step, "total": STEPS}
            say({"method": "notifications/progress", "params": params})
    say({"id": id, "result": text("done")})


def text(said):
    return {"content": [{"type": "text", "text": said}]}


def call(id, params):
    if params["name"] == "long":
        token = params.get("_meta", {}).get("progressToken")
        threading.Thread(target=long, args=(id, token), daemon=True).start()
    elif params["name"] == "rows":
        say({"id": id, "result": {**text("[1, 2]"), "structuredContent": [1, 2], "resultType": "complete"}})
    else:
        say({"id": id, "result": text(json.dumps(params.get("arguments")))})


def serve(id, method, params):
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}, "resources": {}},
                  "serverInfo": {"name": "passing", "version": "1"}, "instructions": "Ask for rows."}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "resources/list":
        result = {"resources": []}
    elif method == "resources/read" and params["uri"] == PAGE:
        result = {"contents": [{"uri": PAGE, "text": "<p>a page</p>"}]}
    elif method == "tools/call":
        return call(id, params)
    elif id is None:
        return None
    else:
        return say({"id": id, "error": {"code": -32601, "message": "no such method"}})
    say({"id": id, "result": result})


time.sleep(float(sys.argv[1]))
for line in sys.stdin:
    message = json.loads(line)
    serve(message.get("id"), message.get("method"), message.get("params", {}))
