/**
 * The memory models, from the strongest to the weakest.
 *
 * - `sc`: every access takes effect at once, in program order.
 * - `tso`: a FIFO store buffer on every CPU, as on x86. An atomic read-modify-write and smp_mb wait until it is empty.
 * - `pso`: stores to different words leave the buffer in any order; smp_wmb keeps those before it before those after it.
 * - `relaxed`: as pso, and an atomic read-modify-write orders nothing but the accesses to its own word. One whose old
 *   value nobody looks at is buffered like a store, and applied atomically when it leaves the buffer.
 *
 * Loads are performed in program order in all four, so smp_rmb has nothing to do here.
 */
export const memoryModels = ['sc', 'tso', 'pso', 'relaxed'] as const;
export type MemoryModel = (typeof memoryModels)[number];

/** The number of NMIs per CPU, or no bound at all. */
export type NmiBound = number | 'unbounded';

/** The bounds of a run: what the model machine has and does. */
export interface Machine {
  /** CPUs; the first is the patcher's. */
  readonly cpus: number;
  /** NMIs that may arrive on each CPU. */
  readonly nmis: NmiBound;
  readonly memory: MemoryModel;
  /** May NMIs run on two CPUs at once? */
  readonly overlap: 'any' | 'never';
}

export const defaultMachine: Machine = { cpus: 3, nmis: 1, memory: 'tso', overlap: 'any' };

/**
 * Entries that a store buffer may hold. A run that needs more ends the search with `unknown`: never a false `safe`.
 */
export const STORE_BUFFER_ENTRIES = 16;
