import type { ColumnType, Generated, Selectable } from 'kysely'
import type { ExecutionState, Lane } from '../../protocol/commands.ts'

/**
 * The tables. Rules that hold for both databases: times are milliseconds since 1970 as integers, truth values are 0 and
 * 1, and every text that a stranger may have written is kept as JSON (which escapes U+0000: SQLite's C strings and
 * PostgreSQL's text both lose or refuse it).
 */
export interface Schema {
  meta: { key: string; value: string }
  agents: AgentsTable
  credentials: CredentialsTable
  enrollments: EnrollmentsTable
  tokens: TokensTable
  commands: CommandsTable
  idempotency_keys: IdempotencyKeysTable
  executions: ExecutionsTable
  outputs: OutputsTable
  audit: AuditTable
}

type Json = string
type Flag = 0 | 1
type Nullable<T> = ColumnType<T | null, T | null | undefined, T | null>

interface AgentsTable {
  agent_id: string
  /** `enrolled`, or `fustor` for an id that a receiver key opened first; an id never changes its kind. */
  kind: 'enrolled' | 'fustor'
  created_at: number
  /** What the agent said of itself in its last hello. */
  version: Nullable<string>
  hostname: Nullable<Json>
  platform: Nullable<Json>
  labels: Json
  command_types: Json
  config_hash: Nullable<string>
  config_revision: Nullable<number>
  boot_id: Nullable<string>
  /** R5: the ledger that the last `ready` came from, and the highest epoch it confirmed. */
  ledger_id: Nullable<string>
  confirmed_epoch: number
  /** Set while R5 refuses the identity; cleared by a new enrolment. */
  identity_conflict: Nullable<string>
  /** Highest epoch ever given out. */
  link_epoch: number
  /** R17: who holds the live link. */
  link_state: 'none' | 'welcomed' | 'ready'
  link_replica: Nullable<string>
  link_carrier: Nullable<string>
  link_id: Nullable<string>
  link_welcomed_at: Nullable<number>
  client_ip: Nullable<string>
  last_seen_at: Nullable<number>
  /** Why the last link ended, for people. */
  last_reason: Nullable<Json>
  /** R9: when the agent's ledger and the store last agreed on what is open. */
  settled_at: Nullable<number>
  /** R1: the last `seq` given out. */
  last_seq: number
}

interface CredentialsTable {
  credential_id: string
  agent_id: string
  /** SHA-256 of the credential. */
  hash: string
  state: 'pending' | 'active' | 'revoked'
  created_at: number
  activated_at: Nullable<number>
  revoked_at: Nullable<number>
  enrollment_id: Nullable<string>
  /** SHA-256 of the agent's enrolment key; the same key gets the same answer until the first `ready`. */
  enroll_key_hash: Nullable<string>
  /** The credential itself, sealed, only while it is `pending`. */
  sealed: Nullable<string>
}

interface EnrollmentsTable {
  enrollment_id: string
  hash: string
  name: string
  /** The one agent id that may use it; null: any new id. */
  agent_id: Nullable<string>
  labels: Json
  uses_left: number
  expires_at: number
  created_at: number
  created_by: string
  revoked_at: Nullable<number>
}

interface TokensTable {
  token_id: string
  hash: string
  name: string
  role: Nullable<string>
  scopes: Json
  /** Label selector that bounds which agents it may see and act on; null: all. */
  selector: Nullable<string>
  created_at: number
  created_by: string
  expires_at: Nullable<number>
  revoked_at: Nullable<number>
}

interface CommandsTable {
  command_id: string
  type: string
  args: Json
  targets: Json
  actor: string
  principal: string
  offline: 'queue' | 'fail'
  expires_in_s: number
  timeout_s: number
  idempotency_key: Nullable<string>
  retry_of: Nullable<string>
  created_at: number
  /** How many executions it has. */
  total: number
}

interface IdempotencyKeysTable {
  principal: string
  key: string
  request_hash: string
  command_id: string
  created_at: number
}

interface ExecutionsTable {
  exec_id: string
  command_id: string
  agent_id: string
  seq: number
  type: string
  lane: Lane
  state: ExecutionState
  /** The lane slot it holds while sent (R11); the unique index on it is what keeps a lane to its width. */
  slot: Nullable<number>
  attempt: number
  /** Where the last delivery went (R5). */
  ledger_id: Nullable<string>
  link_epoch: Nullable<number>
  cancel_no: number
  /** Where `canceling` came from, to go back there. */
  cancel_from: Nullable<'delivered' | 'accepted' | 'running'>
  supersede_key: Nullable<string>
  created_at: number
  delivered_at: Nullable<number>
  accepted_at: Nullable<number>
  started_at: Nullable<number>
  canceling_at: Nullable<number>
  finished_at: Nullable<number>
  /** The agent's clock: shown, never computed with. */
  agent_started_at: Nullable<number>
  agent_finished_at: Nullable<number>
  /** Must have started by. */
  expires_at: number
  timeout_ms: number
  /** When the present state ends by itself: start-by while queued, end-by once sent; null when final. */
  deadline_at: Nullable<number>
  /** When the sweep has to look next: the deadline, or an acknowledgement or cancel that is due earlier. */
  due_at: Nullable<number>
  progress: Nullable<Json>
  output_bytes: number
  output_truncated: Flag
  result: Nullable<Json>
  result_hash: Nullable<string>
  error_code: Nullable<string>
  error_message: Nullable<Json>
  may_have_run: Flag
  /** The end was proved by the agent (for stock agents: by an effect), not inferred. */
  confirmed: Flag
  /** A different result that came after the end. */
  late_result: Nullable<Json>
}

interface OutputsTable {
  exec_id: string
  stream: string
  offset_bytes: number
  data: Uint8Array
}

interface AuditTable {
  audit_id: Generated<number>
  at: number
  actor: string
  action: string
  target: Nullable<Json>
  outcome: 'allowed' | 'denied' | 'failed'
  code: Nullable<string>
  ip: Nullable<string>
  request_id: Nullable<string>
  details: Nullable<Json>
  prev_hash: string
  hash: string
}

export type AgentRow = Selectable<AgentsTable>
export type CredentialRow = Selectable<CredentialsTable>
export type EnrollmentRow = Selectable<EnrollmentsTable>
export type TokenRow = Selectable<TokensTable>
export type CommandRow = Selectable<CommandsTable>
export type ExecutionRow = Selectable<ExecutionsTable>
export type AuditRow = Selectable<AuditTable>
