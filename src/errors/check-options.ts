import { editDistance } from '../text/index.js';
import { UsageError } from './safepoke-error.js';

/** What a value of an option must be. */
export type OptionType = 'string' | 'number' | 'boolean' | 'function' | 'strings';

function isOf(value: unknown, type: OptionType): boolean {
  if (type === 'strings') return Array.isArray(value) && value.every((item) => typeof item === 'string');
  return typeof value === type && !Number.isNaN(value);
}

/**
 * Refuses options that `what` does not have, and values that are not of the type: without that a misspelt wish is silently none.
 *
 * @throws UsageError UNKNOWN_OPTION, BAD_OPTION
 */
export function checkOptionTypes(
  what: string,
  options: unknown,
  types: Readonly<Record<string, OptionType>>,
): void {
  const known = new Map(Object.entries(types));
  const names = [...known.keys()];
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new UsageError('BAD_OPTION', {
      tried: `read the options of ${what}`,
      why: 'they are not an object',
      next: `give an object with some of: ${names.join(', ')}`,
    });
  }
  for (const [name, value] of Object.entries(options)) {
    const type = known.get(name);
    if (type === undefined) {
      const near = names.reduce((best, other) =>
        editDistance(name.toLowerCase(), other.toLowerCase()) <
        editDistance(name.toLowerCase(), best.toLowerCase())
          ? other
          : best,
      );
      throw new UsageError('UNKNOWN_OPTION', {
        tried: `use the option "${name}" of ${what}`,
        why: 'there is no such option',
        next: `the nearest is "${near}"; all are ${names.join(', ')}`,
      });
    }
    if (value !== undefined && !isOf(value, type)) {
      throw new UsageError('BAD_OPTION', {
        tried: `use the option "${name}" of ${what}`,
        why: `its value is not ${type === 'strings' ? 'an array of strings' : `a ${type}`}`,
        next: type === 'strings' ? `give it as ${name}: ['...']` : 'give one',
      });
    }
  }
}
