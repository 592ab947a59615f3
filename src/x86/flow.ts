/** What the instruction behind another one needs: how an instruction directs the flow. */
export const Flow = {
  next: 0,
  jump: 1,
  conditionalJump: 2,
  call: 3,
  indirectJump: 4,
  indirectCall: 5,
  /** `ret`, `ud2`: nothing behind it is reached from it. */
  end: 6,
  invalid: 7,
  /** Address of something into a register, perhaps of code. */
  leaRelative: 8,
} as const;
export type Flow = (typeof Flow)[keyof typeof Flow];

/** True if nothing behind such an instruction is reached from it. */
export function endsFlow(flow: Flow): boolean {
  return flow === Flow.end || flow === Flow.jump || flow === Flow.indirectJump;
}
