// Sessions on a process, one after the other, for as many as are wanted or until somebody kills this program: "sessions PID [NUMBER]".
// It says "ready" when it has loaded all that it needs, and begins when its standard input ends.
import { attach } from '../index.js';

const [pid, most] = process.argv.slice(2).map(Number);
process.stdout.write('ready\n');
process.stdin.resume();
await new Promise((resolve) => process.stdin.once('end', resolve));
for (let i = 0; i !== most; i++) {
  const session = attach(pid, { bufferBytes: 1 << 18 });
  const { restored, removed } = await session.stop();
  if (!restored || !removed) process.exitCode = 1;
}
