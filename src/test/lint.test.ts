import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { ESLint } from 'eslint';

const root = fileURLToPath(new URL('../..', import.meta.url));
/** A file that the rules hold for; its text is replaced. */
const PLACE = 'src/trace/summary.ts';

async function complaints(text: string, place = PLACE): Promise<readonly string[]> {
  const [result] = await new ESLint({ cwd: root }).lintText(text, { filePath: `${root}/${place}` });
  return result.messages.map(({ ruleId }) => ruleId ?? 'not parsed').filter((rule) => wanted.has(rule));
}

const wanted: ReadonlySet<string> = new Set(['safepoke/names-as-keys', 'no-restricted-syntax', 'not parsed']);

test('lint finds names that become keys of plain objects', async () => {
  const declared = 'declare const counts: Record<string, number>; declare const name: string;';
  for (const [text, expected] of [
    [`${declared} counts[name] = 1;`, ['safepoke/names-as-keys']],
    [`${declared} export const n = counts[\`\${name}()\`];`, ['safepoke/names-as-keys']],
    [`${declared} export const has = name in counts;`, ['safepoke/names-as-keys']],
    [`${declared} export const f = (o: typeof counts | undefined) => o?.[name];`, ['safepoke/names-as-keys']],
    [`${declared} export const n = counts['calls'];`, []],
    ['declare const names: string[]; export const f = (i: number) => names[i];', []],
    ["declare const t: Record<'a' | 'b', number>; export const f = (k: 'a' | 'b') => t[k];", []],
    ['declare const map: Map<string, number>; export const f = (k: string) => map.get(k);', []],
  ] as const)
    assert.deepEqual(await complaints(text), expected, text);
});

test('lint finds lists that become arguments, and text that was not escaped', async () => {
  const declared = 'declare const all: number[];';
  for (const [text, expected] of [
    [`${declared} export const most = Math.max(0, ...all);`, ['no-restricted-syntax']],
    [`${declared} export const made: number[] = []; made.push(...all);`, ['no-restricted-syntax']],
    [`${declared} export const made = String.fromCharCode(...all);`, ['no-restricted-syntax']],
    [`${declared} export const made = [0, ...all];`, []],
    [
      "import type { Text } from '../text/index.js'; export const f = (s: string) => s as Text;",
      ['no-restricted-syntax'],
    ],
  ] as const)
    assert.deepEqual(await complaints(text), expected, text);
});
