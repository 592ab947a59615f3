export { Hold, type Standstill } from './hold.js';
export { Latches } from './latches.js';
export { FALSE_EINTR, HoldTimes, SessionTimes, makesCallAgain, pause, type HeldThread } from './stops.js';
export { Loader } from './loader.js';
export { OutsideMemory, TargetMemory } from './memory.js';
export { mappedFile, readModules, type Module, type UnusableModule } from './modules.js';
export { ownPermissions } from './permission.js';
export { hasFsgsbase } from './fsgsbase.js';
export { checkMachine, preflight, type Preflight } from './preflight.js';
export {
  RemoteCalls,
  STILL_LENT,
  hastenBeside,
  holdCaller,
  isCrowded,
  borrowCode,
  expectSuccess,
  type CallMaker,
  type RemoteCall,
} from './remote-calls.js';
export { SYSCALL_LENGTH, type BorrowedCode } from './return-frame.js';
export {
  SECCOMP_FILTER,
  checkSeccomp,
  hasOurFilters,
  mayCall,
  seccompRefusal,
  type PlannedCall,
} from './seccomp.js';
export { awaitUnshared, refuseShared } from './sharers.js';
export { passOnFiles } from './inherited.js';
export {
  findProgram,
  killStopped,
  ownEnvironment,
  spawnFree,
  spawnStopped,
  mayExecute,
  startFailure,
  type SpawnedProgram,
} from './spawn.js';
