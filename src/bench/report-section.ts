// Writing and reporting a large recording, each in a process of its own (report-bench.ts): memory is measured too.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { renderTable } from './table.js';

interface Line {
  readonly bench: string;
  readonly records?: number;
  readonly seconds: number;
  readonly recordsPerSecond?: number;
  readonly maxRssKiB?: number;
}

export function benchReport(): string {
  const script = fileURLToPath(new URL('report-bench.js', import.meta.url));
  const { status, stdout, stderr } = spawnSync(process.execPath, [script], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`report-bench: ${stderr}`);
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);
  return renderTable(
    `A recording of ${(lines[0]?.records ?? 0) / 1e6} million records`,
    ['', 'seconds', 'million records/s', 'largest RSS, MiB'],
    lines.map(({ bench, seconds, maxRssKiB }) => [
      bench,
      seconds.toFixed(2),
      ((lines[0]?.records ?? 0) / seconds / 1e6).toFixed(1),
      maxRssKiB === undefined ? '' : (maxRssKiB / 1024).toFixed(0),
    ]),
  );
}
