import type { LiveAgent } from '../fleet/fleet.ts'
import type { AgentRow, CommandRow, ExecutionRow } from '../store/schema.ts'

const time = (ms: number | null) => (ms === null ? null : new Date(ms).toISOString())
const json = (text: string | null) => (text === null ? null : JSON.parse(text))

/** An agent as the API shows it: what the store knows, and what its live link says. */
export function showAgent(row: AgentRow, live: LiveAgent | undefined) {
  return {
    agent_id: row.agent_id,
    kind: row.kind,
    status: live?.link.alive ? 'online' : row.last_seen_at === null ? 'never_seen' : 'offline',
    carrier: row.link_carrier,
    client_ip: row.client_ip,
    version: row.version,
    hostname: json(row.hostname),
    platform: json(row.platform),
    labels: json(row.labels),
    command_types: json(row.command_types),
    config: { hash: row.config_hash, revision: row.config_revision },
    pipes: live?.pipes ?? [],
    host: live?.host ?? null,
    link_epoch: row.link_epoch,
    last_seen_at: time(live?.lastHeardAt ?? row.last_seen_at),
    last_reason: json(row.last_reason),
    identity_conflict: row.identity_conflict !== null,
  }
}

export function showCommand(row: CommandRow) {
  return {
    command_id: row.command_id,
    type: row.type,
    args: json(row.args),
    targets: json(row.targets),
    actor: row.actor,
    offline: row.offline,
    expires_in_s: row.expires_in_s,
    timeout_s: row.timeout_s,
    retry_of: row.retry_of,
    created_at: time(row.created_at),
    total: row.total,
  }
}

export function showExecution(row: ExecutionRow) {
  const error =
    row.error_code === null
      ? null
      : { code: row.error_code, message: json(row.error_message), may_have_run: row.may_have_run === 1 }
  return {
    exec_id: row.exec_id,
    command_id: row.command_id,
    agent_id: row.agent_id,
    seq: row.seq,
    type: row.type,
    state: row.state,
    attempt: row.attempt,
    created_at: time(row.created_at),
    delivered_at: time(row.delivered_at),
    accepted_at: time(row.accepted_at),
    started_at: time(row.started_at),
    finished_at: time(row.finished_at),
    deadline_at: time(row.deadline_at),
    progress: json(row.progress),
    result: json(row.result),
    error,
    confirmed: row.confirmed === 1,
    late_result: json(row.late_result),
  }
}
