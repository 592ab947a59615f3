// SIGCHLD, by which this process learns of its children. Node looks at all of them then, and takes a thread's stop for ptrace,
// if that is a child as well, for its end.
import { ACTION_WORDS, SIGNAL_SET_BYTES } from './abi.js';
import { addressOf, SYS, systemCall } from './system-call.js';

const SIGCHLD = 17;
/** include/uapi/asm-generic/signal-defs.h */
const SA_NOCLDSTOP = 1n;
const FLAGS_WORD = 1;

/** Stops are no occasion any more: of ends this process is told as before. */
export function tellNothingOfStops(): void {
  const action = new BigUint64Array(ACTION_WORDS);
  const address = addressOf(new Uint8Array(action.buffer));
  if (systemCall(SYS.rt_sigaction, SIGCHLD, 0, address, SIGNAL_SET_BYTES) < 0) return;
  if ((action[FLAGS_WORD] & SA_NOCLDSTOP) !== 0n) return;
  action[FLAGS_WORD] |= SA_NOCLDSTOP;
  systemCall(SYS.rt_sigaction, SIGCHLD, address, 0, SIGNAL_SET_BYTES);
}
