// Checks a CAR file with the multiformats and IPLD packages alone.
//
//   npm install && node check_car.mjs export.car
//
// Prints {root, blocks, events, proven, bad} as JSON; exits with 1 where anything is bad. Every block is hashed again, every
// event must be canonical DAG-CBOR, and each event's `prev` must name the event before it where both are in the file. Payloads
// have the form and the length that events say. Behind a manifest, no block may be there that nothing names, and the proof
// must lead from the events to the root in the checkpoint; whose signature that is, a receipt shows.

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

const FULL = 262144
const MANIFEST = ['v', 'log', 'from', 'to', 'count', 'checkpoint']
const isManifest = (value) => ['count', 'checkpoint', 'from', 'to'].every((key) => key in Object(value))
const keysAre = (value, needed, optional = []) =>
  needed.every((key) => value[key] !== undefined && value[key] !== null) &&
  Object.keys(value).every((key) => needed.includes(key) || (optional.includes(key) && value[key] !== null))

const hash = async (...parts) => (await sha256.digest(Buffer.concat(parts))).digest
const NODE = Buffer.from([1])
const LEAF = Buffer.from([0])

// The root of the tree that has these leaves (seq and hash, in order); takes hashes of the proof as it needs them.
async function rootOf(leaves, start, end, proof) {
  if (leaves.length === 0) {
    if (proof.length === 0) throw new Error('the proof has too few hashes')
    return proof.shift()
  }
  if (end - start === 1) return leaves[0].hash
  let split = 1
  while (split * 2 < end - start) split *= 2
  const middle = start + split
  const left = await rootOf(leaves.filter(({ seq }) => seq < middle), start, middle, proof)
  const right = await rootOf(leaves.filter(({ seq }) => seq >= middle), middle, end, proof)
  return hash(NODE, left, right)
}

async function checkManifest(manifest, root) {
  if (manifest.v !== 1 || !keysAre(manifest, MANIFEST, ['subject', 'proof'])) throw new Error('manifest is not of its form')
  const [, size, head] = manifest.checkpoint.split('\n')
  const own = [...eventsBySeq].filter(([place]) => place.startsWith(`${manifest.log}/`))
  const leaves = await Promise.all(
    own.map(async ([place, { cid }]) => ({ seq: Number(place.split('/')[1]), hash: await hash(LEAF, cid.bytes) })),
  )
  leaves.sort((a, b) => a.seq - b.seq)
  if (leaves.length !== manifest.count || leaves[0].seq !== manifest.from || leaves.at(-1).seq !== manifest.to) {
    throw new Error('events are not those the manifest speaks of')
  }
  if (leaves.at(-1).seq >= Number(size)) throw new Error('the checkpoint does not reach the last event')
  const names = manifest.proof ?? []
  const bytes = Buffer.concat(names.map((name) => raws.get(name.toString()) ?? Buffer.alloc(1)))
  const proof = []
  for (let at = 0; at + 32 <= bytes.length; at += 32) proof.push(bytes.subarray(at, at + 32))
  if (bytes.length % 32 !== 0) throw new Error('the proof is not whole hashes')
  const found = await rootOf(leaves, 0, Number(size), proof)
  if (proof.length !== 0 || !same(Buffer.from(head, 'base64'), found)) throw new Error('proof leads to another root')
  const named = new Set([root, manifest.log.toString(), ...names.map(String), ...links])
  for (const name of seen) if (!named.has(name) && !events.has(name)) bad.push({ cid: name, why: 'nothing names it' })
  return leaves.length
}

// The form of a payload, and its length where all of it is in the file.
function checkPayload(name, len) {
  const value = blocksByName.get(name)
  if (value === undefined) return
  const fault = (why) => bad.push({ cid: name, why })
  const { data, parts } = value
  if (!keysAre(value, ['v', 'media', 'salt'], ['data', 'parts']) || value.salt.length !== 16) return fault('payload is not of its form')
  if ((data === undefined) === (parts === undefined)) return fault('payload has data and parts, or neither')
  if (data !== undefined) {
    if (value.v !== 1 || data.length > FULL || data.length !== len) fault('payload has another length')
    return
  }
  if (![1, 2].includes(value.v) || parts.length < 2 || parts.length > 256) return fault('payload is not of its form')
  const salt = value.v === 2 ? 16 : 0
  parts.forEach((part, nth) => {
    const bytes = raws.get(part.toString())
    const wanted = nth === parts.length - 1 ? len - FULL * nth : FULL
    if (part.code !== raw.code || wanted < 1 || wanted > FULL) fault('payload is not of its form')
    else if (bytes !== undefined && bytes.length !== salt + wanted) fault('a part has another length')
  })
}

function collectLinks(value) {
  const link = CID.asCID(value)
  if (link !== null) links.add(link.toString())
  else if (value !== null && typeof value === 'object' && !(value instanceof Uint8Array)) Object.values(value).forEach(collectLinks)
}

const bad = []
const seen = new Set()
const links = new Set()
const raws = new Map()
const blocksByName = new Map()
const pays = []
const eventsBySeq = new Map()
let blocks = 0
const events = new Set()
let root = null
let proven = 0

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
    if (cid.code === raw.code) {
      raws.set(name, Buffer.from(bytes))
      continue
    }
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
    if (!isManifest(value)) collectLinks(value)
    blocksByName.set(name, value)
    if (!isEvent(value)) continue
    events.add(name)
    for (const pay of value.pay) pays.push([pay.cid.toString(), pay.len])
    // Only events: elsewhere this package writes the float 1.0 back as the integer 1.
    if (!same(dagCbor.encode(value), bytes)) fault('event is not canonical')
    if ((value.seq === 0) !== (value.prev === null)) fault('prev is null at seq 0 and only there')
    if (value.log !== null && CID.asCID(value.log) === null) fault('log is not a link')
    eventsBySeq.set(`${value.log}/${value.seq}`, { name, cid, prev: value.prev?.toString() ?? null })
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

for (const [name, len] of pays) checkPayload(name, len)
const manifest = blocksByName.get(root)
if (isManifest(manifest)) {
  try {
    proven = await checkManifest(manifest, root)
  } catch (err) {
    bad.push({ archive: err.message })
  }
}

console.log(JSON.stringify({ root, blocks, events: events.size, proven, bad }))
process.exit(bad.length === 0 ? 0 : 1)
