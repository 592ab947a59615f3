// Where signal handlers that run on held threads will return to. A handler that has interrupted another on a stack of its own (SA_ONSTACK)
// has its frame there; the other's frame is on the stack below, to which the saved stack pointer leads.
import { mappingAt, type Mapping, type MemoryRange } from '../linux/index.js';
import { signalFrames } from './signal-frames.js';

const MAX_SCANNED_STACK = 64 << 20;
const POINTER_SIZE = 8;
/**
 * Bounds on what is looked through besides the stacks that threads are on, in all, as words that only look like a frame may lead
 * anywhere. A program has one alternate stack for a thread.
 */
const MAX_FURTHER_STACKS = 8192;
const MAX_FURTHER_BYTES = 256 << 20;

/** Reads ranges one behind the other; what cannot be read is zero. The bytes are good until the next call. */
type ReadStacks = (ranges: readonly MemoryRange[]) => Uint8Array;

/** The stack that a thread with this stack pointer is on, from there to the end of the mapping. */
export function stackFrom(stackPointer: number, maps: readonly Mapping[]): MemoryRange {
  const address = Math.floor(stackPointer / POINTER_SIZE) * POINTER_SIZE;
  const stack = maps.at(mappingAt(maps, address));
  const isThere = stack !== undefined && address >= stack.start && address < stack.end;
  return { address, length: isThere ? Math.min(stack.end - address, MAX_SCANNED_STACK) : 0 };
}

function contains({ address, length }: MemoryRange, at: number): boolean {
  return at >= address && at < address + length;
}

/**
 * The saved instruction pointers in signal frames on stacks, and on those that the frames lead to. `most`: bytes that are read at
 * once, unless one stack alone has more.
 */
export function savedInstructionPointers(
  stacks: readonly MemoryRange[],
  maps: readonly Mapping[],
  most: number,
  read: ReadStacks,
): number[] {
  const found: number[] = [];
  const seen = [...stacks];
  let furtherBytes = 0;
  // From the stacks that threads are on to those below, until nothing new is found.
  for (let wanted = stacks; wanted.length > 0;) {
    const further: MemoryRange[] = [];
    for (const some of portions(wanted, most)) {
      let piece = 0;
      let start = 0;
      for (const { offset, instructionPointer, stackPointer } of signalFrames(read(some))) {
        found.push(instructionPointer);
        while (offset >= start + some[piece].length) start += some[piece++].length;
        // As a rule: it was interrupted on the same stack.
        if (contains(some[piece], stackPointer)) continue;
        const below = stackBelow(stackPointer, maps, seen);
        if (below === undefined || further.length + seen.length > stacks.length + MAX_FURTHER_STACKS)
          continue;
        furtherBytes += below.length;
        if (furtherBytes > MAX_FURTHER_BYTES) continue;
        seen.push(below);
        further.push(below);
      }
    }
    wanted = further;
  }
  return found;
}

/** What of the stack with this stack pointer has not been seen. Undefined: all of it has, or there is no stack there. */
function stackBelow(
  stackPointer: number,
  maps: readonly Mapping[],
  seen: readonly MemoryRange[],
): MemoryRange | undefined {
  const stack = stackFrom(stackPointer, maps);
  const mapping = maps.at(mappingAt(maps, stack.address));
  if (stack.length === 0 || mapping?.permissions.startsWith('rw') !== true) return undefined;
  let { length } = stack;
  for (const range of seen) {
    if (contains(range, stack.address)) return undefined;
    // The stack that was seen may lie above this one in the same mapping.
    if (range.address > stack.address) length = Math.min(length, range.address - stack.address);
  }
  return { address: stack.address, length };
}

function* portions(stacks: readonly MemoryRange[], most: number): Generator<readonly MemoryRange[]> {
  for (let from = 0; from < stacks.length;) {
    let to = from;
    let bytes = 0;
    do bytes += stacks[to++].length;
    while (to < stacks.length && bytes + stacks[to].length <= most);
    yield stacks.slice(from, to);
    from = to;
  }
}
