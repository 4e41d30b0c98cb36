import type { Logger } from 'pino'
import type { LocalBus } from '../bus/local.ts'
import type { Fleet } from '../fleet/fleet.ts'
import type { CommandFrame, ExecutionChange } from '../store/operations/lanes.ts'
import type { Store } from '../store/operations.ts'

export interface RouteParts {
  store: Store
  fleet: Fleet
  bus: LocalBus<ExecutionChange>
  logger: Logger
}

/** Tells dashboards and waiting callers what is committed. */
export function announce(parts: RouteParts, changes: readonly ExecutionChange[]): void {
  for (const change of changes) parts.bus.publish(change)
}

/**
 * Writes committed deliveries to their links (R2: `delivered` is on disk by now). What a carrier proves unwritten goes
 * back to `queued`.
 */
export function deliver(parts: RouteParts, frames: readonly CommandFrame[]): void {
  for (const frame of frames) {
    const agent = parts.fleet.get(frame.agent_id)
    const outcome = agent
      ? parts.fleet.send(frame.agent_id, frame.link_epoch, {
          t: 'command',
          exec_id: frame.exec_id,
          seq: frame.seq,
          lane: frame.lane,
          type: frame.type,
          args: frame.args,
          attempt: frame.attempt,
          expires_hub_ms: parts.fleet.hubMs(agent, frame.expires_at),
          timeout_ms: frame.timeout_ms,
        })
      : 'unsent'
    if (outcome === 'unsent') {
      parts.store
        .unsend({ exec_id: frame.exec_id, link_epoch: frame.link_epoch })
        .then((changes) => announce(parts, changes))
        // It stays `delivered`; the agent's next `ready`, or the sweep, moves it on.
        .catch((error: Error) => parts.logger.warn({ exec_id: frame.exec_id, err: error.message }, 'could not requeue'))
    }
  }
}
