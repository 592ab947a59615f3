import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertCounted, assertNested, build, callsOf, runTraced } from './targets.test.support.js';

const CASES = ['jump', 'heap', 'heap-left', 'stack', 'stack-left', 'inner', 'overflow'];

for (const where of ['main', 'thread']) {
  for (const name of CASES) {
    test(`${name} in the ${where} thread: exact counts, and the program goes on as ever`, () => {
      const traced = runTraced([], build('jumps.c'), where, name);
      assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
      if (name === 'overflow') {
        assert.ok(traced.summary.dropped % 2 === 0);
        return;
      }
      assertCounted(traced);
      assertNested(callsOf(traced.recording));
    });
  }
}

test('all of these one after the other, in both kinds of thread, with a depth limit', () => {
  for (const where of ['main', 'thread']) {
    const traced = runTraced(['-D', '3'], build('jumps.c'), where, ...CASES, ...CASES);
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assert.equal(traced.summary.dropped, 0);
    assertNested(callsOf(traced.recording));
  }
});
