import { toJson } from '../../../protocol/codec.ts'
import type { CommandType, Lane } from '../../../protocol/commands.ts'
import { isFinal, TRANSITIONS } from '../../../protocol/commands.ts'
import type { Progress, ResultMessage } from '../../../protocol/messages.ts'
import { LIMITS } from '../../limits.ts'
import type { CommandRow, ExecutionRow } from '../schema.ts'
import { prepare, run } from '../sql.ts'
import {
  type CommandFrame,
  claimQueued,
  closeExecution,
  deliveredDeadline,
  type ExecutionChange,
  floorOf,
  freeSlot,
  type ReadyLink,
  toFrame,
} from './lanes.ts'
import type { Tx } from './tx.ts'

export interface SubmitArgs {
  command_id: string
  type: Pick<CommandType, 'name' | 'lane'>
  supersede_key: string | null
  args: Record<string, unknown>
  targets: unknown
  actor: string
  principal: string
  offline: 'queue' | 'fail'
  expires_in_s: number
  timeout_s: number
  idempotency_key: string | null
  request_hash: string
  retry_of: string | null
  /** One per target; `link` where it is ready on this replica. */
  executions: readonly { exec_id: string; agent_id: string; link: ReadyLink | null }[]
}

export type SubmitOutcome =
  | {
      outcome: 'stored'
      replayed: boolean
      command_id: string
      changes: ExecutionChange[]
      frames: CommandFrame[]
      superseded: ExecutionChange[]
    }
  | { outcome: 'unknown_agent'; agent_id: string }
  | { outcome: 'agent_offline'; agent_id: string }
  | { outcome: 'idempotency_conflict'; command_id: string }

const takeSeq = prepare<{ agent_id: string }>()((db, bind) =>
  db
    .updateTable('agents')
    .set((eb) => ({ last_seq: eb('last_seq', '+', 1) }))
    .where('agent_id', '=', bind('agent_id'))
    .returning(['last_seq', 'command_types']),
)

/** One row per target, in one commit with the command and its idempotency key (R1, R13). Decides before it writes. */
export async function submit(tx: Tx, args: SubmitArgs): Promise<SubmitOutcome> {
  if (args.idempotency_key !== null) {
    const earlier = await findIdempotent(tx, args.principal, args.idempotency_key)
    if (earlier && earlier.request_hash !== args.request_hash) {
      return { outcome: 'idempotency_conflict', command_id: earlier.command_id }
    }
    if (earlier) {
      const changes = await executionBriefs(tx, earlier.command_id)
      return { outcome: 'stored', replayed: true, command_id: earlier.command_id, changes, frames: [], superseded: [] }
    }
  }
  for (const { agent_id } of args.executions) {
    const known = await run(tx.connection, (db) =>
      db.selectFrom('agents').select('agent_id').where('agent_id', '=', agent_id),
    )
    if (known.length === 0) return { outcome: 'unknown_agent', agent_id }
  }
  const [only] = args.executions
  if (args.offline === 'fail' && args.executions.length === 1 && only && !only.link) {
    return { outcome: 'agent_offline', agent_id: only.agent_id }
  }
  await insertCommand(tx, args)
  const changes: ExecutionChange[] = []
  const frames: CommandFrame[] = []
  const superseded: ExecutionChange[] = []
  for (const target of args.executions) {
    if (args.supersede_key !== null)
      superseded.push(...(await supersede(tx, target.agent_id, args.type.name, args.supersede_key)))
    const { change, frame } = await insertExecution(tx, args, target)
    changes.push(change)
    if (frame) frames.push(frame)
  }
  return { outcome: 'stored', replayed: false, command_id: args.command_id, changes, frames, superseded }
}

async function findIdempotent(tx: Tx, principal: string, key: string) {
  const [row] = await run(tx.connection, (db) =>
    db.selectFrom('idempotency_keys').selectAll().where('principal', '=', principal).where('key', '=', key),
  )
  return row && row.created_at > tx.now - LIMITS.idempotencyMs ? row : undefined
}

async function insertCommand(tx: Tx, args: SubmitArgs): Promise<void> {
  await run(tx.connection, (db) =>
    db.insertInto('commands').values({
      command_id: args.command_id,
      type: args.type.name,
      args: toJson(args.args),
      targets: toJson(args.targets),
      actor: args.actor,
      principal: args.principal,
      offline: args.offline,
      expires_in_s: args.expires_in_s,
      timeout_s: args.timeout_s,
      idempotency_key: args.idempotency_key,
      retry_of: args.retry_of,
      created_at: tx.now,
      total: args.executions.length,
    }),
  )
  if (args.idempotency_key === null) return
  const row = { request_hash: args.request_hash, command_id: args.command_id, created_at: tx.now }
  const key = { principal: args.principal, key: args.idempotency_key }
  await run(tx.connection, (db) =>
    db
      .insertInto('idempotency_keys')
      .values({ ...key, ...row })
      .onConflict((c) => c.columns(['principal', 'key']).doUpdateSet(row)),
  )
}

async function insertExecution(
  tx: Tx,
  args: SubmitArgs,
  target: SubmitArgs['executions'][number],
): Promise<{ change: ExecutionChange; frame: CommandFrame | null }> {
  const [agent] = await takeSeq(tx.connection, { agent_id: target.agent_id })
  if (!agent) throw new Error(`agent ${target.agent_id} vanished inside its own transaction`)
  const able = (JSON.parse(agent.command_types) as string[]).includes(args.type.name)
  const slot = able && target.link ? await freeSlot(tx, target.agent_id, args.type.lane) : null
  const timeoutMs = Math.round(args.timeout_s * 1000)
  const expiresAt = tx.now + Math.round(args.expires_in_s * 1000)
  const state = !able
    ? 'rejected'
    : slot !== null
      ? 'delivered'
      : args.offline === 'fail' && !target.link
        ? 'expired'
        : 'queued'
  const ended = state === 'rejected' || state === 'expired'
  const deadline = ended ? null : state === 'delivered' ? deliveredDeadline(tx.now, timeoutMs) : expiresAt
  const message = able
    ? 'the agent is away and the command said offline: "fail"'
    : `the agent does not know "${args.type.name}"`
  await run(tx.connection, (db) =>
    db.insertInto('executions').values({
      exec_id: target.exec_id,
      command_id: args.command_id,
      agent_id: target.agent_id,
      seq: agent.last_seq,
      type: args.type.name,
      lane: args.type.lane,
      state,
      slot,
      attempt: state === 'delivered' ? 1 : 0,
      ledger_id: state === 'delivered' ? (target.link?.ledger_id ?? null) : null,
      link_epoch: state === 'delivered' ? (target.link?.link_epoch ?? null) : null,
      cancel_no: 0,
      supersede_key: args.supersede_key,
      created_at: tx.now,
      delivered_at: state === 'delivered' ? tx.now : null,
      finished_at: ended ? tx.now : null,
      expires_at: expiresAt,
      timeout_ms: timeoutMs,
      deadline_at: deadline,
      due_at: state === 'delivered' ? tx.now + LIMITS.ackTimeoutMs : deadline,
      output_bytes: 0,
      output_truncated: 0,
      error_code: ended ? (able ? 'agent_offline' : 'unsupported') : null,
      error_message: ended ? JSON.stringify(message) : null,
      may_have_run: 0,
      confirmed: 0,
    }),
  )
  const change: ExecutionChange = {
    exec_id: target.exec_id,
    command_id: args.command_id,
    agent_id: target.agent_id,
    state,
  }
  if (state !== 'delivered' || !target.link) return { change, frame: null }
  const frame = {
    exec_id: target.exec_id,
    command_id: args.command_id,
    agent_id: target.agent_id,
    seq: agent.last_seq,
    lane: args.type.lane as Lane,
    type: args.type.name,
    args: args.args,
    attempt: 1,
    expires_at: expiresAt,
    timeout_ms: timeoutMs,
    link_epoch: target.link.link_epoch,
  }
  return { change, frame }
}

async function supersede(tx: Tx, agentId: string, type: string, key: string): Promise<ExecutionChange[]> {
  const rows = await run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .select(['exec_id', 'command_id', 'agent_id'])
      .where('agent_id', '=', agentId)
      .where('type', '=', type)
      .where('supersede_key', '=', key)
      .where('state', '=', 'queued'),
  )
  const error = { code: 'superseded', message: 'a newer command of this kind took its place', may_have_run: false }
  const closed = await Promise.all(rows.map((row) => closeExecution(tx, row, 'supersede', 'superseded', error)))
  return closed.flat()
}

async function executionBriefs(tx: Tx, commandId: string): Promise<ExecutionChange[]> {
  return run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .select(['exec_id', 'command_id', 'agent_id', 'state'])
      .where('command_id', '=', commandId)
      .orderBy('exec_id'),
  )
}

/** What an agent said about one execution, folded together when it came in one tick. */
export interface ReportArgs {
  agent_id: string
  exec_id: string
  link: ReadyLink
  accepted: boolean
  started: boolean
  progress: Progress | null
  result: ResultMessage | null
  cancel_refused: { cancel_no: number; reason: string } | null
}

export interface ReportOutcome {
  known: boolean
  changes: ExecutionChange[]
  frames: CommandFrame[]
  settled_below: number
}

/** Applies what an agent said. A result needs no ownership, only the state predicate (R17, R3). */
export async function report(tx: Tx, args: ReportArgs): Promise<ReportOutcome> {
  const [row] = await run(tx.connection, (db) =>
    db.selectFrom('executions').selectAll().where('exec_id', '=', args.exec_id).where('agent_id', '=', args.agent_id),
  )
  if (!row) return { known: false, changes: [], frames: [], settled_below: await floorOf(tx, args.agent_id) }
  const changes = await advance(tx, row, args)
  if (args.result) changes.push(...(await applyResult(tx, row, args.result)))
  const ended = changes.some((change) => isFinal(change.state))
  const claimed = ended ? await claimQueued(tx, args.link) : { changes: [], frames: [] }
  return {
    known: true,
    changes: [...changes, ...claimed.changes],
    frames: claimed.frames,
    settled_below: args.result ? await floorOf(tx, args.agent_id) : 0,
  }
}

async function advance(tx: Tx, row: ExecutionRow, args: ReportArgs): Promise<ExecutionChange[]> {
  const edge = args.started ? 'start' : args.accepted ? 'accept' : null
  const deadline = tx.now + row.timeout_ms + LIMITS.deadlineMarginMs
  const brief = { exec_id: row.exec_id, command_id: row.command_id, agent_id: row.agent_id }
  const changes: ExecutionChange[] = []
  if (edge) {
    const state = edge === 'start' ? 'running' : 'accepted'
    const moved = await run(tx.connection, (db) =>
      db
        .updateTable('executions')
        .set({
          state,
          accepted_at: row.accepted_at ?? tx.now,
          started_at: edge === 'start' ? tx.now : null,
          deadline_at: deadline,
          due_at: deadline,
        })
        .where('exec_id', '=', row.exec_id)
        .where('state', 'in', TRANSITIONS[edge].from)
        .returning('exec_id'),
    )
    if (moved.length > 0) changes.push({ ...brief, state })
    else if (row.state === 'canceling') await rememberCancelFrom(tx, row, state)
  }
  if (args.progress && !isFinal(row.state)) {
    await run(tx.connection, (db) =>
      db
        .updateTable('executions')
        .set({ progress: toJson(args.progress) })
        .where('exec_id', '=', row.exec_id),
    )
    if (changes.length === 0) changes.push({ ...brief, state: row.state })
  }
  if (args.cancel_refused && args.cancel_refused.cancel_no === row.cancel_no)
    changes.push(...(await cancelBack(tx, row)))
  return changes
}

/** An acknowledgement that crossed the cancel: a refusal then leads back to what is true by now. */
async function rememberCancelFrom(tx: Tx, row: ExecutionRow, state: 'accepted' | 'running'): Promise<void> {
  await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set({ cancel_from: state })
      .where('exec_id', '=', row.exec_id)
      .where('state', '=', 'canceling'),
  )
}

/** `canceling` did not come about: back to where the cancel found it. */
async function cancelBack(tx: Tx, row: ExecutionRow): Promise<ExecutionChange[]> {
  const back = row.cancel_from ?? 'running'
  const moved = await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set({ state: back, due_at: row.deadline_at })
      .where('exec_id', '=', row.exec_id)
      .where('state', 'in', TRANSITIONS.cancel_back.from)
      .returning('exec_id'),
  )
  return moved.length > 0
    ? [{ exec_id: row.exec_id, command_id: row.command_id, agent_id: row.agent_id, state: back }]
    : []
}

async function applyResult(tx: Tx, row: ExecutionRow, message: ResultMessage): Promise<ExecutionChange[]> {
  if (isFinal(row.state)) {
    if (row.result_hash !== message.hash && row.late_result === null) {
      await run(tx.connection, (db) =>
        db
          .updateTable('executions')
          .set({ late_result: toJson(message) })
          .where('exec_id', '=', row.exec_id),
      )
    }
    return []
  }
  const stored = {
    result: message.result === undefined ? 'null' : toJson(message.result),
    result_hash: message.hash,
    confirmed: 1 as const,
    agent_started_at: message.started_ms ?? null,
    agent_finished_at: message.finished_ms ?? null,
  }
  const error = message.error ? { ...message.error, may_have_run: message.error.code === 'interrupted' } : null
  if (message.status === 'cancelled') {
    // The agent ended it for a cancel whose time ran out here meanwhile: it passes through `canceling` again.
    if (row.state !== 'canceling' && row.cancel_no === 0) {
      const own = { code: 'cancelled', message: 'the agent cancelled it without being asked', may_have_run: true }
      return closeExecution(tx, row, 'result', 'failed', own, stored)
    }
    await run(tx.connection, (db) =>
      db
        .updateTable('executions')
        .set({ state: 'canceling' })
        .where('exec_id', '=', row.exec_id)
        .where('state', 'in', TRANSITIONS.cancel.from),
    )
    return closeExecution(tx, row, 'cancel_result', 'cancelled', error, stored)
  }
  return closeExecution(tx, row, 'result', message.status, error, stored)
}

/** R2's way back: the carrier proved that nothing was written on this link. */
export async function unsend(tx: Tx, args: { exec_id: string; link_epoch: number }): Promise<ExecutionChange[]> {
  const rows = await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set((eb) => ({ state: 'queued', slot: null, deadline_at: eb.ref('expires_at'), due_at: eb.ref('expires_at') }))
      .where('exec_id', '=', args.exec_id)
      .where('link_epoch', '=', args.link_epoch)
      .where('attempt', '=', 1)
      .where('state', 'in', TRANSITIONS.unsent.from)
      .returning(['exec_id', 'command_id', 'agent_id']),
  )
  return rows.map((row) => ({ ...row, state: 'queued' }))
}

export interface CancelOutcome {
  changes: ExecutionChange[]
  cancels: { exec_id: string; agent_id: string; seq: number; cancel_no: number; force: boolean }[]
  executions: ExecutionChange[]
}

/** Cancels what is open of a command, or one execution of it. Final ones stay as they are. */
export async function cancel(
  tx: Tx,
  args: { command_id: string; exec_id: string | null; force: boolean },
): Promise<CancelOutcome> {
  const rows = await run(tx.connection, (db) => {
    const query = db.selectFrom('executions').selectAll().where('command_id', '=', args.command_id)
    return args.exec_id === null ? query : query.where('exec_id', '=', args.exec_id)
  })
  const changes: ExecutionChange[] = []
  const cancels: CancelOutcome['cancels'] = []
  for (const row of rows) {
    if (isFinal(row.state)) continue
    const sent = row.state !== 'queued'
    const error = { code: 'cancelled', message: 'cancelled by an operator', may_have_run: sent }
    if (!sent) changes.push(...(await closeExecution(tx, row, 'cancel_queued', 'cancelled', error)))
    else if (args.force) changes.push(...(await closeExecution(tx, row, 'force', 'cancelled', error)))
    else changes.push(...(await startCancel(tx, row)))
    if (sent) {
      cancels.push({
        exec_id: row.exec_id,
        agent_id: row.agent_id,
        seq: row.seq,
        cancel_no: row.cancel_no + 1,
        force: args.force,
      })
    }
  }
  return { changes, cancels, executions: await executionBriefs(tx, args.command_id) }
}

async function startCancel(tx: Tx, row: ExecutionRow): Promise<ExecutionChange[]> {
  const again = row.state === 'canceling'
  await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set({
        state: 'canceling',
        cancel_no: row.cancel_no + 1,
        ...(again ? {} : { cancel_from: row.state as 'delivered' | 'accepted' | 'running' }),
        canceling_at: tx.now,
        due_at: Math.min(tx.now + LIMITS.cancelTimeoutMs, row.deadline_at ?? Number.MAX_SAFE_INTEGER),
      })
      .where('exec_id', '=', row.exec_id)
      .where('state', '=', row.state),
  )
  return again ? [] : [{ exec_id: row.exec_id, command_id: row.command_id, agent_id: row.agent_id, state: 'canceling' }]
}

export interface SweepOutcome {
  changes: ExecutionChange[]
  frames: CommandFrame[]
}

/**
 * Ends or moves on what is due (R9). `since` is when this hub, or its store, came back: an execution that was sent
 * waits for its agent to settle, or for the grace after that moment.
 */
export async function sweep(tx: Tx, args: { since: number; links: readonly ReadyLink[] }): Promise<SweepOutcome> {
  const links = new Map(args.links.map((link) => [link.agent_id, link]))
  const due = await run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .innerJoin('agents', 'agents.agent_id', 'executions.agent_id')
      .selectAll('executions')
      .select('agents.settled_at as settled_at')
      .where('due_at', '<=', tx.now)
      .orderBy('due_at')
      .limit(LIMITS.sweepRows),
  )
  const changes: ExecutionChange[] = []
  const frames: CommandFrame[] = []
  const freed = new Set<string>()
  for (const { settled_at: settledAt, ...row } of due) {
    const link = links.get(row.agent_id)
    const deadline = row.deadline_at ?? 0
    const settled = link !== undefined || (settledAt ?? 0) >= deadline
    const graceOver = tx.now >= Math.max(deadline, args.since) + LIMITS.settleGraceMs
    if (row.state === 'queued') {
      const error = { code: 'expired', message: 'it could not start in time', may_have_run: false }
      changes.push(...(await closeExecution(tx, row, 'expire', 'expired', error)))
    } else if (deadline <= tx.now && (settled || graceOver)) {
      const error = { code: 'deadline', message: 'no result by the end of its time', may_have_run: true }
      changes.push(...(await closeExecution(tx, row, 'deadline', 'timed_out', error)))
      freed.add(row.agent_id)
    } else if (row.state === 'canceling' && deadline > tx.now && link) {
      changes.push(...(await cancelBack(tx, row)))
    } else if (row.state === 'delivered' && link && row.attempt >= LIMITS.deliveryAttempts) {
      const error = { code: 'undeliverable', message: `no answer to ${row.attempt} deliveries`, may_have_run: true }
      changes.push(...(await closeExecution(tx, row, 'undeliverable', 'failed', error)))
      freed.add(row.agent_id)
    } else if (row.state === 'delivered' && link && row.ledger_id === link.ledger_id) {
      frames.push(await toFrame(tx, row, link))
    } else {
      await run(tx.connection, (db) =>
        db
          .updateTable('executions')
          .set({ due_at: tx.now + LIMITS.recheckMs })
          .where('exec_id', '=', row.exec_id),
      )
    }
  }
  // R18: what a submit queued while its agent's link was changing hands has nobody else to wake it.
  const waiting = await run(tx.connection, (db) =>
    db.selectFrom('executions').select('agent_id').distinct().where('state', '=', 'queued').limit(LIMITS.sweepRows),
  )
  for (const { agent_id } of waiting) freed.add(agent_id)
  for (const agentId of freed) {
    const link = links.get(agentId)
    if (!link) continue
    const claimed = await claimQueued(tx, link)
    changes.push(...claimed.changes)
    frames.push(...claimed.frames)
  }
  return { changes, frames }
}

export async function getCommand(tx: Tx, args: { command_id: string }): Promise<CommandRow | undefined> {
  const [row] = await run(tx.connection, (db) =>
    db.selectFrom('commands').selectAll().where('command_id', '=', args.command_id),
  )
  return row
}

/** Newest first; `before` is the last id of the page before. */
export async function listCommands(tx: Tx, args: { limit: number; before: string | null }): Promise<CommandRow[]> {
  return run(tx.connection, (db) => {
    const query = db.selectFrom('commands').selectAll().orderBy('command_id', 'desc').limit(args.limit)
    return args.before === null ? query : query.where('command_id', '<', args.before)
  })
}

export async function listExecutions(tx: Tx, args: { command_id: string }): Promise<ExecutionRow[]> {
  return run(tx.connection, (db) =>
    db.selectFrom('executions').selectAll().where('command_id', '=', args.command_id).orderBy('exec_id'),
  )
}

export async function getExecution(tx: Tx, args: { exec_id: string }): Promise<ExecutionRow | undefined> {
  const [row] = await run(tx.connection, (db) =>
    db.selectFrom('executions').selectAll().where('exec_id', '=', args.exec_id),
  )
  return row
}
