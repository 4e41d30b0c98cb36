import { parentPort, workerData } from 'node:worker_threads'
import Database from 'libsql'
import { migrate } from './migrations.ts'
import { OPERATIONS, type OperationName } from './operations.ts'
import type { Connection } from './sql.ts'

/** One SQLite connection in a thread of its own: batches in, answers out, one commit a batch (group commit). */
export interface WorkerCall {
  name: OperationName
  args: unknown
  now: number
}

export type WorkerAnswer = { ok: true; value: unknown } | { ok: false; message: string; busy: boolean }

interface WorkerData {
  file: string
  migrate: boolean
}

const { file, migrate: mayMigrate } = workerData as WorkerData
const port = parentPort
if (!port) throw new Error('sqlite-worker runs as a worker thread only')

const database = new Database(file)
database.pragma('journal_mode = WAL')
// FULL: a commit that was confirmed survives a power cut, not only the process (R14).
database.pragma('synchronous = FULL')
database.pragma('busy_timeout = 250')

/** What we use of a prepared statement; the package types its parameters for one call at a time. */
interface Statement {
  readonly reader: boolean
  all(...parameters: readonly unknown[]): unknown[]
  run(...parameters: readonly unknown[]): unknown
}

const statements = new Map<string, Statement>()

const connection: Connection = {
  dialect: 'sqlite',
  async execute(sql, parameters) {
    let statement = statements.get(sql)
    if (!statement) {
      statement = database.prepare(sql) as unknown as Statement
      statements.set(sql, statement)
    }
    if (statement.reader) return statement.all(...(parameters as never[]))
    statement.run(...(parameters as never[]))
    return []
  },
}

/** Runs the calls in one transaction. Throws, with nothing written, where any of them fails. */
async function transact(calls: readonly WorkerCall[]): Promise<unknown[]> {
  database.exec('BEGIN IMMEDIATE')
  try {
    const values: unknown[] = []
    for (const call of calls) {
      const operation = OPERATIONS[call.name] as (tx: object, args: unknown) => Promise<unknown>
      values.push(await operation({ connection, now: call.now }, call.args))
    }
    database.exec('COMMIT')
    return values
  } catch (error) {
    if (database.inTransaction) database.exec('ROLLBACK')
    throw error
  }
}

/** A call that fails must not take its neighbours with it: the batch is cut in half until it stands alone (R21). */
async function answerAll(calls: readonly WorkerCall[]): Promise<WorkerAnswer[]> {
  try {
    return (await transact(calls)).map((value) => ({ ok: true, value }))
  } catch (error) {
    const busy = String((error as { code?: unknown }).code).startsWith('SQLITE_BUSY')
    if (calls.length === 1 || busy) return calls.map(() => ({ ok: false, message: (error as Error).message, busy }))
    const half = Math.ceil(calls.length / 2)
    return [...(await answerAll(calls.slice(0, half))), ...(await answerAll(calls.slice(half)))]
  }
}

async function start(): Promise<void> {
  if (mayMigrate) {
    database.exec('BEGIN IMMEDIATE')
    await migrate(connection)
    database.exec('COMMIT')
  }
}

let tail: Promise<void> = start().then(
  () => port.postMessage({ ready: true }),
  (error: Error) => port.postMessage({ failed: error.message }),
)

port.on('message', (message: { id: number; calls: WorkerCall[] } | 'close') => {
  tail = tail.then(async () => {
    if (message === 'close') {
      database.close()
      port.close()
      return
    }
    port.postMessage({ id: message.id, answers: await answerAll(message.calls) })
  })
})
