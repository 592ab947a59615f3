// How fast records get from a thread that does nothing but call, through its ring, into a file.
import { Attached } from './attached.js';
import { buildCalls } from './programs.js';
import { renderTable } from './table.js';
import { TimedTarget } from './timed-target.js';

const CALLS = 15_000_000;

export async function benchDrain(directory: string): Promise<string> {
  const program = buildCalls(directory, 'drain', []);
  if (program === undefined) throw new Error('gcc is missing: apt-get install gcc');
  const target = new TimedTarget([program, '1']);
  try {
    const session = await Attached.start(target.pid, ['-F', 'work'], directory);
    const since = performance.now();
    await target.round(CALLS);
    const { records, dropped } = await session.stop();
    const seconds = (performance.now() - since) / 1000;
    return renderTable(
      `Ring to file: one thread, ${CALLS / 1e6} million calls without a pause, until the file is complete`,
      ['', 'seconds', 'million records/s', 'taken', 'dropped'],
      [['', seconds.toFixed(2), (records / seconds / 1e6).toFixed(1), String(records), String(dropped)]],
    );
  } finally {
    await target.end();
  }
}
