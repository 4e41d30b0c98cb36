import type { Logger } from 'pino'
import { checkMessage } from '../../protocol/codec.ts'
import { isFinal } from '../../protocol/commands.ts'
import { CodedError } from '../../protocol/errors.ts'
import { type HubToOperator, type OperatorToHub, operatorToHubSchemas } from '../../protocol/messages.ts'
import type { Access, Principal } from '../access/access.ts'
import type { LocalBus } from '../bus/local.ts'
import type { Clock } from '../clock.ts'
import type { Commands } from '../commands/commands.ts'
import type { ExecutionChange } from '../store/operations/lanes.ts'
import type { Store } from '../store/operations.ts'
import type { FramedRouteOptions, FramedSocket } from './framed-socket.ts'

export interface OperatorParts {
  access: Access
  commands: Commands
  store: Store
  bus: LocalBus<ExecutionChange>
  clock: Clock
  logger: Logger
}

/** The operator socket (protocol.md): commands at speed, with the checks and the audit of HTTP. */
export function operatorSocket(parts: OperatorParts): FramedRouteOptions<Principal> {
  return {
    path: '/api/v1/operator/socket',
    authenticate: (bearer) => parts.access.principalOf(bearer),
    open: (socket) => new OperatorSession(socket, parts),
    clock: parts.clock,
  }
}

class OperatorSession {
  readonly #socket: FramedSocket<Principal>
  readonly #parts: OperatorParts
  /** Commands to tell about, each with its executions that are still open. */
  readonly #followed = new Map<string, Set<string>>()
  readonly #unsubscribe: () => void

  constructor(socket: FramedSocket<Principal>, parts: OperatorParts) {
    this.#socket = socket
    this.#parts = parts
    this.#unsubscribe = parts.bus.subscribe((change) => {
      if (this.#followed.has(change.command_id)) this.#showSafely(change)
    })
  }

  receive(messages: readonly Record<string, unknown>[]): void {
    for (const raw of messages) {
      const requestId = typeof raw.request_id === 'string' ? raw.request_id.slice(0, 128) : undefined
      this.#take(raw).catch((error: Error) => {
        const coded =
          error instanceof CodedError ? error : new CodedError('internal', 'something went wrong in the hub')
        if (coded !== error) this.#parts.logger.error({ err: error.message }, 'operator message failed')
        const retry = coded.retryAfterS === undefined ? {} : { retry_after_s: coded.retryAfterS }
        const about = requestId === undefined ? {} : { request_id: requestId }
        this.#say({ t: 'error', code: coded.code, message: coded.message, ...about, ...retry })
      })
    }
  }

  closed(): void {
    this.#unsubscribe()
  }

  #say(message: HubToOperator): void {
    this.#socket.send(message)
  }

  async #take(raw: Record<string, unknown>): Promise<void> {
    const message = checkMessage(operatorToHubSchemas, raw)
    switch (message.t) {
      case 'ping':
        this.#say({ t: 'pong', seq: message.seq })
        return
      case 'run':
        await this.#run(message)
        return
      case 'cancel':
        await this.#cancel(message)
        return
    }
  }

  async #demand(type: string): Promise<Principal> {
    const principal = this.#socket.identity
    const about = { target: 'operator socket', ip: this.#socket.remoteAddress, request_id: null }
    await this.#parts.access.demand(principal, `commands:execute:${type}`, about)
    return principal
  }

  async #record(action: string, target: string): Promise<void> {
    const { name } = this.#socket.identity
    const ip = this.#socket.remoteAddress
    await this.#parts.store.appendAudit({
      actor: name,
      action,
      target,
      outcome: 'allowed',
      code: null,
      ip,
      request_id: null,
    })
  }

  async #run({ t: _t, request_id, follow, ...request }: Extract<OperatorToHub, { t: 'run' }>): Promise<void> {
    const principal = await this.#demand(request.type)
    const submitted = await this.#parts.commands.submit(request, principal, request_id)
    await this.#record(`commands:execute:${request.type}`, submitted.command_id)
    const executions = submitted.executions.map(({ exec_id, agent_id, state }) => ({ exec_id, agent_id, state }))
    this.#say({ t: 'submitted', request_id, command_id: submitted.command_id, executions })
    if (!follow) return
    // From here on changes are told; what changed before is read now.
    this.#followed.set(submitted.command_id, new Set(executions.map(({ exec_id }) => exec_id)))
    for (const row of await this.#parts.store.listExecutions({ command_id: submitted.command_id }))
      await this.#show(row)
  }

  async #cancel(message: Extract<OperatorToHub, { t: 'cancel' }>): Promise<void> {
    const { request_id, exec_id = null, force } = message
    const commandId = message.command_id ?? (exec_id === null ? null : await this.#commandOf(exec_id))
    const command = commandId === null ? undefined : await this.#parts.store.getCommand({ command_id: commandId })
    if (!command) throw new CodedError('unknown_command', 'there is no such command or execution')
    await this.#demand(command.type)
    const executions = await this.#parts.commands.cancel(command.command_id, exec_id, force)
    await this.#record('commands:cancel', command.command_id)
    this.#say({
      t: 'canceled',
      request_id,
      executions: executions.map(({ exec_id, agent_id, state }) => ({ exec_id, agent_id, state })),
    })
  }

  async #commandOf(execId: string): Promise<string | null> {
    return (await this.#parts.store.getExecution({ exec_id: execId }))?.command_id ?? null
  }

  #showSafely(change: ExecutionChange): void {
    this.#show(change).catch((error: Error) =>
      this.#parts.logger.warn({ err: error.message }, 'could not tell of a change'),
    )
  }

  async #show({ exec_id }: { exec_id: string }): Promise<void> {
    const row = await this.#parts.store.getExecution({ exec_id })
    if (!row) return
    const optional = {
      ...(row.progress === null ? {} : { progress: JSON.parse(row.progress) }),
      ...(row.result === null || row.state !== 'succeeded' ? {} : { result: JSON.parse(row.result) }),
      ...(row.error_code === null
        ? {}
        : {
            error: {
              code: row.error_code,
              message: JSON.parse(row.error_message ?? '""'),
              may_have_run: row.may_have_run === 1,
            },
          }),
    }
    const { command_id, agent_id, state, attempt } = row
    this.#say({ t: 'execution', exec_id, command_id, agent_id, state, attempt, ...optional })
    if (!isFinal(state)) return
    const open = this.#followed.get(command_id)
    open?.delete(exec_id)
    if (open?.size === 0) this.#followed.delete(command_id)
  }
}
