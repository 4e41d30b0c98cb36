import {
  type FinalState,
  LANES,
  type Lane,
  OPEN_STATES,
  TRANSITIONS,
  type Transition,
} from '../../../protocol/commands.ts'
import type { ExecutionError } from '../../../protocol/messages.ts'
import { LIMITS } from '../../limits.ts'
import type { ExecutionRow } from '../schema.ts'
import { prepare, run } from '../sql.ts'
import type { Tx } from './tx.ts'

/** What changed, for dashboards and waiting callers. */
export interface ExecutionChange {
  exec_id: string
  command_id: string
  agent_id: string
  state: ExecutionRow['state']
}

/** What a carrier needs to deliver an execution. */
export interface CommandFrame {
  exec_id: string
  command_id: string
  agent_id: string
  seq: number
  lane: Lane
  type: string
  args: Record<string, unknown>
  attempt: number
  expires_at: number
  timeout_ms: number
  link_epoch: number
}

/** A live, ready link: where deliveries go (R5). */
export interface ReadyLink {
  agent_id: string
  link_epoch: number
  ledger_id: string
}

/** End-by of a delivery that nobody has answered: every redelivery may still come, and then it runs. */
export function deliveredDeadline(now: number, timeoutMs: number): number {
  return now + LIMITS.ackTimeoutMs * LIMITS.deliveryAttempts + timeoutMs + LIMITS.deadlineMarginMs
}

const laneRows = prepare<{ agent_id: string; lane: Lane }>()((db, bind) =>
  db
    .selectFrom('executions')
    .select(['state', 'slot'])
    .where('agent_id', '=', bind('agent_id'))
    .where('lane', '=', bind('lane'))
    .where('state', 'in', OPEN_STATES),
)

/** The slot that a new execution may take at once, or null where it has to queue behind others (R11). */
export async function freeSlot(tx: Tx, agentId: string, lane: Lane): Promise<number | null> {
  const rows = await laneRows(tx.connection, { agent_id: agentId, lane })
  if (rows.some((row) => row.state === 'queued')) return null
  const taken = new Set(rows.map((row) => row.slot))
  for (let slot = 1; slot <= LANES[lane].width; slot++) if (!taken.has(slot)) return slot
  return null
}

/** Claims what is queued for a ready link, in `seq` order within each lane, as many as the lanes hold (R11). */
export async function claimQueued(
  tx: Tx,
  link: ReadyLink,
): Promise<{ changes: ExecutionChange[]; frames: CommandFrame[] }> {
  const open = await run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .selectAll()
      .where('agent_id', '=', link.agent_id)
      .where('state', 'in', OPEN_STATES)
      .orderBy('seq')
      .limit(LIMITS.claimLookahead),
  )
  const changes: ExecutionChange[] = []
  const frames: CommandFrame[] = []
  for (const lane of Object.keys(LANES) as Lane[]) {
    const rows = open.filter((row) => row.lane === lane)
    const taken = new Set(rows.map((row) => row.slot).filter((slot) => slot !== null))
    for (const row of rows.filter((row) => row.state === 'queued' && row.expires_at > tx.now)) {
      let slot = 1
      while (taken.has(slot)) slot += 1
      if (slot > LANES[lane].width) break
      taken.add(slot)
      frames.push(await toFrame(tx, { ...row, slot }, link))
      changes.push({ exec_id: row.exec_id, command_id: row.command_id, agent_id: row.agent_id, state: 'delivered' })
    }
  }
  return { changes, frames }
}

/** Marks a row as maybe sent on this link (R2: before the write) and makes what the carrier will write. */
export async function toFrame(
  tx: Tx,
  row: ExecutionRow,
  link: { link_epoch: number; ledger_id: string },
): Promise<CommandFrame> {
  const edge: Transition = row.state === 'queued' ? 'claim' : 'redeliver'
  const deadline = deliveredDeadline(tx.now, row.timeout_ms)
  await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set({
        state: 'delivered',
        slot: row.slot,
        attempt: row.attempt + 1,
        ledger_id: link.ledger_id,
        link_epoch: link.link_epoch,
        delivered_at: row.delivered_at ?? tx.now,
        deadline_at: deadline,
        due_at: Math.min(tx.now + LIMITS.ackTimeoutMs, deadline),
      })
      .where('exec_id', '=', row.exec_id)
      .where('state', 'in', TRANSITIONS[edge].from),
  )
  const [command] = await run(tx.connection, (db) =>
    db.selectFrom('commands').select('args').where('command_id', '=', row.command_id),
  )
  return {
    exec_id: row.exec_id,
    command_id: row.command_id,
    agent_id: row.agent_id,
    seq: row.seq,
    lane: row.lane,
    type: row.type,
    args: JSON.parse(command?.args ?? '{}'),
    attempt: row.attempt + 1,
    expires_at: row.expires_at,
    timeout_ms: row.timeout_ms,
    link_epoch: link.link_epoch,
  }
}

/** Ends an execution by one compare-and-set on the edge's left side (R3). Answers the change, or nothing on a miss. */
export async function closeExecution(
  tx: Tx,
  row: Pick<ExecutionRow, 'exec_id' | 'command_id' | 'agent_id'>,
  edge: Transition,
  state: FinalState,
  error: ExecutionError | null,
  more: {
    result?: string
    result_hash?: string
    confirmed?: 0 | 1
    agent_started_at?: number | null
    agent_finished_at?: number | null
  } = {},
): Promise<ExecutionChange[]> {
  const changed = await run(tx.connection, (db) =>
    db
      .updateTable('executions')
      .set({
        ...more,
        state,
        slot: null,
        deadline_at: null,
        due_at: null,
        finished_at: tx.now,
        error_code: error?.code ?? null,
        error_message: error ? JSON.stringify(error.message) : null,
        may_have_run: error?.may_have_run ? 1 : 0,
      })
      .where('exec_id', '=', row.exec_id)
      .where('state', 'in', TRANSITIONS[edge].from)
      .returning('exec_id'),
  )
  if (changed.length === 0) return []
  return [{ exec_id: row.exec_id, command_id: row.command_id, agent_id: row.agent_id, state }]
}

/** R7: everything of this agent below it is final here, and will never be sent again. */
export async function floorOf(tx: Tx, agentId: string): Promise<number> {
  const [lowest] = await run(tx.connection, (db) =>
    db
      .selectFrom('executions')
      .select((eb) => eb.fn.min('seq').as('seq'))
      .where('agent_id', '=', agentId)
      .where('state', 'in', OPEN_STATES),
  )
  if (lowest && lowest.seq !== null) return Number(lowest.seq)
  const [agent] = await run(tx.connection, (db) =>
    db.selectFrom('agents').select('last_seq').where('agent_id', '=', agentId),
  )
  return (agent?.last_seq ?? 0) + 1
}
