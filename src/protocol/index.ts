export * from './operations.js';
export { describeOperation } from './describe-operation.js';
export {
  EFAULT,
  EINVAL,
  EPERM,
  HEAD_SIZE,
  MCOUNT_INSN_SIZE,
  UnknownStep,
  routineOf,
  withoutSteps,
} from './protocol.js';
export type { Protocol, Routine, Step, Word } from './protocol.js';
export { architectures, emptyHooks, hasHooks } from './nmi-frame.js';
export type { Architecture, Configuration } from './nmi-frame.js';
export { nmi2008 } from './nmi-2008.js';
export { MOD_CODE_WRITE_FLAG, nmiOneWord } from './nmi-one-word.js';
export { nmiSpan } from './nmi-span.js';
export { nmiNoStorm, nmiNoStormNaive } from './nmi-no-storm.js';
export { unprotected } from './unprotected.js';
export { nmiGated } from './nmi-gated.js';
export { int3, int3Help, int3HelpLate, int3NoRefs, int3Skip } from './int3.js';
export { protocolNamed, protocols } from './catalogue.js';
