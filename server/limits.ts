/** Every default of the hub, each with the reason for its number. Times in milliseconds, sizes in bytes. */
export const LIMITS = {
  /** A frame and its answer take milliseconds; a link that says nothing to a command for so long has lost it (commands.md). */
  ackTimeoutMs: 30_000,
  /** Deliveries before an execution is given up as undeliverable (commands.md). */
  deliveryAttempts: 5,
  /** The agent enforces `timeout` first; the hub waits so much longer before it does (R9). */
  deadlineMarginMs: 5_000,
  /** A cancel that the agent neither agrees to nor refuses ends so late (commands.md). */
  cancelTimeoutMs: 60_000,
  /** How long after its deadline, or after the hub's start, an execution waits for its agent to settle (R9). */
  settleGraceMs: 600_000,
  /** How often the sweep looks for what is due: deadlines are in seconds. */
  sweepMs: 1_000,
  /** Rows in one sweep, so that a backlog does not hold up commits. */
  sweepRows: 500,
  /** A row that waits for its agent is looked at again so much later. */
  recheckMs: 5_000,
  /** Open executions of one agent that a claim looks at; lanes hold five. */
  claimLookahead: 200,
  /** Start-by of a command that names none (commands.md). */
  expiresInS: 86_400,
  /** An idempotency key answers with its first command for so long (R13). */
  idempotencyMs: 86_400_000,
  /** A commit that has not come back after so long refuses new submits (R14). */
  slowCommitMs: 1_000,
  /** Operations that may wait for the store before new ones are refused (R14). */
  storeQueue: 20_000,
  /** Proxies cut idle sockets at 60 s (protocol.md). */
  pingS: 20,
  /** A link without hello or ready by then is closed. */
  handshakeMs: 10_000,
  /** Silence after which a link is given up (protocol.md, Presence). */
  offlineMs: 60_000,
  /** Messages a second of one link, and the burst above it (protocol.md). */
  messagesPerS: 200,
  messageBurst: 1_000,
  /** `?wait=` at most (commands.md). */
  waitS: 60,
  /** Body of an API call; a configuration file is 256 KiB, quoted as JSON. */
  apiBodyBytes: 1_048_576,
  /** A reader that lets so much pile up is closed with 4003; well under the engine's own limit, or the code is lost. */
  softBackpressureBytes: 262_144,
  hardBackpressureBytes: 4_194_304,
  /** An enrolment token that names no time to live. */
  enrollmentTtlMs: 86_400_000,
} as const
