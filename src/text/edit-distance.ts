/**
 * How many letters two words differ by: Levenshtein's distance, with swapped neighbours counted once. Given up as soon as it must exceed
 * `tolerance`, and more than that then.
 */
export function editDistance(a: string, b: string, tolerance = Number.POSITIVE_INFINITY): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    let least = i;
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1));
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) cost = Math.min(cost, beforeLast[j - 2] + 1);
      row.push(cost);
      if (cost < least) least = cost;
    }
    if (least > tolerance) return tolerance + 1;
    beforeLast = last;
    last = row;
  }
  return last[b.length];
}
