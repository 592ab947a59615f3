// Programs that go by which of their instructions has faulted, or throw from there: under trace they go on as they do alone.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { build, callsOf, fresh, runTraced, safepoke, tally } from './targets.test.support.js';

const ROUNDS = 200;
/** Attached and left again so often. */
const TIMES = 4;
const ASSEMBLY = [
  'first',
  'second',
  'third',
  'deep',
  'deeper',
  'red_zone',
  'red_exit',
  'store',
  'vector',
  'string',
  'divides',
  'before_ret',
  'before_pop',
  'joined',
  'tail',
  'skipped',
];
const THROWING = [
  'load',
  'scaled',
  'second',
  'store',
  'stores_last',
  'real',
  'wide',
  'divides',
  'divides_first',
  'through',
  'chained',
  'guarded',
  'branches',
  'caught',
];
const NON_CALL = ['-fnon-call-exceptions', '-fasynchronous-unwind-tables'];

const programs: {
  source: string;
  flags: string[];
  names: readonly string[];
  args?: string[];
}[] = [
  { source: 'faults.c', flags: ['-O2'], names: ASSEMBLY },
  { source: 'faults.c', flags: ['-O2', '-DTABLE'], names: ASSEMBLY },
  { source: 'faults.c', flags: ['-O2', '-DTABLE', '-no-pie'], names: [], args: ['100'] },
  { source: 'faults.cc', flags: ['-O2', ...NON_CALL], names: THROWING },
  { source: 'faults.cc', flags: ['-O0', ...NON_CALL], names: THROWING },
  {
    source: 'faults.cc',
    flags: ['-O2', '-fno-omit-frame-pointer', '-fcf-protection=full', ...NON_CALL],
    names: [],
  },
];

for (const { source, flags, names, args = [] } of programs) {
  test(`${source} ${flags.join(' ')}: what faults is found where it is`, () => {
    const program = build(source, ...flags);
    const alone = spawnSync(program, args, { encoding: 'utf8', input: '' }).stdout;
    assert.match(alone, /^ready\nwrong 0\b/);
    for (const filter of ['*', ...names]) {
      const { stdout, status, stderr } = runTraced(['-F', filter], program, ...args);
      assert.equal(stdout, alone, `${filter}: ${stderr}`);
      assert.equal(status, 0, filter);
    }
  });

  test(`${source} ${flags.join(' ')}: the same while sessions come and go`, async () => {
    const child = spawn(build(source, ...flags), args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    await lines.next();
    for (let i = 0; i < TIMES; i++) {
      const ran = safepoke(
        'attach',
        '-p',
        String(child.pid),
        '-F',
        '*',
        '--duration',
        '200ms',
        '-o',
        fresh('r'),
      );
      assert.equal(ran.status, 0, ran.stderr);
    }
    const left = once(child, 'exit');
    child.stdin.end();
    assert.match(String((await lines.next()).value), /^wrong 0\b/);
    assert.deepEqual(await left, [0, null]);
  });
}

test('sites behind what may fault record each call that gets there, with its true end', () => {
  const program = build('faults.c', '-O2', '-DTABLE');
  const { recording, summary } = runTraced(['-F', '*'], program);
  const calls = tally(callsOf(recording));
  assert.equal(summary.dropped, 0);
  // Half of the calls fault before the site, and go on in the function.
  for (const name of ['first', 'third', 'deep', 'vector'])
    assert.equal(calls[`${name} returned`], ROUNDS, `${name}: ${JSON.stringify(calls)}`);
  for (const name of ['deeper', 'red_zone', 'string', 'divides'])
    assert.equal(calls[`${name} returned`], 2 * ROUNDS, `${name}: ${JSON.stringify(calls)}`);
  // They fault behind the place where their end is recorded.
  for (const name of ['before_ret', 'before_pop', 'joined', 'tail'])
    assert.equal(calls[`${name} returned`], 2 * ROUNDS, `${name}: ${JSON.stringify(calls)}`);
});
