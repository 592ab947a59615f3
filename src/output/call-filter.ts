import type { CallEnd, CallVisitor } from '../recording/index.js';

/** Which calls an output is to see. */
export interface CallFilter {
  /** Only calls that lasted at least so many ticks. */
  readonly minTicks?: number;
  /** Only calls inside fewer than so many others. */
  readonly maxDepth?: number;
}

/**
 * A stage before a visitor that hides calls from it. The own time of a hidden call counts as own time of the call
 * around it, so sums stay what they were.
 */
export function filterCalls(visitor: CallVisitor, filter: CallFilter): CallVisitor {
  let first = visitor;
  if (filter.maxDepth !== undefined) first = new DepthFilter(filter.maxDepth, first);
  // Next to the source of calls: it relies on seeing all of them.
  if (filter.minTicks !== undefined) first = new DurationFilter(filter.minTicks, first);
  return first;
}

/** The tag of a call that is hidden. */
const HIDDEN = -1;

class DepthFilter implements CallVisitor {
  readonly #maxDepth: number;
  readonly #next: CallVisitor;
  /** Own time of hidden calls, by lane, since a call that shows has ended. */
  readonly #hiddenSelf = new Map<number, number>();

  constructor(maxDepth: number, next: CallVisitor) {
    this.#maxDepth = maxDepth;
    this.#next = next;
  }

  onEnter(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number {
    // A parent that moved up, as a call around it was taken out, stays hidden with all inside it.
    if (depth >= this.#maxDepth || parentTag === HIDDEN) return HIDDEN;
    return this.#next.onEnter(lane, depth, functionIndex, tick, parentTag);
  }

  onLeave(
    lane: number,
    depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    self: number,
    end: CallEnd,
    tag: number,
    parentTag: number,
  ): void {
    const hidden = this.#hiddenSelf.get(lane) ?? 0;
    if (tag === HIDDEN) {
      this.#hiddenSelf.set(lane, hidden + self);
      return;
    }
    if (hidden > 0) this.#hiddenSelf.set(lane, 0);
    // The parent is hidden too only if it moved up: then this call shows as one without a parent.
    const parent = parentTag === HIDDEN ? 0 : parentTag;
    this.#next.onLeave(lane, depth, functionIndex, startTick, endTick, self + hidden, end, tag, parent);
  }

  onLeaf(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number {
    if (depth >= this.#maxDepth || parentTag === HIDDEN) return HIDDEN;
    return this.#next.onLeaf(lane, depth, functionIndex, tick, parentTag);
  }

  onLost(lane: number, depth: number, tick: number, records: number, isNotKept: boolean): void {
    this.#next.onLost(lane, Math.min(depth, this.#maxDepth), tick, records, isNotKept);
  }
}

/** An open call. Its tag is its position in `DurationFilter.#frames`. */
interface Frame {
  readonly tag: number;
  functionIndex: number;
  start: number;
  /** Own time of hidden calls inside it. */
  hiddenSelf: number;
  /** What the next visitor made of it, once it shows. */
  nextTag: number;
  isShown: boolean;
  /** The open calls around it and inside it, next to it. */
  outer: Frame | undefined;
  inner: Frame | undefined;
}

interface OpenFrames {
  innermost: Frame | undefined;
  /** The outermost that does not show. As calls around a call last at least as long, those that show are never inside it. */
  outermostHidden: Frame | undefined;
  /** How many show. */
  shown: number;
}

/**
 * A call shows from the moment it has lasted long enough, so that live output need not wait for its end: its entry is
 * passed on late, with the time at which it was.
 */
class DurationFilter implements CallVisitor {
  readonly #minTicks: number;
  readonly #next: CallVisitor;
  readonly #lanes = new Map<number, OpenFrames>();
  /** The first stands for tag 0, no call. */
  readonly #frames: Frame[] = [newFrame(0)];
  readonly #free: Frame[] = [];

  constructor(minTicks: number, next: CallVisitor) {
    this.#minTicks = minTicks;
    this.#next = next;
  }

  onEnter(laneId: number, _depth: number, functionIndex: number, tick: number): number {
    const lane = this.#lane(laneId);
    this.#showDue(laneId, lane, tick);
    const frame = this.#free.pop() ?? this.#addFrame();
    frame.functionIndex = functionIndex;
    frame.start = tick;
    frame.hiddenSelf = 0;
    frame.isShown = false;
    frame.outer = lane.innermost;
    if (frame.outer !== undefined) frame.outer.inner = frame;
    lane.innermost = frame;
    lane.outermostHidden ??= frame;
    return frame.tag;
  }

  onLeave(
    laneId: number,
    depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    self: number,
    end: CallEnd,
    tag: number,
  ): void {
    const lane = this.#lane(laneId);
    this.#showDue(laneId, lane, endTick);
    const frame = this.#frames[tag];
    const { outer, inner } = frame;
    if (lane.innermost === frame) lane.innermost = outer;
    if (lane.outermostHidden === frame) lane.outermostHidden = inner;
    if (outer !== undefined) outer.inner = inner;
    if (inner !== undefined) inner.outer = outer;
    frame.outer = undefined;
    frame.inner = undefined;
    this.#free.push(frame);
    const ownTime = self + frame.hiddenSelf;
    if (frame.isShown) {
      lane.shown--;
      const { nextTag } = frame;
      const parentTag = outer?.nextTag ?? 0;
      this.#next.onLeave(laneId, depth, functionIndex, startTick, endTick, ownTime, end, nextTag, parentTag);
    } else if (outer !== undefined) {
      outer.hiddenSelf += ownTime;
    }
  }

  onLeaf(): number {
    // It has no duration, so it did not last long enough.
    return 0;
  }

  onLost(laneId: number, _depth: number, tick: number, records: number, isNotKept: boolean): void {
    const lane = this.#lane(laneId);
    this.#showDue(laneId, lane, tick);
    this.#next.onLost(laneId, lane.shown, tick, records, isNotKept);
  }

  #showDue(laneId: number, lane: OpenFrames, now: number): void {
    let frame = lane.outermostHidden;
    while (frame !== undefined && now - frame.start >= this.#minTicks) {
      const parentTag = frame.outer?.nextTag ?? 0;
      frame.nextTag = this.#next.onEnter(laneId, lane.shown, frame.functionIndex, frame.start, parentTag);
      frame.isShown = true;
      lane.shown++;
      frame = frame.inner;
    }
    lane.outermostHidden = frame;
  }

  #addFrame(): Frame {
    const frame = newFrame(this.#frames.length);
    this.#frames.push(frame);
    return frame;
  }

  #lane(id: number): OpenFrames {
    let lane = this.#lanes.get(id);
    if (lane === undefined) {
      lane = { innermost: undefined, outermostHidden: undefined, shown: 0 };
      this.#lanes.set(id, lane);
    }
    return lane;
  }
}

function newFrame(tag: number): Frame {
  return {
    tag,
    functionIndex: 0,
    start: 0,
    hiddenSelf: 0,
    nextTag: 0,
    isShown: false,
    outer: undefined,
    inner: undefined,
  };
}
