// Programs in which there is no room for anything of ours: traced where it can be done, else refused with the reason and
// nothing changed.
import assert from 'node:assert/strict';
import { CannotError, attach } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, build, changedBytes, mapsOf, statusField } from './targets.test.support.js';

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

export const limitHazards: readonly Hazard[] = [
  {
    name: 'no address space, no mappings, nothing near, filters that kill: traced, or refused with the reason and untouched',
    run: narrow,
  },
];
