export { Hold, HoldTimes, pause, type HeldThread } from './hold.js';
export { Loader } from './loader.js';
export { TargetMemory } from './memory.js';
export { readModules, type Module, type UnusableModule } from './modules.js';
export { hasFsgsbase, preflight, type Preflight } from './preflight.js';
export { RemoteCalls, STILL_LENT, borrowCode, expectSuccess, type RemoteCall } from './remote-calls.js';
export type { BorrowedCode } from './return-frame.js';
export { checkSeccomp, type PlannedCall } from './seccomp.js';
export { findProgram, killStopped, spawnStopped, type SpawnedProgram } from './spawn.js';
