import { createHash } from 'node:crypto'
import { describeIssues, toJson } from '../../protocol/codec.ts'
import { type CommandTypes, isFinal } from '../../protocol/commands.ts'
import { CodedError } from '../../protocol/errors.ts'
import { uuidv7 } from '../../protocol/ids.ts'
import type { Targets } from '../../protocol/messages.ts'
import { parseSelector } from '../../protocol/selector.ts'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { ExecutionChange } from '../store/operations/lanes.ts'
import type { ExecutionRow } from '../store/schema.ts'
import { announce, deliver, type RouteParts } from './route.ts'

export interface CommandRequest {
  type: string
  args: Record<string, unknown>
  targets: Targets
  offline: 'queue' | 'fail'
  expires_in_s?: number | undefined
  timeout_s?: number | undefined
}

export interface Submitted {
  command_id: string
  replayed: boolean
  executions: ExecutionChange[]
}

export interface CommandsParts extends RouteParts {
  clock: Clock
  types: CommandTypes
}

/** Submit, follow, cancel, retry: what operators do with commands, whatever way they came. */
export class Commands {
  readonly #parts: CommandsParts

  constructor(parts: CommandsParts) {
    this.#parts = parts
  }

  /**
   * Checks, stores and sends a command. When it resolves, the command is on disk (R14).
   * Throws `unknown_command_type`, `bad_args`, `bad_selector`, `no_targets`, `unknown_agent`, `agent_offline`,
   * `idempotency_conflict`, `store_unavailable`.
   */
  async submit(
    request: CommandRequest,
    by: { id: string; name: string },
    idempotencyKey: string | null,
    retryOf: string | null = null,
  ): Promise<Submitted> {
    const type = this.#parts.types.get(request.type)
    if (!type) {
      const known = [...this.#parts.types.keys()].join(', ')
      throw new CodedError(
        'unknown_command_type',
        `"${request.type.slice(0, 64)}" is not a command type; there are ${known}`,
      )
    }
    const args = type.args.safeParse(request.args)
    if (!args.success) throw new CodedError('bad_args', `${type.name}: ${describeIssues(args.error)}`)
    if (this.#parts.store.lagMs() > LIMITS.slowCommitMs) {
      throw new CodedError('store_unavailable', 'the store is slow; nothing was stored', { retryAfterS: 2 })
    }
    const agentIds = await this.#targets(request.targets)
    const commandId = uuidv7(this.#parts.clock.now())
    const stored = this.#parts.store.submit({
      command_id: commandId,
      type: { name: type.name, lane: type.lane },
      supersede_key: type.supersedeKey(args.data),
      args: args.data,
      targets: request.targets,
      actor: by.name,
      principal: by.id,
      offline: request.offline,
      expires_in_s: request.expires_in_s ?? LIMITS.expiresInS,
      timeout_s: request.timeout_s ?? type.timeoutS,
      idempotency_key: idempotencyKey,
      request_hash: createHash('sha256').update(toJson(request)).digest('hex'),
      retry_of: retryOf,
      executions: agentIds.map((agent_id) => ({
        exec_id: uuidv7(),
        agent_id,
        link: this.#parts.fleet.readyLink(agent_id),
      })),
    })
    const outcome = await stored.catch((error: Error) => {
      if (error instanceof CodedError && error.code === 'outcome_unknown') {
        throw new CodedError('outcome_unknown', `${error.message}; look up ${commandId}`, {
          retryAfterS: 5,
          details: { command_id: commandId },
        })
      }
      throw error
    })
    switch (outcome.outcome) {
      case 'unknown_agent':
        throw new CodedError('unknown_agent', `No active sessions found for agent '${outcome.agent_id}'`)
      case 'agent_offline':
        throw new CodedError(
          'agent_offline',
          `agent '${outcome.agent_id}' is away, and the command said offline: "fail"`,
        )
      case 'idempotency_conflict':
        throw new CodedError(
          'idempotency_conflict',
          `the idempotency key was used for command ${outcome.command_id} with another body`,
        )
      case 'stored':
        deliver(this.#parts, outcome.frames)
        announce(this.#parts, [...outcome.superseded, ...outcome.changes])
        return { command_id: outcome.command_id, replayed: outcome.replayed, executions: outcome.changes }
    }
  }

  async #targets(targets: Targets): Promise<string[]> {
    if ('agent_ids' in targets) return [...new Set(targets.agent_ids)]
    const selector = parseSelector(targets.selector)
    const agents = await this.#parts.store.listAgents()
    const ids = agents.filter((agent) => selector.matches(JSON.parse(agent.labels))).map((agent) => agent.agent_id)
    if (ids.length === 0) throw new CodedError('no_targets', `no agent matches ${selector.text}`)
    return ids
  }

  /** Waits until all executions are final, `seconds` have passed or the caller went away; then reads the store. */
  async wait(commandId: string, seconds: number, signal: AbortSignal | null): Promise<ExecutionRow[]> {
    const read = () => this.#parts.store.listExecutions({ command_id: commandId })
    let timer: NodeJS.Timeout | undefined
    let stop: () => void = () => undefined
    const over = new Promise<'over'>((resolve) => {
      timer = setTimeout(() => resolve('over'), Math.min(seconds, LIMITS.waitS) * 1000)
      signal?.addEventListener('abort', () => resolve('over'))
    })
    try {
      for (;;) {
        // Listen first, then read: a change in between is not missed.
        const changed = new Promise<'changed'>((resolve) => {
          stop = this.#parts.bus.subscribe((change) => {
            if (change.command_id === commandId && isFinal(change.state)) resolve('changed')
          })
        })
        const rows = await read()
        if (rows.every((row) => isFinal(row.state))) return rows
        const what = await Promise.race([changed, over])
        stop()
        if (what === 'over') return read()
      }
    } finally {
      stop()
      clearTimeout(timer)
    }
  }

  /** Cancels what is open. `force` ends it here and now, whatever the agent says later. */
  async cancel(commandId: string, execId: string | null, force: boolean): Promise<ExecutionChange[]> {
    const command = await this.#parts.store.getCommand({ command_id: commandId })
    if (!command) throw new CodedError('unknown_command', `there is no command ${commandId}`)
    const outcome = await this.#parts.store.cancel({ command_id: commandId, exec_id: execId, force })
    announce(this.#parts, outcome.changes)
    for (const { agent_id, ...cancel } of outcome.cancels) {
      this.#parts.fleet.get(agent_id)?.link.send({ t: 'cancel', ...cancel })
    }
    return outcome.executions
  }

  /** A new command for the targets that did not succeed. After `may_have_run`, a type that is not repeatable needs `force`. */
  async retry(
    commandId: string,
    by: { id: string; name: string },
    idempotencyKey: string | null,
    force: boolean,
  ): Promise<Submitted> {
    const command = await this.#parts.store.getCommand({ command_id: commandId })
    if (!command) throw new CodedError('unknown_command', `there is no command ${commandId}`)
    const failed = (await this.#parts.store.listExecutions({ command_id: commandId })).filter(
      (row) => isFinal(row.state) && row.state !== 'succeeded',
    )
    if (failed.length === 0) throw new CodedError('nothing_to_retry', 'every target succeeded or is still open')
    const risky = failed.find((row) => row.may_have_run === 1)
    if (risky && !force && !this.#parts.types.get(command.type)?.repeatable) {
      throw new CodedError(
        'needs_force',
        `${command.type} may have run on ${risky.agent_id} and is not repeatable; send force: true to run it again`,
      )
    }
    const request = {
      type: command.type,
      args: JSON.parse(command.args),
      targets: { agent_ids: failed.map((row) => row.agent_id) },
      offline: command.offline,
      expires_in_s: command.expires_in_s,
      timeout_s: command.timeout_s,
    }
    return this.submit(request, by, idempotencyKey, commandId)
  }

  /** One pass over what is due (R9). */
  async sweep(since: number): Promise<void> {
    const outcome = await this.#parts.store.sweep({ since, links: this.#parts.fleet.readyLinks() })
    announce(this.#parts, outcome.changes)
    deliver(this.#parts, outcome.frames)
  }
}
