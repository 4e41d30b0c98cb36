/** Time as a port, so that tests turn it by hand. */
export interface Clock {
  /** Milliseconds since 1970. */
  now(): number
}

/**
 * Wall-clock time read once and carried on by the monotonic clock: a jump of the wall clock fires no deadline (R9).
 */
export function systemClock(): Clock {
  const offset = Date.now() - performance.now()
  return { now: () => Math.round(offset + performance.now()) }
}
