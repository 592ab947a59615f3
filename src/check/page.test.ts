import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { after, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { build } from 'esbuild';
import type { Browser } from 'playwright-core';
import { chromium } from 'playwright-core';
import { defaultMachine, twoSites } from '../model/index.js';
import { nmi2008 } from '../protocol/index.js';
import { check } from './check.js';
import { pageOf } from './page.js';
import { timelineOf } from './timeline.js';

let browser: Browser;
let directory: string;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'safepoke-page-'));
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
  });
});

after(async () => {
  await browser.close();
  await rm(directory, { recursive: true });
});

test('the page of a counterexample steps forward and back, and marks the step that breaks the protocol', async () => {
  const timeline = timelineOf(check(nmi2008, defaultMachine, twoSites));
  assert.ok(timeline);
  const file = join(directory, 'counterexample.html');
  await writeFile(file, pageOf(timeline));
  const page = await browser.newPage();
  const errors: string[] = [];
  const requests: string[] = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('request', (request) => requests.push(request.url()));
  await page.goto(pathToFileURL(file).href);
  const steps = timeline.rows.length;
  assert.equal(await page.locator('#now').textContent(), `0 / ${steps}`);
  await page.locator('#forward').click();
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('#now').textContent(), `2 / ${steps}`);
  assert.equal(await page.locator('tr.here').getAttribute('data-step'), '2');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await page.locator('#now').textContent(), `1 / ${steps}`);
  await page.keyboard.press('End');
  assert.equal(await page.locator('tr.here').getAttribute('class'), 'breaks here');
  assert.equal(await page.locator('tr.later').count(), 0);
  await page.locator('tr[data-step="3"]').click();
  assert.equal(await page.locator('tr.later').count(), steps - 3);
  assert.match((await page.locator('.conclusion').textContent()) ?? '', /CPU \d's different bytes land/);
  assert.deepEqual(errors, []);
  assert.equal(requests.length, 1, 'the page asks for nothing but itself');
  await page.close();
});

test('text in the page cannot break out of it', () => {
  const timeline = timelineOf(check(nmi2008, defaultMachine, twoSites));
  assert.ok(timeline);
  const page = pageOf({ ...timeline, heading: '</title><script>alert(1)</script>' });
  assert.ok(!page.includes('<script>alert'));
});

test('the core is bundled without Node, and checks a protocol in the browser', async () => {
  const core = fileURLToPath(new URL('../core.js', import.meta.url));
  const bundle = await build({
    entryPoints: [core],
    bundle: true,
    format: 'iife',
    globalName: 'core',
    platform: 'browser',
    write: false,
  });
  const page = await browser.newPage();
  await page.addScriptTag({ content: `${bundle.outputFiles[0].text}; globalThis.core = core;` });
  const verdicts = await page.evaluate(`[
    core.check(core.nmi2008, core.defaultMachine, core.twoSites).verdict,
    core.check(core.nmiOneWord, core.defaultMachine, core.twoSites).verdict,
  ]`);
  assert.deepEqual(verdicts, ['unsafe', 'safe']);
  await page.close();
});
