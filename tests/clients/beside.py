"""An MCP server in a session that speaks outside of requests, over lines.

    beside.py

Once initialised it logs, and asks for the roots, and again after each change of them. Its tools:

    seen     what it has heard outside of requests: the roots, the level, how often the roots changed, its process
    later    answers, and then logs
    ask      asks for a name
    count    tells progress as 1, 2.50 and 3e0, with a question before the last
    slow     answers after so many seconds

Standard library only.
"""

import json
import os
import sys
import threading
import time

lock = threading.Lock()
seen = {"roots": None, "level": None, "changes": 0, "pid": os.getpid()}
waiting = {}


def say(text):
    with lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def send(**message):
    say(json.dumps({"jsonrpc": "2.0", **message}))


def log(text, level="info"):
    send(method="notifications/message", params={"level": level, "data": text})


def ask(method, params):
    """Asks the client. Returns its message."""
    answered = threading.Event()
    id = f"q{len(waiting)}"
    waiting[id] = [answered, None]
    send(id=id, method=method, params=params)
    answered.wait()
    return waiting[id][1]


def roots():
    answer = ask("roots/list", {})
    seen["roots"] = answer.get("result", {}).get("roots", answer.get("error"))


def text(value):
    return {"content": [{"type": "text", "text": json.dumps(value)}]}


def name():
    form = {"type": "object", "properties": {"name": {"type": "string"}}}
    return ask("elicitation/create", {"message": "Your name?", "requestedSchema": form})


def call(id, params):
    tool, arguments = params["name"], params.get("arguments", {})
    token = json.dumps(params.get("_meta", {}).get("progressToken"))

    def progress(number):
        if token != "null":
            params = f'{{"progressToken":{token},"progress":{number},"total":10}}'
            say(f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}')

    result = {}
    if tool == "seen":
        result = seen
    elif tool == "ask":
        result = name().get("result")
    elif tool == "count":
        progress("1")
        progress("2.50")
        result = name().get("result")
        progress("3e0")
    elif tool == "slow":
        time.sleep(arguments.get("seconds", 1))
    send(id=id, result=text(result))
    if tool == "later":
        time.sleep(0.1)
        log("said later")


def tool(name):
    return {"name": name, "inputSchema": {"type": "object"}}


for line in sys.stdin:
    message = json.loads(line)
    id, method = message.get("id"), message.get("method")
    if method == "initialize":
        capabilities = {"tools": {}, "logging": {}}
        info = {"name": "beside", "version": "1"}
        send(id=id, result={"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info})
    elif method == "notifications/initialized":
        log("initialised")
        threading.Thread(target=roots, daemon=True).start()
    elif method == "notifications/roots/list_changed":
        seen["changes"] += 1
        threading.Thread(target=roots, daemon=True).start()
    elif method == "logging/setLevel":
        seen["level"] = message["params"]["level"]
        send(id=id, result={})
    elif method == "tools/list":
        send(id=id, result={"tools": [tool(name) for name in ("seen", "later", "ask", "count", "slow")]})
    elif method == "tools/call":
        threading.Thread(target=call, args=(id, message["params"]), daemon=True).start()
    elif method == "ping":
        send(id=id, result={})
    elif method is None and id in waiting:
        waiting[id][1] = message
        waiting[id][0].set()
    elif id is not None:
        send(id=id, error={"code": -32601, "message": "no such method"})
