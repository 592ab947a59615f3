/** As wide as the longest below a thousand minutes: `999.999 us`. */
export const DURATION_COLUMNS = 10;

/**
 * `000` to `999`: much faster than padding, and every line of output has one. Differences of numbers that are no longer
 * exact (of a damaged recording) may lie outside.
 */
const THREE_DIGITS = Array.from({ length: 1000 }, (_, n) => String(n).padStart(3, '0'));
/** `  0` to `999`. */
const THREE_COLUMNS = Array.from({ length: 1000 }, (_, n) => String(n).padStart(3));

/** A unit's thousandth in nanoseconds, how it is written, and how many of it make the next unit. */
const UNITS = [
  { thousandth: 1, name: ' us', limit: 1000 },
  { thousandth: 1e3, name: ' ms', limit: 1000 },
  { thousandth: 1e6, name: '  s', limit: 60 },
  { thousandth: 60e6, name: '  m', limit: Number.POSITIVE_INFINITY },
] as const;

/** A duration in 10 columns, three decimals of the unit that suits: `  1.234 us`, ` 12.345 ms`, `  1.234  s`. */
export function formatDuration(ns: number): string {
  for (const { thousandth, name, limit } of UNITS) {
    // Rounded before it is compared: 999,999.6 ns is 1.000 ms.
    const thousandths = Math.round(ns / thousandth);
    const whole = Math.floor(thousandths / 1000);
    if (whole < limit)
      return `${THREE_COLUMNS[whole] ?? String(whole)}.${THREE_DIGITS[thousandths - whole * 1000] ?? '000'}${name}`;
  }
  return `${ns} ns`;
}

/** A count with its thousands apart: `12,345`. */
export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ',');
}

/** `1 record lost`, `12,345 records lost`, `2 records not kept`. */
export function formatLost(records: number, isNotKept = false): string {
  return `${formatCount(records)} ${records === 1 ? 'record' : 'records'} ${isNotKept ? 'not kept' : 'lost'}`;
}

/** Whole nanoseconds as microseconds with three decimals, exactly: `1234` is `1.234`. */
export function microseconds(ns: number): string {
  const whole = Math.floor(ns / 1000);
  return `${whole}.${THREE_DIGITS[ns - whole * 1000] ?? '000'}`;
}
