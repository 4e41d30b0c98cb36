import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import { describeIssues, packValue } from '../protocol/codec.ts'
import { type CommandTypes, LANES, type Lane } from '../protocol/commands.ts'
import { CodedError } from '../protocol/errors.ts'
import type { AgentToHub, HubToAgent } from '../protocol/messages.ts'
import { type Handlers, Rejection } from './handlers.ts'
import type { AcceptedCommand, Ledger, Outcome } from './ledger.ts'

type Command = Extract<HubToAgent, { t: 'command' }>
type Cancel = Extract<HubToAgent, { t: 'cancel' }>

interface Running {
  abort: AbortController
  why: 'timeout' | 'cancel' | null
}

export interface ExecutorParts {
  ledger: Ledger
  types: CommandTypes
  handlers: Handlers
  logger: Logger
  /** Says it on the live link, if there is one; what matters is said again after the next `ready`. */
  send(message: AgentToHub): void
}

/** Runs commands, each at most once (R4-R8), within its lane (R11). */
export class Executor {
  readonly #parts: ExecutorParts
  readonly #waiting: AcceptedCommand[] = []
  readonly #running = new Map<string, Running>()
  /** Cancels whose record is on its way to disk: bytes of those commands must not run meanwhile (R8). */
  readonly #cancelling = new Set<string>()
  readonly #laneUse: Record<Lane, number> = { control: 0, work: 0 }

  constructor(parts: ExecutorParts) {
    this.#parts = parts
  }

  /** R6, at start: `accepted` runs; `started` without `done` never runs again. */
  async recover(): Promise<void> {
    const { ledger } = this.#parts
    const entries = ledger.unsettled().sort(([, a], [, b]) => a.seq - b.seq)
    for (const [execId, entry] of entries) {
      if (entry.state === 'started') {
        const error = { code: 'interrupted', message: 'the agent died while the command ran' }
        await ledger.done(execId, makeOutcome({ status: 'failed', error }))
      } else if (entry.state === 'accepted' && entry.command) {
        this.#waiting.push(entry.command)
      }
    }
    this.#pump()
  }

  /** After `ready`: every result that the hub has not confirmed. */
  resend(): void {
    for (const [execId, entry] of this.#parts.ledger.unsettled()) {
      if (entry.outcome) this.#parts.send({ t: 'result', exec_id: execId, ...entry.outcome })
    }
  }

  /** `lateMs` is how long after its start-by time the command arrived (R10); below 0 it is in time. */
  async receive(command: Command, lateMs: number): Promise<void> {
    const { ledger, send } = this.#parts
    if (this.#cancelling.has(command.exec_id)) return
    const known = ledger.get(command.exec_id)
    if (known) {
      if (known.outcome) send({ t: 'result', exec_id: command.exec_id, ...known.outcome })
      else send({ t: known.state === 'started' ? 'started' : 'accepted', exec_id: command.exec_id })
      return
    }
    const refusal = this.#refusal(command, lateMs)
    const { exec_id, seq, lane, type, args, timeout_ms } = command
    if (refusal) {
      const outcome = makeOutcome({ status: 'rejected', error: refusal })
      // Below the floor nothing may be written: the id was forgotten for good.
      if (refusal.code !== 'forgotten' && refusal.code !== 'busy') await ledger.tombstone(exec_id, seq, outcome)
      send({ t: 'result', exec_id, ...outcome })
      return
    }
    const accepted = { exec_id, seq, lane, type, args, timeout_ms }
    try {
      await ledger.accept(accepted)
    } catch (error) {
      const message = `the agent cannot write its ledger: ${(error as Error).message}`
      send({
        t: 'result',
        exec_id,
        ...makeOutcome({ status: 'rejected', error: { code: 'ledger_unavailable', message } }),
      })
      return
    }
    if (this.#cancelling.has(exec_id) || ledger.get(exec_id)?.outcome) return
    send({ t: 'accepted', exec_id })
    this.#waiting.push(accepted)
    this.#pump()
  }

  #refusal(command: Command, lateMs: number): { code: string; message: string } | null {
    const { ledger, types, handlers } = this.#parts
    if (command.seq < ledger.floor)
      return { code: 'forgotten', message: 'this agent has settled and forgotten that command' }
    if (ledger.full) return { code: 'busy', message: 'the agent ledger is full' }
    if (lateMs > 0)
      return { code: 'expired_in_transit', message: `it arrived ${Math.round(lateMs)} ms after its start-by time` }
    const type = types.get(command.type)
    if (!type || !Object.hasOwn(handlers, command.type))
      return { code: 'unsupported', message: `this agent does not know "${command.type}"` }
    const args = type.args.safeParse(command.args)
    return args.success ? null : { code: 'bad_args', message: describeIssues(args.error) }
  }

  async cancel({ exec_id, seq, cancel_no }: Cancel): Promise<void> {
    const { ledger, send } = this.#parts
    const entry = ledger.get(exec_id)
    if (entry?.outcome) {
      send({ t: 'result', exec_id, ...entry.outcome })
      return
    }
    const running = this.#running.get(exec_id)
    if (running) {
      send({ t: 'cancel_reply', exec_id, cancel_no, outcome: 'agreed' })
      running.why ??= 'cancel'
      running.abort.abort()
      return
    }
    const at = this.#waiting.findIndex((command) => command.exec_id === exec_id)
    if (at >= 0) this.#waiting.splice(at, 1)
    const outcome = makeOutcome({ status: 'cancelled' })
    // R8: the answer goes out only when late bytes of that command can no longer run.
    this.#cancelling.add(exec_id)
    const written = entry ? ledger.done(exec_id, outcome) : ledger.tombstone(exec_id, seq, outcome)
    await written.finally(() => this.#cancelling.delete(exec_id))
    send({ t: 'cancel_reply', exec_id, cancel_no, outcome: 'agreed' })
    send({ t: 'result', exec_id, ...outcome })
  }

  #pump(): void {
    for (const lane of Object.keys(LANES) as Lane[]) {
      while (this.#laneUse[lane] < LANES[lane].width) {
        const at = this.#waiting.findIndex((command) => command.lane === lane)
        const [command] = at >= 0 ? this.#waiting.splice(at, 1) : []
        if (!command) break
        this.#laneUse[lane] += 1
        this.#run(command)
          .catch((error: Error) =>
            this.#parts.logger.error({ exec_id: command.exec_id, err: error.message }, 'could not settle a command'),
          )
          .finally(() => {
            // R11: the lane opens only now, when the run has really ended.
            this.#laneUse[lane] -= 1
            this.#pump()
          })
      }
    }
  }

  async #run(command: AcceptedCommand): Promise<void> {
    const { ledger, send } = this.#parts
    const running: Running = { abort: new AbortController(), why: null }
    this.#running.set(command.exec_id, running)
    const startedMs = Date.now()
    // R4: on disk before the first effect.
    await ledger.started(command.exec_id)
    send({ t: 'started', exec_id: command.exec_id })
    const timer = setTimeout(() => {
      running.why ??= 'timeout'
      running.abort.abort()
    }, command.timeout_ms)
    const ended = await this.#handle(command, running).finally(() => clearTimeout(timer))
    this.#running.delete(command.exec_id)
    const outcome = makeOutcome({ ...ended, started_ms: startedMs, finished_ms: Date.now() })
    await ledger.done(command.exec_id, outcome)
    send({ t: 'result', exec_id: command.exec_id, ...outcome })
  }

  async #handle(command: AcceptedCommand, running: Running): Promise<Omit<Outcome, 'hash'>> {
    const { handlers, send } = this.#parts
    let n = 0
    try {
      const result = await handlers[command.type]?.run(command.args, {
        execId: command.exec_id,
        signal: running.abort.signal,
        progress: (progress) => send({ t: 'progress', exec_id: command.exec_id, n: n++, ...progress }),
      })
      return { status: 'succeeded', result }
    } catch (error) {
      if (running.why === 'timeout')
        return {
          status: 'timed_out',
          error: { code: 'deadline', message: `it ran longer than ${command.timeout_ms} ms` },
        }
      if (running.why === 'cancel') return { status: 'cancelled' }
      const coded = error instanceof CodedError ? error : new CodedError('handler_failed', (error as Error).message)
      return {
        status: coded instanceof Rejection ? 'rejected' : 'failed',
        error: { code: coded.code, message: coded.message.slice(0, 4096) },
      }
    }
  }
}

/** An outcome with the hash that tells a repeated result from a different one. */
function makeOutcome(outcome: Omit<Outcome, 'hash'>): Outcome {
  const { status, result, error } = outcome
  const hash = createHash('sha256').update(packValue({ status, result, error })).digest('hex')
  return { ...outcome, hash }
}
