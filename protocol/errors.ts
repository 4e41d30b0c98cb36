/**
 * Every error code that leaves the hub or an agent, with the HTTP status it has where it is answered over HTTP,
 * and whether the same call may succeed later unchanged. docs/errors.md is made from this table.
 */
export const ERROR_CODES = {
  // Reading the request
  bad_json: { status: 400, retryable: false, meaning: 'The body is not the JSON that this path takes.' },
  bad_frame: {
    status: 400,
    retryable: false,
    meaning: 'A frame is not MessagePack or JSON, or is built to exhaust memory.',
  },
  bad_message: {
    status: 422,
    retryable: false,
    meaning: 'A message or body does not have the fields that its kind needs.',
  },
  unknown_message: { status: 422, retryable: false, meaning: 'The message type is not one that this end knows.' },
  too_big: { status: 413, retryable: false, meaning: 'A message or body is over its limit.' },
  not_found: { status: 404, retryable: false, meaning: 'There is nothing at this address.' },
  method_not_allowed: { status: 405, retryable: false, meaning: 'The path exists, but not with this method.' },
  // Who is asking
  unauthenticated: { status: 401, retryable: false, meaning: 'No credential was sent.' },
  invalid_token: { status: 403, retryable: false, meaning: 'The token is not known, has expired or was revoked.' },
  invalid_credential: { status: 401, retryable: false, meaning: 'The agent credential is not known.' },
  revoked: { status: 403, retryable: false, meaning: 'The credential was revoked or replaced.' },
  foreign_credential: { status: 403, retryable: false, meaning: 'The credential belongs to another agent id.' },
  missing_scope: {
    status: 403,
    retryable: false,
    meaning: 'The principal is known but lacks the scope that is named.',
  },
  bad_origin: { status: 403, retryable: false, meaning: 'A browser asked from an origin that is not allowed.' },
  // Enrolment and identity
  invalid_enrollment: {
    status: 403,
    retryable: false,
    meaning: 'The enrolment token is not known, is spent or has expired.',
  },
  agent_id_taken: {
    status: 409,
    retryable: false,
    meaning: 'The agent id belongs to another machine or another kind of agent.',
  },
  identity_conflict: {
    status: 409,
    retryable: false,
    meaning: 'The agent state is a clone or was rolled back (R5); enrol it anew.',
  },
  duplicate_identity: {
    status: 409,
    retryable: false,
    meaning: 'Two processes with one identity throw each other out.',
  },
  // Order of the handshake
  hello_expected: { status: 409, retryable: false, meaning: 'The first message of a link is hello.' },
  unexpected_hello: { status: 409, retryable: false, meaning: 'A link says hello once.' },
  not_ready: { status: 409, retryable: false, meaning: 'The message is legal only after ready.' },
  stale_link: {
    status: 409,
    retryable: false,
    meaning: 'A newer link of this agent exists; frames of the older one are dropped.',
  },
  // Commands
  unknown_command_type: { status: 422, retryable: false, meaning: 'No such command type.' },
  bad_args: { status: 422, retryable: false, meaning: 'The arguments do not fit the command type.' },
  bad_selector: { status: 422, retryable: false, meaning: 'The label selector cannot be read.' },
  no_targets: { status: 422, retryable: false, meaning: 'The targets name or match no agent.' },
  unknown_agent: { status: 404, retryable: false, meaning: 'The hub has never seen this agent.' },
  agent_offline: { status: 409, retryable: true, meaning: 'The agent is away and the command said offline: "fail".' },
  unknown_command: { status: 404, retryable: false, meaning: 'There is no such command.' },
  unknown_execution: {
    status: 404,
    retryable: false,
    meaning: 'There is no such execution, or it is not of this agent.',
  },
  already_final: { status: 409, retryable: false, meaning: 'The execution has ended; its state never changes again.' },
  cancel_refused: {
    status: 409,
    retryable: true,
    meaning: 'The agent goes on with the command; it can be asked again.',
  },
  nothing_to_retry: { status: 409, retryable: false, meaning: 'Every target succeeded or is still open.' },
  needs_force: {
    status: 409,
    retryable: false,
    meaning: 'The command may have run and its type is not repeatable; retry only with force.',
  },
  idempotency_conflict: { status: 409, retryable: false, meaning: 'The idempotency key was used with another body.' },
  // Why an execution ended without success
  unsupported: { status: 422, retryable: false, meaning: 'The agent does not know this command type.' },
  undeliverable: { status: 504, retryable: true, meaning: 'The agent never answered, in five deliveries.' },
  ledger_lost: {
    status: 500,
    retryable: false,
    meaning: 'The agent lost its ledger (reinstalled or damaged), so what was sent may have run.',
  },
  interrupted: {
    status: 500,
    retryable: false,
    meaning: 'The agent died while the command ran; it may have run in part.',
  },
  result_unstorable: {
    status: 500,
    retryable: false,
    meaning: 'The store refused the result; it is lost, the end is not.',
  },
  deadline: { status: 504, retryable: true, meaning: 'The command did not end in time.' },
  expired: { status: 504, retryable: true, meaning: 'The command could not start in time.' },
  expired_in_transit: { status: 504, retryable: true, meaning: 'The command arrived after its start-by time (R10).' },
  forgotten: {
    status: 409,
    retryable: false,
    meaning: 'The execution lies below the floor that the agent has forgotten (R7).',
  },
  ledger_unavailable: {
    status: 503,
    retryable: true,
    meaning: 'The agent cannot write its ledger, so it runs nothing.',
  },
  busy: { status: 503, retryable: true, meaning: 'The agent ledger or lane is full.' },
  cancelled: { status: 409, retryable: false, meaning: 'The command was cancelled.' },
  superseded: { status: 409, retryable: false, meaning: 'A newer command of the same type and file took its place.' },
  stale_revision: { status: 409, retryable: false, meaning: 'The agent has already applied a newer revision (R12).' },
  agent_deleted: {
    status: 410,
    retryable: false,
    meaning: 'The agent was removed from the hub while the command was open.',
  },
  handler_failed: {
    status: 500,
    retryable: false,
    meaning: 'The handler of the command failed; the message says why.',
  },
  // What handlers answer
  path_outside_sources: { status: 422, retryable: false, meaning: 'The path leads out of the agent sources.' },
  ambiguous_path: {
    status: 422,
    retryable: false,
    meaning: 'A relative path needs pipe_id where there are several sources.',
  },
  path_not_found: { status: 404, retryable: false, meaning: 'There is no such path on the agent.' },
  path_unreadable: { status: 403, retryable: false, meaning: 'The agent may not read the path.' },
  unknown_pipe: { status: 404, retryable: false, meaning: 'The agent has no such pipe.' },
  unknown_file: {
    status: 404,
    retryable: false,
    meaning: 'The agent knows one configuration file, and not by this name.',
  },
  pipe_failed: { status: 500, retryable: true, meaning: 'The pipe could not be started.' },
  bad_config: { status: 422, retryable: false, meaning: 'The configuration has errors; each is named with its place.' },
  // The hub itself
  rate_limited: {
    status: 429,
    retryable: true,
    meaning: 'Too many requests or messages; try again after the time given.',
  },
  overloaded: { status: 503, retryable: true, meaning: 'The hub has too much to do; nothing was stored.' },
  store_unavailable: { status: 503, retryable: true, meaning: 'The store is slow or away; nothing was stored.' },
  outcome_unknown: {
    status: 503,
    retryable: true,
    meaning: 'The store went away during the commit; look the id up before trying again.',
  },
  draining: { status: 503, retryable: true, meaning: 'This hub is shutting down.' },
  internal: { status: 500, retryable: true, meaning: 'Something is broken in the hub; its log has the request id.' },
} as const satisfies Record<string, { status: number; retryable: boolean; meaning: string }>

export type ErrorCode = keyof typeof ERROR_CODES

/** An error with a place in the table: what was wrong goes into `message`, written for the person who reads it. */
export class CodedError extends Error {
  override readonly name = 'CodedError'
  readonly code: ErrorCode
  readonly status: number
  readonly retryable: boolean
  readonly retryAfterS: number | undefined
  /** Further fields for the answer, such as the id of a command whose outcome is unknown. Never a secret. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(
    code: ErrorCode,
    message: string,
    options: { retryAfterS?: number; details?: Record<string, unknown> } = {},
  ) {
    super(message)
    this.code = code
    this.status = ERROR_CODES[code].status
    this.retryable = ERROR_CODES[code].retryable
    this.retryAfterS = options.retryAfterS
    this.details = options.details ?? {}
  }
}

/**
 * Why a socket was closed (protocol.md, Close codes). 4000-4499 mean "come back", 4500-4999 mean "do not".
 * 1006 is what a peer sees when the engine cut it: treat it as "come back".
 */
export const CLOSE_CODES = {
  going_away: 1001,
  too_big: 1009,
  bad_message: 4000,
  handshake_timeout: 4001,
  silent: 4002,
  too_slow: 4003,
  rate_limit: 4004,
  replaced: 4005,
  unavailable: 4006,
  revoked: 4501,
  forbidden: 4502,
  identity_conflict: 4503,
} as const satisfies Record<string, number>

export type CloseReason = keyof typeof CLOSE_CODES

/** Whether a peer closed with `code` should connect again. `replaced` means: only if not by a newer link of its own. */
export function mayReconnect(code: number): boolean {
  return code < 4500 || code > 4999
}
