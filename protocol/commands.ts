import { z } from 'zod'

/** The life of an execution (commands.md, States). Shared by hub, agent and dashboard; property-tested. */
export const EXECUTION_STATES = [
  'queued',
  'delivered',
  'accepted',
  'running',
  'canceling',
  'succeeded',
  'failed',
  'rejected',
  'timed_out',
  'expired',
  'cancelled',
  'superseded',
] as const

export type ExecutionState = (typeof EXECUTION_STATES)[number]

/** States in which bytes may have reached the agent and no end is known. They hold a lane slot. */
export const SENT_STATES = ['delivered', 'accepted', 'running', 'canceling'] as const

export const OPEN_STATES = ['queued', ...SENT_STATES] as const

export const FINAL_STATES = [
  'succeeded',
  'failed',
  'rejected',
  'timed_out',
  'expired',
  'cancelled',
  'superseded',
] as const
export type FinalState = (typeof FINAL_STATES)[number]

export function isFinal(state: ExecutionState): state is FinalState {
  return (FINAL_STATES as readonly string[]).includes(state)
}

/**
 * Every way a state may change, by the event that causes it. `from` is the predicate of the compare-and-set in the
 * store (R3). `canceling -> back` (refused, unanswered) goes to the state it came from, hence several rows in `to`.
 */
export const TRANSITIONS = {
  claim: { from: ['queued'], to: ['delivered'] },
  unsent: { from: ['delivered'], to: ['queued'] },
  redeliver: { from: ['delivered'], to: ['delivered'] },
  accept: { from: ['delivered'], to: ['accepted'] },
  start: { from: ['delivered', 'accepted'], to: ['running'] },
  result: { from: SENT_STATES, to: ['succeeded', 'failed', 'rejected', 'timed_out'] },
  /** The agent's own `cancelled`: it ends `canceling`, and only that (without a cancel it would be a lie). */
  cancel_result: { from: ['canceling'], to: ['cancelled'] },
  undeliverable: { from: ['delivered'], to: ['failed'] },
  ledger_lost: { from: SENT_STATES, to: ['failed'] },
  cancel: { from: ['delivered', 'accepted', 'running'], to: ['canceling'] },
  cancel_queued: { from: ['queued'], to: ['cancelled'] },
  cancel_back: { from: ['canceling'], to: ['delivered', 'accepted', 'running'] },
  deadline: { from: SENT_STATES, to: ['timed_out'] },
  expire: { from: ['queued'], to: ['expired'] },
  not_started: { from: ['delivered'], to: ['expired'] },
  supersede: { from: ['queued'], to: ['superseded'] },
  force: { from: OPEN_STATES, to: ['cancelled'] },
} as const satisfies Record<string, { from: readonly ExecutionState[]; to: readonly ExecutionState[] }>

export type Transition = keyof typeof TRANSITIONS

export function mayChange(from: ExecutionState, to: ExecutionState): boolean {
  return Object.values(TRANSITIONS).some(
    (edge) => (edge.from as readonly string[]).includes(from) && (edge.to as readonly string[]).includes(to),
  )
}

/** R11: one at a time in `seq` order in `control`, four at a time in `work`. */
export const LANES = { control: { width: 1 }, work: { width: 4 } } as const
export type Lane = keyof typeof LANES

const text = (max: number) => z.string().min(1).max(max)
const counters = z.record(z.string().max(64), z.number())

/** One command type, declared once; the API, the dashboard's form and the agent read it here. */
export interface CommandType {
  readonly name: string
  readonly lane: Lane
  /** One line for people: what it does. */
  readonly summary: string
  readonly args: z.ZodType<Record<string, unknown>>
  readonly result: z.ZodType
  /** Ends `timed_out` after so many seconds of running, unless the command says otherwise. */
  readonly timeoutS: number
  /** Running it twice does no harm: `retry` needs no force after `may_have_run`. */
  readonly repeatable: boolean
  /** A newer queued one with the same key for the same agent takes its place; null: never superseded. */
  supersedeKey(args: Record<string, unknown>): string | null
}

function commandType(
  type: Omit<CommandType, 'supersedeKey'> & { supersedeKey?: CommandType['supersedeKey'] },
): CommandType {
  return { supersedeKey: () => null, ...type }
}

const filename = text(128).regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]*\.ya?ml$/, 'a plain file name that ends in .yaml')
const configHash = z.string().regex(/^[0-9a-f]{64}$/)

const scanResultSchema = z.object({
  files: z.number(),
  directories: z.number(),
  bytes: z.number(),
  events: z.number(),
  elapsed_ms: z.number(),
  skipped: counters.optional(),
})

export const BUILT_IN_COMMANDS: readonly CommandType[] = [
  commandType({
    name: 'reload_config',
    lane: 'control',
    summary: 'Read agent.yaml again and start, stop or keep pipes accordingly.',
    args: z.strictObject({}),
    result: z.object({
      config_hash: configHash,
      pipes: z.object({ started: z.array(z.string()), stopped: z.array(z.string()), unchanged: z.array(z.string()) }),
    }),
    timeoutS: 300,
    repeatable: true,
  }),
  commandType({
    name: 'update_config',
    lane: 'control',
    summary: 'Replace agent.yaml, apply it, and put the old one back when its pipes do not come up.',
    args: z.strictObject({
      config_yaml: z.string().min(1).max(262_144),
      filename: filename.optional(),
      base_hash: configHash.optional(),
      revision: z.number().int().positive().optional(),
    }),
    result: z.object({ config_hash: configHash }),
    timeoutS: 300,
    repeatable: false,
    supersedeKey: (args) => String(args.filename ?? 'default.yaml'),
  }),
  commandType({
    name: 'upgrade',
    lane: 'control',
    summary: 'Install a release of the agent and restart into it.',
    args: z.strictObject({
      version: text(64).regex(/^[0-9A-Za-z][0-9A-Za-z.+_-]*$/, 'not a version'),
      sha256: configHash.optional(),
      size: z.number().int().positive().optional(),
    }),
    result: z.object({ from: z.string(), to: z.string() }),
    timeoutS: 1800,
    repeatable: false,
    supersedeKey: () => 'agent',
  }),
  commandType({
    name: 'start_pipe',
    lane: 'control',
    summary: 'Start a pipe of the agent.',
    args: z.strictObject({ pipe_id: text(64) }),
    result: z.object({ pipe_id: z.string(), state: z.string() }),
    timeoutS: 300,
    repeatable: true,
  }),
  commandType({
    name: 'stop_pipe',
    lane: 'control',
    summary: 'Stop a pipe of the agent.',
    args: z.strictObject({ pipe_id: text(64) }),
    result: z.object({ pipe_id: z.string(), state: z.string() }),
    timeoutS: 300,
    repeatable: true,
  }),
  commandType({
    name: 'scan',
    lane: 'work',
    summary: 'Walk a directory inside a source and count what is there.',
    args: z.strictObject({ path: text(4096), recursive: z.boolean().optional(), pipe_id: text(64).optional() }),
    result: scanResultSchema,
    timeoutS: 300,
    repeatable: true,
  }),
  commandType({
    name: 'report_config',
    lane: 'work',
    summary: 'Report agent.yaml with its secrets masked.',
    args: z.strictObject({ filename: filename.optional() }),
    result: z.object({ filename: z.string(), config_yaml: z.string(), config_hash: configHash }),
    timeoutS: 300,
    repeatable: true,
  }),
]

/** The types that one hub or agent knows; the built-in ones, and any that its owner adds. */
export type CommandTypes = ReadonlyMap<string, CommandType>

export function commandTypes(extra: readonly CommandType[] = []): CommandTypes {
  return new Map([...BUILT_IN_COMMANDS, ...extra].map((type) => [type.name, type]))
}
