"""Drives a server with the Python SDK: `drive.py MODE URL PLAN`, MODE as `mcp.Client` takes it, PLAN as JSON.

Prints what it saw as one line of JSON.
"""
import json, sys

import anyio
from mcp import Client
from mcp.types import PromptReference


async def main(mode, url, plan):
    async with Client(url, mode=mode) as client:
        called = await client.call_tool(plan["call"]["name"], plan["call"]["arguments"])
        seen = {
            "version": client.protocol_version,
            "tools": [tool.name for tool in (await client.list_tools()).tools],
            "prompts": [prompt.name for prompt in (await client.list_prompts()).prompts],
            "resources": [str(resource.uri) for resource in (await client.list_resources()).resources],
            "templates": [t.uri_template for t in (await client.list_resource_templates()).resource_templates],
            "called": [content.text for content in called.content],
            "event": called.meta["io.cairn/event"],
        }
        if "read" in plan:
            seen["read"] = [contents.text for contents in (await client.read_resource(plan["read"])).contents]
        if "get" in plan:
            got = await client.get_prompt(plan["get"]["name"], plan["get"].get("arguments"))
            seen["got"] = [message.content.text for message in got.messages]
        if "complete" in plan:
            ref = PromptReference(type="ref/prompt", name=plan["complete"]["ref"]["name"])
            completed = await client.complete(ref, plan["complete"]["argument"])
            seen["completed"] = completed.completion.values
        if "progress" in plan:
            seen["progress"] = 0

            async def count(*_):
                seen["progress"] += 1

            await client.call_tool(plan["progress"]["name"], plan["progress"]["arguments"], progress_callback=count)
        if "cancel" in plan:
            seen["cancelled"] = "answered"
            with anyio.CancelScope() as scope:

                async def stop(*_):
                    scope.cancel()

                await client.call_tool(plan["cancel"]["name"], plan["cancel"]["arguments"], progress_callback=stop)
            if scope.cancelled_caught:
                seen["cancelled"] = "cancelled"
    print(json.dumps(seen))


anyio.run(main, sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
