/**
 * The protocol of 2012: a breakpoint guards the instruction while its tail changes. Nobody is stopped.
 *
 * The patcher, in text_poke_bp:
 *  1. Publish the site and its new code; then take the first reference, which lets traps look.
 *  2. Write the breakpoint over the first byte (one store: a CPU sees the old byte or the new one). Sync all CPUs: then
 *     nobody executes the old instruction any more, and whoever comes traps.
 *  3. Write the tail. Sync all CPUs: then nobody holds the old tail in its pipeline.
 *  4. Write the first byte of the new code. Sync all CPUs.
 *  5. Drop the reference, and wait until no trap holds one: only then may the published site be reused.
 * A trap:
 *  6. Take a reference; if there is none to take, the change is over: execute the site again.
 *  7. If the published site is another one, execute the site again; else emulate the new instruction, and drop the
 *     reference.
 *
 * In the model a sync waits for the other CPUs' current instructions, not for their trap handlers, as membarrier does;
 * in the kernel, where handlers run with interrupts off, it waits for those too, and the references matter less.
 */
import {
  BREAKPOINT,
  SKIP,
  TRAPPED_IP,
  atomicAdd,
  branch,
  call,
  compareSwap,
  count,
  emulate,
  execute,
  instead,
  label,
  load,
  noteLongest,
  numbered,
  calculate,
  readClock,
  retry,
  smpMb,
  smpRmb,
  smpWmb,
  step,
  store,
  syncAll,
  waitUntil,
} from './operations.js';
import type { Operand, Operation } from './operations.js';
import { ftraceModifyCode } from './modify-code.js';
import type { Protocol, Routine, Word } from './protocol.js';
import { HEAD_SIZE, MCOUNT_INSN_SIZE } from './protocol.js';

const words: readonly Word[] = [
  {
    name: 'bp_refs',
    initial: 0,
    use: 'value',
    meaning: 'references held: the patcher and every trap that looks',
  },
  { name: 'bp_ip', initial: 0, use: 'address', meaning: 'the published site' },
  { name: 'bp_code', initial: 0, use: 'code', meaning: 'its new code' },
  { name: 'bp_wait_count', initial: 0, use: 'statistic', meaning: 'times the patcher waited for traps' },
  { name: 'bp_longest_wait', initial: 0, use: 'statistic', meaning: 'the longest of its waits' },
];

const helpedCount: Word = {
  name: 'bp_update_count',
  initial: 0,
  use: 'statistic',
  meaning: 'times a trap helped',
};

const writeHead = (at: Operand, code: Operand): Operation => ({
  op: 'write-text',
  at,
  code,
  offset: 0,
  length: HEAD_SIZE,
  status: 'status',
});
const writeTail = (at: Operand, code: Operand): Operation => ({
  op: 'write-text',
  at,
  code,
  offset: HEAD_SIZE,
  length: MCOUNT_INSN_SIZE - HEAD_SIZE,
  status: 'status',
});

/** Threads and NMIs execute the sites; there are no hooks. */
const whatRuns: readonly Routine[] = [
  { name: 'nmi', operations: [execute('lockdep_off'), execute('handlers')] },
  { name: 'thread', operations: [execute('thread_work')] },
];

/** Takes a reference, or leaves the handler if the change is over. */
const takeReference: readonly Operation[] = [
  label('again'),
  load('refs', 'bp_refs'),
  branch('refs', 'equal', 0, 'over'),
  calculate('more_refs', 'refs', 'plus', 1),
  compareSwap('found', 'bp_refs', 'refs', 'more_refs'),
  branch('found', 'not-equal', 'refs', 'again'),
  smpRmb(),
];

/** Leaves in order: what was read under the reference has been read. */
const dropReference: readonly Operation[] = [smpMb(), atomicAdd('bp_refs', -1)];

const publish: readonly Operation[] = [
  ...numbered(1, store('bp_ip', 'ip'), store('bp_code', 'new_code')),
  ...numbered(1, ...step('publish-barrier', smpWmb())),
  ...numbered(1, ...step('refs', store('bp_refs', 1))),
  ...numbered(1, ...step('breakpoint-barrier', smpWmb())),
];

const finish: readonly Operation[] = [
  label('drop'),
  ...numbered(5, ...step('refs', ...dropReference)),
  ...numbered(
    5,
    ...step(
      'last-wait',
      readClock('wait_began'),
      waitUntil('bp_refs', 'equal', 0, 'bp_wait_count'),
      noteLongest('bp_longest_wait', 'wait_began'),
    ),
  ),
];

const writeInThreeSteps: readonly Operation[] = [
  ...numbered(
    2,
    ...step('breakpoint', writeHead('ip', BREAKPOINT), branch('status', 'not-equal', 0, 'drop')),
  ),
  ...numbered(2, ...step('first-sync', syncAll())),
  ...numbered(3, writeTail('ip', 'new_code'), branch('status', 'not-equal', 0, 'drop')),
  ...numbered(3, ...step('tail-sync', syncAll())),
  ...numbered(4, writeHead('ip', 'new_code')),
  ...numbered(4, ...step('last-sync', syncAll())),
];

const steps = [
  { name: 'publish-barrier', meaning: 'smp_wmb after the site is published, before traps may look' },
  { name: 'breakpoint-barrier', meaning: 'smp_wmb before the breakpoint is written' },
  { name: 'breakpoint', meaning: 'the breakpoint itself' },
  { name: 'first-sync', meaning: 'sync all CPUs after the breakpoint' },
  { name: 'tail-sync', meaning: 'sync all CPUs after the tail' },
  { name: 'last-sync', meaning: 'sync all CPUs after the first byte' },
  { name: 'refs', meaning: 'traps hold references, for which the patcher waits' },
  { name: 'last-wait', meaning: 'the patcher waits until no trap holds a reference' },
] as const;

const int3Routines: readonly Routine[] = [
  { name: 'do_ftrace_mod_code', operations: [...publish, ...writeInThreeSteps, ...finish] },
  {
    name: 'poke_int3_handler',
    operations: [
      ...numbered(6, ...step('refs', ...takeReference)),
      ...numbered(7, load('published_ip', 'bp_ip'), branch('published_ip', 'not-equal', TRAPPED_IP, 'other')),
      ...numbered(7, load('published_code', 'bp_code')),
      ...numbered(7, ...step('refs', ...dropReference)),
      ...numbered(7, ...step('emulate', emulate('published_code'))),
      ...numbered(7, ...instead('emulate', emulate(SKIP))),
      label('other'),
      ...numbered(7, ...step('refs', ...dropReference)),
      label('over'),
      ...numbered(6, retry()),
    ],
  },
  ftraceModifyCode,
  ...whatRuns,
];

export const int3: Protocol = {
  name: 'int3',
  title: 'the protocol of 2012: breakpoint, sync, tail, sync, head, sync',
  purpose: 'changes code while everybody runs, at the price of traps',
  words,
  steps: [
    ...steps,
    { name: 'emulate', meaning: 'a trap emulates the new instruction; without it, it skips the site' },
  ],
  routines: int3Routines,
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
  thread: 'thread',
  trap: 'poke_int3_handler',
};

/** A trap is taken for a nop: right from nop to call, and wrong from one call to another, where neither is called. */
export const int3Skip: Protocol = {
  ...int3,
  name: 'int3-skip',
  title: 'int3, with a trap taken for a nop',
  purpose: 'a known mistake: neither of two calls is made',
  without: ['emulate'],
};

/** The published site is reused while a handler may still read it. */
export const int3NoRefs: Protocol = {
  ...int3,
  name: 'int3-no-refs',
  title: 'int3, without references',
  purpose: 'a known mistake: what handlers read is reused under them',
  without: ['refs'],
};

/**
 * The same with handlers that help:
 *  8. A trap at the published site takes a reference and makes the change itself, from the breakpoint on: breakpoint,
 *     sync, tail, sync, head; then it drops the reference and executes the site again. All write the same bytes.
 * Why it writes the breakpoint, which it has just executed: it may be late. It trapped on the breakpoint of the change
 * before, took its reference in this change, of the same site, and finds it published with no breakpoint there yet.
 * Nobody traps for longer than the change takes him, however long the patcher is kept from running. Step 5 matters the
 * more: a late helper would write the old change's bytes.
 */
export const int3Help: Protocol = {
  name: 'int3-help',
  title: 'int3, with traps that help to make the change',
  purpose: 'a trap lasts no longer than the change, even if the patcher is not running',
  words: [...words, helpedCount],
  steps: [
    ...steps,
    { name: 'helper-breakpoint', meaning: 'a trap that helps writes the breakpoint first: it may be late' },
  ],
  routines: [
    { name: 'do_ftrace_mod_code', operations: [...publish, ...writeInThreeSteps, ...finish] },
    {
      name: 'make_change',
      operations: [
        ...numbered(8, ...step('helper-breakpoint', writeHead('published_ip', BREAKPOINT))),
        ...numbered(8, ...step('first-sync', syncAll())),
        ...numbered(8, writeTail('published_ip', 'published_code')),
        ...numbered(8, ...step('tail-sync', syncAll())),
        ...numbered(8, writeHead('published_ip', 'published_code')),
      ],
    },
    {
      name: 'poke_int3_handler',
      operations: [
        ...numbered(6, ...step('refs', ...takeReference)),
        ...numbered(
          7,
          load('published_ip', 'bp_ip'),
          branch('published_ip', 'not-equal', TRAPPED_IP, 'other'),
        ),
        ...numbered(7, load('published_code', 'bp_code')),
        ...numbered(8, call('make_change'), count('bp_update_count')),
        label('other'),
        ...numbered(8, ...step('refs', ...dropReference)),
        label('over'),
        ...numbered(6, retry()),
      ],
    },
    ftraceModifyCode,
    ...whatRuns,
  ],
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
  thread: 'thread',
  trap: 'poke_int3_handler',
};

/** A helper trusts that the breakpoint which it executed is of the change that it finds published. */
export const int3HelpLate: Protocol = {
  ...int3Help,
  name: 'int3-help-late',
  title: 'int3-help, with helpers that do not write the breakpoint',
  purpose: 'shows that a late helper of one change writes into the next',
  without: ['helper-breakpoint'],
};
