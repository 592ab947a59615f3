// When garbage is collected. What prepares thousands of sites leaves much of it, and V8 collects it when it likes: while all threads
// of a target are held, perhaps, for a hundred milliseconds and more.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

let collect: (() => void) | undefined;

/** V8's own function, which is shown to new contexts if the flag is set when they are made; nothing else sees it. */
function collector(): () => void {
  try {
    setFlagsFromString('--expose-gc');
    const found: unknown = runInNewContext('globalThis.gc');
    if (typeof found === 'function') return () => void Reflect.apply(found, undefined, []);
  } catch {
    // Collecting later than we would like to is no reason to fail.
  } finally {
    if (!('gc' in globalThis)) setFlagsFromString('--no-expose-gc');
  }
  return () => undefined;
}

/** Collects all garbage now, so that there is no reason to soon afterwards; a collection that has begun is brought to its end. */
export function collectGarbage(): void {
  collect ??= collector();
  collect();
}
