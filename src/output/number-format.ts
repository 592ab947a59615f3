const NS_PER_US = 1e3;
const NS_PER_MS = 1e6;
const NS_PER_S = 1e9;
const NS_PER_MINUTE = 60e9;

/** As wide as the longest below an hour: `999.999 us`. */
export const DURATION_COLUMNS = 10;

/** A duration in 10 columns, three decimals of the unit that suits: `  1.234 us`, ` 12.345 ms`, `  1.234  s`. */
export function formatDuration(ns: number): string {
  // Compared as it will be rounded: 999,999.6 ns is 1.000 ms.
  const rounded = Math.round(ns);
  let text: string;
  if (rounded < NS_PER_MS) text = `${(ns / NS_PER_US).toFixed(3)} us`;
  else if (rounded < NS_PER_S - NS_PER_US / 2) text = `${(ns / NS_PER_MS).toFixed(3)} ms`;
  else if (rounded < NS_PER_MINUTE - NS_PER_MS / 2) text = `${(ns / NS_PER_S).toFixed(3)}  s`;
  else text = `${(ns / NS_PER_MINUTE).toFixed(3)}  m`;
  return text.padStart(DURATION_COLUMNS);
}

/** A count with its thousands apart: `12,345`. */
export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ',');
}

/** `1 record lost`, `12,345 records lost`. */
export function formatLost(records: number): string {
  return `${formatCount(records)} ${records === 1 ? 'record' : 'records'} lost`;
}

/** Whole nanoseconds as microseconds with three decimals, exactly: `1234` is `1.234`. */
export function microseconds(ns: number): string {
  const whole = Math.floor(ns / NS_PER_US);
  return `${whole}.${String(ns - whole * NS_PER_US).padStart(3, '0')}`;
}
