// Standard streams are shared by safepoke and what it traces, and belong to neither. Nothing that safepoke does to them is seen.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Running, Target, build, fresh, main } from './targets.test.support.js';

const harness = fileURLToPath(new URL('../../test/targets/streams.py', import.meta.url));
const KINDS = ['pipe', 'socket', 'terminal', 'fifo', 'null', 'file'] as const;
/** More than any of them holds: a pipe 64 KiB, a socket 208 KiB. */
const BYTES = 1 << 19;
/** Of each block of 4096 bytes the last is a line end. */
const LETTERS = BYTES - BYTES / 4096;
const O_NONBLOCK = 0o4000;
/** The terminal's settings: the fourth word. */
const LOCAL_MODES = 3;
const ECHO = 0o10;

interface StreamState {
  readonly flags: number;
  readonly settings: readonly number[] | null;
}

interface Shared {
  readonly statuses: readonly number[];
  readonly before: readonly StreamState[];
  readonly after: readonly StreamState[];
  /** Letters that came out of standard output. */
  readonly received: number;
}

/** A command, of the program that it is to trace. */
type Way = (program: readonly string[]) => readonly string[];

function share(kind: string, way: Way, notes: string, bytes: number, ...more: string[]): Shared {
  const go = fresh('go');
  const words = way([build('streams.c'), notes, String(bytes), go, ...more]);
  const text = execFileSync('python3', [harness, kind, go, ...words], { encoding: 'utf8', timeout: 60_000 });
  return JSON.parse(text) as Shared;
}

const safepoke = [process.execPath, main];
const session = (): string[] => ['-F', 'look', '-o', fresh('recording')];

const WAYS: Readonly<Record<string, Way>> = {
  run: (program) => [...safepoke, 'run', ...session(), '--', ...program],
  'run --inside': (program) => [...safepoke, 'run', '--inside', ...session(), '--', ...program],
  attach: (program) => [...program, '+', ...safepoke, 'attach', ...session(), '-p', 'PID'],
};

for (const [way, command] of Object.entries(WAYS)) {
  for (const kind of KINDS) {
    test(`${way}: a ${kind} as standard streams is not changed, and nothing written to it is lost`, () => {
      const notes = fresh('notes');
      const shared = share(kind, command, notes, BYTES);
      assert.deepEqual(new Set(shared.statuses), new Set([0]));
      assert.deepEqual(shared.after, shared.before);
      // One line for each stream, as nothing has changed, and no failed write.
      const lines = readFileSync(notes, 'utf8').trimEnd().split('\n');
      assert.deepEqual(
        lines.map((line) => line.slice(0, 2)),
        ['0:', '1:', '2:'],
        lines.join('\n'),
      );
      if (kind !== 'null') assert.equal(shared.received, LETTERS);
    });
  }
  test(`${way}: what the program makes of its standard streams stays when safepoke ends`, () => {
    for (const kind of ['pipe', 'terminal']) {
      const { statuses, after } = share(kind, command, fresh('notes'), 0, 'sets');
      assert.deepEqual(new Set(statuses), new Set([0]));
      for (const { flags } of after) assert.equal(flags & O_NONBLOCK, O_NONBLOCK, kind);
      if (kind === 'terminal') assert.equal((after[0].settings?.[LOCAL_MODES] ?? ECHO) & ECHO, 0);
    }
  });
}

test("no command looks at Node's objects for standard streams, nor does what it loads", async () => {
  const touched = fresh('touched');
  const source = `import { appendFileSync } from 'node:fs';
    for (const name of ['stdin', 'stdout', 'stderr']) {
      const { get } = Object.getOwnPropertyDescriptor(process, name);
      Object.defineProperty(process, name, { get() {
        appendFileSync(${JSON.stringify(touched)}, name + new Error().stack + '\\n');
        return get.call(process);
      } });
    }`;
  const watching = `--import=data:text/javascript;base64,${Buffer.from(source).toString('base64')}`;
  const target = await Target.ready(build('busy.c'), '2');
  const other = await Target.ready(build('busy.c'), '2');
  const pid = String(target.pid);
  const program = [build('streams.c'), fresh('notes'), '0', '/'];
  const recording = fresh('recording');
  const commands: readonly (readonly string[])[] = [
    ['--version'],
    ['--help'],
    ['help', 'attach'],
    ['run', '--help'],
    ['nonsense'],
    ['run', '--nonsense'],
    ['run', '-F', 'look', '-o', recording, '--', ...program],
    ['run', '--inside', '--', ...program],
    ['attach', '-p', pid, '-F', 'mix', '--duration', '100ms'],
    ['attach', '-p', pid, '-F', 'no_such_function'],
    ['control', '-p', String(other.pid), '--status'],
    ['functions', program[0]],
    ['functions', '-p', pid],
    ['graph', recording],
    ['report', recording],
    ['export', recording, '-f', 'folded'],
    ['check', '--list'],
    ['check', '--protocol', 'unprotected', '--max-memory', '8'],
    ['stress', '--seconds', '0.1', '--no-verdicts', '--protocol', 'int3'],
    ['doctor'],
  ];
  const traced = await Running.attachUnder({ ...process.env, NODE_OPTIONS: watching }, other.pid, 'recorded');
  for (const command of commands) {
    const ran = spawnSync(process.execPath, [watching, main, ...command], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    assert.doesNotMatch(ran.stderr, /internal error/, command.join(' '));
    assert.equal(existsSync(touched) ? readFileSync(touched, 'utf8') : '', '', command.join(' '));
  }
  assert.equal((await traced.stop()).status, 0);
  assert.equal(existsSync(touched), false);
  // The watch itself sees what it is to see.
  spawnSync(process.execPath, [watching, '-e', 'process.stdout']);
  assert.match(readFileSync(touched, 'utf8'), /^stdout/);
  await target.finish();
  await other.finish();
});
