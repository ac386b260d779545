"""An MCP server over stdio whose every tool is a bad day. Standard library only."""
import json, os, signal, subprocess, sys, time

ERA = sys.argv[1] if len(sys.argv) > 1 else "session"
tools = ['{ "name":"odd",  "inputSchema":{"type":"object","x-n":1.0e2},"unknown":[1,2.50,"\\u00e9"]}']
cancelled = []


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def result(id, text):
    say('{"jsonrpc":"2.0","id":%s,"result":%s}' % (json.dumps(id), text))


def call(id, name, line, params):
    if name == "die":
        os._exit(3)
    elif name == "hang":
        pass
    elif name == "cancelled":
        result(id, json.dumps({"ids": cancelled}))
    elif name == "flood":
        for _ in range(50_000):
            sys.stdout.write('{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}\n')
        result(id, '{"content":[]}')
    elif name == "garbage":
        for _ in range(int(params["arguments"]["lines"])):
            sys.stdout.write("Listening on port 3000 \x01 {\n")
        result(id, '{"content":[]}')
    elif name == "says":
        say(params["arguments"]["text"].replace("ID", str(id)))
    elif name == "twice":
        if ERA == "chatty":
            say('{"jsonrpc":"2.0","id":null,"result":{}}')
        result(id, '{"n":1}')
        result(id, '{"n":2}')
        result("no such id", '{"n":3}')
    elif name == "huge":
        say('{"x":"' + "a" * (17 * 1024 * 1024) + '"}')
    elif name == "raw":
        result(id, '{ "content" : [ ],"x":1.0e2,"x":2,"\\u0041":"\\ud800" , "n":12345678901234567890123.10}')
    elif name == "line":
        result(id, json.dumps({"line": line}))
    elif name == "progress":
        token = params["_meta"]["progressToken"]
        say(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": 1, "more": "kept"}}))
        result(id, '{"content":[]}')
    elif name == "ask":
        say('{"jsonrpc":"2.0","id":"p","method":"ping"}')
        say('{"jsonrpc":"2.0","id":"r","method":"roots/list"}')
        result(id, json.dumps({"answers": [sys.stdin.readline(), sys.stdin.readline()]}))
    elif name == "grow":
        tools.append('{"name":"grown"}')
        for _ in range(100):
            say('{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
        result(id, '{"content":[]}')
    elif name == "deaf":
        os.close(0)
        result(id, '{"content":[]}')
        time.sleep(1000)
    elif name == "stay":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kid = subprocess.Popen(["sleep", "1000"])
        result(id, json.dumps({"pids": [os.getpid(), kid.pid]}))
        while True:
            time.sleep(1000)
    else:
        say(json.dumps({"jsonrpc": "2.0", "id": id,
                        "error": {"code": -32602, "message": "unknown tool", "data": {"a": 1}}}))


CAPABILITIES = {"tools": {"listChanged": True}, "completions": {}}
for line in sys.stdin:
    message = json.loads(line)
    id, method, params = message.get("id"), message.get("method"), message.get("params", {})
    modern = "io.modelcontextprotocol/protocolVersion" in params.get("_meta", {})
    if method == "server/discover" and ERA == "shy":
        os._exit(1)
    elif method == "server/discover" and ERA == "modern":
        result(id, json.dumps({"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES,
                               "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "odd"}}}))
    elif method == "initialize" and ERA != "modern":
        result(id, json.dumps({"protocolVersion": "2025-06-18", "capabilities": CAPABILITIES,
                               "serverInfo": {"name": "odd"}}))
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif id is None:
        if ERA == "chatty":
            say('{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"no such method"}}')
    elif modern != (ERA == "modern"):
        say(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "wrong era"}}))
    elif method == "subscriptions/listen":
        say('{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{}}')
    elif method == "tools/list":
        at = int(params.get("cursor", 0))
        more = ',"nextCursor":"%d"' % (at + 1) if at + 1 < len(tools) else ""
        result(id, '{"tools":[%s]%s}' % (tools[at], more))
    elif method == "tools/call":
        call(id, params["name"], line, params)
    else:
        say(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}}))
