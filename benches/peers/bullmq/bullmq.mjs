// BullMQ on a Redis of its own that makes every write durable before it answers (`appendfsync always`).
// `node bullmq.mjs DIR ROUNDS` measures in DIR and prints one JSON object a measure.
//
// Where there is a choice, it is the peer's favour: a Unix socket, the queue and its worker in one process, the end of
// a job seen in the worker itself, nothing but jobs in the queue.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

const { Queue, Worker } = createRequire(import.meta.url)('bullmq');
const { version } = createRequire(import.meta.url)('bullmq/package.json');

const JOBS = 5_000;
const JOBS_IN_FLIGHT = 64;
// How many jobs the worker takes at once. A worker that is allowed all that are in flight asks for them one by one and
// waits; which setting is best depends on the disk, so that each round tries them in turn.
const CONCURRENCIES = [8, 16, 64];
const CHAIN_STEPS = 100;
// Before the clock starts, so that scripts are loaded and code is compiled.
const JOBS_FIRST = 500;

const [dir, rounds] = [process.argv[2], Number(process.argv[3])];
if (!dir || !(rounds >= 1)) {
  console.error('usage: node bullmq.mjs DIR ROUNDS');
  process.exit(2);
}

mkdirSync(dir, { recursive: true });
const scratch = mkdtempSync(join(dir, 'run-'));
// The path of a socket may be no longer than about a hundred bytes.
process.chdir(scratch);
const redis = await startRedis();
let measured = false;
redis.ended.then(() => measured || stop('redis-server ended before the measures did'));
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => stop(`ended by ${signal}`));
try {
  const jobs = new Map(CONCURRENCIES.map((concurrency) => [concurrency, []]));
  const chains = [];
  for (let round = 0; round < rounds; round += 1) {
    for (const [concurrency, figures] of jobs) figures.push(await onNewQueue(concurrency, measureJobs));
    chains.push(await onNewQueue(1, measureChain));
  }
  for (const [concurrency, figures] of jobs) {
    const what = { measure: 'jobs', unit: 'jobs', count: JOBS, in_flight: JOBS_IN_FLIGHT, concurrency };
    print(what, 'submit to completion', figures);
  }
  print({ measure: 'chain', unit: 'steps', count: CHAIN_STEPS }, 'step', chains);
} finally {
  measured = true;
  redis.process.kill();
  await redis.ended;
  rmSync(scratch, { recursive: true });
}

function stop(reason) {
  redis.process.kill('SIGKILL');
  rmSync(scratch, { recursive: true, force: true });
  console.error(reason);
  process.exit(1);
}

// Starts Redis in this directory, and waits until it answers.
async function startRedis() {
  const socket = 'redis.sock';
  const settings = {
    '--port': '0',
    '--unixsocket': socket,
    '--appendonly': 'yes',
    '--appendfsync': 'always',
    '--save': '',
    '--daemonize': 'no',
  };
  const server = spawn('redis-server', Object.entries(settings).flat(), { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(server, 'exit');
  let said = '';
  for await (const part of server.stdout.iterator({ destroyOnReturn: false })) {
    said += part;
    if (said.includes('connections at')) {
      server.stdout.resume();
      return { process: server, ended, socket };
    }
  }
  throw new Error(`redis-server ended before it was ready:\n${said}`);
}

// Runs `measure` on an empty queue with a worker whose jobs do nothing.
async function onNewQueue(concurrency, measure) {
  const name = 'no-ops';
  const connection = { path: redis.socket };
  const queue = new Queue(name, { connection });
  const worker = new Worker(name, async () => {}, { connection, concurrency });
  worker.on('error', (error) => console.error(error));
  await Promise.all([queue.waitUntilReady(), worker.waitUntilReady()]);
  const figures = await measure(queue, worker);
  await worker.close();
  await queue.obliterate({ force: true });
  await queue.close();
  return figures;
}

// No-op jobs from submission to completion, JOBS_IN_FLIGHT at a time.
async function measureJobs(queue, worker) {
  const waiting = new Map();
  worker.on('completed', (job) => waiting.get(job.data.number)());

  const run = async (from, to) => {
    const times = [];
    let next = from;
    const caller = async () => {
      while (next < to) {
        const number = next;
        next += 1;
        const begun = performance.now();
        const completed = new Promise((resolve) => waiting.set(number, resolve));
        await queue.add('no-op', { number });
        await completed;
        waiting.delete(number);
        times.push(performance.now() - begun);
      }
    };
    await Promise.all(Array.from({ length: JOBS_IN_FLIGHT }, caller));
    return times;
  };

  await run(0, JOBS_FIRST);
  const begun = performance.now();
  const times = await run(JOBS_FIRST, JOBS_FIRST + JOBS);
  return { per_s: (JOBS / (performance.now() - begun)) * 1000, times };
}

// CHAIN_STEPS jobs, the completion of each adding the next.
async function measureChain(queue, worker) {
  let follow;
  worker.on('completed', (job) => follow(job));

  const run = () =>
    new Promise((resolve, reject) => {
      const times = [];
      let begun = performance.now();
      const submit = (number) => queue.add('no-op', { number }).catch(reject);
      follow = (job) => {
        const now = performance.now();
        times.push(now - begun);
        begun = now;
        if (times.length < CHAIN_STEPS) submit(job.data.number + 1);
        else resolve(times);
      };
      submit(0);
    });

  await run();
  const begun = performance.now();
  const times = await run();
  return { per_s: (CHAIN_STEPS / (performance.now() - begun)) * 1000, times };
}

// Prints the median rate of the rounds with the lowest and the highest, and the times of all rounds together.
function print(what, timeOf, figures) {
  const ascending = (a, b) => a - b;
  const rates = figures.map(({ per_s }) => Math.round(per_s)).sort(ascending);
  const times = figures.flatMap((round) => round.times).sort(ascending);
  const at = (percent) => {
    const place = Math.min(Math.floor((times.length * percent) / 100), times.length - 1);
    return Math.round(times[place] * 1000) / 1000;
  };
  const line = {
    peer: 'bullmq',
    version,
    durability: 'appendfsync always',
    ...what,
    rounds,
    per_s: rates[Math.floor(rates.length / 2)],
    per_s_low: rates[0],
    per_s_high: rates[rates.length - 1],
    time_of: timeOf,
    p50_ms: at(50),
    p90_ms: at(90),
    p99_ms: at(99),
  };
  console.log(JSON.stringify(line));
}
