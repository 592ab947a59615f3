/**
 * How fast a recording is written and reported: `node dist/bench/report-bench.js [records] [file]`, 50 million records
 * without arguments. Prints, as JSON lines: records per second written to the file from chunks as a ring gives them, and
 * the seconds and the largest resident set of the report, in a process of its own.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FileSink } from '../output/index.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  RECORD_BYTES,
  RECORD_WORDS,
  RecordingWriter,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from '../recording/index.js';

const TSC_HZ = 2_600_000_000;
const FUNCTIONS = 1000;
const LANES = 4;
const MAX_DEPTH = 20;
/** What a busy thread writes between two drains of its ring. */
const CHUNK_RECORDS = 65_536;
const TICKS_PER_RECORD = 50;
const STACK_TOP = 0xf000_0000;
const FRAME_BYTES = 64;

/** A thread that walks up and down among functions, without end. */
class Walk {
  readonly words = new Uint32Array(CHUNK_RECORDS * RECORD_WORDS);
  readonly bytes = new Uint8Array(this.words.buffer);
  readonly #open: number[] = [];
  #tick = 0;
  #seed: number;

  constructor(seed: number) {
    this.#seed = seed;
  }

  fill(): void {
    const { words } = this;
    for (let at = 0; at < words.length; at += RECORD_WORDS) {
      // Numerical Recipes' linear congruential generator: cheap, and the same on every run.
      this.#seed = (Math.imul(this.#seed, 1_664_525) + 1_013_904_223) >>> 0;
      const isEntry = this.#open.length === 0 || (this.#open.length < MAX_DEPTH && this.#seed >>> 31 === 0);
      const depth = isEntry ? this.#open.length : this.#open.length - 1;
      const index = isEntry ? (this.#seed >>> 8) % FUNCTIONS : this.#open[depth];
      if (isEntry) this.#open.push(index);
      else this.#open.pop();
      this.#tick += TICKS_PER_RECORD;
      words[at + TSC_LOW_WORD] = this.#tick >>> 0;
      words[at + TSC_HIGH_WORD] = Math.floor(this.#tick / 2 ** 32);
      words[at + WHAT_WORD] = (index << KIND_BITS) | (isEntry ? KIND_ENTRY : KIND_EXIT);
      words[at + SLOT_WORD] = STACK_TOP - depth * FRAME_BYTES;
    }
  }
}

function write(path: string, records: number): number {
  const sink = new FileSink(path, 'recording');
  const writer = new RecordingWriter(sink, {
    pid: 1,
    command: ['bench'],
    startTime: new Date(0).toISOString(),
    mode: 'calls',
    tscHz: TSC_HZ,
    startTsc: '0',
  });
  writer.writeMessage({
    kind: 'functions',
    first: 0,
    items: Array.from({ length: FUNCTIONS }, (_, index) => ({
      name: `function_${index}`,
      module: '/bin/bench',
      address: `0x${(0x400000 + index * 64).toString(16)}`,
    })),
  });
  const walks = Array.from({ length: LANES }, (_, lane) => new Walk(lane + 1));
  walks.forEach((_, lane) => {
    writer.writeMessage({ kind: 'thread', lane, tid: 100 + lane, name: `worker-${lane}` });
  });
  let nanoseconds = 0n;
  for (let block = 0; writer.records < records; block++) {
    const lane = block % LANES;
    const walk = walks[lane];
    walk.fill();
    const bytes = Math.min(CHUNK_RECORDS, records - writer.records) * RECORD_BYTES;
    const start = process.hrtime.bigint();
    writer.writeRecords(lane, [walk.bytes.subarray(0, bytes)]);
    nanoseconds += process.hrtime.bigint() - start;
  }
  writer.writeMessage({ kind: 'end', summary: { records } });
  sink.close();
  return Number(nanoseconds) / 1e9;
}

function tell(line: Readonly<Record<string, unknown>>): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

const records = Number(process.argv[2] ?? 50_000_000);
const path = process.argv[3] ?? join(mkdtempSync(join(tmpdir(), 'safepoke-bench-')), 'recording');
try {
  const seconds = write(path, records);
  tell({ bench: 'write', records, seconds, recordsPerSecond: Math.round(records / seconds) });
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const source = `process.on('exit', () => process.stderr.write(String(process.resourceUsage().maxRSS)))`;
  const start = process.hrtime.bigint();
  const run = spawnSync(
    process.execPath,
    ['--import', `data:text/javascript,${encodeURIComponent(source)}`, main, 'report', path],
    {
      encoding: 'utf8',
    },
  );
  const took = Number(process.hrtime.bigint() - start) / 1e9;
  tell({ bench: 'report', status: run.status, seconds: took, maxRssKiB: Number(run.stderr) });
} finally {
  if (process.argv.length <= 3) rmSync(dirname(path), { recursive: true, force: true });
}
