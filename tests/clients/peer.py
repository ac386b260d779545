"""A peer of another make: py-libp2p, speaking `/mcp+p2p/1.0.0`.

    peer.py               listens, and prints {"peer", "addrs"}; a stream finds an MCP server with the tool `shout`
    peer.py MULTIADDR     dials, prints {"agent", "protocols", "ping_us"}, then sends each line of its input as a frame
                          and prints each frame it gets
"""

import json
import sys

import multiaddr
import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY, parse_identify_response
from libp2p.peer.peerinfo import info_from_p2p_addr

PROTOCOL = TProtocol("/mcp+p2p/1.0.0")
TOOL = {
    "name": "shout",
    "description": "Says it louder.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


def say(value):
    print(json.dumps(value), flush=True)


def frame(text):
    body = text.encode()
    return len(body).to_bytes(4, "big") + body


async def exactly(stream, count):
    read = bytearray()
    while len(read) < count:
        chunk = await stream.read(count - len(read))
        if not chunk:
            return None
        read += chunk
    return read


async def frames(stream):
    try:
        while (head := await exactly(stream, 4)) is not None:
            body = await exactly(stream, int.from_bytes(head, "big"))
            if body is None:
                return
            yield body.decode()
    except Exception as err:  # a stream that was reset or closed ends here, under several names
        if "Stream" not in type(err).__name__ and "EOF" not in type(err).__name__:
            raise


def answer(message):
    params = message.get("params", {})
    match message["method"]:
        case "initialize":
            info = {"name": "py-peer", "version": "1"}
            return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
        case "ping":
            return {}
        case "tools/list":
            return {"tools": [TOOL]}
        case "tools/call":
            return {"content": [{"type": "text", "text": params["arguments"]["text"].upper()}]}


async def serve(stream):
    async for text in frames(stream):
        message = json.loads(text)
        if "id" not in message:
            continue
        result = answer(message)
        missing = {"error": {"code": -32601, "message": "method not found"}}
        outcome = missing if result is None else {"result": result}
        await stream.write(frame(json.dumps({"jsonrpc": "2.0", "id": message["id"], **outcome})))


async def listen():
    host = new_host()
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(PROTOCOL, serve)
        own = f"/p2p/{host.get_id()}"
        addrs = [str(address) if own in str(address) else f"{address}{own}" for address in host.get_addrs()]
        say({"peer": str(host.get_id()), "addrs": addrs})
        await trio.sleep_forever()


async def dial(target):
    host = new_host()
    async with host.run(listen_addrs=[]), trio.open_nursery() as nursery:
        info = info_from_p2p_addr(multiaddr.Multiaddr(target))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [IDENTIFY])
        # The message is length-prefixed; a length of at most two bytes is read off.
        seen = parse_identify_response(await stream.read(64 * 1024))
        rtts = await PingService(host).ping(info.peer_id)
        say(
            {
                "peer": str(host.get_id()),
                "agent": seen.agent_version,
                "protocols": list(seen.protocols),
                "ping_us": rtts[0],
            }
        )
        stream = await host.new_stream(info.peer_id, [PROTOCOL])

        async def send():
            async for line in trio.wrap_file(sys.stdin):
                await stream.write(frame(line.strip()))
            nursery.cancel_scope.cancel()

        nursery.start_soon(send)
        async for text in frames(stream):
            print(text.replace("\n", " "), flush=True)
        say({"closed": True})


if __name__ == "__main__":
    trio.run(dial, sys.argv[1]) if len(sys.argv) > 1 else trio.run(listen)
