// Who is at the other end of a local socket, by the kernel's word (unix(7), SO_PEERCRED): of whoever connected, as it was then; of a server,
// as it was when it began to listen.
import type { Socket } from 'node:net';
import { SYS, addressOf, systemCall } from './system-call.js';

/** include/uapi/asm-generic/socket.h */
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
/** struct ucred: pid, uid, gid; 4 bytes each. */
const UCRED_BYTES = 12;
const UCRED_UID = 4;

export interface Peer {
  readonly pid: number;
  /** Effective user. */
  readonly uid: number;
}

/** Undefined where the kernel does not tell: that is no reason to trust anybody. */
export function peerOf(socket: Socket): Peer | undefined {
  // Node has no public name for a socket's descriptor.
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd?: unknown } | null };
  const fd = handle?.fd;
  if (typeof fd !== 'number' || fd < 0) return undefined;
  const credentials = new Uint8Array(UCRED_BYTES);
  const length = Uint8Array.of(UCRED_BYTES, 0, 0, 0);
  const result = systemCall(
    SYS.getsockopt,
    fd,
    SOL_SOCKET,
    SO_PEERCRED,
    addressOf(credentials),
    addressOf(length),
  );
  if (result < 0 || length[0] !== UCRED_BYTES) return undefined;
  const view = new DataView(credentials.buffer);
  return { pid: view.getInt32(0, true), uid: view.getUint32(UCRED_UID, true) };
}
