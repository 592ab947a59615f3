// One of several that attach to a process at the same moment: "contender PID". Told "attach" it says "traces", "refused CODE" or "failed"
// with the error; told "detach" it says what the session did, as JSON.
import { writeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { attach, isSafepokeError, type Session } from '../index.js';

const pid = Number(process.argv[2]);
const say = (line: string): void => {
  writeSync(process.stdout.fd, `${line}\n`);
};

let session: Session | undefined;

function begin(): string {
  try {
    session = attach(pid, { filters: ['known', 'fib', 'mix'], bufferBytes: 1 << 18 });
    return 'traces';
  } catch (error) {
    if (isSafepokeError(error)) return `refused ${error.code} ${error.message}`;
    return `failed ${error instanceof Error ? String(error.stack).replaceAll('\n', ' ') : String(error)}`;
  }
}

say('ready');
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'attach') say(begin());
  else say(JSON.stringify(await session?.stop()));
}
