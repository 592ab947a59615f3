// Functions that are entered where one does not expect it: traced alone, and with all others, the program does what it does alone.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { build, runTraced, safepoke } from './targets.test.support.js';

const CALLS = 20;
/** Of which each call is a record, and no turn of a loop. */
const EXACT = [
  'sum_from',
  'spin',
  'spin_far',
  'zone_loop',
  'warm',
  'warm_end',
  'chained',
  'falls',
  'first',
  'second',
  'reads_return',
  'pops_return',
  'reads_copy',
  'keeps',
];
/** What cannot be traced, and why. */
const REJECTED: Readonly<Record<string, string>> = {
  sum: 'branched-into',
  'warm.warm': 'cold-fragment',
  other_name: 'cold-fragment',
  chained_1: 'cold-fragment',
  chained_2: 'cold-fragment',
  interpret: 'branched-into',
  by_memory: 'branched-into',
  by_memory_short: 'computed-jump',
  by_difference: 'branched-into',
  unrolled: 'computed-jump',
};

for (const flags of [['-no-pie'], ['-pie', '-fPIE']]) {
  test(`a program with every kind of landing answers the same under trace (${flags[0]})`, () => {
    const program = build('landings.c', ...flags);
    const alone = spawnSync(program, { encoding: 'utf8' }).stdout;
    assert.match(alone, /^-?\d+\n$/);
    for (const filter of ['*', ...EXACT, ...Object.keys(REJECTED)]) {
      const { stdout, status, summary, stderr } = runTraced(['-F', filter], program);
      assert.equal(stdout, alone, `${filter}: ${stderr}`);
      assert.equal(status, 0, filter);
      const { calls } = summary;
      for (const name of EXACT)
        if (filter === '*' || filter === name) assert.equal(calls[name], CALLS, `${filter}: ${name}`);
      if (filter in REJECTED) {
        assert.deepEqual(summary.refused, { [REJECTED[filter]]: 1 }, filter);
        assert.match(stderr, /nothing of the program is traced: .*safepoke functions --refused/);
      }
    }
    const listed = safepoke('functions', '--refused', program).stdout;
    for (const [name, reason] of Object.entries(REJECTED))
      assert.match(listed, new RegExp(`${reason} +${name} `), name);
  });
}

test('node signs with RSA while the function that others jump into is traced', () => {
  const script = `
    const { generateKeyPairSync, createSign, createVerify } = require('node:crypto');
    const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    let good = 0;
    for (let i = 0; i < 50; i++) {
      const signature = createSign('sha256').update('text ' + i).sign(privateKey);
      if (createVerify('sha256').update('text ' + i).verify(publicKey, signature)) good++;
    }
    console.log(good);`;
  for (const filter of ['bn_sqr8x_mont', 'bn_*']) {
    const { stdout, status, stderr } = runTraced(['-F', filter], process.execPath, '-e', script);
    assert.equal(stdout, '50\n', stderr);
    assert.equal(status, 0, stderr);
  }
});
