// Which ranges are parts of other functions: decided by what the code shows, whatever the parts are called.
import type { UnwindTable } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark, type CodeRegions } from './code-regions.js';
import type { StackDepths } from './stack-depths.js';
import type { LeavingJump } from './sweep.js';

/** How often owners are passed on: a part of a part of a part. */
const ROUNDS = 4;

/**
 * Finds the fragments, their owners, and which functions are entered or left in the middle. A range is a part of another
 * function, and no call comes to its start, if
 *
 * 1. the unwind table says that something has been pushed there already,
 * 2. a jump comes to it with something pushed: nothing that calls is left like that,
 * 3. it jumps back into the middle of the function that jumps to it,
 * 4. the function that jumps to it uses its red zone, and nobody calls it or takes its address, or
 * 5. its symbol says so (`.cold`): such a part may be reached by exceptions only.
 *
 * The first four have one hazard in common: what lies below the stack pointer, or what is on top of it, is not what a call leaves.
 */
export function findFragments(
  regions: CodeRegions,
  ranges: CodeRanges,
  unwind: UnwindTable,
  depths: StackDepths,
  leaving: readonly LeavingJump[],
  isNamedFragment: (functionIndex: number) => boolean,
): void {
  const { traits, owners, starts, count } = ranges;
  const targets = new Int32Array(leaving.length);
  /** 1: the jump goes to the start of a range. */
  const entries = new Uint8Array(leaving.length);
  for (let k = 0; k < leaving.length; k++) {
    const { target } = leaving[k];
    const to = ranges.indexAt(target);
    targets[k] = to;
    if (to >= 0 && ranges.isEntry(to, target, regions)) entries[k] = 1;
  }

  for (let i = 0; i < count; i++) {
    const isPushed = unwind.isCallFrame(ranges.unwind[i], starts[i]) === false;
    if (isPushed || (ranges.functions[i] >= 0 && isNamedFragment(ranges.functions[i])))
      traits[i] |= Trait.fragment;
  }

  // Jumps into the middle, by pairs of source and target: few.
  const inside = new Map<number, Set<number>>();
  for (let k = 0; k < leaving.length; k++) {
    if (targets[k] < 0 || entries[k] === 1 || leaving[k].range < 0) continue;
    const known = inside.get(leaving[k].range);
    if (known === undefined) inside.set(leaving[k].range, new Set([targets[k]]));
    else known.add(targets[k]);
  }
  for (let k = 0; k < leaving.length; k++) {
    const { range: from, address } = leaving[k];
    const to = targets[k];
    if (entries[k] === 0 || from < 0 || ranges.has(to, Trait.fragment)) continue;
    const isCalled = (regions.marksWithin(starts[to], leaving[k].target + 1) & Mark.called) !== 0;
    // clang may jump to its function's end where it knows that nobody comes; what is called there is another function.
    const isEnd = isCalled && leaving[k].target === ranges.ends[from];
    const isPart =
      (!isEnd && depths.isCallFrame(from, address) === false) ||
      inside.get(to)?.has(from) === true ||
      (ranges.has(from, Trait.redZone) && !isCalled);
    if (isPart) {
      traits[to] |= Trait.fragment;
      owners[to] = from;
    }
  }

  // Owners: who jumps to its start, or into whose middle it jumps.
  for (let round = 0; round < ROUNDS; round++) {
    for (let k = 0; k < leaving.length; k++) {
      const { range: from } = leaving[k];
      const to = targets[k];
      if (from < 0 || to < 0) continue;
      if (entries[k] === 1 && ranges.has(to, Trait.fragment)) adopt(ranges, to, from);
      else if (entries[k] === 0 && ranges.has(from, Trait.fragment)) adopt(ranges, from, to);
      else if (entries[k] === 0 && ranges.has(to, Trait.fragment)) adopt(ranges, to, from);
    }
  }
  for (let i = 0; i < count; i++) owners[i] = ownerOf(ranges, i);

  for (let k = 0; k < leaving.length; k++) {
    const { range: from } = leaving[k];
    const to = targets[k];
    if (to < 0) continue;
    if (from >= 0 && owners[from] === owners[to]) {
      if (ranges.isEntry(owners[to], leaving[k].target, regions)) traits[owners[to]] |= Trait.reentered;
      continue;
    }
    if (entries[k] === 1 || ranges.functions[to] < 0) continue;
    traits[owners[to]] |= Trait.enteredInside;
    if (from >= 0) traits[owners[from]] |= Trait.leavesInside;
  }
}

/** Gives a fragment without an owner one that has, or is, one. */
function adopt({ owners, traits }: CodeRanges, fragment: number, by: number): void {
  if (owners[fragment] !== fragment || fragment === by) return;
  const isOwner = (traits[by] & Trait.fragment) === 0 || owners[by] !== by;
  if (isOwner) owners[fragment] = by;
}

function ownerOf({ owners }: CodeRanges, index: number): number {
  let owner = index;
  // A chain of parts is short; two that own each other are a damaged file's.
  for (let steps = 0; steps < 16 && owners[owner] !== owner; steps++) owner = owners[owner];
  return owner;
}
