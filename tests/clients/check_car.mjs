// Checks a CAR file with the multiformats and IPLD packages alone.
//
//   npm install && node check_car.mjs export.car
//
// Prints {root, blocks, events, bad} as JSON; exits with 1 where anything is bad. Every block is hashed again, every
// event must be canonical DAG-CBOR, and each event's `prev` must name the event before it where both are in the file.

import { createReadStream } from 'node:fs'
import { CarBlockIterator } from '@ipld/car'
import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

const same = (a, b) => Buffer.compare(a, b) === 0
const isEvent = (value) => ['v', 'kind', 'log', 'seq', 'prev', 'actor', 'body', 'ts'].every((key) => key in Object(value))

const path = process.argv[2]
if (path === undefined) {
  console.error('usage: node check_car.mjs FILE')
  process.exit(2)
}

const bad = []
const seen = new Set()
const eventsBySeq = new Map()
let blocks = 0
let events = 0
let root = null

try {
  const car = await CarBlockIterator.fromIterable(createReadStream(path))
  const roots = await car.getRoots()
  root = roots[0]?.toString() ?? null
  if (car.version !== 1) bad.push({ archive: `version ${car.version}` })
  if (roots.length !== 1) bad.push({ archive: `${roots.length} roots` })
  for await (const { cid, bytes } of car) {
    blocks += 1
    const name = cid.toString()
    const fault = (why) => bad.push({ cid: name, why })
    if (seen.has(name)) fault('stands twice')
    seen.add(name)
    if (cid.version !== 1 || cid.multihash.code !== sha256.code) {
      fault('not a CIDv1 of sha2-256')
      continue
    }
    if (!same((await sha256.digest(bytes)).digest, cid.multihash.digest)) {
      fault('bytes have another digest')
      continue
    }
    if (cid.code === raw.code) continue
    if (cid.code !== dagCbor.code) {
      fault(`codec ${cid.code}`)
      continue
    }
    let value
    try {
      value = dagCbor.decode(bytes)
    } catch (err) {
      fault(`not dag-cbor: ${err.message}`)
      continue
    }
    if (!isEvent(value)) continue
    events += 1
    // Only events: elsewhere this package writes the float 1.0 back as the integer 1.
    if (!same(dagCbor.encode(value), bytes)) fault('event is not canonical')
    if ((value.seq === 0) !== (value.prev === null)) fault('prev is null at seq 0 and only there')
    if (value.log !== null && CID.asCID(value.log) === null) fault('log is not a link')
    eventsBySeq.set(`${value.log}/${value.seq}`, { name, prev: value.prev?.toString() ?? null })
  }
} catch (err) {
  bad.push({ archive: err.message })
}

if (root !== null && !seen.has(root)) bad.push({ archive: 'root is not in the file' })
for (const [place, event] of eventsBySeq) {
  const [log, seq] = place.split('/')
  const before = eventsBySeq.get(`${log}/${seq - 1}`)
  if (before !== undefined && before.name !== event.prev) bad.push({ cid: event.name, why: `prev is not event ${seq - 1}` })
}

console.log(JSON.stringify({ root, blocks, events, bad }))
process.exit(bad.length === 0 ? 0 : 1)
