import { randomUUID } from 'node:crypto'
import {
  closeSync,
  constants,
  existsSync,
  fdatasync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { packValue, unpackValue } from '../protocol/codec.ts'
import { type OpenItem, type ResultMessage, WIRE_LIMITS } from '../protocol/messages.ts'
import { crc32 } from './crc32.ts'

/** What the ledger keeps of a command so that a restart can run it (R6). */
export interface AcceptedCommand {
  exec_id: string
  seq: number
  lane: string
  type: string
  args: Record<string, unknown>
  timeout_ms: number
}

export type Outcome = Pick<ResultMessage, 'status' | 'result' | 'error' | 'hash' | 'started_ms' | 'finished_ms'>

export interface Entry {
  seq: number
  state: OpenItem['state']
  command: AcceptedCommand | null
  outcome: Outcome | null
  /** When the hub said that it has the result; milliseconds since 1970. */
  confirmedAt: number | null
}

type Record_ =
  | { k: 'ledger'; ledger_id: string }
  | { k: 'epoch'; epoch: number }
  | { k: 'accepted'; command: AcceptedCommand }
  | { k: 'started'; exec_id: string }
  | { k: 'done'; exec_id: string; outcome: Outcome }
  | { k: 'tombstone'; exec_id: string; seq: number; outcome: Outcome }
  | { k: 'confirmed'; exec_ids: string[]; at: number; floor: number }

const HEADER_BYTES = 8
/** Commands remembered at most: beyond, new ones are refused as `busy`, old promises kept (R7). */
const MAX_ENTRIES = 100_000
/** Not forgotten before, even when settled (R7). */
const KEEP_MS = 3_600_000

const sync = promisify(fdatasync)

/**
 * The agent's durable memory of commands (R4-R8): an append-only file of checked records. Each method resolves when
 * its record is on disk; what comes in one tick shares one write and one sync.
 */
export class Ledger {
  readonly #file: string
  readonly #now: () => number
  readonly #entries = new Map<string, Entry>()
  #fd: number
  #size = 0
  #queue: { data: Uint8Array; resolve(): void; reject(error: Error): void }[] = []
  #writing = false
  ledgerId = ''
  lastLinkEpoch = 0
  maxSeq = 0
  floor = 0

  private constructor(file: string, now: () => number) {
    this.#file = file
    this.#now = now
    this.#fd = openSync(file, constants.O_RDWR | constants.O_CREAT, 0o600)
  }

  /**
   * Opens the ledger in `folder`, or makes one. A torn last record is dropped; damage elsewhere puts the file aside and
   * starts anew under a new `ledger_id` (R4), which tells the hub that memory was lost.
   */
  static async open(folder: string, now: () => number = Date.now): Promise<Ledger> {
    const file = path.join(folder, 'ledger')
    if (existsSync(file)) {
      const ledger = new Ledger(file, now)
      if (ledger.#load()) return ledger
      closeSync(ledger.#fd)
      renameSync(file, `${file}.damaged-${now()}`)
    }
    const fresh = new Ledger(file, now)
    fresh.ledgerId = randomUUID()
    await fresh.#append({ k: 'ledger', ledger_id: fresh.ledgerId })
    const directory = openSync(folder, 'r')
    fsyncSync(directory)
    closeSync(directory)
    return fresh
  }

  /** Reads all records. False where the file is damaged before its end, or names no ledger. */
  #load(): boolean {
    const data = readFileSync(this.#file)
    let at = 0
    while (at < data.length) {
      const length = at + HEADER_BYTES <= data.length ? data.readUInt32LE(at) : Number.POSITIVE_INFINITY
      const end = at + HEADER_BYTES + length
      if (end > data.length) break
      const body = data.subarray(at + HEADER_BYTES, end)
      if (crc32(body) !== data.readUInt32LE(at + 4)) {
        // The last record may be torn; anything after it means that this one was whole once.
        if (end === data.length) break
        return false
      }
      this.#apply(unpackValue(body) as Record_)
      at = end
    }
    ftruncateSync(this.#fd, at)
    this.#size = at
    this.#forget()
    return this.ledgerId !== ''
  }

  #apply(record: Record_): void {
    switch (record.k) {
      case 'ledger':
        this.ledgerId = record.ledger_id
        return
      case 'epoch':
        this.lastLinkEpoch = record.epoch
        return
      case 'accepted':
        this.#remember(record.command.exec_id, {
          seq: record.command.seq,
          state: 'accepted',
          command: record.command,
          outcome: null,
          confirmedAt: null,
        })
        return
      case 'started':
        this.#change(record.exec_id, { state: 'started' })
        return
      case 'done':
        this.#change(record.exec_id, { state: 'done', outcome: record.outcome, command: null })
        return
      case 'tombstone':
        this.#remember(record.exec_id, {
          seq: record.seq,
          state: 'cancelled',
          command: null,
          outcome: record.outcome,
          confirmedAt: null,
        })
        return
      case 'confirmed':
        this.floor = Math.max(this.floor, record.floor)
        for (const id of record.exec_ids) this.#change(id, { confirmedAt: record.at })
        return
    }
  }

  #remember(execId: string, entry: Entry): void {
    this.maxSeq = Math.max(this.maxSeq, entry.seq)
    this.#entries.set(execId, entry)
  }

  #change(execId: string, change: Partial<Entry>): void {
    const entry = this.#entries.get(execId)
    if (entry) Object.assign(entry, change)
  }

  /** R7: only what is confirmed, old enough and below the floor. */
  #forget(): void {
    const before = this.#now() - KEEP_MS
    for (const [id, entry] of this.#entries) {
      if (entry.confirmedAt !== null && entry.confirmedAt < before && entry.seq < this.floor) this.#entries.delete(id)
    }
  }

  get(execId: string): Entry | undefined {
    return this.#entries.get(execId)
  }

  get full(): boolean {
    return this.#entries.size >= MAX_ENTRIES
  }

  /** What is not settled, for `open`; results of `done` ones follow as messages. */
  open(): OpenItem[] {
    return this.unsettled().map(([exec_id, entry]) => ({ exec_id, seq: entry.seq, state: entry.state }))
  }

  unsettled(): [string, Entry][] {
    return [...this.#entries].filter(([, entry]) => entry.confirmedAt === null)
  }

  /** Remembered at once, so that a twin during the sync is caught (R4); on disk when it resolves. */
  async accept(command: AcceptedCommand): Promise<void> {
    this.#apply({ k: 'accepted', command })
    try {
      await this.#append({ k: 'accepted', command })
    } catch (error) {
      this.#entries.delete(command.exec_id)
      throw error
    }
  }

  started(execId: string): Promise<void> {
    return this.#record({ k: 'started', exec_id: execId })
  }

  done(execId: string, outcome: Outcome): Promise<void> {
    return this.#record({ k: 'done', exec_id: execId, outcome })
  }

  /** R8: after this, bytes of that command that come late do not run. */
  tombstone(execId: string, seq: number, outcome: Outcome): Promise<void> {
    return this.#record({ k: 'tombstone', exec_id: execId, seq, outcome })
  }

  confirm(execIds: string[], floor: number): Promise<void> {
    this.#forget()
    return this.#record({ k: 'confirmed', exec_ids: execIds, at: this.#now(), floor })
  }

  setEpoch(epoch: number): Promise<void> {
    return this.#record({ k: 'epoch', epoch })
  }

  async close(): Promise<void> {
    await this.#append({ k: 'epoch', epoch: this.lastLinkEpoch })
    closeSync(this.#fd)
  }

  async #record(record: Record_): Promise<void> {
    await this.#append(record)
    this.#apply(record)
  }

  #append(record: Record_): Promise<void> {
    const body = packValue(record)
    if (body.length > WIRE_LIMITS.engineBytes) return Promise.reject(new Error('a ledger record is over its limit'))
    const data = Buffer.alloc(HEADER_BYTES + body.length)
    data.writeUInt32LE(body.length, 0)
    data.writeUInt32LE(crc32(body), 4)
    data.set(body, HEADER_BYTES)
    return new Promise((resolve, reject) => {
      this.#queue.push({ data, resolve, reject })
      if (!this.#writing) {
        this.#writing = true
        setImmediate(() => void this.#flush())
      }
    })
  }

  async #flush(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue.splice(0)
      const data = Buffer.concat(batch.map((item) => item.data))
      try {
        let written = 0
        while (written < data.length)
          written += writeSync(this.#fd, data, written, data.length - written, this.#size + written)
        await sync(this.#fd)
        this.#size += data.length
        for (const item of batch) item.resolve()
      } catch (error) {
        // What was written of it must not look like records after the next start.
        ftruncateSync(this.#fd, this.#size)
        for (const item of batch) item.reject(error as Error)
      }
    }
    this.#writing = false
  }
}
