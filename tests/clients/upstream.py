"""An MCP server over stdio that does what the files of its directory say. Standard library only.

  tools         one definition a line, as raw JSON; changed, it is announced
  <tool>.result the raw result of a tool; without one, the result says how many calls there were
  calls         written here: a line for each call that arrived, `<tool> <arguments>`
  go            a call of a tool named `wait...` is answered once this file is there
  die           a call ends the process while this file is there
  skills        one skill a line, as raw JSON; where the file is, skills and their directories are offered
  contents      what each resource holds; without it, `contents`
  away          it ends at once when it is started while this file is there
  environment   written here: the environment, as JSON
  pids          written here: its process id, a line for each start, and those of its children
  brood         it starts two children while this file is there, one in a session of its own
  stubborn      neither the end of input nor a signal but SIGKILL ends it while this file is there
  flood         a call of the tool `flood` writes as many lines to standard error as this file says

Resources `mem://one` and `mem://{id}`, the prompt `greet`, and completion of its argument are always offered.
"""
import json, os, pathlib, signal, subprocess, sys, threading, time

ROOT = pathlib.Path(sys.argv[1])
LOOK_EVERY = 0.01
output = threading.Lock()
running = set()


def say(text):
    with output:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def answer(id, text):
    say('{"jsonrpc":"2.0","id":%s,"result":%s}' % (json.dumps(id), text))


def fail(id, code, message):
    say(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, "data": {"kept": 1.50}}}))


def call(id, params):
    name, arguments = params["name"], params.get("arguments", {})
    with open(ROOT / "calls", "a") as calls:
        calls.write("%s %s\n" % (name, json.dumps(arguments)))
    if (ROOT / "die").exists():
        os._exit(3)
    token = params.get("_meta", {}).get("progressToken")
    if token is not None:
        say(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": 1, "total": 2, "message": "half"}}))
    while name.startswith("wait") and id in running and not (ROOT / "go").exists():
        time.sleep(LOOK_EVERY)
    if name == "flood":
        for n in range(int((ROOT / "flood").read_text())):
            sys.stderr.write("\x1b[31m\u202e line %d %s\n" % (n, "x" * 1000))
        sys.stderr.flush()
    if name == "protocol":
        return fail(id, -32042, "the tool speaks of the protocol")
    fixed = ROOT / (name + ".result")
    text = fixed.read_text() if fixed.exists() else None
    count = len((ROOT / "calls").read_text().splitlines())
    answer(id, text or json.dumps({"content": [{"type": "text", "text": "call %d" % count}]}))


def watch():
    seen = (ROOT / "tools").read_text()
    while True:
        time.sleep(LOOK_EVERY)
        now = (ROOT / "tools").read_text()
        if now != seen:
            seen = now
            say('{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')


def serve(message):
    id, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if method == "initialize":
        capabilities = {"tools": {"listChanged": True}, "resources": {}, "prompts": {}, "completions": {}}
        if (ROOT / "skills").exists():
            capabilities["extensions"] = {"io.modelcontextprotocol/skills": {"directoryRead": True}}
        answer(id, json.dumps({"protocolVersion": "2025-06-18", "capabilities": capabilities,
                               "serverInfo": {"name": "upstream", "version": "7"}}))
    elif method == "notifications/cancelled":
        running.discard(params["requestId"])
        with open(ROOT / "calls", "a") as calls:
            calls.write("cancelled\n")
    elif id is None:
        pass
    elif method == "ping":
        answer(id, "{}")
    elif method == "tools/list":
        answer(id, '{"tools":[%s]}' % ",".join((ROOT / "tools").read_text().split("\n")))
    elif method == "tools/call":
        running.add(id)
        threading.Thread(target=call, args=(id, params), daemon=True).start()
    elif method == "resources/list":
        answer(id, '{"resources":[{"uri":"mem://one","name":"one","x-kept":1.50}]}')
    elif method == "resources/templates/list":
        answer(id, '{"resourceTemplates":[{"uriTemplate":"mem://{id}","name":"any"}]}')
    elif method == "resources/read":
        held = ROOT / "contents"
        text = held.read_text() if held.exists() else "contents"
        answer(id, json.dumps({"contents": [{"uri": params["uri"], "text": text}]}))
    elif method == "skills/list":
        answer(id, '{"skills":[%s]}' % ",".join((ROOT / "skills").read_text().split("\n")))
    elif method == "skills/get":
        skills = [skill for skill in (ROOT / "skills").read_text().split("\n") if json.loads(skill)["uri"] == params["uri"]]
        if not skills:
            return fail(id, -32602, "no such skill")
        answer(id, '{"skill":%s}' % skills[0])
    elif method == "resources/directory/read":
        answer(id, json.dumps({"resources": [{"uri": params["uri"] + "/SKILL.md", "name": "SKILL.md"}]}))
    elif method == "prompts/list":
        answer(id, '{"prompts":[{"name":"greet","arguments":[{"name":"who","required":true}],"x-kept":1.50}]}')
    elif method == "prompts/get":
        text = "Hello, %s!" % params.get("arguments", {}).get("who")
        answer(id, json.dumps({"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}))
    elif method == "completion/complete":
        answer(id, '{"completion":{"values":["%s-done"]}}' % params["argument"]["value"])
    else:
        fail(id, -32601, "no such method")


def start():
    if (ROOT / "away").exists():
        os._exit(4)
    (ROOT / "environment").write_text(json.dumps(dict(os.environ)))
    pids = [os.getpid()]
    if (ROOT / "brood").exists():
        for own in (False, True):
            pids.append(subprocess.Popen(["sleep", "600"], start_new_session=own).pid)
    with open(ROOT / "pids", "a") as file:
        file.write("".join("%d\n" % pid for pid in pids))
    if (ROOT / "stubborn").exists():
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


start()
threading.Thread(target=watch, daemon=True).start()
for line in sys.stdin:
    serve(json.loads(line))
if (ROOT / "stubborn").exists():
    time.sleep(600)
