import { withoutVersion } from '../elf/index.js';
import type { RefusalReason } from './sites.js';

/** Functions that must not be traced whatever their code looks like, by any of their names. */
const RETURNS_TWICE = [
  'setjmp',
  '_setjmp',
  '__setjmp',
  'sigsetjmp',
  '__sigsetjmp',
  'savectx',
  'getcontext',
  '__getcontext',
  'swapcontext',
  '__swapcontext',
  'vfork',
  '__vfork',
  '__libc_vfork',
];

const UNSAFE_CONTEXT = [
  // Entered by the kernel or the loader: nothing on the stack is a return address.
  '_start',
  '__start',
  '_rt0_amd64_linux',
  '_dl_start_user',
  '__restore_rt',
  '__restore',
  '__start_context',
  // Return on another stack, or as another thread.
  'clone',
  '__clone',
  'clone3',
  '__clone3',
  '__clone_internal',
  'setcontext',
  '__setcontext',
  // Profiler hooks find their caller's caller by their own return address.
  'mcount',
  '_mcount',
  '__fentry__',
  // Called with registers live that a function may normally use.
  '__tls_get_addr',
  '___tls_get_addr',
  '__tls_get_addr_slow',
  '__morestack',
];
const UNSAFE_CONTEXT_PREFIXES = [
  '_dl_runtime_resolve',
  '_dl_runtime_profile',
  '_dl_tlsdesc',
  '__x86_indirect_thunk',
  '__x86_return_thunk',
  '__tls_get_addr_slow',
];

const BY_NAME: ReadonlyMap<string, RefusalReason> = new Map([
  ...UNSAFE_CONTEXT.map((name) => [name, 'unsafe-context'] as const),
  ...RETURNS_TWICE.map((name) => [name, 'returns-twice'] as const),
]);

/** Why a function of these names must not be traced; undefined if its names say nothing against it. */
export function refusalByName(names: readonly string[]): RefusalReason | undefined {
  for (const versioned of names) {
    // What is true of a function is true of its old versions.
    const name = withoutVersion(versioned);
    const reason = BY_NAME.get(name);
    if (reason !== undefined) return reason;
    // How all of the prefixes begin: it spares comparing 20,000 names with each of them.
    if (!name.startsWith('_')) continue;
    if (UNSAFE_CONTEXT_PREFIXES.some((prefix) => name.startsWith(prefix))) return 'unsafe-context';
  }
  return undefined;
}
