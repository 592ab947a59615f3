import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isSafepokeError } from '../errors/index.js';
import { ControlServer, control, type Controlled } from './control.js';
import { MAX_MESSAGE_BYTES, parseReply, parseRequest } from './control-message.js';
import { HONEST_REPLY, fuzzControl } from './control.fuzz.test.support.js';

const NOBODY = 65534;
/** No user of a system has it. */
const STRANGER = 64_123;
const ROUNDS = 3000;
const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
const places = fileURLToPath(new URL('control-place.js', import.meta.url));
const REQUEST = { on: ['a*'], off: [] };

assert.equal(process.geteuid?.(), 0, 'these tests need root: sudo npm test');

/** A process whose id a socket can have as its name. */
const traced = spawn('sleep', ['600'], { stdio: 'ignore' });
const pid = traced.pid ?? 0;
const path = `/run/safepoke/${pid}.socket`;
const open = new Set<Socket>();
const servers = new Set<Server>();
after(() => {
  traced.kill();
  for (const socket of open) socket.destroy();
  for (const server of servers) server.close();
});

const honest = { ...HONEST_REPLY, status: { ...HONEST_REPLY.status, pid } };

function session(): Controlled {
  return { pid, switch: (patterns) => patterns.length, status: honest.status as Controlled['status'] };
}

/** Somebody who listens in a session's place. */
async function listen(at: string, serve: (socket: Socket) => void): Promise<Server> {
  rmSync(at, { force: true });
  const server = createServer((socket) => {
    open.add(socket);
    socket.on('error', () => undefined);
    serve(socket);
  });
  servers.add(server);
  server.listen(at);
  await once(server, 'listening');
  return server;
}

async function close(server: Server): Promise<void> {
  for (const socket of open) socket.destroy();
  await new Promise((resolve) => server.close(resolve));
}

const saying = (text: string) => (socket: Socket) => void socket.end(text);

async function failureOf(patienceMs = 2000): Promise<string> {
  try {
    await control(pid, REQUEST, { patienceMs });
  } catch (error) {
    assert.ok(isSafepokeError(error), String(error));
    assert.doesNotMatch(error.message, /[\p{Cc}\p{Cf}]/u);
    return error.code;
  }
  return 'an answer';
}

test('whatever comes over the socket is taken for what it is, or refused', () => {
  fuzzControl(ROUNDS, 16);
});

test('deep messages are refused before anything is made of them, unknown fields of requests too, those of replies are dropped', () => {
  for (const text of ['['.repeat(MAX_MESSAGE_BYTES), '"\\"'.repeat(MAX_MESSAGE_BYTES / 3)]) {
    assert.throws(() => parseRequest(Buffer.from(text)), { code: 'BAD_REQUEST' });
    assert.equal(parseReply(Buffer.from(text), pid), undefined);
  }
  assert.throws(() => parseRequest(Buffer.from('{"on":[],"off":[],"also":1}')), { code: 'BAD_REQUEST' });
  const more = { ...honest, more: 1, status: { ...honest.status, more: '\u001b[2J' } };
  assert.deepEqual(parseReply(Buffer.from(JSON.stringify(more)), pid), honest);
});

test('whoever listens in a place of a session and is none gets one line said of it, whatever it says', async () => {
  mkdirSync('/run/safepoke', { recursive: true, mode: 0o700 });
  const words = ['null', '1', '"x"', '[]', '{}', '{"status":null}', '{"status":{}}', '\u0000', '{', ''];
  const others = [
    JSON.stringify({ ...honest, status: { ...honest.status, pid: pid + 1 } }),
    JSON.stringify({ ...honest, status: { ...honest.status, ways: { '\u001b[2J': 1 } } }),
    JSON.stringify({ ...honest, status: { ...honest.status, records: '1' } }),
    JSON.stringify({ usage: false, tried: 'a\u001b]0;x\u0007b\nc', why: '\u202eb', next: 'c' }),
  ];
  for (const text of [...words, ...others]) {
    const server = await listen(path, saying(`${text}\n`));
    assert.equal(await failureOf(), 'NO_ANSWER', text);
    const ran = await run('control', '-p', String(pid));
    assert.equal(ran.status, 1, text);
    assert.match(ran.stderr, /^safepoke: cannot [^\n]*\n$/, text);
    assert.doesNotMatch(ran.stderr.trimEnd(), /\p{Cc}/u, text);
    assert.equal(ran.stdout, '');
    await close(server);
  }
});

test('one that says nothing, a little now and then, or ends is waited for no longer than was said', async () => {
  const drip = (socket: Socket): void => {
    const timer = setInterval(() => socket.write('1'), 20);
    socket.on('close', () => clearInterval(timer));
  };
  for (const serve of [() => undefined, drip]) {
    const server = await listen(path, serve);
    assert.equal(await failureOf(300), 'NO_ANSWER');
    await close(server);
  }
  const server = await listen(path, (socket) => socket.destroy());
  assert.equal(await failureOf(), 'NO_ANSWER');
  await close(server);
  assert.equal(await failureOf(), 'NO_SESSION');
});

test('of a flood no more is taken than a message may have', async () => {
  let taken = 0;
  const server = await listen(path, (socket) => {
    const pour = (): void => {
      if (socket.destroyed || taken > 64 * MAX_MESSAGE_BYTES) return;
      taken += 65_536;
      socket.write(Buffer.alloc(65_536, 0x20), pour);
    };
    pour();
  });
  assert.equal(await failureOf(20_000), 'NO_ANSWER');
  assert.ok(taken < 4 * MAX_MESSAGE_BYTES, `${taken} bytes were taken`);
  await close(server);
});

test('a session goes on and answers others, whatever those do that connect, and keeps nothing of them', async () => {
  const server = await ControlServer.open(session());
  try {
    const before = readdirSync('/proc/self/fd').length;
    const request = Buffer.from(`${JSON.stringify(REQUEST)}\n`);
    const ways: ((socket: Socket) => unknown)[] = [
      () => undefined,
      (socket) => socket.write('{'),
      (socket) => socket.end('{"on":'),
      (socket) => socket.write(Buffer.alloc(2 * MAX_MESSAGE_BYTES, 0x20)),
      (socket) => socket.pause().write(request),
      (socket) => socket.write(Buffer.concat([request, request, request])),
      (socket) => socket.write('null\n'),
      (socket) => socket.destroy(),
    ];
    const hostile: Promise<unknown>[] = [];
    for (let i = 0; i < 200; i++) {
      const socket = createConnection(path, () => ways[i % ways.length](socket));
      open.add(socket);
      socket.on('error', () => undefined).unref();
      hostile.push(once(socket, 'close').catch(() => undefined));
    }
    // Whoever comes while all places are taken may have to come again, for no longer than those may keep them.
    let answer = await failureOf(20_000);
    while (answer !== 'an answer') answer = await failureOf(20_000);
    for (const socket of open) socket.resume();
    await Promise.all(hostile);
    assert.equal(readdirSync('/proc/self/fd').length, before);
    assert.deepEqual(await control(pid, REQUEST), honest);
  } finally {
    server.close();
  }
  assert.equal(await failureOf(), 'NO_SESSION');
});

test('a session that cannot do what is asked says so, and goes on', async () => {
  const broken = { ...session(), switch: () => assert.fail('\u001b[2J the process has ended') };
  const server = await ControlServer.open(broken);
  assert.equal(await failureOf(), 'NO_ANSWER');
  assert.equal(await failureOf(), 'NO_ANSWER');
  server.close();
});

test('a session answers nobody but its user and root', async () => {
  const server = await ControlServer.open(session());
  const { mode } = statSync('/run/safepoke');
  try {
    // As wide as its user could have made it.
    chmodSync('/run/safepoke', 0o755);
    chmodSync(path, 0o777);
    const script = `const s = require('node:net').createConnection(${JSON.stringify(path)});
      s.on('error', (e) => console.log(e.code)).on('data', (d) => console.log(String(d))).on('close', () => console.log('closed'));
      s.write(${JSON.stringify(`${JSON.stringify(REQUEST)}\n`)});`;
    const other = spawn(process.execPath, ['-e', script], { uid: NOBODY, gid: NOBODY });
    let said = '';
    other.stdout.on('data', (text: Buffer) => (said += text.toString()));
    await once(other, 'close');
    assert.doesNotMatch(said, /status/);
    assert.match(said, /closed/);
  } finally {
    chmodSync('/run/safepoke', mode);
    server.close();
  }
});

test('root asks a session of another user, and nobody whom that user only leads to', async () => {
  const folder = `/run/user/${STRANGER}`;
  const asleep = spawn('sleep', ['600'], { stdio: 'ignore', uid: STRANGER, gid: STRANGER });
  const theirs = join(folder, 'safepoke', `${asleep.pid ?? 0}.socket`);
  const ask = async (): Promise<string> => {
    try {
      await control(asleep.pid ?? 0, REQUEST, { patienceMs: 2000 });
      return 'an answer';
    } catch (error) {
      assert.ok(isSafepokeError(error), String(error));
      return error.message;
    }
  };
  let heard = '';
  const server = await listen(path, (socket) => socket.on('data', (text) => (heard += text.toString())));
  try {
    mkdirSync('/run/user', { recursive: true });
    for (const part of [folder, join(folder, 'safepoke')]) {
      mkdirSync(part, { mode: 0o700 });
      chownSync(part, STRANGER, STRANGER);
    }
    symlinkSync(path, theirs);
    assert.match(await ask(), /no safepoke of yours/);
    rmSync(theirs);
    const roots = await listen(theirs, (socket) => socket.on('data', (text) => (heard += text.toString())));
    chownSync(theirs, STRANGER, STRANGER);
    assert.match(await ask(), new RegExp(`is not user ${STRANGER}, but 0;`));
    await close(roots);
    assert.equal(heard, '');
  } finally {
    asleep.kill();
    rmSync(folder, { recursive: true, force: true });
    await close(server);
  }
});

test('a folder that is not its user’s alone has no socket put into it, nor is one looked for there', () => {
  const base = mkdtempSync(join(tmpdir(), 'safepoke-place-'));
  chmodSync(base, 0o755);
  const make = (name: string, mode: number, uid = NOBODY): string => {
    const folder = join(base, name);
    mkdirSync(folder);
    chmodSync(folder, mode);
    chownSync(folder, uid, uid);
    return folder;
  };
  const ask = (runtime: string): string => {
    const script = `import { placeToListen, placesToAsk } from ${JSON.stringify(places)};
      try { console.log(placeToListen(${pid}).path); } catch (error) { console.log(error.code); }
      console.log(placesToAsk(${pid}).length);`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      uid: NOBODY,
      gid: NOBODY,
      encoding: 'utf8',
      env: { XDG_RUNTIME_DIR: runtime },
    });
    assert.equal(stderr, '');
    return stdout.trim().replace('\n', ' ');
  };
  try {
    const good = make('good', 0o700);
    assert.equal(ask(good), `${join(good, 'safepoke', `${pid}.socket`)} 0`);
    const link = join(base, 'link');
    symlinkSync(good, link);
    const file = join(base, 'file');
    writeFileSync(file, '');
    const inner = make('inner', 0o700);
    symlinkSync(good, join(inner, 'safepoke'));
    const taken = make('taken', 0o700);
    mkdirSync(join(taken, 'safepoke'), { mode: 0o777 });
    const bad = [
      make('open', 0o770),
      make('others', 0o700, STRANGER),
      make('roots', 0o755, 0),
      link,
      file,
      inner,
      taken,
    ];
    for (const folder of bad) assert.equal(ask(folder), 'CONTROL_SOCKET 0', folder);
    assert.equal(ask(''), 'NO_RUNTIME_FOLDER 0');
    assert.equal(ask('relative'), 'NO_RUNTIME_FOLDER 0');
  } finally {
    rmSync(base, { recursive: true });
  }
});

/** Runs safepoke while this process goes on to serve it. */
async function run(...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [main, ...args]);
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
  child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
  await once(child, 'close');
  return { status: child.exitCode, stdout, stderr };
}
