import { z } from 'zod'
import { EXECUTION_STATES } from './commands.ts'
import { agentIdSchema, uuidSchema } from './ids.ts'

/**
 * Every message of the wire (protocol.md). A message is a map and `t` names it. Fields that nobody knows are ignored,
 * so either side may be older. Numbers are bounded here because everything an agent says is hostile input.
 */

export const SUBPROTOCOLS = { msgpack: 'fusion-hub.v1.msgpack', json: 'fusion-hub.v1.json' } as const
export type Codec = keyof typeof SUBPROTOCOLS

/** Sizes of protocol.md, shared because the sender should know before the receiver refuses. */
export const WIRE_LIMITS = {
  /** A message over this is answered `too_big` and the link closed with 1009. */
  messageBytes: 1_048_576,
  /** Above this the engine cuts without a word; the peer sees 1006. */
  engineBytes: 4_194_304,
  /** Kept per execution; what is over it is dropped and the output marked `truncated`. */
  outputBytes: 1_048_576,
  /** Messages in one frame. */
  frameMessages: 512,
  labels: 64,
  labelChars: 256,
  /** Items in one page of `open`. */
  openPage: 500,
} as const

const int = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const short = z.string().max(256)
const long = z.string().max(4096)
const execId = uuidSchema
const hash = z.string().max(128)

export const labelsSchema = z
  .record(z.string().min(1).max(WIRE_LIMITS.labelChars), z.string().max(WIRE_LIMITS.labelChars))
  .refine((labels) => Object.keys(labels).length <= WIRE_LIMITS.labels, `at most ${WIRE_LIMITS.labels} labels`)

export const pipeStatusSchema = z.object({
  id: z.string().min(1).max(64),
  state: z.string().max(64),
  source: short,
  sender: short,
  events_pushed: int,
  errors: int,
  last_error: long.optional(),
  /** What the source holds, as its last walk and the watcher say. Additions of ours; older agents leave them out. */
  events_seen: int.optional(),
  files: int.optional(),
  directories: int.optional(),
  bytes: int.optional(),
})
export type PipeStatus = z.infer<typeof pipeStatusSchema>

export const hostStatusSchema = z.object({
  /** Share of all cores in use, 0 to 1. */
  cpu: z.number().min(0).max(1),
  /** Share of memory in use, 0 to 1. */
  memory: z.number().min(0).max(1),
  uptime_s: z.number().min(0),
})
export type HostStatus = z.infer<typeof hostStatusSchema>

const errorBody = z.object({ code: z.string().max(64), message: long })

export const OPEN_ITEM_STATES = ['accepted', 'started', 'done', 'cancelled'] as const

export const helloSchema = z.object({
  t: z.literal('hello'),
  agent_id: agentIdSchema,
  /** New at each start of the process. */
  boot_id: uuidSchema,
  /** New when the ledger is created or was found damaged (R4). */
  ledger_id: uuidSchema,
  /** The highest epoch that this ledger has on disk; 0 for a new one. */
  last_link_epoch: int,
  /** The highest seq that this ledger has ever seen; 0 for none. */
  max_seq: int,
  version: short,
  hostname: short,
  platform: short,
  labels: labelsSchema,
  command_types: z.array(z.string().max(64)).max(256),
  config: z.object({ hash, revision: int.optional() }),
  pipes: z.array(pipeStatusSchema).max(1024),
  /** How many items `open` will list. */
  open_count: int,
})
export type Hello = z.infer<typeof helloSchema>

export const openSchema = z.object({
  t: z.literal('open'),
  items: z.array(z.object({ exec_id: execId, seq: int, state: z.enum(OPEN_ITEM_STATES) })).max(WIRE_LIMITS.openPage),
  last: z.boolean(),
})
export type OpenItem = z.infer<typeof openSchema>['items'][number]

export const progressBodySchema = z.object({
  n: int,
  phase: z.string().max(64),
  percent: z.number().min(0).max(100).optional(),
  message: long.optional(),
  counters: z
    .record(z.string().max(64), z.number())
    .refine((c) => Object.keys(c).length <= 64, 'at most 64 counters')
    .optional(),
})
export type Progress = z.infer<typeof progressBodySchema>

export const RESULT_STATUSES = ['succeeded', 'failed', 'rejected', 'timed_out', 'cancelled'] as const

export const resultSchema = z.object({
  t: z.literal('result'),
  exec_id: execId,
  status: z.enum(RESULT_STATUSES),
  result: z.unknown().optional(),
  error: errorBody.optional(),
  /** SHA-256 of the encoded outcome, made by the agent: tells a repeated result from a different one. */
  hash,
  /** The agent's clock, milliseconds since 1970: shown, never computed with. */
  started_ms: int.optional(),
  finished_ms: int.optional(),
})
export type ResultMessage = z.infer<typeof resultSchema>

const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array, 'not bytes')

/** Schemas of what an agent may say, by `t`. Sessions and events come with their issue; their names are taken. */
export const agentToHubSchemas = {
  hello: helloSchema,
  open: openSchema,
  ready: z.object({ t: z.literal('ready'), link_epoch: int }),
  ping: z.object({ t: z.literal('ping'), seq: int, config_hash: hash }),
  status: z.object({
    t: z.literal('status'),
    pipes: z.array(pipeStatusSchema).max(1024).optional(),
    host: hostStatusSchema.optional(),
  }),
  accepted: z.object({ t: z.literal('accepted'), exec_id: execId }),
  started: z.object({ t: z.literal('started'), exec_id: execId }),
  progress: progressBodySchema.extend({ t: z.literal('progress'), exec_id: execId }),
  output: z.object({
    t: z.literal('output'),
    exec_id: execId,
    stream: z.string().max(32),
    offset: int,
    data: z.union([z.string(), bytes]),
  }),
  result: resultSchema,
  cancel_reply: z.object({
    t: z.literal('cancel_reply'),
    exec_id: execId,
    cancel_no: int,
    outcome: z.enum(['agreed', 'refused']),
    reason: long.optional(),
  }),
  session_open: z.object({
    t: z.literal('session_open'),
    pipe_id: z.string().max(64),
    pipe_key: short,
    source_type: short,
    task_id: short,
    resume_session_id: uuidSchema.optional(),
  }),
  session_close: z.object({ t: z.literal('session_close'), session_id: uuidSchema, reason: short }),
  events: z.object({
    t: z.literal('events'),
    session_id: uuidSchema,
    epoch: int,
    batch_id: short,
    phase: z.string().max(64),
    is_end: z.boolean(),
    events: z.array(z.unknown()).max(10_000),
  }),
  bye: z.object({ t: z.literal('bye'), reason: short }),
  error: z.object({
    t: z.literal('error'),
    code: z.string().max(64),
    message: long,
    fatal: z.boolean().optional(),
    about: z.record(z.string(), z.string()).optional(),
  }),
} as const

type Messages<T extends Record<string, z.ZodType>> = { [K in keyof T]: z.infer<T[K]> }[keyof T]
export type AgentToHub = Messages<typeof agentToHubSchemas>

/** What a link tells the agent about the limits that it will be held to. */
export const linkLimitsSchema = z.object({
  message_bytes: int,
  output_bytes: int,
  messages_per_s: z.number(),
})

export const hubToAgentSchemas = {
  welcome: z.object({
    t: z.literal('welcome'),
    link_id: short,
    link_epoch: int,
    replica: short,
    ping_s: z.number().positive(),
    limits: linkLimitsSchema,
  }),
  pong: z.object({ t: z.literal('pong'), hub_ms: z.number().min(0) }),
  command: z.object({
    t: z.literal('command'),
    exec_id: execId,
    seq: int,
    lane: z.string().max(32),
    type: z.string().max(64),
    args: z.record(z.string(), z.unknown()),
    attempt: int,
    /** Must have started by so many milliseconds since this link's `welcome` (R10). */
    expires_hub_ms: z.number(),
    timeout_ms: int,
  }),
  cancel: z.object({ t: z.literal('cancel'), exec_id: execId, seq: int, cancel_no: int, force: z.boolean() }),
  result_ok: z.object({
    t: z.literal('result_ok'),
    exec_ids: z.array(execId).max(10_000),
    settled_below: int,
    unknown: z.boolean().optional(),
  }),
  session: z.object({
    t: z.literal('session'),
    session_id: uuidSchema,
    pipe_id: z.string().max(64),
    role: z.enum(['leader', 'follower']),
    epoch: int,
    need_snapshot: z.boolean(),
  }),
  events_ok: z.object({ t: z.literal('events_ok'), session_id: uuidSchema, batch_ids: z.array(short) }),
  reconnect: z.object({ t: z.literal('reconnect'), after_ms: int }),
  session_end: z.object({ t: z.literal('session_end'), session_id: uuidSchema, reason: short }),
  error: z.object({
    t: z.literal('error'),
    code: z.string().max(64),
    message: long,
    fatal: z.boolean(),
    about: z.record(z.string(), z.string()).optional(),
  }),
} as const
export type HubToAgent = Messages<typeof hubToAgentSchemas>

/** The answer to `POST /api/v1/agent/enroll`, and what it takes. */
export const enrollRequestSchema = z.object({
  token: z.string().min(1).max(256),
  agent_id: agentIdSchema.optional(),
  labels: labelsSchema.optional(),
  /** Random, made and kept by the agent before it asks: the same key gets the same answer until the first `ready`. */
  key: z.string().min(16).max(128),
})
export const enrollResponseSchema = z.object({ agent_id: agentIdSchema, credential: z.string() })

export const targetsSchema = z.union([
  z.strictObject({ agent_ids: z.array(agentIdSchema).min(1).max(20_000) }),
  z.strictObject({ selector: z.string().min(1).max(4096) }),
])
export type Targets = z.infer<typeof targetsSchema>

/** The fields that `run` and `POST /commands` share. */
export const commandRequestShape = {
  type: z.string().min(1).max(64),
  args: z.record(z.string(), z.unknown()).default({}),
  targets: targetsSchema,
  offline: z.enum(['queue', 'fail']).default('queue'),
  /** Must start within so many seconds. */
  expires_in_s: z
    .number()
    .positive()
    .max(30 * 86_400)
    .optional(),
  /** Must end within so many seconds of its start. */
  timeout_s: z
    .number()
    .positive()
    .max(7 * 86_400)
    .optional(),
} as const

const requestId = z.string().min(1).max(128)

/** Schemas of what a dashboard or a program may say on the operator socket, by `t`. */
export const operatorToHubSchemas = {
  run: z.object({
    t: z.literal('run'),
    request_id: requestId,
    ...commandRequestShape,
    follow: z.boolean().default(false),
  }),
  cancel: z
    .object({
      t: z.literal('cancel'),
      request_id: requestId,
      command_id: uuidSchema.optional(),
      exec_id: uuidSchema.optional(),
      force: z.boolean().default(false),
    })
    .refine(
      (m) => (m.command_id === undefined) !== (m.exec_id === undefined),
      'give command_id or exec_id, and not both',
    ),
  ping: z.object({ t: z.literal('ping'), seq: int }),
} as const
export type OperatorToHub = Messages<typeof operatorToHubSchemas>

const executionErrorSchema = z.object({ code: z.string(), message: z.string(), may_have_run: z.boolean() })
export type ExecutionError = z.infer<typeof executionErrorSchema>

const executionBrief = z.object({ exec_id: execId, agent_id: agentIdSchema, state: z.enum(EXECUTION_STATES) })

const hubToOperatorSchemas = {
  submitted: z.object({
    t: z.literal('submitted'),
    request_id: requestId,
    command_id: uuidSchema,
    executions: z.array(executionBrief),
  }),
  execution: executionBrief.extend({
    t: z.literal('execution'),
    command_id: uuidSchema,
    attempt: int,
    progress: progressBodySchema.optional(),
    result: z.unknown().optional(),
    error: executionErrorSchema.optional(),
  }),
  canceled: z.object({ t: z.literal('canceled'), request_id: requestId, executions: z.array(executionBrief) }),
  pong: z.object({ t: z.literal('pong'), seq: int }),
  error: z.object({
    t: z.literal('error'),
    request_id: z.string().optional(),
    code: z.string(),
    message: z.string(),
    retry_after_s: z.number().optional(),
  }),
} as const
export type HubToOperator = Messages<typeof hubToOperatorSchemas>
