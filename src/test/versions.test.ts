// A library that defines a name in several versions: each is a function of its own.
import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { Running, Target, build, fresh, safepoke } from './targets.test.support.js';

const MAP = fileURLToPath(new URL('../../test/targets/versions.map', import.meta.url));
const ROUNDS = 5;

function library(isStripped: boolean): string {
  const built = build('versions.c', '-shared', '-fPIC', '-DLIBRARY', `-Wl,--version-script=${MAP}`);
  if (!isStripped) return built;
  const stripped = fresh('stripped.so');
  copyFileSync(built, stripped);
  execFileSync('strip', [stripped]);
  return stripped;
}

for (const isStripped of [false, true]) {
  const what = isStripped ? 'stripped' : 'with all symbols';
  test(`the versions of a function are kept apart: ${what}`, async () => {
    const path = library(isStripped);
    const names = (...filters: string[]): string[] => {
      const listed = safepoke('functions', path, ...filters.flatMap((filter) => ['-F', filter]));
      assert.equal(listed.status, 0, listed.stderr);
      return listed.stdout
        .trim()
        .split('\n')
        .map((line) => line.split(' ').at(-1) ?? '');
    };
    assert.deepEqual(names('answer'), ['answer@V1', 'answer']);
    assert.deepEqual(names('answer@V1'), ['answer@V1']);
    const target = await Target.ready(build('versions.c', '-ldl'), path, String(ROUNDS));
    const running = await Running.attach(target.pid, '-F', 'turn', '-F', `${basename(path)}!answer`);
    target.say('go');
    await target.expect(/^sum=/);
    const { summary } = await running.ended();
    assert.deepEqual(summary.calls, { answer: 2 * ROUNDS, 'answer@V1': ROUNDS, turn: ROUNDS });
  });
}
