// Sessions on a process, one after the other, for as many as are wanted or until somebody kills this program: "sessions PID [NUMBER]".
// It says "ready" when it has loaded all that it needs, and begins when its standard input ends. In each session it says "a" when it is about
// to attach, "t" when it traces, and "d" when it is about to detach.
import { writeSync } from 'node:fs';
import { attach } from '../index.js';

/** It traces for so long at most. */
const TRACES_MS = 30;

const [pid, most] = process.argv.slice(2).map(Number);
// At once, whatever else is going on.
const say = (what: string): void => {
  writeSync(process.stdout.fd, what);
};
say('ready\n');
process.stdin.resume();
await new Promise((resolve) => process.stdin.once('end', resolve));
for (let i = 0; i !== most; i++) {
  say('a');
  const session = attach(pid, { bufferBytes: 1 << 18 });
  say('t');
  await new Promise((resolve) => setTimeout(resolve, Math.random() * TRACES_MS));
  say('d');
  const { restored, removed } = await session.stop();
  if (!restored || !removed) process.exitCode = 1;
}
