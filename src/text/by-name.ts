/**
 * An object for JSON of what is known by names: without a prototype, so that `constructor` and `__proto__` are names like others in it, and are
 * missing where they are missing.
 */
export function byName<T>(map: ReadonlyMap<string, T>): Readonly<Record<string, T>> {
  const made = Object.create(null) as Record<string, T>;
  for (const [name, value] of map)
    Object.defineProperty(made, name, { value, enumerable: true, writable: true, configurable: true });
  return made;
}

/** Adds to what is counted under a name. */
export function countName(counts: Map<string, number>, name: string, by = 1): void {
  counts.set(name, (counts.get(name) ?? 0) + by);
}
