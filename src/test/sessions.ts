// Sessions on a process, one after the other, for as many as are wanted or until somebody kills this program: "sessions PID [NUMBER]".
// It says "ready" before the first.
import { attach } from '../index.js';

const [pid, most] = process.argv.slice(2).map(Number);
process.stdout.write('ready\n');
for (let i = 0; i !== most; i++) {
  const session = attach(pid, { bufferBytes: 1 << 18 });
  const { restored, removed } = await session.stop();
  if (!restored || !removed) process.exitCode = 1;
}
