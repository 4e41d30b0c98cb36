import { SENT_STATES } from '../../../protocol/commands.ts'
import type { Hello, OpenItem } from '../../../protocol/messages.ts'
import type { AgentRow, CredentialRow } from '../schema.ts'
import { run } from '../sql.ts'
import { type CommandFrame, claimQueued, closeExecution, type ExecutionChange, floorOf, toFrame } from './lanes.ts'
import type { Tx } from './tx.ts'

/** The agent's row and its highest credential state; undefined where the hub has never seen it. */
export async function getAgent(tx: Tx, args: { agent_id: string }): Promise<AgentRow | undefined> {
  const rows = await run(tx.connection, (db) =>
    db.selectFrom('agents').selectAll().where('agent_id', '=', args.agent_id),
  )
  return rows[0]
}

export async function listAgents(tx: Tx): Promise<AgentRow[]> {
  return run(tx.connection, (db) => db.selectFrom('agents').selectAll().orderBy('agent_id'))
}

export async function findCredential(tx: Tx, args: { hash: string }): Promise<CredentialRow | undefined> {
  const rows = await run(tx.connection, (db) => db.selectFrom('credentials').selectAll().where('hash', '=', args.hash))
  return rows[0]
}

export interface EnrollArgs {
  token_hash: string
  agent_id: string
  labels: Readonly<Record<string, string>>
  key_hash: string
  credential_id: string
  credential_hash: string
  sealed: string
}

export type EnrollOutcome =
  | { outcome: 'enrolled'; agent_id: string; sealed: string }
  | { outcome: 'invalid_enrollment' }
  | { outcome: 'agent_id_taken' }

/**
 * Gives a machine its credential (protocol.md, Identity). The same key gets the same answer until the first `ready`;
 * only that `ready` spends the token, so a lost answer bricks nobody.
 */
export async function enroll(tx: Tx, args: EnrollArgs): Promise<EnrollOutcome> {
  const [token] = await run(tx.connection, (db) =>
    db.selectFrom('enrollments').selectAll().where('hash', '=', args.token_hash),
  )
  if (!token || token.revoked_at !== null || token.expires_at <= tx.now) return { outcome: 'invalid_enrollment' }
  const [repeated] = await run(tx.connection, (db) =>
    db
      .selectFrom('credentials')
      .selectAll()
      .where('enrollment_id', '=', token.enrollment_id)
      .where('enroll_key_hash', '=', args.key_hash)
      .where('state', '=', 'pending'),
  )
  if (repeated?.sealed) return { outcome: 'enrolled', agent_id: repeated.agent_id, sealed: repeated.sealed }
  if (token.uses_left < 1) return { outcome: 'invalid_enrollment' }
  const agentId = token.agent_id ?? args.agent_id
  const known = await getAgent(tx, { agent_id: agentId })
  if (known && token.agent_id !== agentId) return { outcome: 'agent_id_taken' }
  if (known?.kind === 'fustor') return { outcome: 'agent_id_taken' }
  if (!known) {
    const labels = JSON.stringify({ ...args.labels, ...JSON.parse(token.labels) })
    await run(tx.connection, (db) =>
      db.insertInto('agents').values({
        agent_id: agentId,
        kind: 'enrolled',
        created_at: tx.now,
        labels,
        command_types: '[]',
        confirmed_epoch: 0,
        link_epoch: 0,
        link_state: 'none',
        last_seq: 0,
      }),
    )
  }
  await run(tx.connection, (db) =>
    db.insertInto('credentials').values({
      credential_id: args.credential_id,
      agent_id: agentId,
      hash: args.credential_hash,
      state: 'pending',
      created_at: tx.now,
      enrollment_id: token.enrollment_id,
      enroll_key_hash: args.key_hash,
      sealed: args.sealed,
    }),
  )
  return { outcome: 'enrolled', agent_id: agentId, sealed: args.sealed }
}

export interface OpenLinkArgs {
  hello: Hello
  credential_id: string
  replica: string
  carrier: string
  link_id: string
  client_ip: string
}

export type OpenLinkOutcome =
  | { outcome: 'welcome'; link_epoch: number }
  | { outcome: 'identity_conflict'; reason: string }

/** Gives a link its epoch, `max(stored, hello.last_link_epoch) + 1`, unless R5 refuses the identity. */
export async function openLink(tx: Tx, { hello, ...args }: OpenLinkArgs): Promise<OpenLinkOutcome> {
  const agent = await getAgent(tx, { agent_id: hello.agent_id })
  if (!agent) return { outcome: 'identity_conflict', reason: 'the agent was removed from the hub; enrol it anew' }
  const [credential] = await run(tx.connection, (db) =>
    db.selectFrom('credentials').select('state').where('credential_id', '=', args.credential_id),
  )
  const reenrolled = credential?.state === 'pending'
  const rolledBack = agent.ledger_id === hello.ledger_id && hello.last_link_epoch < agent.confirmed_epoch
  if (!reenrolled && (rolledBack || agent.identity_conflict === hello.ledger_id)) {
    await run(tx.connection, (db) =>
      db
        .updateTable('agents')
        .set({ identity_conflict: hello.ledger_id, last_reason: JSON.stringify('identity conflict') })
        .where('agent_id', '=', hello.agent_id),
    )
    const reason = `the agent confirmed link epoch ${agent.confirmed_epoch} and now says ${hello.last_link_epoch}: its state is a clone or was rolled back; enrol it anew`
    return { outcome: 'identity_conflict', reason }
  }
  const epoch = Math.max(agent.link_epoch, hello.last_link_epoch) + 1
  await run(tx.connection, (db) =>
    db
      .updateTable('agents')
      .set({
        link_epoch: epoch,
        link_state: 'welcomed',
        link_replica: args.replica,
        link_carrier: args.carrier,
        link_id: args.link_id,
        link_welcomed_at: tx.now,
        client_ip: args.client_ip,
        last_seen_at: tx.now,
        version: hello.version,
        hostname: JSON.stringify(hello.hostname),
        platform: JSON.stringify(hello.platform),
        labels: JSON.stringify({ ...JSON.parse(agent.labels), ...hello.labels }),
        command_types: JSON.stringify(hello.command_types),
        config_hash: hello.config.hash,
        config_revision: hello.config.revision ?? null,
        boot_id: hello.boot_id,
        last_seq: Math.max(agent.last_seq, hello.max_seq),
      })
      .where('agent_id', '=', hello.agent_id),
  )
  return { outcome: 'welcome', link_epoch: epoch }
}

export interface ReadyArgs {
  agent_id: string
  credential_id: string
  link_epoch: number
  ledger_id: string
  open: readonly OpenItem[]
}

export type ReadyOutcome =
  | {
      outcome: 'ready'
      changes: ExecutionChange[]
      frames: CommandFrame[]
      cancels: { exec_id: string; seq: number; cancel_no: number }[]
      settled_below: number
      revoked_credentials: string[]
    }
  | { outcome: 'stale' }
  | { outcome: 'spent' }

/**
 * `ready`: the epoch is on the agent's disk. Settles what was sent against the agent's ledger (R5), makes a pending
 * credential the active one, and claims what waits.
 */
export async function linkReady(tx: Tx, args: ReadyArgs): Promise<ReadyOutcome> {
  const agent = await getAgent(tx, { agent_id: args.agent_id })
  if (!agent || agent.link_epoch !== args.link_epoch) return { outcome: 'stale' }
  const revoked = await activateCredential(tx, args)
  if (revoked === 'spent') return { outcome: 'spent' }
  await run(tx.connection, (db) =>
    db
      .updateTable('agents')
      .set({
        confirmed_epoch: args.link_epoch,
        ledger_id: args.ledger_id,
        identity_conflict: null,
        link_state: 'ready',
        settled_at: tx.now,
        last_seen_at: tx.now,
      })
      .where('agent_id', '=', args.agent_id)
      .where('link_epoch', '=', args.link_epoch),
  )
  const reported = new Map(args.open.map((item) => [item.exec_id, item.state]))
  const sent = await run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .selectAll()
      .where('agent_id', '=', args.agent_id)
      .where('state', 'in', SENT_STATES)
      .orderBy('seq'),
  )
  const changes: ExecutionChange[] = []
  const frames: CommandFrame[] = []
  const cancels: { exec_id: string; seq: number; cancel_no: number }[] = []
  for (const row of sent) {
    const state = reported.get(row.exec_id)
    if (
      state === undefined &&
      (row.ledger_id !== args.ledger_id || row.state === 'accepted' || row.state === 'running')
    ) {
      const message = 'the agent came back without the ledger that this was sent to'
      changes.push(
        ...(await closeExecution(tx, row, 'ledger_lost', 'failed', {
          code: 'ledger_lost',
          message,
          may_have_run: true,
        })),
      )
    } else if (row.state === 'canceling') {
      cancels.push({ exec_id: row.exec_id, seq: row.seq, cancel_no: row.cancel_no })
    } else if (state === undefined && row.expires_at <= tx.now) {
      const message = 'it had not reached the agent when its start-by time passed'
      changes.push(
        ...(await closeExecution(tx, row, 'not_started', 'expired', { code: 'expired', message, may_have_run: false })),
      )
    } else if (state === undefined) {
      frames.push(await toFrame(tx, row, { link_epoch: args.link_epoch, ledger_id: args.ledger_id }))
    }
  }
  const claimed = await claimQueued(tx, {
    agent_id: args.agent_id,
    link_epoch: args.link_epoch,
    ledger_id: args.ledger_id,
  })
  return {
    outcome: 'ready',
    changes: [...changes, ...claimed.changes],
    frames: [...frames, ...claimed.frames],
    cancels,
    settled_below: await floorOf(tx, args.agent_id),
    revoked_credentials: revoked,
  }
}

async function activateCredential(tx: Tx, args: ReadyArgs): Promise<string[] | 'spent'> {
  const [credential] = await run(tx.connection, (db) =>
    db.selectFrom('credentials').selectAll().where('credential_id', '=', args.credential_id),
  )
  if (!credential || credential.state === 'revoked') return 'spent'
  if (credential.state === 'active') return []
  const spend = await run(tx.connection, (db) =>
    db
      .updateTable('enrollments')
      .set((eb) => ({ uses_left: eb('uses_left', '-', 1) }))
      .where('enrollment_id', '=', credential.enrollment_id ?? '')
      .where('uses_left', '>', 0)
      .returning('enrollment_id'),
  )
  if (spend.length === 0) return 'spent'
  const old = await run(tx.connection, (db) =>
    db
      .updateTable('credentials')
      .set({ state: 'revoked', revoked_at: tx.now })
      .where('agent_id', '=', args.agent_id)
      .where('state', '=', 'active')
      .returning('credential_id'),
  )
  await run(tx.connection, (db) =>
    db
      .updateTable('credentials')
      .set({ state: 'active', activated_at: tx.now, sealed: null })
      .where('credential_id', '=', args.credential_id),
  )
  return old.map((row) => row.credential_id)
}

/** The link ended. A late close of an older link changes nothing: the epoch is the predicate. */
export async function linkClosed(
  tx: Tx,
  args: { agent_id: string; link_epoch: number; reason: string },
): Promise<void> {
  await run(tx.connection, (db) =>
    db
      .updateTable('agents')
      .set({ link_state: 'none', last_seen_at: tx.now, last_reason: JSON.stringify(args.reason) })
      .where('agent_id', '=', args.agent_id)
      .where('link_epoch', '=', args.link_epoch),
  )
}

/** At start: links of this replica died with the process before. */
export async function resetLinks(tx: Tx): Promise<void> {
  await run(tx.connection, (db) =>
    db
      .updateTable('agents')
      .set({ link_state: 'none', last_reason: JSON.stringify('the hub was restarted') })
      .where('link_state', '!=', 'none'),
  )
}
