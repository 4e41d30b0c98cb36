import { Worker } from 'node:worker_threads'
import { CodedError } from '../../protocol/errors.ts'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import { OPERATIONS, type OperationName, READS, type Store } from './operations.ts'
import type { WorkerAnswer, WorkerCall } from './sqlite-worker.ts'

interface Waiting {
  call: WorkerCall
  since: number
  resolve(value: unknown): void
  reject(error: Error): void
}

// Tests run this file as TypeScript; a worker thread needs the compiled one.
const WORKER = import.meta.url.endsWith('.ts')
  ? new URL('../../dist/server/store/sqlite-worker.js', import.meta.url)
  : new URL('./sqlite-worker.js', import.meta.url)

/** A connection in its thread. What comes while a batch is under way makes up the next one: that is the group commit. */
class Lane {
  readonly #worker: Worker
  readonly #clock: Clock
  readonly #ready: Promise<void>
  #queue: Waiting[] = []
  #inFlight: Waiting[] = []
  #scheduled = false
  #lost: Error | null = null

  constructor(file: string, migrate: boolean, clock: Clock) {
    this.#clock = clock
    this.#worker = new Worker(WORKER, { workerData: { file, migrate } })
    this.#ready = new Promise((resolve, reject) => {
      this.#worker.once('message', (message: { ready?: true; failed?: string }) => {
        if (message.ready) resolve()
        else reject(new Error(message.failed ?? 'the store did not start'))
      })
      this.#worker.once('error', reject)
    })
    this.#worker.on('message', (message: { answers?: WorkerAnswer[] }) => {
      if (message.answers) this.#settle(message.answers)
    })
    this.#worker.on('error', (error) => this.#fail(error as Error))
  }

  ready(): Promise<void> {
    return this.#ready
  }

  lagMs(): number {
    const oldest = this.#inFlight[0] ?? this.#queue[0]
    return oldest ? this.#clock.now() - oldest.since : 0
  }

  call(name: OperationName, args: unknown): Promise<unknown> {
    if (this.#lost)
      return Promise.reject(new CodedError('store_unavailable', 'the store has stopped; the hub has to be restarted'))
    if (this.#queue.length >= LIMITS.storeQueue) {
      return Promise.reject(
        new CodedError('store_unavailable', 'too much waits for the store; nothing was stored', { retryAfterS: 1 }),
      )
    }
    const since = this.#clock.now()
    return new Promise((resolve, reject) => {
      this.#queue.push({ call: { name, args, now: since }, since, resolve, reject })
      this.#schedule()
    })
  }

  /** Finishes what waits, then ends the thread. */
  async close(): Promise<void> {
    while (this.#queue.length > 0 || this.#inFlight.length > 0) await this.#nextAnswer()
    const exited = new Promise((resolve) => this.#worker.once('exit', resolve))
    this.#worker.postMessage('close')
    await exited
  }

  #nextAnswer(): Promise<void> {
    return new Promise((resolve) => {
      this.#worker.once('message', () => resolve())
      this.#worker.once('error', () => resolve())
    })
  }

  #schedule(): void {
    if (this.#scheduled || this.#inFlight.length > 0) return
    this.#scheduled = true
    // After the poll phase: whatever this turn of the loop has read shares the commit.
    setImmediate(() => {
      this.#scheduled = false
      this.#send(this.#queue.splice(0))
    })
  }

  #send(batch: Waiting[]): void {
    if (batch.length === 0) return
    this.#inFlight = batch
    this.#worker.postMessage({ id: 0, calls: batch.map((waiting) => waiting.call) })
  }

  #settle(answers: readonly WorkerAnswer[]): void {
    const batch = this.#inFlight
    this.#inFlight = []
    // Another process holds the lock, so nothing of this batch happened: try it again as it was.
    if (answers.some((answer) => !answer.ok && answer.busy)) {
      this.#send(batch)
      return
    }
    answers.forEach((answer, i) => {
      const waiting = batch[i]
      if (answer.ok) waiting?.resolve(answer.value)
      else waiting?.reject(new Error(`${waiting.call.name}: ${answer.message}`))
    })
    this.#schedule()
  }

  #fail(error: Error): void {
    this.#lost = error
    const outcome = new CodedError('outcome_unknown', 'the store stopped during the commit')
    for (const waiting of [...this.#inFlight.splice(0), ...this.#queue.splice(0)]) waiting.reject(outcome)
  }
}

/**
 * Opens the embedded store in `file`, creating or migrating it. One thread writes, another reads, so that a long list
 * never holds up a commit. Throws where the file cannot be opened or is of a newer hub.
 */
export async function openSqlite(file: string, clock: Clock): Promise<Store> {
  const writer = new Lane(file, true, clock)
  await writer.ready()
  const reader = new Lane(file, false, clock)
  await reader.ready()
  const methods = Object.fromEntries(
    (Object.keys(OPERATIONS) as OperationName[]).map((name) => {
      const lane = Object.hasOwn(READS, name) ? reader : writer
      return [name, (args: unknown) => lane.call(name, args)]
    }),
  )
  return {
    ...(methods as Omit<Store, 'lagMs' | 'close'>),
    lagMs: () => writer.lagMs(),
    close: async () => {
      await writer.close()
      await reader.close()
    },
  }
}
