// Programs in which there is no room for anything of ours: traced where it can be done, else refused with the reason and
// nothing changed.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { CannotError, attach } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Running, Target, build, changedBytes, mapsOf, statusField } from './targets.test.support.js';

/** What becomes of an attempt to trace such a program: traced, or refused with this code for this reason. */
const CASES: readonly { readonly what: string; readonly refused?: readonly [code: string, why: RegExp] }[] = [
  { what: 'address-space' },
  { what: 'address-space-full', refused: ['NO_MEMORY', /address space/] },
  { what: 'maps', refused: ['NO_MEMORY', /max_map_count/] },
  { what: 'most-maps' },
  { what: 'near', refused: ['NO_MEMORY_NEAR', /2 GiB/] },
  { what: 'mmap-kills', refused: ['SECCOMP', /mmap/] },
  { what: 'mmap-fails', refused: ['SECCOMP', /mmap/] },
  { what: 'memfd-traps', refused: ['SECCOMP', /memfd_create/] },
  { what: 'pwrite-kills' },
  { what: 'locked' },
];

async function narrow(rounds: Rounds): Promise<void> {
  while (rounds.next()) {
    for (const { what, refused } of CASES) {
      const target = new Target(build('limits.c'), what);
      await target.expect(/^begun$/);
      target.say('go');
      await target.expect(/^ready$/);
      const before = mapsOf(target.pid);
      const locked = statusField(target.pid, 'VmLck');
      if (refused === undefined) {
        const session = attach(target.pid, { filters: ['work'], bufferBytes: 1 << 16 });
        target.say('work');
        await target.expect(/^fine$/);
        assert.equal(statusField(target.pid, 'VmLck'), locked, what);
        const summary = await session.stop();
        assert.deepEqual([what, summary.calls['work'], summary.removed], [what, 1, true]);
      } else {
        assert.throws(
          () => attach(target.pid, { filters: ['work'], bufferBytes: 1 << 16 }),
          (error) => {
            assert.ok(error instanceof CannotError, `${what}: ${String(error)}`);
            assert.deepEqual([what, error.code], [what, refused[0]], error.message);
            assert.match(error.message, refused[1], what);
            return true;
          },
        );
      }
      assert.equal(changedBytes(target.pid), 0);
      assert.deepEqual(mapsOf(target.pid), before, what);
      target.say('work');
      await target.expect(/^fine$/);
      await target.finish();
    }
  }
}

const RING_MEMORY = 64 << 20;
const FIB_28 = 1_028_457;

/** Memory of the rings that the target has in use. */
function ringBytes(pid: number): number {
  const smaps = readFileSync(`/proc/${pid}/smaps`, 'latin1');
  const sizes = [...smaps.matchAll(/memfd:safepoke \(deleted\)\n(?:.*\n){3}Rss: +(\d+) kB/g)];
  return sizes.reduce((sum, [, kib]) => sum + Number(kib) * 1024, 0);
}

/** safepoke stands still and empties no ring. What they fill is bounded, and what is lost is counted. */
async function littleMemory(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  assert.throws(
    () => attach(target.pid, { filters: ['fib'], ringMemoryBytes: 1 << 14 }),
    (error) => error instanceof CannotError && error.code === 'NO_MEMORY' && /16 KiB/.test(error.message),
  );
  assert.equal(changedBytes(target.pid), 0);
  while (rounds.next(target.pid)) {
    const running = await Running.attach(target.pid, '-F', 'fib', '--ring-memory', String(RING_MEMORY));
    running.child.kill('SIGSTOP');
    target.say('28');
    await target.line();
    const used = ringBytes(target.pid);
    assert.ok(used > 0 && used <= RING_MEMORY, `${used} bytes`);
    running.child.kill('SIGCONT');
    const { summary, stderr } = await running.stop();
    assert.ok(summary.dropped > 0);
    assert.equal(summary.records + summary.dropped, 2 * FIB_28, stderr);
  }
  await target.finish();
}

export const limitHazards: readonly Hazard[] = [
  {
    name: 'little memory, and safepoke stands still: the rings fill no more than they may, every record is kept or counted',
    run: littleMemory,
  },
  {
    name: 'no address space, no mappings, nothing near, filters that kill: traced, or refused with the reason and untouched',
    run: narrow,
  },
];
