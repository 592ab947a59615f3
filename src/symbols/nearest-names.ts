import { editDistance } from '../text/index.js';

const DEFAULT_LIMIT = 3;
/** Comparing is quadratic in length: a person's typing error is found within this much. */
const LONGEST_COMPARED = 64;
/** Names compared at most, so that a module with 10^6 of them does not make an error message slow. */
const MOST_COMPARED = 200_000;

/**
 * Up to `limit` of `names` that are nearest to what `pattern` says, best first, for "no function matches; nearest: ...".
 * A name that contains the pattern's text comes before one that resembles it; one that does not resemble it is not given.
 */
export function nearestNames(pattern: string, names: Iterable<string>, limit = DEFAULT_LIMIT): string[] {
  const wanted = pattern
    .slice(pattern.lastIndexOf('!') + 1)
    .replace(/[*?/^$\\[\]]/g, '')
    .toLowerCase()
    .slice(0, LONGEST_COMPARED);
  if (wanted === '') return [];
  const tolerance = Math.max(2, Math.ceil(wanted.length / 3));
  const found: { name: string; distance: number }[] = [];
  let compared = 0;
  for (const name of names) {
    if (++compared > MOST_COMPARED) break;
    const distance = nearness(wanted, name.toLowerCase(), tolerance);
    if (distance <= tolerance) found.push({ name, distance });
  }
  found.sort(
    (a, b) => a.distance - b.distance || a.name.length - b.name.length || (a.name < b.name ? -1 : 1),
  );
  return [...new Set(found.map(({ name }) => name))].slice(0, limit);
}

/** 0 to 1 for a name with `wanted` in it, the shorter the nearer; else the edit distance, or more than `tolerance`. */
function nearness(wanted: string, name: string, tolerance: number): number {
  if (name.includes(wanted)) return 1 - wanted.length / name.length;
  if (Math.abs(name.length - wanted.length) > tolerance) return tolerance + 1;
  return editDistance(wanted, name, tolerance);
}
