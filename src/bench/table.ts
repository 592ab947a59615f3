// Figures as text: every section of the benchmarks prints one table.
import Table from 'cli-table3';

export function renderTable(
  title: string,
  head: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  const table = new Table({
    head: [...head],
    style: { head: [], border: [], compact: true },
    colAligns: head.map((_, column) => (column === 0 ? 'left' : 'right')),
  });
  for (const row of rows) table.push([...row]);
  return `\n${title}\n${table.toString()}\n`;
}

export function ns(value: number): string {
  return value.toFixed(value < 100 ? 1 : 0);
}
