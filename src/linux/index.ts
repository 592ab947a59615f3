export {
  ACTION_WORDS,
  AT_FDCWD,
  EVERYBODY,
  FUTEX,
  FUTEX_OWNER_DIED,
  GLIBC_TID_OFFSET,
  MADV,
  MAP,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MREMAP,
  O_CLOEXEC,
  O_RDWR,
  PAGE,
  PROT,
  SA_RESTORER,
  SA_SIGINFO,
  SEEK_SET,
  SIGNAL_SET_BYTES,
  SIG_UNBLOCK,
  UCONTEXT_REGISTERS,
  pageOf,
  roundToPage,
} from './abi.js';
export {
  ERRNO,
  SYS,
  addressOf,
  errnoName,
  mapOwn,
  placeOwnCode,
  systemCall,
  type OwnCode,
  type OwnMapping,
} from './system-call.js';
export {
  PTRACE_EVENT_EXEC,
  PTRACE_EVENT_STOP,
  PTRACE_O_EXITKILL,
  PTRACE_O_TRACEEXEC,
  PTRACE_O_TRACESYSGOOD,
  PTRACE_REQUEST,
  REGISTER_NAMES,
  Registers,
  SIGTRAP,
  SYSTEM_CALL_STOP,
  WAIT_ALL,
  WNOHANG,
  decodeWaitStatus,
  ptrace,
  ptraceSignalMask,
  readExtendedState,
  readSeccompFilter,
  stoppedBySignal,
  waitForThread,
  type RegisterName,
  type WaitResult,
} from './ptrace.js';
export {
  hasEnded,
  isInEnvironment,
  hasGuard,
  mappingAt,
  parseMaps,
  readAuxiliaryVector,
  readCloneCount,
  readCommandLine,
  readExecutableHead,
  readExecutablePath,
  readLimit,
  readLink,
  readMaps,
  readMaxMapCount,
  readOvercommit,
  readExitStatus,
  readStartTime,
  readStatus,
  readThreadName,
  readThreads,
  runnableThreads,
  showsEnd,
  type Mapping,
  bitSet,
  deviceText,
} from './proc.js';
export { bytesOfText, textOfBytes } from './path-text.js';
export { NotRegularError, RegularFile } from './regular-file.js';
export { availableMemory } from './available-memory.js';
export { readRemoteRanges, type MemoryRange } from './remote-memory.js';
export { tellNothingOfStops } from './child-signal.js';
export { peerOf, type Peer } from './peer.js';
export { PidFile } from './pid-file.js';
export { CaughtSignals, ENDING_SIGNALS, awaitWritable } from './caught-signals.js';
export { terminalColumns } from './terminal-size.js';
export { ProcessLock, effectiveUser, lockHolders, rightfulHolder, type LockHolder } from './process-lock.js';
export { faultPoint, isFaultWanted, waitAtFaultPoint } from './fault-point.js';
export { OWNER_ENTRY_BYTES, OwnerWord } from './owner-word.js';
export { processesSharing } from './shared-memory.js';
export { filePages } from './page-map.js';
export {
  createExecutableFile,
  createGrowingFile,
  createMemoryFile,
  createOpenFile,
  growMemoryFile,
  sealFutureWrite,
  sealMemoryFile,
  takeMemoryFile,
  type DescriptorOwner,
} from './memory-file.js';
export { haste, preferThread, urgency, wakeSooner, whilePreferred } from './urgency.js';
export { makeRoom, refillDescriptors, reserveDescriptors } from './descriptors.js';
