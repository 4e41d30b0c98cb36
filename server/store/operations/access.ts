import { createHash } from 'node:crypto'
import type { AuditRow, EnrollmentRow, TokenRow } from '../schema.ts'
import { prepare, run } from '../sql.ts'
import type { Tx } from './tx.ts'

export type NewToken = Omit<TokenRow, 'created_at' | 'revoked_at'>

/** Stores a token by its hash; the same hash again (the environment's administrator token) changes nothing. */
export async function createToken(tx: Tx, args: NewToken): Promise<void> {
  await run(tx.connection, (db) =>
    db
      .insertInto('tokens')
      .values({ ...args, created_at: tx.now })
      .onConflict((c) => c.column('hash').doNothing()),
  )
}

const tokenByHash = prepare<{ hash: string }>()((db, bind) =>
  db.selectFrom('tokens').selectAll().where('hash', '=', bind('hash')),
)

export async function findToken(tx: Tx, args: { hash: string }): Promise<TokenRow | undefined> {
  return (await tokenByHash(tx.connection, args))[0]
}

export async function listTokens(tx: Tx): Promise<TokenRow[]> {
  return run(tx.connection, (db) => db.selectFrom('tokens').selectAll().orderBy('created_at'))
}

/** Answers whether there was such a token that still worked. */
export async function revokeToken(tx: Tx, args: { token_id: string }): Promise<boolean> {
  const rows = await run(tx.connection, (db) =>
    db
      .updateTable('tokens')
      .set({ revoked_at: tx.now })
      .where('token_id', '=', args.token_id)
      .where('revoked_at', 'is', null)
      .returning('token_id'),
  )
  return rows.length > 0
}

export type NewEnrollment = Omit<EnrollmentRow, 'created_at' | 'revoked_at'>

export async function createEnrollment(tx: Tx, args: NewEnrollment): Promise<void> {
  await run(tx.connection, (db) => db.insertInto('enrollments').values({ ...args, created_at: tx.now }))
}

export async function listEnrollments(tx: Tx): Promise<EnrollmentRow[]> {
  return run(tx.connection, (db) => db.selectFrom('enrollments').selectAll().orderBy('created_at'))
}

export interface AuditEntry {
  actor: string
  action: string
  target: string | null
  outcome: 'allowed' | 'denied' | 'failed'
  code: string | null
  ip: string | null
  request_id: string | null
}

/** Appends who did what. Each row hashes the one before it, so that a row taken out later shows. */
export async function appendAudit(tx: Tx, args: AuditEntry): Promise<void> {
  const [last] = await run(tx.connection, (db) =>
    db.selectFrom('audit').select('hash').orderBy('audit_id', 'desc').limit(1),
  )
  const row = {
    ...args,
    target: args.target === null ? null : JSON.stringify(args.target),
    at: tx.now,
    prev_hash: last?.hash ?? '',
  }
  const hash = createHash('sha256').update(JSON.stringify(row)).digest('hex')
  await run(tx.connection, (db) => db.insertInto('audit').values({ ...row, hash }))
}

export async function listAudit(tx: Tx, args: { limit: number; before: number | null }): Promise<AuditRow[]> {
  return run(tx.connection, (db) => {
    const query = db.selectFrom('audit').selectAll().orderBy('audit_id', 'desc').limit(args.limit)
    return args.before === null ? query : query.where('audit_id', '<', args.before)
  })
}
