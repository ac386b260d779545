"""A stdio MCP server that offers 400 tools and answers each call with its arguments."""

import json
import sys

TOOLS = [
    {
        "name": f"tool_{number:03}",
        "description": f"Tool number {number} of a large catalogue, with a description of ordinary length.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "Where to look"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            },
            "required": ["path"],
        },
    }
    for number in range(400)
]


def answer(method, params):
    match method:
        case "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "tools400", "version": "1.0.0"},
            }
        case "tools/list":
            return {"tools": TOOLS}
        case "tools/call":
            text = json.dumps(params.get("arguments", {}))
            return {"content": [{"type": "text", "text": text}]}
        case "ping":
            return {}
    return None


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    result = answer(message["method"], message.get("params", {}))
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if result is None:
        reply["error"] = {"code": -32601, "message": "method not found"}
    else:
        reply["result"] = result
    print(json.dumps(reply), flush=True)
