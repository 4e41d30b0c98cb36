import { type Compilable, type Kysely, sql } from 'kysely'
import { OPEN_STATES } from '../../protocol/commands.ts'
import type { Schema } from './schema.ts'
import { type Connection, run } from './sql.ts'

/**
 * Schema changes in order; the level is the count of those applied. A change only expands, and contracts one release
 * later (R22), so that a hub of the release before can still write.
 */
const OPEN = sql.raw(OPEN_STATES.map((state) => `'${state}'`).join(', '))

type Step = (db: Kysely<Schema>) => Compilable<unknown>

const firstLevel: readonly Step[] = [
  (db) =>
    db.schema
      .createTable('agents')
      .addColumn('agent_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('kind', 'text', (c) => c.notNull())
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('version', 'text')
      .addColumn('hostname', 'text')
      .addColumn('platform', 'text')
      .addColumn('labels', 'text', (c) => c.notNull())
      .addColumn('command_types', 'text', (c) => c.notNull())
      .addColumn('config_hash', 'text')
      .addColumn('config_revision', 'bigint')
      .addColumn('boot_id', 'text')
      .addColumn('ledger_id', 'text')
      .addColumn('confirmed_epoch', 'bigint', (c) => c.notNull())
      .addColumn('identity_conflict', 'text')
      .addColumn('link_epoch', 'bigint', (c) => c.notNull())
      .addColumn('link_state', 'text', (c) => c.notNull())
      .addColumn('link_replica', 'text')
      .addColumn('link_carrier', 'text')
      .addColumn('link_id', 'text')
      .addColumn('link_welcomed_at', 'bigint')
      .addColumn('client_ip', 'text')
      .addColumn('last_seen_at', 'bigint')
      .addColumn('last_reason', 'text')
      .addColumn('settled_at', 'bigint')
      .addColumn('last_seq', 'bigint', (c) => c.notNull()),
  (db) =>
    db.schema
      .createTable('credentials')
      .addColumn('credential_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('agent_id', 'text', (c) => c.notNull())
      .addColumn('hash', 'text', (c) => c.notNull().unique())
      .addColumn('state', 'text', (c) => c.notNull())
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('activated_at', 'bigint')
      .addColumn('revoked_at', 'bigint')
      .addColumn('enrollment_id', 'text')
      .addColumn('enroll_key_hash', 'text')
      .addColumn('sealed', 'text'),
  (db) => db.schema.createIndex('credentials_agent').on('credentials').column('agent_id'),
  (db) =>
    db.schema
      .createTable('enrollments')
      .addColumn('enrollment_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('hash', 'text', (c) => c.notNull().unique())
      .addColumn('name', 'text', (c) => c.notNull())
      .addColumn('agent_id', 'text')
      .addColumn('labels', 'text', (c) => c.notNull())
      .addColumn('uses_left', 'integer', (c) => c.notNull())
      .addColumn('expires_at', 'bigint', (c) => c.notNull())
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('created_by', 'text', (c) => c.notNull())
      .addColumn('revoked_at', 'bigint'),
  (db) =>
    db.schema
      .createTable('tokens')
      .addColumn('token_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('hash', 'text', (c) => c.notNull().unique())
      .addColumn('name', 'text', (c) => c.notNull())
      .addColumn('role', 'text')
      .addColumn('scopes', 'text', (c) => c.notNull())
      .addColumn('selector', 'text')
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('created_by', 'text', (c) => c.notNull())
      .addColumn('expires_at', 'bigint')
      .addColumn('revoked_at', 'bigint'),
  (db) =>
    db.schema
      .createTable('commands')
      .addColumn('command_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('type', 'text', (c) => c.notNull())
      .addColumn('args', 'text', (c) => c.notNull())
      .addColumn('targets', 'text', (c) => c.notNull())
      .addColumn('actor', 'text', (c) => c.notNull())
      .addColumn('principal', 'text', (c) => c.notNull())
      .addColumn('offline', 'text', (c) => c.notNull())
      .addColumn('expires_in_s', 'real', (c) => c.notNull())
      .addColumn('timeout_s', 'real', (c) => c.notNull())
      .addColumn('idempotency_key', 'text')
      .addColumn('retry_of', 'text')
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('total', 'integer', (c) => c.notNull()),
  (db) =>
    db.schema
      .createTable('idempotency_keys')
      .addColumn('principal', 'text', (c) => c.notNull())
      .addColumn('key', 'text', (c) => c.notNull())
      .addColumn('request_hash', 'text', (c) => c.notNull())
      .addColumn('command_id', 'text', (c) => c.notNull())
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addPrimaryKeyConstraint('idempotency_keys_pk', ['principal', 'key']),
  (db) =>
    db.schema
      .createTable('executions')
      .addColumn('exec_id', 'text', (c) => c.primaryKey().notNull())
      .addColumn('command_id', 'text', (c) => c.notNull())
      .addColumn('agent_id', 'text', (c) => c.notNull())
      .addColumn('seq', 'bigint', (c) => c.notNull())
      .addColumn('type', 'text', (c) => c.notNull())
      .addColumn('lane', 'text', (c) => c.notNull())
      .addColumn('state', 'text', (c) => c.notNull())
      .addColumn('slot', 'integer')
      .addColumn('attempt', 'integer', (c) => c.notNull())
      .addColumn('ledger_id', 'text')
      .addColumn('link_epoch', 'bigint')
      .addColumn('cancel_no', 'integer', (c) => c.notNull())
      .addColumn('cancel_from', 'text')
      .addColumn('supersede_key', 'text')
      .addColumn('created_at', 'bigint', (c) => c.notNull())
      .addColumn('delivered_at', 'bigint')
      .addColumn('accepted_at', 'bigint')
      .addColumn('started_at', 'bigint')
      .addColumn('canceling_at', 'bigint')
      .addColumn('finished_at', 'bigint')
      .addColumn('agent_started_at', 'bigint')
      .addColumn('agent_finished_at', 'bigint')
      .addColumn('expires_at', 'bigint', (c) => c.notNull())
      .addColumn('timeout_ms', 'bigint', (c) => c.notNull())
      .addColumn('deadline_at', 'bigint')
      .addColumn('due_at', 'bigint')
      .addColumn('progress', 'text')
      .addColumn('output_bytes', 'integer', (c) => c.notNull())
      .addColumn('output_truncated', 'integer', (c) => c.notNull())
      .addColumn('result', 'text')
      .addColumn('result_hash', 'text')
      .addColumn('error_code', 'text')
      .addColumn('error_message', 'text')
      .addColumn('may_have_run', 'integer', (c) => c.notNull())
      .addColumn('confirmed', 'integer', (c) => c.notNull())
      .addColumn('late_result', 'text'),
  (db) => db.schema.createIndex('executions_seq').unique().on('executions').columns(['agent_id', 'seq']),
  (db) => db.schema.createIndex('executions_command').on('executions').column('command_id'),
  (db) =>
    db.schema
      .createIndex('executions_open')
      .on('executions')
      .columns(['agent_id', 'lane', 'seq'])
      .where(sql<boolean>`state in (${OPEN})`),
  (db) =>
    db.schema
      .createIndex('executions_lane_slot')
      .unique()
      .on('executions')
      .columns(['agent_id', 'lane', 'slot'])
      .where(sql<boolean>`slot is not null`),
  (db) =>
    db.schema.createIndex('executions_due').on('executions').column('due_at').where(sql<boolean>`due_at is not null`),
  (db) =>
    db.schema
      .createTable('outputs')
      .addColumn('exec_id', 'text', (c) => c.notNull())
      .addColumn('stream', 'text', (c) => c.notNull())
      .addColumn('offset_bytes', 'integer', (c) => c.notNull())
      .addColumn('data', 'blob', (c) => c.notNull())
      .addPrimaryKeyConstraint('outputs_pk', ['exec_id', 'stream', 'offset_bytes']),
  (db) =>
    db.schema
      .createTable('audit')
      .addColumn('audit_id', 'integer', (c) => c.primaryKey().autoIncrement().notNull())
      .addColumn('at', 'bigint', (c) => c.notNull())
      .addColumn('actor', 'text', (c) => c.notNull())
      .addColumn('action', 'text', (c) => c.notNull())
      .addColumn('target', 'text')
      .addColumn('outcome', 'text', (c) => c.notNull())
      .addColumn('code', 'text')
      .addColumn('ip', 'text')
      .addColumn('request_id', 'text')
      .addColumn('details', 'text')
      .addColumn('prev_hash', 'text', (c) => c.notNull())
      .addColumn('hash', 'text', (c) => c.notNull()),
  (db) => db.schema.createIndex('audit_at').on('audit').column('at'),
]

const LEVELS: readonly (readonly Step[])[] = [firstLevel]

/** The level this hub writes. */
export const SCHEMA_LEVEL = LEVELS.length

/**
 * Brings an empty or older store to SCHEMA_LEVEL, inside the transaction that is open. Throws where the store says that
 * hubs of this level may no longer write it (R22).
 */
export async function migrate(connection: Connection): Promise<{ from: number; to: number }> {
  await run(connection, (db) =>
    db.schema
      .createTable('meta')
      .ifNotExists()
      .addColumn('key', 'text', (c) => c.primaryKey().notNull())
      .addColumn('value', 'text', (c) => c.notNull()),
  )
  const from = Number((await readMeta(connection, 'schema_level')) ?? 0)
  const lowestWriter = Number((await readMeta(connection, 'lowest_writer')) ?? 0)
  if (lowestWriter > SCHEMA_LEVEL) {
    throw new Error(
      `the store is at schema level ${from} and takes hubs of level ${lowestWriter} and newer; this hub writes level ${SCHEMA_LEVEL}: start the newer release`,
    )
  }
  for (const level of LEVELS.slice(from)) {
    for (const step of level) await run(connection, step)
  }
  if (from < SCHEMA_LEVEL) {
    await writeMeta(connection, 'schema_level', String(SCHEMA_LEVEL))
    await writeMeta(connection, 'lowest_writer', '1')
  }
  return { from, to: Math.max(from, SCHEMA_LEVEL) }
}

export async function readMeta(connection: Connection, key: string): Promise<string | undefined> {
  const rows = await run(connection, (db) => db.selectFrom('meta').select('value').where('key', '=', key))
  return rows[0]?.value
}

export async function writeMeta(connection: Connection, key: string, value: string): Promise<void> {
  await run(connection, (db) =>
    db
      .insertInto('meta')
      .values({ key, value })
      .onConflict((c) => c.column('key').doUpdateSet({ value })),
  )
}
