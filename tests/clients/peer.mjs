// A peer of another make: js-libp2p, speaking `/mcp+p2p/1.0.0`.
//
//   peer.mjs                     listens, and prints {"peer", "addrs"}; whoever opens a stream finds an MCP server with the tool `shout`
//   peer.mjs --contract CID      the same, and says that its tool has this contract
//   peer.mjs MULTIADDR           dials, prints {"agent", "protocols", "ping_ms"}, then sends each line of its input as a
//                                frame and prints each frame it gets
//   peer.mjs --bytewise MULTIADDR  the same, one byte at a time
//   peer.mjs --parallel N MULTIADDR  opens N streams at once, asks `ping` on each, prints {"answered"}
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { createInterface } from 'node:readline'

const PROTOCOL = '/mcp+p2p/1.0.0'
const args = process.argv.slice(2)
const bytewise = args[0] === '--bytewise' && args.shift() !== undefined
const parallel = args[0] === '--parallel' ? Number(args.splice(0, 2)[1]) : 0
const contract = args[0] === '--contract' ? args.splice(0, 2)[1] : undefined
const target = args[0]

const node = await createLibp2p({
  addresses: { listen: target === undefined ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')

function frame (text) {
  const body = new TextEncoder().encode(text)
  const framed = new Uint8Array(4 + body.length)
  new DataView(framed.buffer).setUint32(0, body.length)
  framed.set(body, 4)
  return framed
}

async function * frames (stream) {
  const pieces = []
  let [held, wanted] = [0, 4]
  for await (const chunk of stream) {
    pieces.push(chunk.subarray())
    held += chunk.byteLength
    while (held >= wanted) {
      let all = Buffer.concat(pieces.splice(0))
      wanted = 4 + all.readUInt32BE(0)
      if (held >= wanted) {
        yield all.subarray(4, wanted).toString('utf8')
        all = all.subarray(wanted)
        wanted = 4
      }
      pieces.push(all)
      held = all.length
    }
  }
}

async function send (stream, bytes) {
  const pieces = bytewise ? [...bytes].map((byte) => Uint8Array.of(byte)) : [bytes]
  for (const piece of pieces) {
    if (!stream.send(piece)) await stream.onDrain()
  }
}

const TOOL = { name: 'shout', description: 'Says it louder.', inputSchema: { type: 'object', properties: { text: { type: 'string' } }, required: ['text'] } }
if (contract !== undefined) TOOL._meta = { 'io.cairn/contract': contract }

function answer ({ method, params }) {
  switch (method) {
    case 'initialize':
      return { protocolVersion: params.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'js-peer', version: '1' } }
    case 'ping': return {}
    case 'tools/list': return { tools: [TOOL] }
    case 'tools/call': return { content: [{ type: 'text', text: params.arguments.text.toUpperCase() }] }
  }
}

if (target === undefined) {
  await node.handle(PROTOCOL, async (stream) => {
    for await (const text of frames(stream)) {
      const message = JSON.parse(text)
      if (message.id === undefined) continue
      const result = answer(message)
      const outcome = result === undefined ? { error: { code: -32601, message: 'method not found' } } : { result }
      await send(stream, frame(JSON.stringify({ jsonrpc: '2.0', id: message.id, ...outcome })))
    }
  })
  say({ peer: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) })
} else {
  const address = multiaddr(target)
  const connection = await node.dial(address)
  const rtt = await node.services.ping.ping(address)
  const seen = await node.services.identify.identify(connection)
  say({ peer: node.peerId.toString(), agent: seen.agentVersion, protocols: seen.protocols, ping_ms: rtt })
  if (parallel > 0) {
    const asked = Array.from({ length: parallel }, async (_, id) => {
      const stream = await connection.newStream(PROTOCOL)
      await send(stream, frame(JSON.stringify({ jsonrpc: '2.0', id, method: 'ping' })))
      for await (const text of frames(stream)) return JSON.parse(text).id === id
    })
    const answered = await Promise.all(asked)
    say({ answered: answered.filter(Boolean).length })
    await node.stop()
    process.exit(0)
  }
  const stream = await connection.newStream(PROTOCOL)
  const lines = createInterface({ input: process.stdin })
  lines.on('line', (line) => { send(stream, line.startsWith('hex:') ? Buffer.from(line.slice(4), 'hex') : frame(line)) })
  lines.on('close', () => { node.stop().then(() => process.exit(0)) })
  for await (const text of frames(stream)) process.stdout.write(text.replaceAll('\n', ' ') + '\n')
  say({ closed: true })
}
